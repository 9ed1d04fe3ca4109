"""Comparisons over Slurm; a fake of submitit stands for the cluster."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from compare.engines import open_engine
from compare.engines.base import Engine
from compare.errors import UsageError
from compare.lock import hold
from compare.record import Record
from compare.runs.options import RunOptions
from compare.runs.sequence import run_all
from tests.clusters import (
    SPEC,
    FailedJobError,
    FakeExecutor,
    UncompletedJobError,
    dying_in,
    lines,
    linux,
    runs_left,
    said,
    silent,
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine on a machine that submits jobs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sbatch", "srun"):
        (tools / tool).write_text("#!/bin/sh\n")
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    submitit, core, utils = (ModuleType(name) for name in ("submitit", "submitit.core", "submitit.core.utils"))
    submitit.AutoExecutor = FakeExecutor  # type: ignore[attr-defined]
    utils.UncompletedJobError = UncompletedJobError  # type: ignore[attr-defined]
    for module in (submitit, core, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("compare.engines.slurm.LOOK", 0.05)
    monkeypatch.setattr(FakeExecutor, "parameters", [])
    with open_engine("slurm", tmp_path / "out", 100.0) as engine:
        return engine


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("tool", ["sbatch", "srun"])
def test_a_machine_that_submits_no_jobs_is_one_line(tool: str, tmp_path: Path) -> None:
    (tmp_path / "bin" / tool).unlink()
    with (
        pytest.raises(UsageError, match=f"^--engine slurm: found no {tool}: start"),
        open_engine("slurm", tmp_path / "out", 100.0),
    ):
        pass


@pytest.mark.long
@pytest.mark.alone  # its runs hold cores
@linux
def test_a_lost_job_is_submitted_again_and_no_row_is_lost_or_doubled(
    slurm: Engine, tmp_path: Path, own_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, display = dying_in(tmp_path, monkeypatch), silent()
    specs = [dying, replace(SPEC, variant="linear", steps=0, memory_limit=2**31)]
    out = tmp_path / "out"
    out.mkdir()
    with hold(out, "test"):
        run_all(specs, out / "records.jsonl", display, {}, RunOptions(out=str(out), timeout=100.0), None, slurm)
    assert sorted((r["run_id"], r["status"]) for r in lines(out)) == sorted((s.run_id, "ok") for s in specs)
    assert said(display).count("its job was lost (NODE_FAIL); it is run again") == 1
    same = {"name": "attention-zoo", "timeout_min": 17, "cpus_per_task": 1, "slurm_srun_args": ["--cpus-per-task=1"]}
    asked = [{"slurm_exclusive": None}, {"mem_gb": 3, "slurm_exclusive": True}]
    assert FakeExecutor.parameters[:2] == [same | own for own in asked]
    assert runs_left() == []


def made_up_job(state: str, outcome: Exception | str | Record) -> SimpleNamespace:
    error = outcome if isinstance(outcome, Exception) else None
    return SimpleNamespace(
        state=state, exception=lambda: error, result=lambda: outcome, paths=SimpleNamespace(stderr="a.err")
    )


@pytest.mark.parametrize(
    ("job", "ended"),
    [
        (made_up_job("TIMEOUT", UncompletedJobError("")), ("timeout", "Slurm ended its job with state TIMEOUT")),
        (
            made_up_job("OUT_OF_MEMORY", UncompletedJobError("")),
            ("oom", "Slurm ended its job with state OUT_OF_MEMORY"),
        ),
        (
            made_up_job("CANCELLED by 1000", UncompletedJobError("")),
            ("error", "Slurm ended its job with state CANCELLED by 1000"),
        ),
        (made_up_job("NODE_FAIL", UncompletedJobError("")), None),
        (made_up_job("PREEMPTED", UncompletedJobError("")), None),
        (
            made_up_job("FAILED", FailedJobError("trace:\n  File x\nImportError: no zoo\n---\n")),
            ("error", "on its node: ImportError: no zoo; a.err"),
        ),
    ],
    ids=["late", "memory", "cancelled", "node", "preempted", "failed"],
)
def test_how_a_job_ended_becomes_a_status(slurm: Any, job: Any, ended: tuple[str, str] | None) -> None:
    record = slurm.record_of(SPEC, job)
    assert (None if record is None else (record["status"], record["reason"])) == ended


def test_a_node_that_cannot_run_stops_the_comparison(slurm: Any) -> None:
    with pytest.raises(UsageError, match="--engine slurm: node a has torch 2"):
        slurm.record_of(SPEC, made_up_job("COMPLETED", "node a has torch 2"))
