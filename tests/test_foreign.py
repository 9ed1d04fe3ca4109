"""What a comparison did not write it neither removes nor replaces; and no two of its own files share a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from compare.__main__ import main
from compare.errors import UsageError
from compare.folder import claim_folder
from compare.lock import hold
from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.values import LONGEST_SLUG, distinct_slugs
from compare.report.render.latex import latex_tables
from tests.drawn import charts_of
from tests.make_records import ENVIRONMENT, Record, make_record, write_folder

LONG = "a_folder_of_a_cluster/" * 12 + "books.csv"


def short(variant: str, **same: object) -> Record:
    """A record that few charts are drawn of."""
    return make_record(variant) | {"curve": []} | same


def of_file(path: str, variant: str = "full", **changes: object) -> Record:
    record = make_record(variant, task="classify") | {"curve": []} | changes
    return record | {"run_id": f"{variant} of {path}", "spec": record["spec"] | {"task_options": [["data", path]]}}


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_charts_of_ones_own_stay_and_those_of_an_earlier_report_go(tmp_path: Path) -> None:
    own = [tmp_path / "mine" / "charts" / name for name in ("thesis.png", "plan.svg", "accuracy_mine.png")]
    own[0].parent.mkdir(parents=True)
    for path in own:
        path.write_text("mine")
    results = write_folder(tmp_path / "results", [short("full")])
    assert run("report", str(results), "--out", str(tmp_path / "mine")) == 0
    drawn = {path.name for path in own[0].parent.iterdir()} - {path.name for path in own}
    assert drawn == set((tmp_path / "mine" / "charts.txt").read_text().split())
    assert any("bytes" in name for name in drawn)
    write_folder(results, [short("full", task="mqar")])
    assert run("report", str(results), "--out", str(tmp_path / "mine")) == 0
    assert [path.read_text() for path in own] == ["mine"] * 3
    left = {path.name for path in own[0].parent.iterdir()} - {path.name for path in own}
    assert not any("bytes" in name for name in left)
    assert any("mqar" in name for name in left)


def test_a_list_of_charts_leads_out_of_no_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.png").write_text("mine")
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "notes.txt").write_text("mine")
    names = ["../thesis.png", str(tmp_path / "thesis.png"), "notes.txt", "..", "", "gone.png", "\x00.png"]
    (tmp_path / "charts.txt").write_text("\n".join(names))
    write_report(write_folder(tmp_path, [short("full", status="oom")]))
    assert (tmp_path / "thesis.png").exists()
    assert (tmp_path / "charts" / "notes.txt").exists()


@pytest.mark.parametrize("own", ["report.md", "report.html", "table.csv", "table.tex"])
def test_a_file_of_ones_own_is_not_replaced(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write_folder(tmp_path / "results", [short("full", status="oom")])
    for words in (["report", str(results), "--out", str(tmp_path / "new")], ["report", str(results)]):
        folder = tmp_path / "new" if "--out" in words else results
        assert run(*words) == 0
        assert run(*words) == 0, "its own files are replaced"
        (folder / own).write_text("mine")
        capsys.readouterr()
        assert run(*words) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"error: {folder / own} was not written by a comparison, ")
        assert complaint.count("\n") == 1
        assert (folder / own).read_text() == "mine"


def test_a_run_asks_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("mine")
    assert run("--tasks", "mqar", "--seq-len", "32", "--steps", "1", "--out", ".") == 2
    assert "table.csv was not written by a comparison" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_an_empty_folder_goes_only_where_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with claim_folder(tmp_path / name, "test", resume=False):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_results_are_no_place_for_the_report_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_folder(tmp_path, [short("full")]))
    assert run("report", folder, "--out", folder) == 2
    complaint = capsys.readouterr().err
    assert "leave out --out to draw its report, or name another folder" in complaint
    assert "--resume" not in complaint


@pytest.mark.parametrize("target", ["thesis.txt", "nowhere.txt"])
def test_a_lock_that_is_a_link_is_not_followed(target: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / target)
    with (
        pytest.raises(UsageError, match=r"\.lock is not the lock file of a comparison"),
        hold(tmp_path / "out", "test"),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "out" / ".lock").is_symlink()
    assert not (tmp_path / "nowhere.txt").exists()


def test_a_lock_of_another_program_stays_and_one_that_was_left_is_taken(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("of another program")
    with (
        pytest.raises(UsageError, match=r"\.lock is not the lock file of a comparison .*: remove it"),
        hold(tmp_path, "test"),
    ):
        pass
    assert lock.read_text() == "of another program"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(UsageError, match=r"\.lock is not the lock file of a comparison"), hold(tmp_path, "test"):
        pass
    lock.rmdir()
    for left in ("", '{"pid": 1, "since": "", "command": ""}'):
        lock.write_text(left)
        with hold(tmp_path, "test"):
            assert f'{{"pid": {os.getpid()}' in lock.read_text()
        assert not lock.exists()


def test_names_that_would_be_one_file_are_told_apart() -> None:
    names = [("a", "数据.csv"), ("a", "训练.csv"), ("b", "Books"), ("b", "books"), ("c", "x"), (LONG,), (LONG + "2",)]
    found = distinct_slugs(names)
    assert len({name.casefold() for name in found}) == len(names)
    assert found[4] == "c_x"
    assert all(len(name) <= LONGEST_SLUG + 9 for name in found)
    assert distinct_slugs(names[::-1])[::-1] == found, "the order changes no name"
    assert len(set(distinct_slugs([("数",), ("数",)]))) == 2


@pytest.mark.parametrize(
    "paths", [["数据.csv", "训练.csv"], ["Books.csv", "books.csv"], [LONG, LONG[:-9] + "films.csv"]]
)
def test_groups_whose_names_are_alike_or_long_have_charts_of_their_own(paths: list[str]) -> None:
    records = [
        of_file(path, variant, seq_len=length)
        for path in paths
        for variant in ("full", "linear")
        for length in (256, 512)
    ]
    records = [record | {"run_id": f"{number}"} for number, record in enumerate(records)]
    groups = group_records([Source(records, ENVIRONMENT), Source([short("full")], ENVIRONMENT | {"cpu": "数"})])
    charts = charts_of(groups)
    assert len({chart.stem.casefold() for chart in charts}) == len(charts)
    assert all(len(chart.stem) < 200 for chart in charts)
    assert len({group.slug for group in groups}) == len(groups) == 5
    assert latex_tables(groups).count(r"\label{") == 5


def test_a_report_of_a_long_file_name_is_drawn(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [of_file(LONG), of_file(LONG[:-9] + "films.csv")]))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == len(list((tmp_path / "charts").glob("*.svg"))) == 4


def test_a_report_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path, [short("full")])

    def full(self: Figure, path: Path, **_: object) -> None:
        path.write_text("begun")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", full)
        assert run("report", str(folder)) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: the report cannot be written: ")
    assert complaint.endswith(".png: No space left on device\n")
    assert complaint.count("\n") == 1
    assert not list((folder / "charts").iterdir())
    (folder / "charts").rmdir()
    (folder / "charts").write_text("a file")
    assert run("report", str(folder)) == 1
    assert capsys.readouterr().err == f"error: the report cannot be written: {folder / 'charts'}: File exists\n"
