"""Damaged records: a line is skipped and told, and brings down neither report, diff nor --resume."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from compare.__main__ import main
from compare.diff import diff_folders
from compare.display import Display, TableDisplay
from compare.errors import UsageError
from compare.fields import NEEDED, parse_json
from compare.record import Record, append_record, read_records
from compare.report import read_environment, write_report, write_report_many
from compare.report.facts.equal_terms import match_scores
from compare.report.facts.grouping import Source, group_records
from compare.report.render.csv_table import csv_table
from compare.report.render.latex import latex_tables
from compare.runs.options import RunOptions
from compare.runs.outcome import new_record
from compare.runs.sequence import run_all
from compare.spec import RunSpec
from tests.drawn import markdown_of, page_of
from tests.learning import small_spec
from tests.make_records import ENVIRONMENT, make_record, write_folder

ROOT = Path(__file__).parents[1]
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "1" + "0" * 400
DIGITS = "7" * 5000
GOOD = [
    make_record(v, seed=s, seq_len=n) for v in ("full", "linear", "none") for s, n in ((0, 256), (1, 256), (0, 512))
]
for each in GOOD:
    each["curve"] = each["curve"][:6]
VALUES = [
    *("null", "true", "-1", "0", "1", "2.5", "1e-300", "1e99", "1e308", "1e999", "-1e999", "NaN", "Infinity", HUGE),
    *(DIGITS, DEEP, '"', '""', '"x"', '"=1"', r'"<b>|`"', r'"\ud800"', r'"\udce9"', r'"\u001b[31m"', r'"a\nb"', '"数"'),
    *("[]", "[1]", "[[1]]", "[null]", "{}", '{"a": 1}', '{"a": []}', '[["x", {}]]', "[2, 1]", "}"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value holds others."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """A line of a good record with something else at one place, without it, or torn."""
    record = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
    top = draw(st.sampled_from(sorted(record)))
    *path, last = draw(st.sampled_from([place for place in places(record) if place[0] == top]))
    holder = record
    for key in path:
        holder = holder[key]
    how = draw(st.sampled_from(["other", "other", "other", "absent", "added", "bytes", "torn"]))
    if how == "absent":
        del holder[last]
    elif how == "added" and isinstance(holder, dict):
        holder["unknown"] = "@@"
    elif how in ("other", "added"):
        holder[last] = "@@"
    line = json.dumps(record).replace('"@@"', draw(st.sampled_from(VALUES))).encode()
    at = draw(st.integers(0, len(line)))
    if how == "torn":
        return line[:at]
    return line[:at] + draw(st.binary(max_size=3)) + line[at:] if how == "bytes" else line


def strict(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def check_folder(folder: Path, lines: list[bytes], *, drawn: bool) -> None:
    """Good rows stay, bad ones are told by their line, and everything that reads records goes through."""
    write_folder(folder / "good", GOOD)
    bad = write_folder(folder / "bad", GOOD)
    with (bad / "records.jsonl").open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
    records, warnings = read_records(bad / "records.jsonl")
    touched = {json.loads(json.dumps(record))["run_id"] for record in records} - {good["run_id"] for good in GOOD}
    assert len(records) == len(GOOD) + len(touched)
    for warning in warnings:
        number = re.search(r" line (\d+) is damaged and was skipped: ", warning)
        assert number
        assert int(number[1]) > len(GOOD)
        assert len(warning.splitlines()) == 1
    if drawn:
        write_report(bad)
        page = (bad / "report.html").read_text(encoding="utf-8")
    else:
        groups = [match_scores(group, "steps") for group in group_records([Source(records, ENVIRONMENT)])]
        page = page_of(groups, warnings)
        for text in (page, markdown_of(groups, warnings), csv_table(groups), latex_tables(groups)):
            text.encode("utf-8")
    details = re.search(r'id="details-of-runs">(.*?)</script>', page, re.DOTALL)
    assert details
    strict(details[1])
    for one, other in (("good", "bad"), ("bad", "good")):
        with suppress(UsageError):
            diff_folders(folder / one, folder / other).markdown().encode("utf-8")


@settings(max_examples=25, deadline=None)
@given(st.lists(damaged_lines(), min_size=1, max_size=3))
def test_no_damage_is_a_traceback(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_folder(Path(folder), lines, drawn=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=300, deadline=None)
@given(st.lists(damaged_lines(), min_size=1, max_size=3))
def test_no_damage_brings_down_a_chart(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_folder(Path(folder), lines, drawn=True)


def with_field(field: str, value: str, record: Record = GOOD[0]) -> bytes:
    """A line with one field as it is written here."""
    return json.dumps(record | {field: "@@"}).replace('"@@"', value).encode()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (with_field("test_score", HUGE), "an integer of 401 digits cannot be a measured value"),
        (with_field("test_score", DIGITS), "an integer of 5,000 digits cannot be a measured value"),
        (with_field("test_score", "1e999"), "Infinity cannot be a measured value"),
        (with_field("step_seconds", "1e308"), "1e+308 cannot be a measured value"),
        (with_field("step_seconds", "1e-300"), "step_seconds: expected a number above 0, got 1e-300"),
        (with_field("step_seconds", "0"), "step_seconds: expected a number above 0, got 0"),
        (with_field("step_seconds_spread", "[2, 1]"), "step_seconds_spread: expected two numbers above 0, the second"),
        (with_field("peak_memory_bytes", "-1"), "peak_memory_bytes: expected a number of at least 0, got -1"),
        (with_field("val_score", "NaN"), "NaN cannot be a measured value"),
        (with_field("unknown", "[-Infinity]"), "-Infinity cannot be a measured value"),
        (with_field("data", DEEP), "lists and objects are nested more than 20 deep"),
        (with_field("data", "[" * 30 + "]" * 30), "lists and objects are nested more than 20 deep"),
        (with_field("run_id", "[1]"), "run_id: expected a string that is not empty, got [1]"),
        (with_field("run_id", "null"), "missing field 'run_id'"),
        (with_field("status", '{"a": 1}'), 'status: expected a string that is not empty, got {"a": 1}'),
        (with_field("seed", '"0"'), 'seed: expected a whole number of at least 0, got "0"'),
        (with_field("seq_len", "true"), "seq_len: expected a whole number above 0, got true"),
        (with_field("kernel", "[]"), "kernel: expected a string, got []"),
        (with_field("baselines", '{"a": "b"}'), "baselines: expected an object of numbers"),
        (with_field("curve", "[[1]]"), "curve: expected a list of objects, got [[1]]"),
        (with_field("curve", '[{"step": "x"}]'), 'step: expected a number of at least 0, got "x"'),
        (with_field("spec", '{"options": [["a"]]}'), 'options: expected a list of [name, value], got [["a"]]'),
        (with_field("spec", "3"), "spec: expected an object, got 3"),
        (with_field("reason", r'"\ud800"'), r"\ud800 is an unpaired surrogate"),
        (with_field("schema", "4"), "expected schema 3 or older, got 4"),
        (with_field("schema", '"2"'), 'expected schema 3 or older, got "2"'),
        (b"[1]", "expected a JSON object, got [1]"),
        (b'{"run_id": "torn', "Unterminated string"),
        (b'{"run_id": "\xff"}', "can't decode byte 0xff"),
    ],
)
def test_a_damaged_line_is_told_with_its_number_and_what_is_wrong(line: bytes, complaint: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path, GOOD[:1]) / "records.jsonl"
    path.write_bytes(path.read_bytes() + b"\n \n" + line + b"\n" + json.dumps(GOOD[1]).encode() + b"\n")
    records, (warning,) = read_records(path)
    assert [record["run_id"] for record in records] == [good["run_id"] for good in GOOD[:2]]
    assert warning.startswith(f"{path} line 4 is damaged and was skipped: ")
    assert complaint in warning
    assert len(warning) < len(str(path)) + 160


def test_the_command_tells_damaged_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, [make_record("full", status="oom")])
    with (folder / "records.jsonl").open("a") as file:
        file.write("{\n")
    for words in ([str(folder)], [str(folder), "--out", str(tmp_path / "out")]):
        with pytest.raises(SystemExit) as stop:
            main(["report", *words])
        assert stop.value.code == 0
        said = capsys.readouterr()
        assert said.out.endswith("report.html\n")
        assert said.err.startswith(f"warning: {folder / 'records.jsonl'} line 2 is damaged and was skipped: ")
        assert said.err.count("\n") == 1


def test_unknown_fields_and_the_mark_of_windows_editors_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + with_field("of_a_later_version", '{"a": [1, null]}') + b"\r\n")
    (record,), warnings = read_records(path)
    assert warnings == []
    assert record["of_a_later_version"] == {"a": [1, None]}


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    """Python reads the byte E9 of a file name as half a surrogate pair; two such names stay two."""
    records = []
    for byte in ("\udce9", "\udce8"):
        record = make_record("full", task="classify", status="oom")
        record["spec"] |= {"task_options": [["data", f"caf{byte}.csv"]]}
        records.append(record | {"run_id": f"of {byte}", "command": f"compare --data caf{byte}.csv"})
    folder = write_folder(tmp_path, records, ENVIRONMENT | {"command": "compare --data caf\udce9.csv"})
    write_report(folder)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert r"data=caf\\xe9.csv" in report  # a backslash of Markdown
    assert r"data=caf\\xe8.csv" in report
    assert "Warning" not in report
    assert r"caf\xe9.csv" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_folder_whose_name_is_not_utf8_is_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "r\udce9", [make_record("full", status="oom")])
    with (folder / "records.jsonl").open("a") as file:
        file.write("{\n")
    command = [sys.executable, "-m", "compare", "report", str(folder)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"r?/report.html" + os.linesep.encode())
    assert done.stderr.count(b"\n") == 1
    assert "is damaged" in (folder / "report.md").read_text(encoding="utf-8")


def test_control_characters_reach_no_page_and_no_terminal(tmp_path: Path) -> None:
    record = make_record("full", label="full \x1b[31mred\x00") | {"reason": "\x07", "curve": []}
    write_report(write_folder(tmp_path, [record]))
    for path in [*tmp_path.glob("report.*"), *tmp_path.glob("table.*"), *tmp_path.rglob("*.svg")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), path
        words = text.replace("\\\\", "\\")  # Markdown writes a backslash twice
        assert path.suffix == ".svg" or r"\x1b[31mred\x00" in words or "textbackslash" in text


@pytest.mark.parametrize(
    "text", ["[", "3", DEEP, '{"cores": NaN}', f'{{"cores": {HUGE}}}', r'{"cpu": "\ud800"}', "\xff"]
)
def test_a_damaged_environment_is_told_and_the_report_drawn(text: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [make_record("full", status="oom")])
    (folder / "environment.json").write_bytes(text.encode("latin-1"))
    environment, (complaint,) = read_environment(folder / "environment.json")
    assert environment == {}
    assert "the machine is unknown" in complaint
    write_report_many([folder], tmp_path / "out")
    assert "the machine is unknown" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_what_a_run_writes_can_be_read(tmp_path: Path) -> None:
    spec = replace(small_spec("mqar", 64, steps=1), variant="full")
    record = new_record(spec, "error", "a reason")
    append_record(tmp_path / "records.jsonl", record)
    assert read_records(tmp_path / "records.jsonl") == ([json.loads(json.dumps(record))], [])
    assert set(NEEDED) <= set(record)


def resumed(tmp_path: Path, specs: list[RunSpec], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str]:
    """The variants that are run again, and what is shown."""
    again: list[str] = []

    def run_one(spec: RunSpec, *_: object) -> Record:
        again.append(spec.variant)
        return new_record(spec, "oom", "made up") | {"wall_seconds": 1.0}

    monkeypatch.setattr("compare.engines.local.run_one", run_one)
    out = io.StringIO()
    for display in (Display(Console(file=out, width=500)), TableDisplay(Console(file=out, force_terminal=True))):
        run_all(specs, tmp_path / "records.jsonl", display, {}, RunOptions())
    return again, out.getvalue()


def test_resume_repeats_what_is_damaged_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [replace(small_spec("mqar", 64, steps=1), variant=variant) for variant in ("full", "linear", "none")]
    bare, whole, damaged = (new_record(spec, "ok", "") for spec in specs)
    for field in ("reason", "spec", "family", "label"):
        del bare[field]
    bare |= {"metric": None, "test_score": None, "wall_seconds": None}
    lines = [json.dumps(bare).encode(), json.dumps(whole).encode(), with_field("status", "[]", damaged)]
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines))
    again, said = resumed(tmp_path, specs, monkeypatch)
    assert again == ["none"]
    assert "line 3 is damaged and was skipped" in said
    records, warnings = read_records(tmp_path / "records.jsonl")
    assert {record["run_id"] for record in records} == {spec.run_id for spec in specs}
    assert len(warnings) == 1


def test_json_that_a_report_can_show_is_as_it_was() -> None:
    told = {"a": ["µ 数据\t\n", 1, 2.5, None, True, {"b": -3}]}
    assert parse_json(json.dumps(told).encode()) == told
