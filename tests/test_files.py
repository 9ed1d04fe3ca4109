"""Files as people have them: any separator, encoding, shape and place gives the same texts and classes, or one line."""

import bz2
import csv
import doctest
import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

import tasks.folders
import tasks.layouts
from tasks.classify import Classify, ClassifyConfig
from tasks.folders import files_below, files_by_split, split_of
from tasks.labelled import labelled_rows
from tasks.layouts import is_quoted, separator_of
from tasks.sources import fingerprint, named_splits, open_splits

ROWS = [(f"{n}: é, or; not | so", ("bad", "good")[n % 2]) for n in range(40)]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(data, **options):
    """{text: class} of each split, and what the reading found."""
    given = {"text_column": "", "label_column": "", "encode": list} | options
    found = labelled_rows(str(data), "classify", **given)
    rows = {
        split: {row["ids"]: found.classes[row["label"]] for row in source.rows}
        for split, source in found.splits.items()
    }
    return rows, found


def everything(data, **options):
    rows, _ = read(data, **options)
    return {text: name for part in rows.values() for text, name in part.items()}


def expected(rows=ROWS, encoding="utf-8"):
    return {text.encode(encoding): name for text, name in rows}


def as_csv(rows=ROWS, header=("text", "label"), **dialect):
    out = io.StringIO(newline="")
    writer = csv.writer(out, **dialect)
    writer.writerows([header, *rows])
    return out.getvalue()


def as_lines(rows=ROWS):
    return "".join(json.dumps({"text": text, "label": name}, ensure_ascii=False) + "\n" for text, name in rows)


def test_worked_examples():
    assert doctest.testmod(tasks.folders).failed == doctest.testmod(tasks.layouts).failed == 0


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(separator, suffix, tmp_path):
    file = tmp_path / f"data{suffix}"
    file.write_text(as_csv(delimiter=separator), encoding="utf-8", newline="")
    assert everything(file) == expected()


def test_a_separator_that_does_not_divide_all_rows_alike_is_asked_for(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("text;label\n" + "".join(f"a; b {n};{n % 2}\n" for n in range(9)))
    with pytest.raises(ValueError, match=r"got one column in .*data.csv: if ';' separates them, quote the texts"):
        read(file)


def test_the_usual_separator_wins_where_two_would_do():
    assert separator_of("a,b;c\n1,2;3\n", ",", "x") == ","
    assert separator_of("a;b,c\n1;2,3\n", "\t", "x") == ","
    assert separator_of("text\na,b\nc\n", ",", "x") == ","


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_quoted_line_ends_between_tabs(quoting, tmp_path):
    rows = [(f'{n}\nsays\t"so"\n{"x" * 900}', str(n % 2)) for n in range(40)]
    file = tmp_path / "data.tsv"
    file.write_text(as_csv(rows, delimiter="\t", quoting=quoting), encoding="utf-8", newline="")
    assert everything(file) == expected(rows)


def test_quotes_that_are_letters():
    for line in ('he said "so"\t1\n', '"open\t1\n', '"\t1\n', '"all of it"\t1\n', '"a" b\t1\n'):
        assert not is_quoted("text\tlabel\n" + line * 3)
    for line in ('"a\tb"\t1\n', '"a\nb"\t1\n', '"a ""b"""\t1\n'):
        assert is_quoted("text\tlabel\n" + line * 3)
    assert is_quoted('"text"\t"label"\n"a"\t"1"\n')


def test_a_long_file_is_told_quoted_from_its_start():
    rows = 'text\tlabel\n"first\nsecond"\t1\n' + f'"{"word " * 200}\n"\t0\n' * 1100
    assert is_quoted(rows[: tasks.layouts.SAMPLE])
    assert separator_of(rows[: tasks.layouts.SAMPLE], "\t", "x") == "\t"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1"])
@pytest.mark.parametrize("write", [as_csv, as_lines])
def test_encodings(write, encoding, tmp_path):
    rows = [(text, ("négatif", "positif")[n % 2]) for n, (text, _) in enumerate(ROWS)]
    file = tmp_path / ("data.csv" if write is as_csv else "data.jsonl")
    file.write_bytes(write(rows).encode(encoding))
    one_byte = encoding in ("cp1252", "latin-1")
    assert everything(file) == expected(rows, encoding if one_byte else "utf-8")


def test_names_of_columns_of_windows(tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes(as_csv(header=("größe", "Übel")).encode("cp1252"))
    assert everything(file, text_column="Größe", label_column="übel") == expected(encoding="cp1252")


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)])
@pytest.mark.parametrize("write", [as_csv, as_lines])
def test_packed_files(write, suffix, pack, tmp_path):
    name = "data.csv" if write is as_csv else "data.jsonl"
    (tmp_path / f"{name}{suffix}").write_bytes(pack(write().encode()))
    assert everything(tmp_path / f"{name}{suffix}") == expected()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"train_{name}{suffix}").write_bytes(pack(write().encode()))
    assert everything(tmp_path / "folder") == expected()


@pytest.mark.parametrize(
    ("header", "given"),
    [
        (("Text ", " LABEL"), ("", "")),
        (("review", "sentiment"), ("", "")),
        (("Sentence", "Target"), ("sentence", "TARGET")),
        (("Comment", "Category"), ("", "")),
        (('Opinion, "so to say"', "stars"), ('opinion, "so to say"', "Stars")),
    ],
)
def test_columns_are_found_whatever_their_case_and_outer_spaces(header, given, tmp_path):
    (tmp_path / "data.csv").write_text(as_csv(header=header), encoding="utf-8")
    assert everything(tmp_path / "data.csv", text_column=given[0], label_column=given[1]) == expected()


def test_a_column_that_numbers_rows_is_no_text(tmp_path):
    rows = [(str(n), *row) for n, row in enumerate(ROWS)]
    for name in ("", "id", "Unnamed: 0"):
        (tmp_path / "data.csv").write_text(as_csv(rows, (name, "opinion", "label")), encoding="utf-8")
        assert everything(tmp_path / "data.csv") == expected()


TEXTS, NAMES = map(list, zip(*ROWS, strict=True))
OBJECTS = [{"text": text, "label": name} for text, name in ROWS]
JSON = {
    "list": OBJECTS,
    "under data": {"version": 1, "data": OBJECTS},
    "under another name": {"about": {"by": "me"}, "reviews": OBJECTS},
    "lists of columns": {"text": TEXTS, "label": NAMES},
    "columns by number": {"text": dict(enumerate(TEXTS)), "label": dict(enumerate(NAMES))},
    "rows and names": {"columns": ["text", "label"], "index": list(range(40)), "data": list(map(list, ROWS))},
}


@pytest.mark.parametrize("shape", JSON)
@pytest.mark.parametrize("indent", [None, 1])
def test_shapes_of_json(shape, indent, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(JSON[shape], indent=indent))
    assert everything(tmp_path / "data.json") == expected()


def test_json_lines_by_any_name(tmp_path):
    for name in ("data.json", "data.jsonl", "data.ndjson"):
        (tmp_path / name).write_text("\n\n" + as_lines())
        assert everything(tmp_path / name) == expected()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "one list of objects .* got train, test: save each"),
        ("[1, 2]", "an object for each row .* got int"),
        ('"text"', "a list of objects .* got str"),
        ("[]", "expected rows, got none"),
        ('{"text": "a", "label": [1]}\n{"text": "b", "label": [0, 1]}', "one class in each row of the column 'label'"),
    ],
)
def test_json_that_has_no_rows(contents, message, tmp_path):
    (tmp_path / "data.json").write_text(contents)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "data.json")


def test_labels_of_several_types_in_one_json(tmp_path):
    labels = [1, "1", 1.0, True, 0, "0", 0.0, False, None, float("nan"), ""] * 4
    lines = [json.dumps({"text": str(n), "label": label}) for n, label in enumerate(labels)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    rows = everything(tmp_path / "data.jsonl")
    assert rows == {str(n).encode(): str(int(float(label))) for n, label in enumerate(labels) if n % 11 < 8}


def nested(rows=ROWS):
    return [{"review": {"body": text, "stars": {"given": name}}} for text, name in rows]


@pytest.mark.parametrize("written", ["data.jsonl", "data.parquet"])
def test_nested_columns_by_dotted_names(written, tmp_path):
    if written.endswith("jsonl"):
        (tmp_path / written).write_text("\n".join(map(json.dumps, nested())))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(nested()), tmp_path / written)
    for given in (("review.body", "review.stars.given"), ("", "given")):
        assert everything(tmp_path / written, text_column=given[0], label_column=given[1]) == expected()


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.dictionary(pa.int32(), pa.string())])
def test_views_and_dictionaries_of_arrow(kind, tmp_path):
    plain = pa.array(NAMES, pa.binary() if kind == pa.binary_view() else pa.string())
    labels = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    texts = pa.array(TEXTS, pa.string()).cast(pa.string_view())
    table = pa.table({"text": texts, "label": labels})
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as out:
        out.write_table(table)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as out:
        out.write_table(table)
    pa.feather.write_feather(table, str(tmp_path / "packed.feather"), compression="zstd")
    for name in ("file.arrow", "stream.arrow", "packed.feather"):
        assert everything(tmp_path / name) == expected()


def save_folder(folder, files):
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(contents, encoding="utf-8", newline="")
    return folder


def test_columns_in_another_order_and_case_in_each_file(tmp_path):
    others = [("another " + text, name) for text, name in ROWS]
    flipped = as_csv([row[::-1] for row in others], ("label", "text"))
    tested = as_csv([("0", name, f"t {text}") for text, name in ROWS], ("id", "Label", "TEXT"), delimiter=";")
    save_folder(tmp_path, {"train/a.csv": as_csv(), "train/b.csv": flipped, "test.csv": tested})
    rows, _ = read(tmp_path)
    assert rows["train"] | rows["validation"] == expected() | expected(others)
    assert rows["test"] == expected([(f"t {text}", name) for text, name in ROWS])


def test_a_format_for_each_split_in_a_folder_with_brackets(tmp_path):
    files = {"train.csv": as_csv(), "dev.jsonl": as_lines([("d", "bad")]), "sample_submission.csv": "id,label\n1,bad\n"}
    rows, _ = read(save_folder(tmp_path / "reviews [v1] *", files))
    assert rows["validation"] == {b"d": "bad"}
    assert rows["train"] | rows["test"] == expected()


def test_a_file_of_no_split_beside_a_test_split_is_train(tmp_path):
    rows, _ = read(save_folder(tmp_path, {"reviews.csv": as_csv(), "test.csv": as_csv([("t", "bad")])}))
    assert rows["test"] == {b"t": "bad"}
    assert len(rows["train"]) > 20


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/Validation.csv", "validation"),
        ("testData.tsv", "test"),
        ("TRAIN/part1.csv", "train"),
        ("test/train.csv", "train"),
        ("contest.csv", ""),
        ("latest/attest.csv", ""),
        ("eval.csv", "eval"),
    ],
)
def test_what_split_a_name_speaks_of(path, split):
    assert split_of(Path(path)) == split


def test_no_split_hides_another():
    assert named_splits({"train": 0, "dev": 1, "validation": 2}) == {"train": 0, "dev": 1, "validation": 2}
    assert named_splits({"train": 0, "validation": 1, "eval": 2}) == {"train": 0, "validation": 1, "test": 2}
    assert named_splits({"validation": 1, "eval": 2, "test": 3}) == {"validation": 1, "eval": 2, "test": 3}


def test_folders_named_as_the_classes(tmp_path):
    files = {f"train/{name}/{n}.txt": f"{n} {name}\nline" for n in range(40) for name in ("pos", "neg")}
    files |= {f"test/{name}/{n}.txt": f"test {n} {name}" for n in range(9) for name in ("pos", "neg")}
    files |= {"train/unsup/1.txt": "nobody knows", "train/urls_pos.txt": "http://", "README": "read me"}
    rows, found = read(save_folder(tmp_path, files))
    assert rows["test"] == {f"test {n} {name}".encode(): name for n in range(9) for name in ("pos", "neg")}
    assert rows["train"] | rows["validation"] == {
        f"{n} {name}\nline".encode(): name for n in range(40) for name in ("pos", "neg")
    }
    assert found.left_out["without a class"] == 1


def test_saved_splits_without_the_file_that_lists_them(tmp_path):
    for split, rows in {"train": ROWS, "test": [("t", "bad")]}.items():
        texts, names = zip(*rows, strict=True)
        datasets.Dataset.from_dict({"text": texts, "label": names}).save_to_disk(str(tmp_path / "[1]" / split))
    assert read(tmp_path / "[1]")[0]["test"] == {b"t": "bad"}


MACHINE = json.dumps({"python": "3", "torch": "2", "packages": {}, "command": "python -m compare"})


def results(folder):
    files = {"environment.json": MACHINE, "records.jsonl": "{}\n", "table.csv": "a,b\n1,2\n", "charts/a.json": "{}"}
    return save_folder(folder, files)


@pytest.mark.parametrize("data", ["data.csv", "environment.jsonl", "train.csv"])
def test_results_and_packages_in_the_folder_of_the_data_are_no_data(data, tmp_path):
    write = as_lines if data.endswith("jsonl") else as_csv
    packages = {f"{name}/{n}.{kind}": "{}" for n in "ab" for kind in ("json", "csv") for name in tasks.folders.PACKAGES}
    save_folder(tmp_path, {data: write(), ".hidden.json": "{}", **packages})
    before = fingerprint(str(tmp_path), "classify")
    results(tmp_path / "results" / "20260101-120000")
    results(tmp_path)
    save_folder(tmp_path / "all", {"report.md": "", "table.tex": "", "table.csv": "a,b\n1,2\n"})
    assert everything(tmp_path) == expected()
    assert fingerprint(str(tmp_path), "classify") == before


def test_the_cache_in_the_folder_of_the_data_is_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    save_folder(tmp_path, {"data.csv": as_csv()})
    task = Classify(64, ClassifyConfig(data=str(tmp_path)))
    task.prepare()
    again = Classify(64, ClassifyConfig(data=str(tmp_path)))
    assert again.cache_key == task.cache_key
    assert [file.name for file in files_below(tmp_path)] == ["data.csv"]


def test_a_users_own_environment_is_data(tmp_path):
    save_folder(tmp_path, {"environment.json": json.dumps(OBJECTS)})
    assert files_by_split(tmp_path) == {"train": [tmp_path / "environment.json"]}
    assert everything(tmp_path) == expected()


def test_folders_that_link_to_each_other(tmp_path):
    save_folder(tmp_path / "data" / "train", {"a.csv": as_csv()})
    (tmp_path / "data" / "train" / "up").symlink_to(tmp_path / "data")
    save_folder(tmp_path / "elsewhere", {"b.csv": as_csv([("t", "bad")])})
    (tmp_path / "data" / "test").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "data")[0]["test"] == {b"t": "bad"}


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    for size in (20, 25):
        (tmp_path / "data.jsonl").write_text(as_lines(ROWS[:size]))
        assert len(open_splits(str(tmp_path / "data.jsonl"), "classify")["train"]) == size
