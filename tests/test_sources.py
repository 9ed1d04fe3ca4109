"""Data from files, folders and the hub: every format gives the same texts, and what is wrong is told in one line."""

import csv
import doctest
import http.server
import json
import re
import threading
import time

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

import tasks.labelled
import tasks.sources
from tasks.labelled import labelled_rows
from tasks.sources import find, fingerprint, hub_problem, open_splits

TEXTS = ["plain", 'a "quoted", one', "two\nlines", "tab\there", "café ☕", "NA", "01", "1e5", " spaces ", "null"]
LABELS = [0, 1, 0, 1, 0, 1, 0, 1, 1, 0]
ROWS = list(zip(TEXTS, LABELS, strict=True))
NAMED = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def read(data, *, what="classify", text_column="", label_column="", encode=list):
    """(text, class) of each split, and what the reading found."""
    found = labelled_rows(str(data), what, text_column=text_column, label_column=label_column, encode=encode)
    rows = {
        split: [(row["ids"], found.classes[row["label"]]) for row in source.rows]
        for split, source in found.splits.items()
    }
    return rows, found


def everything(data, **options):
    rows, found = read(data, **options)
    return sorted(chained for split in rows.values() for chained in split), found


def table():
    return datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})


def write_csv(file, rows=ROWS, header=("text", "label"), **dialect):
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, **dialect)
        writer.writerow(header)
        writer.writerows(rows)
    return file


def numbered(n, split=""):
    return [(f"{split}text {i}", i % 2) for i in range(n)]


def write_tsv(file):
    lines = [f"{text.translate({9: 32, 10: 32})}\t{label}\n" for text, label in ROWS]
    file.write_text("text\tlabel\n" + "".join(lines), encoding="utf-8", newline="")


def write_jsonl(file):
    file.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in ROWS), encoding="utf-8")


def write_json(file):
    file.write_text(json.dumps([{"text": t, "label": n} for t, n in ROWS]), encoding="utf-8")


def write_arrow(file):
    arrow = pa.table({"text": TEXTS, "label": LABELS})
    with pa.ipc.new_file(str(file), arrow.schema) as out:
        out.write_table(arrow)


WRITERS = {
    "data.csv": write_csv,
    "data.tsv": write_tsv,
    "data.jsonl": write_jsonl,
    "data.json": write_json,
    "data.parquet": lambda file: table().to_parquet(str(file)),
    "data.arrow": write_arrow,
    "saved": lambda folder: table().save_to_disk(str(folder)),
    "DATA [1].CSV": write_csv,
}


@pytest.mark.parametrize("written", WRITERS)
def test_every_format_gives_the_same_texts_and_classes(written, tmp_path):
    WRITERS[written](tmp_path / written)
    rows, found = everything(tmp_path / written)
    expected = [(text.encode(), str(label)) for text, label in ROWS]
    if written.endswith("tsv"):
        expected = [(text.translate(bytes.maketrans(b"\t\n", b"  ")), label) for text, label in expected]
    assert rows == sorted(expected)
    assert found.classes == ["0", "1"]
    assert not +found.left_out


def test_a_folder_of_files_named_by_split(tmp_path):
    for split, size in {"train": 30, "validation": 5, "test": 6}.items():
        write_csv(tmp_path / f"{split}.csv", numbered(size, split))
    rows, found = read(tmp_path)
    for split, size in {"train": 30, "validation": 5, "test": 6}.items():
        assert rows[split] == [(text.encode(), str(label)) for text, label in numbered(size, split)]
        assert found.splits[split].count == size
    assert found.carved == {}


def test_splits_called_by_other_names(tmp_path):
    parts = {split: datasets.Dataset.from_dict({"text": [split], "label": [0]}) for split in ("train", "dev", "eval")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    opened = open_splits(str(tmp_path / "saved"), "text")
    assert {split: part["text"][:] for split, part in opened.items()} == {
        "train": ["train"], "validation": ["dev"], "test": ["eval"],
    }  # fmt: skip


def test_one_split_of_another_name_is_train(tmp_path):
    datasets.DatasetDict({"test": table()}).save_to_disk(str(tmp_path / "saved"))
    assert list(open_splits(str(tmp_path / "saved"), "text")) == ["train"]


@pytest.mark.parametrize("readme", [True, False])
def test_a_copy_of_the_hubs_imdb(tmp_path, readme):
    folder = tmp_path / "imdb" / "plain_text"
    folder.mkdir(parents=True)
    for split, size in {"train": 40, "test": 20, "unsupervised": 3}.items():
        texts, labels = zip(*numbered(size, split), strict=True)
        labels = [-1] * size if split == "unsupervised" else labels
        part = datasets.Dataset.from_dict({"text": texts, "label": labels}, NAMED)
        part.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    if readme:
        paths = "".join(
            f"  - split: {split}\n    path: plain_text/{split}-*\n" for split in ("train", "test", "unsupervised")
        )
        (tmp_path / "imdb" / "README.md").write_text(
            f"---\nconfigs:\n- config_name: plain_text\n  data_files:\n{paths}  default: true\n---\n# imdb\n"
        )
    rows, found = read(tmp_path / "imdb", what="text", text_column="text", label_column="label")
    assert found.classes == ["neg", "pos"]
    assert rows["test"] == [(f"testtext {i}".encode(), ("neg", "pos")[i % 2]) for i in range(20)]
    assert sorted(rows["train"] + rows["validation"]) == sorted(
        (f"traintext {i}".encode(), ("neg", "pos")[i % 2]) for i in range(40)
    )
    assert found.carved == {"validation": 0.1}


def test_one_of_several_configurations(tmp_path):
    for config in ("books", "films"):
        (tmp_path / config).mkdir()
        texts = [f"{config} {text}" for text in TEXTS]
        datasets.Dataset.from_dict({"text": texts, "label": LABELS}).to_parquet(str(tmp_path / config / "all.parquet"))
    paths = "".join(f"- config_name: {config}\n  data_files: {config}/*\n" for config in ("books", "films"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{paths}---\n")
    opened = open_splits(f"{tmp_path}:films", "classify")
    assert opened["train"]["text"][0] == f"films {TEXTS[0]}"
    assert fingerprint(f"{tmp_path}:films", "classify") != fingerprint(f"{tmp_path}:books", "classify")
    assert "a configuration after a colon" in refused(str(tmp_path))
    assert "got none; the data has books, films" in refused(str(tmp_path))
    assert "got 'music'; the data has books, films" in refused(f"{tmp_path}:music")


@pytest.mark.parametrize("other", ["notes.md", "notes.txt", "notes.docx", None])
def test_a_folder_without_columns(other, tmp_path):
    if other:
        (tmp_path / other).write_text("# notes")
    assert "expected files with columns (csv, tsv" in refused(str(tmp_path))


def test_csv_keeps_every_byte(tmp_path):
    every = bytes(set(range(1, 256)) - {ord('"')})
    latin, broken = "naïve".encode("latin-1"), b"\xff\xfe\xe2\x82"
    lone_return = b"one\rline"
    file = tmp_path / "data.csv"
    quoted = [b'"' + text + b'"' for text in (every, latin, broken, lone_return)]
    file.write_bytes(b"label,text\n" + b"".join(b"%d,%s\n" % (n % 2, text) for n, text in enumerate(quoted)))
    rows, _ = everything(file)
    assert {text for text, _ in rows} == {every, latin, broken, lone_return}


def test_tsv_takes_quotes_and_lone_returns_as_they_are(tmp_path):
    texts = [b'"', b'"open', b'a "b" c', b"one\rtext", b'""', b"\xff\x80"]
    file = tmp_path / "data.tsv"
    file.write_bytes(b"text\tlabel\n" + b"".join(b"%s\t%d\n" % (text, n % 2) for n, text in enumerate(texts)))
    rows, _ = everything(file)
    assert {text for text, _ in rows} == set(texts)


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_line_ends_of_every_system_and_a_byte_order_mark(tmp_path, end):
    file = tmp_path / "data.csv"
    lines = ['"größe","label"', *(f"text {n},{'ab'[n % 2]}" for n in range(9)), ""]
    file.write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    rows, found = everything(file)
    assert (found.text_column, found.label_column) == ("größe", "label")
    assert rows == sorted((f"text {n}".encode(), "ab"[n % 2]) for n in range(9))


def test_bytes_that_are_no_utf8_survive_json_lines(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"".join(b'{"text": "%d \xff caf\xe9 \\u00e9", "label": %d}\n' % (n, n % 2) for n in range(9)))
    rows, _ = everything(file)
    assert [text for text, _ in rows] == [b"%d \xff caf\xe9 \xc3\xa9" % n for n in range(9)]


def test_bytes_that_are_no_utf8_survive_parquet_and_arrow(tmp_path):
    texts = [b"\xff\xfe", b"caf\xe9", b"zero\0byte", b"fine"] * 2
    labels = [0, 1] * 4
    declared_text = pa.array(texts, pa.binary()).view(pa.string())
    columns = {"binary": pa.array(texts), "string": declared_text, "large": pa.array(texts, pa.large_binary())}
    columns["large string"] = columns["large"].view(pa.large_string())
    for name, column in columns.items():
        pa.parquet.write_table(pa.table({"text": column, "label": labels}), tmp_path / f"{name}.parquet")
        rows, found = everything(tmp_path / f"{name}.parquet")
        assert {text for text, _ in rows} == set(texts)
        assert found.left_out["duplicate"] == 4


def refused(data, **options):
    """The message, which is one line."""
    with pytest.raises(ValueError, match=r"^classify: .") as caught:
        everything(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BROKEN = {
    "empty.csv": (b"", "the empty file"),
    "empty.jsonl": (b"", "could not read"),
    "empty.parquet": (b"", "could not read"),
    "header.csv": (b"text,label\n", "expected rows below the header"),
    "utf16 without a mark.csv": ("text,label\na,1\n".encode("utf-16-le"), "zero bytes"),
    "wide first.csv": (b"text,label\na,b,1\nc,0\n", "Expected 2 fields in line 2, saw 3"),
    "wide later.csv": (b"text,label\na,1\nb,0\nc,d,0\n", "Expected 2 fields in line 4, saw 3"),
    "twice.csv": (b"text,text\na,1\n", "different names"),
    "cut.parquet": (b"PAR1\0\0", "could not read"),
    "broken.jsonl": (b'{"text": "a", "label": 1}\n{"text": ', "could not read"),
    "notes.docx": (b"text", "expected a file among csv, tsv, json, jsonl, parquet, arrow"),
    "one.csv": (b"text,label\n" + b"".join(b"%d,same\n" % n for n in range(9)), "at least two classes.*got 'same'"),
    "none.csv": (b"text,label\na,\nb,\n", "at least two classes.*got none"),
    "ids.csv": (b"text,label\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(9)), "got 9 different values in 9 rows"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_wrong_with_a_file_is_told_in_one_line(broken, tmp_path, capfd):
    contents, message = BROKEN[broken]
    (tmp_path / broken).write_bytes(contents)
    assert re.search(message, refused(tmp_path / broken))
    assert capfd.readouterr().err == ""


def test_what_is_wrong_with_a_folder_is_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "could not read" in refused(tmp_path / "empty")
    (tmp_path / "mixed").mkdir()
    write_csv(tmp_path / "mixed" / "train.csv")
    write_csv(tmp_path / "mixed" / "test.csv", header=("text", "stars"))
    assert "expected the columns text, label as in" in refused(tmp_path / "mixed")
    parts = {split: table() for split in ("one", "two")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert "a split called train" in refused(tmp_path / "saved")
    parts = {"train": table(), "test": table().rename_column("text", "body")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "other"))
    assert "expected a column 'text' in test as in train, got body, label" in refused(tmp_path / "other")


@pytest.mark.parametrize("data", ["no-such-thing", "folder/data.csv", "/no/such/folder", "a/b/c"])
def test_what_is_neither_here_nor_a_hub_id(data):
    message = refused(data)
    assert repr(data) in message
    assert "not a file, a folder or a hub id" in message
    assert "hub id (owner/name)" in message


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody answers


def test_a_hub_out_of_reach_is_told_at_once_with_what_to_do(no_network):
    started = time.perf_counter()
    message = refused("owner/reviews")
    assert time.perf_counter() - started < 10
    for part in (
        "http://127.0.0.1:9/datasets/owner/reviews: ConnectError",
        "hf download --repo-type dataset owner/reviews --local-dir reviews",
        "--data reviews",
    ):
        assert part in message
    assert datasets.config.HF_HUB_OFFLINE is False


def test_what_was_downloaded_before_serves_without_a_network(no_network, monkeypatch):
    def kept(source, config):
        assert (source, config, datasets.config.HF_HUB_OFFLINE) == ("owner/reviews", "books", True)
        return {"train": table()}

    monkeypatch.setattr(tasks.sources, "_from_repository", kept)
    assert open_splits("owner/reviews:books", "text")["train"]["text"][:] == TEXTS
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows one data set, whose server answers 503 for another."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path.endswith("/known")
            self.send_response(200 if known else 503 if self.path.endswith("/busy") else 404)
            if not known:
                self.send_header("X-Error-Code", "RepoNotFound" if "busy" not in self.path else "")
            body = json.dumps({"id": "owner/known", "author": "owner", "sha": "0" * 40}).encode() if known else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_first(hub, monkeypatch):
    assert hub_problem("owner/known", "dataset", "text") == ""
    assert "503" in hub_problem("owner/busy", "dataset", "text")
    assert "no public dataset of that name on the Hugging Face hub" in refused("owner/missing")
    monkeypatch.setattr(tasks.sources, "_from_repository", lambda *_: {"train": table()})
    assert open_splits("owner/known", "text")["train"]["text"][:] == TEXTS


def test_a_fingerprint_follows_the_files(tmp_path):
    file = write_csv(tmp_path / "train.csv")
    of_file, of_folder = fingerprint(str(file), "text"), fingerprint(str(tmp_path), "text")
    assert of_file == fingerprint(str(tmp_path / "." / "train.csv"), "text")
    (tmp_path / ".hidden").write_text("")
    assert fingerprint(str(tmp_path), "text") == of_folder
    file.write_text(file.read_text() + "more,1\n")
    assert fingerprint(str(file), "text") != of_file
    assert fingerprint(str(tmp_path), "text") != of_folder
    assert fingerprint("owner/name", "text") == "owner--name"


def test_a_changed_file_is_read_anew(tmp_path):
    file = write_csv(tmp_path / "data.csv", numbered(20))
    assert len(everything(file)[0]) == 20
    write_csv(file, numbered(25))
    assert len(everything(file)[0]) == 25


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_csv(tmp_path / "data.csv")
    assert find("~/data.csv", "text") == (tmp_path / "data.csv").resolve()


def test_worked_examples():
    assert doctest.testmod(tasks.sources).failed == doctest.testmod(tasks.labelled).failed == 0
