"""`plan` on the command line, and its estimates beside the committed runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plan_check
from compare.__main__ import main
from compare.estimate import command
from compare.estimate.check import QUANTITIES, Summary, check
from compare.estimate.command import grows_with_pairs
from compare.estimate.points import find_folders, read_folder
from compare.record import Record
from compare.spec import RunSpec
from tests.make_records import write_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def test_committed_runs_are_foreseen_from_other_folders() -> None:
    folders = find_folders([RESULTS])
    wanted = [RESULTS / "cpu-2core/main", RESULTS / "cpu-2core/recall_pairs"]
    result = check(folders, wanted, grows_with_pairs)
    assert not result.unknown
    parts = {q: Summary.of([c for c in result.compared if c.quantity == q]) for q in QUANTITIES}
    assert parts["run"].close == parts["run"].number > 100
    for quantity, summary in parts.items():
        assert summary.inside >= 0.9 * summary.number, quantity
    for estimated, taken in result.totals.values():
        assert estimated == pytest.approx(taken, rel=0.15)


def test_no_run_is_its_own_basis() -> None:
    main_runs = RESULTS / "cpu-2core/main"
    alone = check([main_runs], [main_runs], grows_with_pairs)
    assert (alone.compared, alone.unknown) == ([], {"main": 4})


def test_the_committed_check_says_what_the_docs_say() -> None:
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    lines = (RESULTS / "cpu-2core/plan/check.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    checked = {(row[0], row[1]): row[2:] for row in cells if len(row) == 7}
    repeated = {(row[0], row[1]): row[3] for row in cells if len(row) == 4}
    told = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in page.splitlines()]
    shown = {row[0]: row[1:] for row in told if (row[0], "run") in checked}
    assert set(shown) == {"main", "recall_8192", "recall_2048", "recall_pairs", "cost", "mad_memorize"}
    for folder, (runs, *within) in shown.items():
        assert runs == checked[folder, "run"][0]
        for quantity, share in zip(("run", "steps taken", "step", "memory"), within, strict=True):
            told_share = checked[folder, quantity][3].replace("%", " %") if (folder, quantity) in checked else "–"
            assert share == told_share, (folder, quantity)
        held = checked[folder, "run"][4].replace("%", " %")
        assert int(held.split()[0]) >= 99 or re.search(rf"{held} of (the run times of|those of) `{folder}`", page)
    assert f"in {repeated['recall_8192', 'step'].replace('%', ' %')} of the runs" in " ".join(page.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the plan names this machine's GPU")
def test_the_plan_of_10_000_runs_is_that_of_the_docs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    typed = re.search(r"^python -m compare plan (--records results/h200 .*)$", page, re.M)
    assert typed is not None
    monkeypatch.chdir(ROOT)
    out = run_plan(capsys, *shlex.split(typed[1]))
    shown = page[typed.end() :].split("```")[2].strip().splitlines()
    assert {line.rstrip() for line in shown} - {"…"} <= {line.rstrip() for line in out.splitlines()}
    assert "10,000 runs on 64 workers" in page


def test_the_check_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    plan_check.main([str(RESULTS / "cpu-2core/main"), "--records", str(RESULTS / "cpu-2core")])
    page = capsys.readouterr().out
    assert "| main | run | 4 | 1.00 |" in page
    assert "- main, steps taken: linformer" in page


def run_plan(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *words])
    out, err = capsys.readouterr()
    assert stopped.value.code == code, err
    return out + err


def test_a_plan_counts_searches_and_names_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(RESULTS / "cpu-2core/recall_8192")
    words = ["--variants", "full,linear", "--no-control", "--seeds", "3", "--lr-grid", "1e-3,3e-3", "--records", folder]
    text = run_plan(capsys, *words, "--watts", "100", "--price-per-hour", "2")
    assert "2 search" in text
    assert "10 runs on 1 worker" in text
    assert "measured at this length" in text
    assert folder in text
    assert "kWh" in text
    assert "Price: " in text
    assert "kWh" not in run_plan(capsys, *words)
    plan: dict[str, Any] = json.loads(run_plan(capsys, *words, "--json", "--workers", "2"))
    kinds = [(row["variant"], row["kind"], row["runs"]) for row in plan["rows"]]
    assert kinds == [("full", "search", 2), ("linear", "search", 2), ("full", "train", 3), ("linear", "train", 3)]
    assert all(row["basis"]["kind"] == "measured" for row in plan["rows"])
    low, mid, high = plan["totals"]["worker_hours"]
    assert low < mid < high
    assert 3600 * mid == pytest.approx(sum(row["runs"] * row["seconds"][1] for row in plan["rows"]))
    assert 60 < plan["rows"][2]["seconds"][1] < 200
    assert plan["totals"]["kwh"] is None


def test_lengths_that_no_task_has_are_planned_as_if(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--variants", "linear", "--no-control", "--steps", "10", "--seq-len", "8192,1024k", "--json"]
    plan = json.loads(run_plan(capsys, *words, "--records", str(RESULTS / "cpu-2core/recall_8192")))
    assert [row["seq_len"] for row in plan["rows"]] == [8192, 2**20]
    short, long = (row["seconds"][1] for row in plan["rows"])
    assert long > 20 * short
    assert "up to 65,536 tokens" in plan["notes"][0]


def test_a_variant_without_records_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(RESULTS / "cpu-2core/main")
    words = ["--no-control", "--records", folder]
    some = run_plan(capsys, "--variants", "full,performer", *words)
    assert "unknown" in some
    assert "Not included: 1 run without an estimate." in some
    none = run_plan(capsys, "--variants", "full", "--dtype", "bfloat16", *words, code=1)
    assert "No run has an estimate." in none
    assert "no record on cpu in bfloat16" in none


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--records", "nowhere"], "expected folders"),
        (["--workers", "0"], "expected a positive integer"),
        (["--watts", "-1"], "expected a positive number"),
        (["--variants", "fulll"], "Did you mean 'full'"),
        (["--steps", "0", "--lr-grid", "1e-3,3e-3"], "--lr-grid cannot be combined"),
        (["--records", "tests"], "no records to estimate from"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = run_plan(capsys, *words, code=2)
    assert said in text
    assert text.count("\n") == 1


def test_calibration_measures_two_short_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunSpec] = []

    def fake(spec: RunSpec, _on_event: object, _run_options: object) -> Record:
        asked.append(spec)
        step = 1e-5 * spec.seq_len * spec.batch_size
        costs = {"step_seconds": step, "forward_seconds": step / 3, "flops": 1e6 * spec.seq_len * spec.batch_size}
        return {"status": "ok", "wall_seconds": 5.0 + 60 * step, "train_memory_bytes": 1e8, **costs}

    monkeypatch.setattr(command, "run_one", fake)
    words = [
        "--records",
        str(tmp_path),
        "--calibrate",
        "--no-control",
        "--variants",
        "linear",
        "--steps",
        "10",
        "--json",
    ]
    plan = json.loads(run_plan(capsys, *words))
    assert [(spec.seq_len, spec.kind) for spec in asked] == [(512, "cost"), (2048, "cost")]
    (row,) = plan["rows"]
    assert row["basis"]["folders"] == ["measured now"]
    assert row["step_seconds"][1] == pytest.approx(1e-5 * 8192, rel=0.05)


def test_records_of_other_versions_are_no_basis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that parses as a record stops a plan."""
    lines = (RESULTS / "cpu-2core/main/records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[0]["spec"]["length_schedule"] = "from the moon"
    records[1]["curve"] = [{"seq_len": 8192, "seconds": 1.0}] * 9
    records[2]["data"] |= {"test_samples": "many", "validation_samples": []}
    records[3]["machine"] |= {"cores": [], "threads": "two"}
    folder = write_folder(tmp_path / "a", records)
    assert [run.record["run_id"] for run in read_folder(folder)] == [record["run_id"] for record in records[2:]]
    text = run_plan(capsys, "--records", str(folder), "--variants", records[3]["variant"], "--no-control")
    assert "1 run on 1 worker" in text
