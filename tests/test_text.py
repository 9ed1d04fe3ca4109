"""Film reviews as bytes, against the data set they were read from."""

import doctest
import hashlib

import datasets
import numpy as np
import pytest

import tasks.text
from tasks.text import Text, TextConfig
from tests.learning import learns, small_spec
from tests.task_cases.text import FEATURES, imdb


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


@pytest.fixture
def source(tmp_path):
    made = imdb(train=300, test=60)
    made.save_to_disk(str(tmp_path / "imdb"))
    return made


@pytest.fixture
def data(tmp_path, source):
    return TextConfig(data=str(tmp_path / "imdb"))


def decoded(task, split):
    """(text, class) of a split, from its batch."""
    whole = task.whole(split)
    return [
        ((ids[ids > 0] - 1).astype(np.uint8).tobytes(), int(target))
        for ids, target in zip(whole.inputs, whole.targets, strict=True)
    ]


def test_worked_example():
    assert doctest.testmod(tasks.text).failed == 0


@pytest.mark.parametrize("seq_len", [64, 100, 4000])
def test_reviews_are_their_first_bytes(seq_len, source, data):
    task = Text(seq_len, data)
    expected = [(t.encode()[:seq_len], n) for t, n in zip(source["test"]["text"], source["test"]["label"], strict=True)]
    assert decoded(task, "test") == expected
    expected = [
        (t.encode()[:seq_len], n) for t, n in zip(source["train"]["text"], source["train"]["label"], strict=True)
    ]
    assert sorted(decoded(task, "train") + decoded(task, "validation")) == sorted(expected)
    assert task.size("validation") == pytest.approx(30, abs=15)


def test_lengths_and_padding_are_those_of_the_reviews(source, data):
    task = Text(64, data)
    lengths = np.minimum([len(text.encode()) for text in source["test"]["text"]], 64)
    assert task.sample_lengths("test").tolist() == lengths.tolist()
    assert (~task.whole("test").padding).sum(axis=1).tolist() == lengths.tolist()


def test_reviews_that_are_cut_are_counted(source, data):
    lengths = np.array([len(text.encode()) for part in source.values() for text in part["text"]])
    for seq_len in (64, 150):
        cut = np.count_nonzero(lengths > seq_len)
        assert 0 < cut < len(lengths)
        assert f"{cut} of 360 texts are longer than {seq_len}: cut" in Text(seq_len, data).notes()
    assert Text(1000, data).notes() == ["no validation split in the data: 10% of train replaces it"]


def test_one_cache_serves_every_length(source, data, monkeypatch):
    Text(64, data).prepare()
    monkeypatch.setattr(Text, "build", lambda _: pytest.fail("built again"))
    assert Text(200, data).size("test") == 60


def test_provenance_names_the_test_set(source, data):
    found = Text(64, data).provenance()
    texts, labels = source["test"]["text"][:], source["test"]["label"][:]
    digest = hashlib.sha256(np.array(labels, np.int64).tobytes())
    for text in texts:
        digest.update(f"{len(text.encode())} {text}".encode())
    assert found["test_sha256"] == digest.hexdigest()
    assert found["test_classes"] == f"neg {labels.count(0)}, pos {labels.count(1)}"
    assert (found["test_samples"], found["train_samples"] + found["validation_samples"]) == (60, 300)


def test_baselines_by_hand(source, data):
    scores = Text(1000, data).baselines()
    labels = source["test"]["label"][:]
    assert scores["majority"] in (np.mean(labels), 1 - np.mean(labels))
    telling = {b"awful": 0, b"dull": 0, b"great": 1, b"moving": 1}
    by_word = [
        next(telling[word] for word in text.encode().split() if word in telling) for text in source["test"]["text"]
    ]
    assert scores["hashed words"] == pytest.approx(np.mean(np.array(by_word) == labels), abs=0.15)
    assert scores["hashed words"] > scores["majority"] + 0.1


def test_baselines_see_what_the_encoder_sees(tmp_path):
    """The telling word stands behind the cut."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400).tolist()
    texts = [f"{n:064d} {'great' if label else 'awful'}" for n, label in zip(rng.permutation(400), labels, strict=True)]
    made = datasets.Dataset.from_dict({"text": texts, "label": labels}, FEATURES)
    made.save_to_disk(str(tmp_path / "behind"))
    config = TextConfig(data=str(tmp_path / "behind"))
    assert Text(4000, config).baselines()["hashed words"] == 1
    assert Text(64, config).baselines()["hashed words"] < 0.75


def test_other_data_must_have_its_columns_and_two_classes(tmp_path):
    made = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(30)], "label": [0, 1, 2] * 10})
    made.save_to_disk(str(tmp_path / "three"))
    with pytest.raises(
        ValueError, match=r"^text.data: expected two classes, got 3 in the column label: use --task classify$"
    ):
        Text(64, TextConfig(data=str(tmp_path / "three"))).prepare()
    made.rename_column("text", "review").save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="expected a column 'text', got the columns review, label"):
        Text(64, TextConfig(data=str(tmp_path / "other"))).prepare()


def test_without_data_it_asks_the_hub(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    assert Text(64).cache_key.startswith("stanfordnlp--imdb-")
    with pytest.raises(ValueError, match="hf download --repo-type dataset stanfordnlp/imdb --local-dir imdb"):
        Text(64).prepare()


@pytest.mark.slow
def test_a_small_model_learns(tmp_path):
    imdb(train=3000, test=500).save_to_disk(str(tmp_path / "imdb"))
    score, _ = learns(small_spec("text", 64, {"data": str(tmp_path / "imdb")}, steps=60))
    assert score > 0.75
