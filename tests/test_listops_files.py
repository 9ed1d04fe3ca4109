"""ListOps from the files of Long Range Arena: what is read, what is cut and dropped, and what is refused."""

import pytest

from tasks.listops import Listops, ListopsConfig, decode
from tests.test_listops import in_parentheses, plain, some_trees, value


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder, trees, *, header="Source\tTarget", ending="\r\n"):
    """The three files, each with these trees: {"train": [...], ...}."""
    for name in ("train", "val", "test"):
        rows = [f"{in_parentheses(tree)}\t{value(tree)}" for tree in trees[name]]
        (folder / f"basic_{name}.tsv").write_text(ending.join([header, *rows, ""]), encoding="utf-8", newline="")
    return ListopsConfig(data=str(folder))


def test_files_are_read_as_long_range_arena_writes_them(tmp_path, own_cache):
    train, val, test = some_trees(1, 40), some_trees(2, 10), some_trees(3, 10)
    task = Listops(64, write(tmp_path, {"train": train, "val": val, "test": test}))
    for split, trees in (("train", train), ("validation", val), ("test", test)):
        assert [decode(row["ids"]) for row in task.tables[split]] == [plain(tree) for tree in trees]
        assert task.tables[split]["label"][:] == [value(tree) for tree in trees]
    assert task.notes() == []
    other = Listops(64, write(tmp_path, {"train": train, "val": val, "test": test[:-1]}))
    assert other.cache_key != task.cache_key


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_other_columns_blank_lines_and_a_mark_of_byte_order_are_skipped(tmp_path, own_cache, ending):
    for name, digit in (("train", 1), ("val", 2), ("test", 3)):
        lines = [
            "\ufeffId\tTarget\tSource",
            f"7\t{digit}\t[MAX {digit} 0 ]",
            "",
            f"8\t9\t( ( ( [MED {digit} ) 9 ) ] )",
            "",
        ]
        (tmp_path / f"basic_{name}.tsv").write_text(ending.join(lines), encoding="utf-8", newline="")
    task = Listops(16, ListopsConfig(data=str(tmp_path)))
    assert [decode(row["ids"]) for row in task.tables["test"]] == ["[MAX 3 0 ]", "[MED 3 9 ]"]
    assert task.tables["train"]["label"][:] == [1, 9]
    assert task.notes() == []


def test_files_in_the_home_folder(tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "lra").mkdir()
    write(tmp_path / "lra", {name: [["[MAX", n, 1]] for n, name in enumerate(("train", "val", "test"), start=2)})
    assert Listops(16, ListopsConfig(data="~/lra")).size("test") == 1


def test_what_is_dropped_and_cut_is_told(tmp_path, own_cache):
    flat = [["[SM", *([digit] * 20)] for digit in range(10)]
    trees = {"train": flat[:8] + flat[:1], "val": flat[2:5], "test": [*flat[:3], ["[SM", *([0] * 19), 5]]}
    task = Listops(19, write(tmp_path, trees))  # the last one of test differs from the first beyond its 19 symbols
    assert {split: task.size(split) for split in task.tables} == {"test": 3, "validation": 2, "train": 3}
    assert task.notes() == [
        "8 of 16 samples dropped: their first 19 symbols equal those of an earlier sample of the same split, "
        "or of a sample of test or validation",
        "8 of 8 samples cut to their first 19 symbols",
    ]
    assert task.whole("test").inputs.shape == (3, 19)
    assert Listops(64, write(tmp_path, trees)).notes() == [
        "7 of 16 samples dropped: their first 64 symbols equal those of an earlier sample of the same split, "
        "or of a sample of test or validation"
    ]


ROW = "( ( ( [MAX 1 ) 2 ) ] )\t2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"basic_val.tsv: expected the columns Source and Target, got an empty file"),
        ("Source\tLabel\n" + ROW, r"expected the columns Source and Target, separated by tabs, got Source, Label"),
        ("Source,Target\n", r"separated by tabs, got Source,Target"),
        ("Source\tTarget\n" + ROW + '"( ( ( [MAX 1 ) 2 ) ] )"\t2\n', r"line 3: expected digits, \[MIN.*, got '\"'"),
        ("Source\tTarget\n" + ROW + "( ( ( [FIRST 1 ) 2 ) ] )\t1\n", r"line 3: expected digits.*, got '\[FIRST'"),
        ("Source\tTarget\n" + ROW + "[MAX 1 12 ]\t2\n", r"line 3: expected digits.*, got '12'"),
        ("Source\tTarget\n\n" + "( )\t2\n", r"line 3: expected an expression, got none"),
        ("Source\tTarget\n" + ROW.replace("\t2", "\t10"), r"line 2: expected a Target from 0 to 9, got '10'"),
        ("Source\tTarget\n" + ROW.replace("\t2", "\t]"), r"line 2: expected a Target from 0 to 9, got '\]'"),
        ("Source\tTarget\n" + ROW.replace("\t2", "\t"), r"line 2: expected a Target from 0 to 9, got ''"),
        ("Source\tTarget\n" + ROW.replace("\t2", ""), r"line 2: expected 2 columns, got 1"),
        ("Source\tTarget\n", r"expected at least one sample, got none for .*validation"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, own_cache, text, message):
    config = write(tmp_path, {"train": some_trees(1, 9), "val": [], "test": some_trees(2, 9)})
    (tmp_path / "basic_val.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Listops(64, config).prepare()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_of_bytes_is_refused(tmp_path, own_cache):
    config = write(tmp_path, {"train": some_trees(1, 9), "val": some_trees(2, 9), "test": []})
    (tmp_path / "basic_test.tsv").write_bytes(b"Source\tTarget\n" + b"\xff\xfe\x00" * 1000 + b"\t1\n")
    with pytest.raises(ValueError, match=r"line 2: expected digits.*got '\ufffd") as caught:
        Listops(64, config).prepare()
    assert len(str(caught.value)) < 300


def test_missing_files_are_named(tmp_path):
    write(tmp_path, {"train": some_trees(1, 9), "val": [], "test": []})
    (tmp_path / "basic_test.tsv").unlink()
    with pytest.raises(ValueError, match=r"expected basic_train.tsv, .*, but basic_test.tsv missing$"):
        ListopsConfig(data=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"listops.data=nowhere, but basic_train.tsv, basic_val.tsv, basic_test.tsv missing"
    ):
        ListopsConfig(data="nowhere")
