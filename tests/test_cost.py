"""Cost without training: what the command takes, the search for the longest length, and a probe as it runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compare.arguments import cost_parser, run_parser
from compare.errors import UsageError
from compare.plan import plan_runs
from compare.record import read_records
from compare.runs.data import resized
from compare.runs.longest import extend
from compare.runs.measure import matrix_rate
from compare.runs.supervisor import run_one
from compare.spec import RunSpec
from tasks import IGNORE, Batch
from tests.here import compare_here, run_here
from tests.test_compare import SPEC, records_of


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("512", [512]),
        ("512:4096", [512, 1024, 2048, 4096]),
        ("512:5000", [512, 1024, 2048, 4096]),
        ("100:300, 64", [100, 200, 64]),
        ("512,1024,3000", [512, 1024, 3000]),
        ("512:1024,1024,512", [512, 1024]),
    ],
)
def test_lengths_are_listed_or_doubled(text: str, lengths: list[int]) -> None:
    assert run_parser().parse_args(["--seq-len", text]).seq_len == lengths
    assert cost_parser().parse_args(["--seq-len", text]).seq_len == lengths


@pytest.mark.parametrize("text", ["", "0", "512:", ":512", "4096:512", "a:b", "512:1024:2048", "512,"])
def test_what_are_no_lengths(text: str) -> None:
    with pytest.raises(UsageError, match="--seq-len: expected") as error:
        cost_parser().parse_args(["--seq-len", text])
    assert "\n" not in str(error.value)


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(cost_parser().parse_args(list(words)), "cpu", 2).specs


def test_a_cost_run_is_a_run_without_steps() -> None:
    (spec,) = specs("--variants", "full", "--no-control", "--seq-len", "4096")
    words = ["--variants", "full", "--no-control", "--seq-len", "4096"]
    words += ["--steps", "0", "--batch-size", "1", "--length-schedule", "constant"]
    assert plan_runs(run_parser().parse_args(words), "cpu", 2).specs == [spec]


def test_every_variant_is_measured_at_every_length_in_as_many_processes_as_asked() -> None:
    words = ["--variants", "full,linear", "--seq-len", "256:1024", "--seeds", "3", "--d-model", "64"]
    found = specs(*words)
    assert len({spec.run_id for spec in found}) == 3 * 3 * 3, "three variants with the control"
    assert {(spec.steps, spec.batch_size, spec.d_model) for spec in found} == {(0, 1, 64)}


@pytest.mark.parametrize(
    "words", [["--lr", "1"], ["--budget", "5"], ["--steps", "3"], ["--length-schedule", "constant"]]
)
def test_what_is_about_training_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="unrecognized arguments"):
        cost_parser().parse_args(words)


def test_a_memory_that_nobody_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = compare_here("cost", "--memory-limit", "900TB", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "--memory-limit: expected at most the available memory" in done.stderr
    assert not (tmp_path / "out").exists()
    done = compare_here("cost", "--longest", "4096", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "--longest needs --memory-limit SIZE" in done.stderr


@pytest.mark.parametrize("limit", [600, 1000, 1024, 5000, 23_552, 65_535, 65_536, 10**6])
@pytest.mark.parametrize("measured", [[512], [512, 1024, 2048], [512, 30_000]])
def test_the_search_ends_within_a_sixteenth(limit: int, measured: list[int]) -> None:
    answers = {length: "ok" if length <= limit else "oom" for length in measured}
    probed: list[int] = []

    def probe(length: int) -> str:
        probed.append(length)
        return "ok" if length <= limit else "oom"

    extend(answers, probe, 65_536)
    fits = max(length for length, status in answers.items() if status == "ok")
    fails = min((length for length, status in answers.items() if status != "ok"), default=None)
    assert fits <= limit
    assert len(probed) == len(set(probed)) <= 14
    assert not set(probed) & set(measured)
    if fails is None:
        assert fits == 65_536
    else:
        assert limit < fails <= fits + fits // 16


def test_a_length_that_runs_out_of_time_is_an_answer_too() -> None:
    answers = {512: "ok"}
    extend(answers, lambda length: "ok" if length <= 1024 else "timeout", 65_536)
    assert answers[1024] == "ok"
    assert answers[1088] == "timeout"


def test_samples_are_repeated_up_to_a_length_or_cut() -> None:
    inputs = np.array([[1, 2, 3]])
    targets = np.array([[IGNORE, 5, IGNORE]])
    padding = np.array([[False, False, True]])
    longer = resized(Batch(inputs, targets, padding), 7)
    assert longer.inputs.tolist() == [[1, 2, 3, 1, 2, 3, 1]]
    assert longer.targets.tolist() == [[IGNORE, 5, IGNORE, IGNORE, 5, IGNORE, IGNORE]]
    assert longer.padding is not None
    assert longer.padding.tolist() == [[False, False, True] * 2 + [False]]
    assert resized(Batch(inputs, targets), 2).inputs.tolist() == [[1, 2]]
    pictures = resized(Batch(np.zeros((2, 3, 4), np.float32), np.array([0, 1])), 5)
    assert pictures.inputs.shape == (2, 5, 4)
    pairs = resized(Batch(np.ones((2, 2, 3), np.int64), np.array([0, 1])), 5)
    assert pairs.inputs.shape == (2, 2, 5)
    assert pairs.targets.tolist() == [0, 1]


def test_the_matrix_rate_is_that_of_a_product_of_matrices() -> None:
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e15


def test_a_probe_measures_nothing_and_fits_or_does_not() -> None:
    fits = run_here(replace(SPEC, steps=0, seq_len=64, probe=32))
    assert fits["status"] == "ok", fits["reason"]
    assert not {"step_seconds", "peak_memory_bytes", "test_score"} & set(fits)
    change = {"variant": "naive", "steps": 0, "probe": 32, "batch_size": 1, "memory_limit": 2**30}
    fails = run_one(replace(SPEC, **change, seq_len=30_000), lambda _: None)
    assert fails["status"] == "oom", fails["reason"]


def test_cost_measures_searches_and_resumes(tmp_path: Path) -> None:
    words = ["cost", "--variants", "naive", "--no-control", "--tasks", "mqar", "--seq-len", "32:64"]
    words += ["--d-model", "16", "--n-heads", "1", "--n-layers", "1", "--memory-limit", "3GB", "--longest", "128"]
    done = compare_here(*words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    measured = [r for r in records if r["spec"]["probe"] is None]
    probed = [r for r in records if r["spec"]["probe"] is not None]
    assert [r["seq_len"] for r in measured] == [32, 64]
    assert [(r["seq_len"], r["spec"]["probe"]) for r in probed] == [(128, 64)]
    for record in measured:
        assert record["status"] == "ok", record["reason"]
        assert record["matrix_rate_flops"] > 0
        assert record["copy_rate_bytes"] > 0
        assert record["moved_bytes"] > 2 * 4 * record["seq_len"] ** 2, "naive writes and reads its weights"
    report = (tmp_path / "report.md").read_text()
    assert "longest N in 3\xa0GiB" in report
    assert "128 (no longer length tried)" in report
    assert "share of matrix rate" in report
    assert "What limits forward + backward" in report

    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    done = compare_here(*words, "--out", str(tmp_path), "--resume")
    assert done.returncode == 0, done.stderr
    again = read_records(tmp_path / "records.jsonl")[0]
    assert [r["run_id"] for r in again] == [r["run_id"] for r in records]
    assert (tmp_path / "records.jsonl").read_text().splitlines()[:-1] == lines[:-1]


def test_help_on_cost_needs_no_torch() -> None:
    code = "import sys; from compare.arguments import cost_parser; cost_parser().format_help(); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
