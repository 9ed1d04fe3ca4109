"""Labels of splits that store them unlike: one class has one number in all, and what cannot be told is one line."""

import csv
import doctest
import gzip
import io
import json
import random
import tempfile
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tasks.labels
from tasks.classify import Classify, ClassifyConfig
from tasks.labelled import labelled_rows
from tasks.labels import name_classes


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_worked_examples():
    assert doctest.testmod(tasks.labels).failed == 0


STRING, INT, FLOAT, SINGLE = map(datasets.Value, ("string", "int64", "float64", "float32"))
BOOL, BYTES = datasets.Value("bool"), datasets.Value("binary")


def named(*names):
    return datasets.ClassLabel(names=list(names))


NEG_POS = named("neg", "pos")


@pytest.mark.parametrize(
    ("train", "test", "classes", "read"),
    [
        ((INT, [0, 1]), (FLOAT, [1.0, 0.0, float("nan")]), ["0", "1"], ["1", "0", ""]),
        ((INT, [0, 1]), (STRING, ["1.0", " 0 ", "nan", None, "NA"]), ["0", "1"], ["1", "0", "", "", ""]),
        ((FLOAT, [0.5, 2.0]), (STRING, ["2", "0.5"]), ["0.5", "2"], ["2", "0.5"]),
        ((SINGLE, [0.1, 0.2]), (STRING, ["0.1", "0.2"]), ["0.1", "0.2"], ["0.1", "0.2"]),
        (
            (STRING, ["1.1", "1.10"]),
            (STRING, ["1.10", "01.1", "1.1"]),
            ["01.1", "1.1", "1.10"],
            ["1.10", "01.1", "1.1"],
        ),
        ((BOOL, [True, False]), (STRING, ["true", "FALSE"]), ["False", "True"], ["True", "False"]),
        ((BYTES, [b"True", b"False"]), (INT, [0, 1]), ["0", "1"], ["0", "1"]),
        ((NEG_POS, [0, 1]), (named("pos", "neg"), [0, 1, -1]), ["neg", "pos"], ["pos", "neg", ""]),
        ((NEG_POS, [0, 1]), (named("neg", "pos", "new"), [0, 2]), ["neg", "pos", "new"], ["neg", "new"]),
        ((NEG_POS, [0, 1]), (STRING, ["pos", " neg", "Neg"]), ["neg", "pos"], ["pos", "neg", "neg"]),
        ((NEG_POS, [0, 1]), (FLOAT, [1.0, 0.0, -1.0]), ["neg", "pos"], ["pos", "neg", ""]),
        ((NEG_POS, [0, 1]), (STRING, ["1", "0"]), ["neg", "pos"], ["pos", "neg"]),
        ((NEG_POS, [0, 1]), (BOOL, [True, False]), ["neg", "pos"], ["pos", "neg"]),
        ((INT, [0, 1]), (NEG_POS, [1, 0]), ["neg", "pos"], ["pos", "neg"]),
        ((STRING, ["b", "a"]), (named("a", "b"), [0, 1]), ["a", "b"], ["a", "b"]),
        ((named("1", "2", "3"), [0, 1]), (INT, [1, 2, 3]), ["1", "2", "3"], ["1", "2", "3"]),
        ((named("1", "2", "3"), [0, 1]), (INT, [0, 1, 2]), ["1", "2", "3"], ["1", "2", "3"]),
        ((INT, [-1, 1]), (INT, [-1, 1]), ["-1", "1"], ["-1", "1"]),
        ((INT, [0, 1]), (INT, [1, -1]), ["0", "1"], ["1", ""]),
        ((STRING, ["none", "hate"]), (STRING, ["none", "hate"]), ["hate", "none"], ["none", "hate"]),
        ((BYTES, ["größe".encode(), b"x"]), (BYTES, ["größe".encode("cp1252"), b"x"]), ["größe", "x"], ["größe", "x"]),
        ((STRING, ["Pos", "neg"]), (STRING, ["POS", "Neg"]), ["Pos", "neg"], ["Pos", "neg"]),
        ((STRING, ["a", "A"]), (STRING, ["A", "a"]), ["A", "a"], ["A", "a"]),
    ],
)
def test_labels_of_two_splits(train, test, classes, read):
    found = name_classes({"train": train, "test": test}, "label")
    assert found.names == classes
    assert [found.of("test", label) for label in test[1]] == read
    assert found.unlabelled == []


def test_what_differs_in_case_alone_is_told():
    joined = name_classes({"train": (STRING, ["Pos", "neg"]), "test": (STRING, ["POS", "neg"])}, "label")
    assert joined.remarks == ["labels that differ only in case are one class: 'Pos', 'POS'"]
    apart = name_classes({"train": (STRING, ["a", "A"]), "test": (STRING, ["A"])}, "label")
    assert apart.remarks == ["labels that differ only in case are two classes or more: 'A', 'a'"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((INT, [0, 1]), (STRING, ["a", "b"]), "classes of train .* of test, got 'a', 'b'; train has '0', '1'"),
        ((INT, [1]), (INT, [0, 1]), "at least two classes in the column 'label' of train, got '1'"),
        (
            (named("1", "2", "3"), [0]),
            (INT, [1, 2]),
            "got '1', '2' in .* numbers or names of the classes '1', '2', '3'",
        ),
        ((NEG_POS, [0, 1, 2]), (INT, [1]), "labels below 2, the number of classes, got 2"),
    ],
)
def test_labels_that_nobody_can_tell(train, test, message):
    with pytest.raises(ValueError, match=message):
        name_classes({"train": train, "test": test}, "label")


def test_numbers_beside_names_of_two_orders():
    columns = {"train": (NEG_POS, [0, 1]), "validation": (named("pos", "neg"), [0, 1]), "test": (INT, [0, 1])}
    with pytest.raises(ValueError, match="which may be numbers or names"):
        name_classes(columns, "label")


def save(folder, splits):
    """Splits of (feature, labels), each with texts of its own."""
    parts = {}
    for split, (feature, labels) in splits.items():
        features = datasets.Features(text=STRING, label=feature)
        texts = [f"{split} {n}" for n in range(len(labels))]
        parts[split] = datasets.Dataset.from_dict({"text": texts, "label": labels}, features)
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return str(folder)


def classes_of(task, split):
    """{text: class} of a split."""
    whole = task.whole(split)
    texts = [bytes(row[row > 0] - 1).decode() for row in whole.inputs.astype("uint8")]
    return dict(zip(texts, [task.about["classes"][target] for target in whole.targets], strict=True))


@pytest.mark.parametrize("feature", [NEG_POS, INT])
def test_a_test_split_without_labels_is_carved(feature, tmp_path):
    splits = {"train": (feature, [0, 1] * 100), "validation": (feature, [0, 1] * 10), "test": (feature, [-1] * 20)}
    task = Classify(64, ClassifyConfig(data=save(tmp_path / "glue", splits)))
    assert {text.partition(" ")[0] for text in classes_of(task, "test")} == {"train"}
    assert task.size("validation") == 20
    task.prepare()
    assert task.notes() == ["no row of the test split has a class: 10% of train replaces it"]


def test_validation_is_the_test_split_on_request(tmp_path):
    splits = {"train": (NEG_POS, [0, 1] * 100), "dev": (NEG_POS, [0, 1] * 10), "test": (NEG_POS, [-1] * 20)}
    data = save(tmp_path / "glue", splits)
    for name in ("validation", "dev"):
        task = Classify(64, ClassifyConfig(data=data, test_split=name))
        assert classes_of(task, "test") == {f"dev {n}": ("neg", "pos")[n % 2] for n in range(20)}
        assert {text.partition(" ")[0] for text in classes_of(task, "validation")} == {"train"}
        assert task.notes() == [
            "the test scores are those of the validation split, as requested",
            "no validation split in the data: 10% of train replaces it",
        ]
    assert task.cache_key != Classify(64, ClassifyConfig(data=data)).cache_key
    for name, message in {
        "train": r"expected a test_split of the data \(validation, test\), got 'train'",
        "heldout": r"expected a test_split of the data \(validation, test\), got 'heldout'",
        "test": "expected classes in the test_split test, got none",
    }.items():
        with pytest.raises(ValueError, match=message):
            Classify(64, ClassifyConfig(data=data, test_split=name)).prepare()


def test_a_split_of_other_columns_is_refused(tmp_path):
    train = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(40)], "label": [0, 1] * 20})
    for test, message in {
        "lists": ({"text": [["a"]], "label": [0]}, r"strings or bytes in the column 'text' of test, got List"),
        "numbers": ({"text": [1], "label": [0]}, r"strings or bytes in the column 'text' of test, got Value"),
        "label lists": ({"text": ["a"], "label": [[0]]}, r"one class in each row of the column 'label' of test"),
        "other name": (
            {"text": ["a"], "stars": [0]},
            r"as in train, got text, stars in test: rename the column of the class \(stars\) to 'label'",
        ),
    }.values():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        datasets.DatasetDict({"train": train, "test": datasets.Dataset.from_dict(test)}).save_to_disk(str(folder))
        with pytest.raises(ValueError, match=message):
            Classify(64, ClassifyConfig(data=str(folder))).prepare()


def test_a_split_of_any_name_can_be_tested_on(tmp_path):
    splits = {"train": (INT, [0, 1] * 60), "validation_mismatched": (INT, [0, 1] * 10)}
    task = Classify(64, ClassifyConfig(data=save(tmp_path / "mnli", splits), test_split="validation_mismatched"))
    assert set(classes_of(task, "test")) == {f"validation_mismatched {n}" for n in range(20)}


def test_a_test_file_without_the_column_of_the_class(tmp_path):
    rows = [[n, f"text {n}", n % 2] for n in range(120)]
    for name, kept in {"train.csv": 3, "test.csv": 2}.items():
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([["id", "text", "label"][:kept], *(row[:kept] for row in rows)])
    task = Classify(64, ClassifyConfig(data=str(tmp_path)))
    assert "no row of the test split has a class: 10% of train replaces it" in task.notes()
    assert sum(task.size(split) for split in ("train", "validation", "test")) == 120


def test_a_class_that_a_split_never_has_is_told(tmp_path):
    splits = {"train": (INT, [0, 1, 2] * 60), "validation": (INT, [0, 1, 2] * 5), "test": (INT, [0, 1, 3] * 5)}
    task = Classify(64, ClassifyConfig(data=save(tmp_path / "data", splits)))
    task.prepare()
    assert task.notes() == [
        "no row of train has the class '3'",
        "no row of validation has the class '3'",
        "no row of test has the class '2'",
    ]


NUMBERS, NAMES = ("int", "float", "text", "spaced"), ("name", "upper")
CLASSES = ["négatif", "positif", "mixte"]


def stored_as(label, kind, own, shared):
    """A class as a split of this kind stores it.

    own: the order of the classes where the split names them. shared: that of the split that does, which numbers follow.
    """
    number = shared.index(CLASSES[label])
    return {
        "int": number,
        "float": float(number),
        "text": str(number),
        "spaced": f" {number} ",
        "bool": bool(number),
        "name": CLASSES[label],
        "upper": CLASSES[label].upper(),
        "class": own.index(CLASSES[label]) if own else None,
    }[kind]


FEATURES = {"int": INT, "float": FLOAT, "bool": BOOL}


def is_certain(kinds, orders):
    """Whether labels of these kinds have one reading alone."""
    kinds = set(kinds)
    if kinds <= {*NAMES, "class"}:
        return True
    if kinds & set(NAMES):
        return False
    return "class" not in kinds or len(set(map(tuple, orders))) == 1


HARD = ["", ", or", "; and", " | so", ' "quoted" ', "\ttab", "\nline", " é", ' ",";', " 'x", "\\"]


@st.composite
def data_sets(draw):
    """A layout, and for each split what kind of labels it has and how its file is written."""
    layout = draw(st.sampled_from(["file", "files", "folders", "saved"]))
    splits = ["train"] if layout == "file" else draw(st.sampled_from([["train", "test"], ["train", "dev", "test"]]))
    n_classes = draw(st.integers(2, 3))
    arrow = layout == "saved"
    kinds = [*NUMBERS, *NAMES, *(["bool"] if n_classes == 2 else [])]
    written = {}
    for split in splits:
        suffix = ".saved" if arrow else draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet"]))
        has_names = suffix in (".saved", ".parquet")
        kind = draw(st.sampled_from([*kinds, *(["class"] if has_names else [])]))
        written[split] = {
            "suffix": suffix,
            "kind": kind,
            "order": draw(st.permutations(CLASSES[:n_classes])) if kind == "class" else None,
            "separator": draw(st.sampled_from(",;\t|")),
            "encoding": "utf-8" if has_names else draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])),
            "packed": not has_names and draw(st.booleans()),
            "header": draw(st.sampled_from([("text", "label"), ("Text", " LABEL ")])),
            "missing": draw(st.booleans()),
            "flipped": draw(st.booleans()),
        }
    return layout, n_classes, written, draw(st.integers(0, 2**32))


def write_split(base, rows, how):
    """Write (text, label) rows; None = no label."""
    text, label = how["header"]
    suffix, encoding = how["suffix"], how["encoding"]
    if suffix in (".saved", ".parquet"):
        feature = datasets.ClassLabel(names=how["order"]) if how["order"] else FEATURES.get(how["kind"], STRING)
        columns = {text: [row[0] for row in rows], label: [row[1] for row in rows]}
        table = datasets.Dataset.from_dict(columns, datasets.Features({text: STRING, label: feature}))
        table.save_to_disk(str(base)) if suffix == ".saved" else table.to_parquet(f"{base}.parquet")
        return
    order = [1, 0] if how["flipped"] else [0, 1]
    if suffix in (".csv", ".tsv"):
        out = io.StringIO(newline="")
        shown = [("" if label is None else label for label in row) for row in map(list, rows)]
        lines = [[text, label], *map(list, shown)]
        csv.writer(out, delimiter=how["separator"]).writerows([line[n] for n in order] for line in lines)
        contents = out.getvalue()
    else:
        objects = [{(text, label)[n]: row[n] for n in order} for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in objects]
        contents = "\n".join(lines) if suffix == ".jsonl" else json.dumps({"data": objects}, ensure_ascii=False)
    data = contents.encode(encoding)
    if how["packed"]:
        Path(f"{base}{suffix}.gz").write_bytes(gzip.compress(data, 1))
    else:
        Path(f"{base}{suffix}").write_bytes(data)


def check(case):
    """The classes are right, or one line says what is wrong; where the labels have one reading, they are right."""
    layout, n_classes, written, seed = case
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch, "hf")
        folder = Path(scratch, "[data]")
        folder.mkdir()
        truth, left_out = {}, 0
        orders = [how["order"] for how in written.values() if how["order"]]
        for split, how in written.items():
            rows = []
            for n in range(24 if split == "train" else 8):
                text, label = f"{split}{n}{rng.choice(HARD)}", n % n_classes
                missing = how["missing"] and rng.random() < 0.2 and n >= n_classes
                rows.append(
                    (text, None if missing else stored_as(label, how["kind"], how["order"], [*orders, CLASSES][0]))
                )
                left_out += missing
                if not missing:
                    stored = text.encode("cp1252" if how["encoding"] == "cp1252" else "utf-8")
                    truth[stored] = label
            if layout == "folders":
                (folder / split).mkdir()
            write_split(folder / split / "part" if layout == "folders" else folder / split, rows, how)
        data = next(folder.iterdir()) if layout == "file" else folder
        certain = is_certain([how["kind"] for how in written.values()], orders)
        refusal = ""
        try:
            found = labelled_rows(str(data), "classify", text_column="", label_column="", encode=list)
            rows = {row["ids"]: found.classes[row["label"]] for part in found.splits.values() for row in part.rows}
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert not certain, refusal
            assert refusal.startswith("classify: ")
            assert "\n" not in refusal
            return
        assert set(rows) == set(truth)
        assert found.left_out["without a class"] == left_out
        if certain:
            names = {(truth[text], name) for text, name in rows.items()}
            assert len(names) == n_classes == len({name for _, name in names})
            assert len(found.classes) == n_classes


FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=25, **FUZZ)
@given(data_sets())
def test_any_files_give_right_classes_or_one_line(case):
    check(case)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=500, **FUZZ)
@given(data_sets())
def test_many_files_give_right_classes_or_one_line(case):
    check(case)


ODD = [None, True, False, 0, 1, -1, 1.0, 0.5, -0.0, float("nan"), float("inf"), 10**30, "a", "A", "", " ", "nan", "NA"]
ODD += ["1", "1.0", "true", "é", "\ud800", "1e400", [1], [], {"x": 1}, {}, "two\nlines"]


@settings(max_examples=25, **FUZZ)
@given(st.lists(st.sampled_from(range(len(ODD))), min_size=1, max_size=4), st.lists(st.sampled_from(range(len(ODD)))))
def test_labels_of_any_type_are_classes_or_one_line(trained, tested):
    """What a split of two or more classes has is read, what is not is told."""
    with tempfile.TemporaryDirectory() as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch, "hf")
        data = Path(scratch, "data")
        data.mkdir()
        for split, values in {"train": trained * 8, "test": tested}.items():
            lines = [json.dumps({"text": f"{split} {n}", "label": ODD[value]}) for n, value in enumerate(values)]
            (data / f"{split}.jsonl").write_text("\n".join(lines) or "[]")
        rows, refusal = 0, ""
        try:
            found = labelled_rows(str(data), "classify", text_column="", label_column="", encode=list)
            for part in found.splits.values():
                rows += sum(found.classes[row["label"]] != "" for row in part.rows)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert refusal.startswith("classify: ")
            assert "\n" not in refusal
        else:
            assert len(set(found.classes)) == len(found.classes) >= 2
            unread = len(tested) if "test" in found.unlabelled else 0
            assert rows + found.left_out["without a class"] + unread == 8 * len(trained) + len(tested)
