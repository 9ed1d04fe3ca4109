"""Pictures as pixels and patches: every value where it belongs, and what is said of pictures that do not fit."""

import doctest
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import tasks.image
from tasks.base import SPLITS
from tasks.image import Image, ImageConfig, deal
from tests.learning import learns, small_spec
from tests.task_cases.image import noise, png, table


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def save(folder: Path, **splits: datasets.Dataset) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def open_image(data: str, seq_len: int = 1024) -> Image:
    return Image(seq_len, ImageConfig(data=data))


def restore(task: Image, split: str) -> list[bytes]:
    """The colours of a split's pictures, from its patches of 2 x 2."""
    inputs = np.rint((open_image(task.config.data, 256).whole(split).inputs + 1) * 127.5).astype(np.uint8)
    pictures = np.zeros((len(inputs), 32, 32, 3), np.uint8)
    for number in range(256):
        row, column = 2 * (number // 16), 2 * (number % 16)
        pictures[:, row : row + 2, column : column + 2] = inputs[:, number].reshape(-1, 2, 2, 3)
    return [picture.tobytes() for picture in pictures]


def test_worked_example():
    assert doctest.testmod(tasks.image) == (0, 4)


def test_pixels_are_the_nearest_gray_plus_one(tmp_path):
    images, labels = noise(20, 3)
    images[4], images[5] = 0, 255
    task = open_image(save(tmp_path / "data", train=table(*noise(40, 4)), test=table(images, labels)))
    batch = task.whole("test")
    exact = images.astype(float) @ [0.2989, 0.5870, 0.1140]
    assert np.abs(batch.inputs - 1 - exact.reshape(20, 1024)).max() <= 0.5 + 1e-9
    assert (batch.inputs[4] == 1).all()
    assert (batch.inputs[5] == 256).all()
    assert task.vocab_size == 257
    assert batch.targets.tolist() == labels.tolist()
    assert (task.n_features, task.n_classes) == (None, 4)


@pytest.mark.parametrize(("seq_len", "size"), [(16, 8), (64, 4), (256, 2)])
def test_patches_hold_the_colours_of_their_square(tmp_path, seq_len, size):
    images, labels = noise(9, 5)
    task = open_image(save(tmp_path / "data", train=table(*noise(40, 6)), test=table(images, labels)), seq_len)
    inputs = task.whole("test").inputs
    assert (task.vocab_size, task.n_features) == (None, 3 * size * size)
    assert inputs.shape == (9, seq_len, 3 * size * size)
    assert inputs.dtype == np.float32
    assert -1 <= inputs.min() < inputs.max() <= 1
    for sample, row, column, colour in np.ndindex(9, 32, 32, 3):
        patch = (row // size) * (32 // size) + column // size
        feature = ((row % size) * size + column % size) * 3 + colour
        assert inputs[sample, patch, feature] == pytest.approx(
            images[sample, row, column, colour] / 127.5 - 1, abs=1e-6
        )


def test_cifar_gives_a_tenth_of_train_to_validation():
    dealt = deal({"train": 50_000, "test": 10_000})
    assert list(dealt) == ["test", "validation", "train"]
    assert dealt["test"] == ("test", list(range(10_000)))
    (source, validation), (other, train) = dealt["validation"], dealt["train"]
    assert source == other == "train"
    assert len(validation) == 5_000
    assert sorted(validation + train) == list(range(50_000))
    in_tenths = np.histogram(validation, 10, (0, 50_000))[0]
    assert in_tenths.min() > 400
    assert deal({"train": 50_000, "test": 10_000}) == dealt


def test_splits_that_are_there_are_kept_and_the_others_carved():
    assert deal({"train": 3, "validation": 2, "test": 1}) == {
        "test": ("test", [0]),
        "validation": ("validation", [0, 1]),
        "train": ("train", [0, 1, 2]),
    }
    dealt = deal({"train": 100})
    assert {source for source, _ in dealt.values()} == {"train"}
    assert [len(numbers) for _, numbers in dealt.values()] == [10, 10, 80]
    assert sorted(chain.from_iterable(numbers for _, numbers in dealt.values())) == list(range(100))


def test_labels_stay_with_their_images_when_splits_are_carved(tmp_path):
    images, labels = noise(100, 7)
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    task = open_image(save(tmp_path / "data", train=table(images, labels)))
    met = Counter()
    for split in SPLITS:
        for picture, target in zip(restore(task, split), task.whole(split).targets, strict=True):
            assert label_of[picture] == target
            met[picture] += 1
    assert met == Counter(label_of.keys())
    assert task.notes() == [
        f"no {split} split in {tmp_path / 'data'}: 10% of train replaces it" for split in ("test", "validation")
    ]


def test_copies_are_left_out_of_train_first_and_counted(tmp_path):
    images, labels = noise(60, 8)
    tested, answers = noise(20, 9)
    validated, found = noise(10, 10)
    images[3] = validated[2] = tested[6]
    images[4] = validated[5]
    images[5] = images[6]
    data = save(
        tmp_path / "data", train=table(images, labels), validation=table(validated, found), test=table(tested, answers)
    )
    task = open_image(data)
    task.prepare()
    assert {split: task.size(split) for split in SPLITS} == {"train": 57, "validation": 9, "test": 20}
    assert open_image(data, 16).notes() == ["left out: 4 exact copies of other images"]


def test_splits_whose_classes_have_another_order_are_refused(tmp_path):
    parts = {"train": (["cat", "dog"], noise(40, 12)), "test": (["dog", "cat"], noise(10, 13))}
    tables = {
        split: table(images, labels % 2).cast_column("label", datasets.ClassLabel(names=names))
        for split, (names, (images, labels)) in parts.items()
    }
    with pytest.raises(
        ValueError, match=r"same names and order in every split of .*, got different ones in test and train"
    ):
        open_image(save(tmp_path / "data", **tables)).prepare()


def test_lengths_share_one_cache(tmp_path, monkeypatch):
    data = save(tmp_path / "data", train=table(*noise(40, 11)))
    open_image(data, 1024).prepare()
    monkeypatch.setattr(Image, "build", lambda _: pytest.fail("built again"))
    assert open_image(data, 16).size("train") == 32


def test_changed_files_are_read_again(tmp_path):
    table(*noise(40, 12)).to_parquet(tmp_path / "a.parquet")
    before = open_image(str(tmp_path / "a.parquet")).cache_key
    table(*noise(41, 12)).to_parquet(tmp_path / "a.parquet")
    assert open_image(str(tmp_path / "a.parquet")).cache_key != before


def test_without_data_it_asks_the_hub_for_cifar(monkeypatch):
    def opened(data, what):
        assert (data, what) == ("uoft-cs/cifar10", "image")
        return {"train": table(*noise(40, 13)), "test": table(*noise(9, 14))}

    monkeypatch.setattr(tasks.image, "open_splits", opened)
    task = Image(64)
    assert {split: task.size(split) for split in SPLITS} == {"train": 36, "validation": 4, "test": 9}
    assert task.provenance()["source"] == "uoft-cs/cifar10"


class TestFormats:
    """The same pictures however they are kept."""

    @pytest.fixture
    def images(self):
        return noise(40, 15)

    @pytest.fixture
    def expected(self, images):
        return {image.tobytes() for image in images[0]}

    def check(self, data: Path, expected):
        task = open_image(str(data))
        assert {picture for split in SPLITS for picture in restore(task, split)} == expected

    def test_plain_parquet_of_structs(self, images, expected, tmp_path):
        files = [{"bytes": png(image), "path": None} for image in images[0]]
        rows = pa.table({"img": files, "label": pa.array(images[1])})
        pa.parquet.write_table(rows, tmp_path / "x.parquet")
        self.check(tmp_path / "x.parquet", expected)

    def test_plain_parquet_of_bytes(self, images, expected, tmp_path):
        rows = pa.table({"image": [png(image) for image in images[0]], "label": pa.array(images[1]), "id": range(40)})
        pa.parquet.write_table(rows, tmp_path / "x.parquet")
        self.check(tmp_path / "x.parquet", expected)

    def test_folder_of_the_hub(self, images, expected, tmp_path):
        rows = table(*images)
        (tmp_path / "data" / "plain_text").mkdir(parents=True)
        rows.select(range(30)).to_parquet(tmp_path / "data" / "plain_text" / "train-00000-of-00001.parquet")
        rows.select(range(30, 40)).to_parquet(tmp_path / "data" / "plain_text" / "test-00000-of-00001.parquet")
        self.check(tmp_path / "data", expected)
        assert open_image(str(tmp_path / "data")).whole("test").targets.tolist() == images[1][30:].tolist()

    def test_folder_of_picture_files(self, images, expected, tmp_path):
        for number, (image, label) in enumerate(zip(*images, strict=True)):
            file = tmp_path / "data" / f"class {label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
        self.check(tmp_path / "data", expected)

    def test_gray_pictures_are_gray_in_colour(self, images, tmp_path):
        gray = images[0][..., 0]
        data = save(tmp_path / "data", train=table(*images), test=table(gray, images[1]))
        expected = [np.repeat(image[..., None], 3, axis=2).tobytes() for image in gray]
        assert restore(open_image(data), "test") == expected


def test_labels_are_numbered_without_gaps(tmp_path):
    images, labels = noise(40, 16)
    sparse = np.array([7, 20, 300, 90_000])
    files = [{"bytes": png(image), "path": None} for image in images]
    pa.parquet.write_table(pa.table({"img": files, "label": sparse[labels]}), tmp_path / "x.parquet")
    task = open_image(str(tmp_path / "x.parquet"))
    assert task.n_classes == 4
    assert Counter(label for split in SPLITS for label in task.labels(split).tolist()) == Counter(labels.tolist())


def rows_of(images, **columns):
    """A data set of pictures and other columns than the hub's."""
    return datasets.Dataset.from_dict({"img": [{"bytes": png(i), "path": None} for i in images], **columns})


def cut(file: bytes) -> bytes:
    return file[: len(file) // 2]


GOOD, LABELS = noise(20, 17)
BAD = {
    "size": (
        table([*GOOD[:-1], GOOD[0][:, :28]], LABELS),
        "image: expected images of 32x32 pixels, got 28x32 (image 19 of train of DATA): resize them first",
    ),
    "no label": (
        rows_of(GOOD, kind=LABELS, id=LABELS),
        "image: expected columns img (or image) and label in train of DATA, got img, kind, id",
    ),
    "no image": (
        rows_of(GOOD, label=LABELS).rename_column("img", "photo"),
        "image: expected columns img (or image) and label in train of DATA, got photo, label",
    ),
    "one class": (
        rows_of(GOOD, label=[3] * 20),
        "image: expected two classes or more in train of DATA, got 3",
    ),
    "words for labels": (
        rows_of(GOOD, label=["cat", "dog"] * 10),
        "image: expected whole numbers from 0 in the column label of train of DATA, got 'cat' for image 0",
    ),
    "no label known": (
        rows_of(GOOD, label=[0, 1] * 9 + [1, -1]),
        "image: expected whole numbers from 0 in the column label of train of DATA, got -1 for image 19",
    ),
    "numbers for images": (
        datasets.Dataset.from_dict({"img": [1.5] * 20, "label": LABELS}),
        "image: expected images in the column img of train of DATA, got Value('float64')",
    ),
    "a file cut short": (
        datasets.Dataset.from_dict({"img": [png(i) for i in GOOD[1:]] + [cut(png(GOOD[0]))], "label": LABELS}),
        "image: cannot decode image 19 of train of DATA: OSError",
    ),
    "an image missing": (
        datasets.Dataset.from_dict({"img": [png(i) for i in GOOD[1:]] + [None], "label": LABELS}),
        "image: image 19 of train of DATA is missing: remove its row",
    ),
}


@pytest.mark.parametrize("problem", BAD)
def test_bad_data_is_told_in_one_line(problem, tmp_path):
    rows, message = BAD[problem]
    data = save(tmp_path / "data", train=rows, test=table(*noise(9, 18)))
    with pytest.raises(ValueError, match="^" + re.escape(message.replace("DATA", data))):
        open_image(data).prepare()
    assert not list((tmp_path / "cache").iterdir())


def test_a_column_missing_in_test_alone(tmp_path):
    data = save(tmp_path / "data", train=table(GOOD, LABELS), test=table(GOOD, LABELS).rename_column("label", "class"))
    with pytest.raises(ValueError, match=r"label in test of .*, got img, class$"):
        open_image(data).prepare()


def test_a_length_between_is_refused():
    with pytest.raises(ValueError, match=r"^image: expected seq_len among 16, 64, 256, 1024, got 100$"):
        Image(100)


def test_baselines_tell_bright_from_dark_but_not_more(tmp_path):
    rng = np.random.default_rng(19)
    labels = rng.choice(3, size=400, p=[0.5, 0.3, 0.2])
    images = rng.integers(0, 80, size=(400, 32, 32, 3), dtype=np.uint8)
    images[labels == 2] += 120  # classes 0 and 1 look the same
    data = save(tmp_path / "data", train=table(images[:300], labels[:300]), test=table(images[300:], labels[300:]))
    scores = open_image(data).baselines()
    assert scores["majority"] == np.mean(labels[300:] == 0)
    assert 0.5 < scores["logistic regression"] < 0.85
    told = scores["logistic regression"] - np.mean(labels[300:] == 2)
    assert told > 0.25  # all of class 2, and half of the rest
    assert open_image(data, 16).baselines() == scores


def coloured(count: int, seed: int):
    """Pictures of a square somewhere in noise; its colour is the class."""
    images, labels = noise(count, seed)
    rng = np.random.default_rng(seed)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [110, 110, 110]])
    for image, label, (row, column) in zip(images, labels, rng.integers(0, 20, (count, 2)), strict=True):
        image[row : row + 12, column : column + 12] = colours[label] + rng.integers(-50, 50, (12, 12, 3))
    return images, labels


@pytest.mark.slow
def test_a_small_model_learns_from_patches(tmp_path):
    data = save(tmp_path / "data", train=table(*coloured(800, 20)), test=table(*coloured(200, 21)))
    score, baseline = learns(small_spec("image", 64, {"data": data}, steps=60))
    assert baseline < 0.6
    assert score > 0.8
