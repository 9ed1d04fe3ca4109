"""`merge` joins folders of results; `publish` makes a dataset of one."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi

from compare.__main__ import main
from compare.record import read_records
from tests.make_records import ENVIRONMENT, make_record, write_folder

OTHER = ENVIRONMENT | {
    "cpu": "AMD EPYC 9654",
    "command": "python -m compare --variants linear",
    "started": "2026-11-23",
}


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    out, err = capsys.readouterr()
    assert stopped.value.code == code, err
    return out + err


def two_folders(tmp_path: Path) -> tuple[str, str]:
    """full and linear on one machine; full again, and local, on another."""
    first = [make_record(name, seed=seed) for name in ("full", "linear") for seed in range(3)]
    second = [make_record(name, seed=seed) for name in ("full", "local") for seed in range(3)]
    for record in second:
        record["machine"] = {key: value for key, value in OTHER.items() if key != "packages"}
    return str(write_folder(tmp_path / "a", first)), str(write_folder(tmp_path / "b", second, OTHER))


def test_hardware_stays_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_folders(tmp_path)
    out = tmp_path / "both"
    text = said(capsys, "merge", a, b, "--out", str(out))
    assert text.endswith(f"{out / 'report.html'}\n")
    records, damaged = read_records(out / "records.jsonl")
    assert (len(records), damaged) == (12, [])
    by_machine: dict[str, list[str]] = {}
    for record in records:
        by_machine.setdefault(record["machine"]["cpu"], []).append(record["variant"])
    assert {cpu: sorted(set(names)) for cpu, names in by_machine.items()} == {
        ENVIRONMENT["cpu"]: ["full", "linear"],
        OTHER["cpu"]: ["full", "local"],
    }
    environment = json.loads((out / "environment.json").read_text())
    assert environment["cpu"] == OTHER["cpu"], "the newest"
    assert [stamp["cpu"] for stamp in environment["earlier"]] == [ENVIRONMENT["cpu"]]
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len({row["machine"] for row in rows}) == 2
    page = (out / "report.html").read_text()
    assert "EPYC" in page
    assert "Xeon" in page


def test_the_latest_run_on_one_machine_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = make_record("full") | {"test_score": 0.1}, make_record("full") | {"test_score": 0.9}
    old["started"], new["started"] = "2026-11-22T13:00:00+00:00", "2026-11-22T14:00:00+00:00"
    a, b = (str(write_folder(tmp_path / name, [record])) for name, record in (("a", new), ("b", old)))
    said(capsys, "merge", a, b, "--out", str(tmp_path / "both"))
    (record,) = read_records(tmp_path / "both" / "records.jsonl")[0]
    assert record["test_score"] == 0.9


def test_kept_models_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_folders(tmp_path)
    records = [make_record("full") | {"model": "models/full"}]
    write_folder(Path(a), records)
    (Path(a) / "models" / "full").mkdir(parents=True)
    (Path(a) / "models" / "full" / "record.json").write_text("{}")
    said(capsys, "merge", a, b, "--out", str(tmp_path / "both"))
    assert (tmp_path / "both" / "models" / "full" / "record.json").is_file()


def test_two_machines_keep_a_model_of_one_run_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_folders(tmp_path)
    for folder, machine in ((a, ENVIRONMENT), (b, OTHER)):
        write_folder(Path(folder), [make_record("full") | {"model": "models/full", "machine": machine}], machine)
        (Path(folder) / "models" / "full").mkdir(parents=True)
        (Path(folder) / "models" / "full" / "record.json").write_text(json.dumps(machine["cpu"]))
    said(capsys, "merge", a, b, "--out", str(tmp_path / "both"))
    records, _ = read_records(tmp_path / "both" / "records.jsonl")
    for record in records:
        kept = json.loads((tmp_path / "both" / record["model"] / "record.json").read_text())
        assert kept == record["machine"]["cpu"]


@pytest.mark.parametrize("model", ["models/../../secret", "/etc", "models/a/b", "models/.."])
def test_a_record_names_no_folder_elsewhere(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").mkdir()
    folder = write_folder(tmp_path / "a", [make_record("full") | {"model": model}])
    said(capsys, "merge", str(folder), "--out", str(tmp_path / "both"))
    (record,) = read_records(tmp_path / "both" / "records.jsonl")[0]
    assert "model" not in record
    assert not (tmp_path / "both" / "models").exists()


def test_a_failure_that_was_tried_again_counts_no_longer(tmp_path: Path) -> None:
    failed, done = make_record("full", status="timeout"), make_record("full")
    here, there = ({"machine": ENVIRONMENT | {"cpu": cpu}} for cpu in ("here", "there"))
    path = write_folder(tmp_path, [failed | here, done | there]) / "records.jsonl"
    assert [r["status"] for r in read_records(path)[0]] == ["ok"]
    write_folder(tmp_path, [done | there, failed | here])
    assert [r["status"] for r in read_records(path)[0]] == ["ok", "timeout"], "it was not"
    write_folder(tmp_path, [failed | here, failed | there])
    assert len(read_records(path)[0]) == 2
    write_folder(tmp_path, [make_record("full", status="oom") | here, done | there])
    assert [r["status"] for r in read_records(path)[0]] == ["oom", "ok"], "a result of that machine"


def test_merge_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_folders(tmp_path)
    assert "nowhere has no records.jsonl" in said(capsys, "merge", a, "nowhere", "--out", str(tmp_path / "c"), code=2)
    assert f"--out {b} holds results already" in said(capsys, "merge", a, "--out", b, code=2)
    (tmp_path / "a" / "records.jsonl").write_text("{damaged\n")
    text = said(capsys, "merge", a, "--out", str(tmp_path / "c"), code=1)
    assert "error: no folder has a readable record" in text
    assert not (tmp_path / "c").exists()


# publish


def test_a_dry_run_shows_the_card_and_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HfApi, "create_commit", lambda *_, **__: pytest.fail("nothing is uploaded"))
    a, _ = two_folders(tmp_path)
    before = sorted(Path(a).iterdir())
    text = said(capsys, "publish", a, "--repo", "me/mine", "--license", "mit", "--dry-run")
    assert sorted(Path(a).iterdir()) == before, "a dry run writes nothing"
    assert text.startswith("---\n")
    assert "license: mit" in text
    assert ENVIRONMENT["command"] in text
    for name in ("records.jsonl", "environment.json", "table.csv", "report.html", "charts/"):
        assert f"\n{name}" in text
    said(capsys, "report", a)
    table = datasets.load_dataset("csv", data_files=str(Path(a) / "table.csv"), cache_dir=str(tmp_path), split="train")
    assert len(table) == 2


def test_everything_goes_up_in_one_commit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    def create_repo(_self: HfApi, repo: str, **options: Any) -> None:
        made["repo"] = repo, options

    def create_commit(_self: HfApi, repo: str, operations: list[Any], **options: Any) -> str:
        made["files"] = {operation.path_in_repo: operation for operation in operations}
        return f"https://hub/{repo}"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    a, _ = two_folders(tmp_path)
    assert said(capsys, "publish", a, "--repo", "me/mine", "--private") == "https://hub/me/mine\n"
    assert made["repo"] == ("me/mine", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert {"README.md", "records.jsonl", "environment.json", "table.csv", "report.html"} <= set(made["files"])
    assert not any("lock" in name or name.startswith("models") for name in made["files"])


def test_publish_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = two_folders(tmp_path)
    for name in ("mine", "a/b/c", "me/..x"):
        assert "--repo: expected user/name" in said(capsys, "publish", a, "--repo", name, "--dry-run", code=2)
    assert "has no records.jsonl" in said(capsys, "publish", str(tmp_path), "--repo", "me/mine", code=2)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError(os.strerror(111))

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    text = said(capsys, "publish", a, "--repo", "me/mine", code=2)
    assert text.startswith("error: --repo me/mine: ")
    assert text.count("\n") == 1
