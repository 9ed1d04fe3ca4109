"""Texts with one class each: columns, labels, duplicates, and the parts that are carved from train."""

from collections import Counter

import datasets
import numpy as np
import pytest

from tasks.labelled import deal, pick_columns
from tasks.labels import in_order
from tests.test_sources import everything, numbered, read, write_csv


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def test_missing_parts_are_carved_from_train_by_the_text(tmp_path):
    train, test, validation = (numbered(size, split) for size, split in ((3000, "a"), (50, "b"), (60, "c")))
    everywhere = {text.encode() for text, _ in train}
    for split, rows in {"train": train, "test": test, "validation": validation}.items():
        (tmp_path / "all").mkdir(exist_ok=True)
        write_csv(tmp_path / "all" / f"{split}.csv", rows)
    cases = {"train": ("train",), "no test": ("train", "validation"), "no validation": ("train", "test")}
    for name, kept in cases.items():
        (tmp_path / name).mkdir()
        for split in kept:
            write_csv(tmp_path / name / f"{split}.csv", {"train": train, "test": test, "validation": validation}[split])
        rows, found = read(tmp_path / name)
        texts = {split: {text for text, _ in part} for split, part in rows.items()}
        carved = {"validation", "test"} - set(kept)
        assert set(found.carved) == carved
        assert set().union(*(texts[split] for split in ("train", *carved))) == everywhere
        for split in carved:
            assert len(texts[split]) == pytest.approx(300, abs=60)
            assert found.splits[split].count == 300
        for split in set(kept) - {"train"}:
            assert len(texts[split]) == {"test": 50, "validation": 60}[split]
        assert sum(map(len, texts.values())) == len(set().union(*texts.values()))


def test_where_a_text_lands_does_not_depend_on_what_else_is_there(tmp_path):
    rows = numbered(400)
    few, _ = read(write_csv(tmp_path / "few.csv", rows[:200]))
    many, _ = read(write_csv(tmp_path / "many.csv", rows[::-1]))
    for split in few:
        assert set(few[split]) <= set(many[split])


def test_the_deal_is_even_and_fixed():
    shares = np.array([deal(b"%d" % n) for n in range(20_000)])
    assert np.abs(np.histogram(shares, 10, (0, 1))[0] / 2_000 - 1).max() < 0.1
    assert deal(b"fixed") == 0.911173896305808


def test_of_duplicates_the_one_in_test_stays(tmp_path):
    parts = {
        "train": [("in all", 0), ("in train and validation", 1), ("twice", 0), ("twice", 1), ("train", 1)],
        "validation": [("in all", 0), ("in train and validation", 0), ("validation", 1)],
        "test": [("in all", 1), ("in all", 1), ("test", 0)],
    }
    for split, rows in parts.items():
        write_csv(tmp_path / f"{split}.csv", rows)
    rows, found = read(tmp_path)
    assert rows == {
        "test": [(b"in all", "1"), (b"test", "0")],
        "validation": [(b"in train and validation", "0"), (b"validation", "1")],
        "train": [(b"twice", "0"), (b"train", "1")],
    }
    assert +found.left_out == Counter({"duplicate": 5})


@pytest.mark.parametrize("carved", [True, False])
def test_empty_texts_and_rows_without_a_class_are_left_out_and_counted_once(tmp_path, carved):
    rows = {"text": [None, "", "", "no class", "nor here", *(f"text {n}" for n in range(50))]}
    rows["label"] = ["a", "b", "a", None, "", *("ab"[n % 2] for n in range(50))]
    made = datasets.Dataset.from_dict(rows)
    parts = {"train": made} if carved else {"train": made, "test": made.select(range(5, 9)), "dev": made.select([9])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    read_rows, found = everything(tmp_path / "saved")
    assert len(read_rows) == 50
    assert +found.left_out == Counter({"empty": 3, "without a class": 2}) + Counter(duplicate=0 if carved else 5)


def test_what_the_encoding_leaves_empty_counts_as_empty(tmp_path):
    write_csv(tmp_path / "data.csv", [("...", 0), *numbered(20)])
    _, found = everything(tmp_path / "data.csv", encode=lambda texts: [text.strip(b".") for text in texts])
    assert found.left_out["empty"] == 1


@pytest.mark.parametrize(
    ("labels", "feature", "classes"),
    [
        ([10, 9, -3], datasets.Value("int64"), ["-3", "9", "10"]),
        ([True, False, None], datasets.Value("bool"), ["False", "True"]),
        ([0.5, 2.0, float("nan")], datasets.Value("float32"), ["0.5", "2.0"]),
        (["b ", "a", "b"], datasets.Value("string"), ["a", "b"]),
        ([b"b", b"\xff", b""], datasets.Value("binary"), ["b", "ÿ"]),
        ([1, 0, -1], datasets.ClassLabel(names=["zoo", "ape", "never"]), ["zoo", "ape", "never"]),
    ],
)
def test_labels_of_every_type(tmp_path, labels, feature, classes):
    texts = [f"text {n}" for n in range(30)]
    features = datasets.Features(text=datasets.Value("string"), label=feature)
    datasets.Dataset.from_dict({"text": texts, "label": labels * 10}, features).save_to_disk(str(tmp_path / "saved"))
    rows, found = everything(tmp_path / "saved")
    assert found.classes == classes
    of_text = {text.decode(): name for text, name in rows}
    for text, label in zip(texts, labels * 10, strict=True):
        if isinstance(feature, datasets.ClassLabel):
            assert of_text.get(text) == (classes[label] if label >= 0 else None)
        elif label is None or label != label or not str(label).strip() or label == b"":
            assert text not in of_text
        else:
            assert of_text[text] in (str(label).strip(), "ÿ" if label == b"\xff" else "b")
    assert len(rows) + found.left_out["without a class"] == 30


def test_the_order_of_class_names():
    assert in_order({"1", "10", "2", "-1.5"}) == ["-1.5", "1", "2", "10"]
    assert in_order({"1", "b", "10"}) == ["1", "10", "b"]


STRING, NUMBER, CLASSES = datasets.Value("string"), datasets.Value("int64"), datasets.ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("features", "given", "picked"),
    [
        ({"text": STRING, "label": NUMBER}, ("", ""), ("text", "label")),
        ({"id": STRING, "sentence": STRING, "target": STRING}, ("", ""), ("sentence", "target")),
        ({"n": NUMBER, "body": datasets.Value("binary"), "class": CLASSES}, ("", ""), ("body", "class")),
        ({"text": STRING, "title": STRING, "stars": NUMBER}, ("title", "stars"), ("title", "stars")),
        ({"label": STRING, "labels": NUMBER}, ("label", ""), ("label", "labels")),
    ],
)
def test_columns_are_found(features, given, picked):
    assert pick_columns(features, *given, "classify") == picked


@pytest.mark.parametrize(
    ("features", "given", "message"),
    [
        ({"a": STRING, "label": NUMBER}, ("text", ""), "expected a column 'text', got the columns a, label"),
        ({"a": STRING, "label": NUMBER}, ("", "stars"), "expected a column 'stars', got the columns a, label"),
        ({"a": STRING, "b": NUMBER}, ("", ""), "class, named by --label-column, got none; columns: a, b"),
        (
            {"a": STRING, "b": STRING, "label": NUMBER},
            ("", ""),
            "text, named by --text-column, got none; columns: a, b, label",
        ),
        ({"a": NUMBER, "label": NUMBER}, ("", ""), "text, named by --text-column, got none; columns: a, label"),
        ({"a": NUMBER, "label": NUMBER}, ("a", ""), "strings or bytes, got 'a'"),
        ({"a": STRING, "label": STRING}, ("label", "label"), "got 'label', the column of the class"),
        ({"a": STRING, "label": datasets.List(NUMBER)}, ("", ""), "one class in each row of the column 'label'"),
    ],
)
def test_columns_that_cannot_be_found_name_those_there(features, given, message):
    with pytest.raises(ValueError, match=message):
        pick_columns(features, *given, "classify")
