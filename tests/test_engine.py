"""Comparisons over engines: what all engines share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compare.engines.base import Listener, Results
from compare.engines.local import Local
from compare.runs.options import RunOptions
from compare.runs.outcome import new_record
from compare.runs.sequence import run_all
from compare.spec import RunSpec
from tests.clusters import SPEC, WORDS, lines, silent
from tests.here import compare_here


class Reversed:
    """An engine without machines: it holds all runs that may start, and ends the last first."""

    def __init__(self, statuses: dict[str, str]) -> None:
        self.statuses, self.rounds = statuses, list[list[str]]()

    def results(self, take: Callable[[], RunSpec | None], run_options: RunOptions, listener: Listener) -> Results:
        held: list[RunSpec] = []
        while True:
            while (spec := take()) is not None:
                listener.started(spec)
                held.append(spec)
            self.rounds.append([spec.variant for spec in held])
            if not held:
                return
            spec = held.pop()
            yield spec, new_record(spec, self.statuses.get(spec.variant, "ok"), "made up") | {"wall_seconds": 1.0}  # type: ignore[arg-type]


@pytest.mark.parametrize("ended", ["ok", "oom", "error"])
def test_a_run_waits_for_the_model_that_it_needs(ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compare.display.outcome", lambda _: "done")
    teacher = replace(SPEC, qk_norm=True)
    student = replace(SPEC, variant="linear", teacher=teacher.run_id)
    other = replace(SPEC, variant="none")
    engine = Reversed({"full": ended})
    records = run_all([teacher, student, other], tmp_path / "records.jsonl", silent(), {}, RunOptions(), None, engine)
    assert engine.rounds[0] == ["full", "none"]
    assert engine.rounds[1] == ["full"], "none ended; linear waits"
    assert engine.rounds[2] == (["linear"] if ended == "ok" else [])
    assert [r["status"] for r in records] == [ended, {"ok": "ok", "oom": "unsupported", "error": "error"}[ended], "ok"]
    assert sorted(r["run_id"] for r in lines(tmp_path)) == sorted(s.run_id for s in (teacher, student, other))


def test_a_record_keeps_the_machine_of_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compare.display.outcome", lambda _: "done")

    class Elsewhere(Reversed):
        def results(self, *given: Any) -> Results:
            for spec, record in super().results(*given):
                yield spec, {"machine": {"cpu": "Xeon", "cores": 4}} | record

    here, failed = {"cpu": "EPYC", "cores": 2}, replace(SPEC, task="mqar")
    run_all(
        [SPEC, failed],
        tmp_path / "records.jsonl",
        silent(),
        {failed.data_id: "no data"},
        RunOptions(machine=here),
        None,
        Elsewhere({}),
    )
    assert {r["task"]: r["machine"]["cpu"] for r in lines(tmp_path)} == {"digits": "Xeon", "mqar": "EPYC"}


def test_the_micro_batch_is_probed_by_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []

    class Watched(Local):
        def results(self, take: Callable[[], RunSpec | None], run_options: RunOptions, listener: Listener) -> Results:
            for spec, record in super().results(take, run_options, listener):
                kinds.append(spec.kind)
                yield spec, record

    monkeypatch.setattr("compare.engines.Local", Watched)
    words = [word if word != "8" else "auto" for word in WORDS]
    done = compare_here(*words, "--variants", "full", "--no-control", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert kinds == ["probe", "train"]
    assert done.stdout.count("started") == 1, "probes are not shown"


@pytest.mark.parametrize("typed", ["rya", "ray://", "ray://host", "http://host:1", "slurm:gpu", "ray://a/b:1"])
def test_a_wrong_engine_is_one_line(typed: str) -> None:
    done = compare_here("--engine", typed)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"expected local, ray, ray://HOST:PORT or slurm, got {typed!r}" in done.stderr


@pytest.mark.parametrize(
    ("words", "package", "told"),
    [
        ("ray", "ray", "--engine ray: ray is not installed; pip install 'attention-zoo[ray]' brings it"),
        ("ray://127.0.0.1:9", "grpc", "pip install 'attention-zoo[ray]' brings it"),
        ("slurm --timeout 60", "submitit", "submitit is not installed; pip install 'attention-zoo[slurm]' brings it"),
        ("slurm", "submitit", "--engine slurm needs --timeout SECONDS"),
    ],
)
def test_what_an_engine_lacks_is_one_line(
    words: str, package: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words != "ray":
        pytest.importorskip("ray")
    monkeypatch.setitem(sys.modules, package, None)
    done = compare_here(*WORDS, "--out", str(tmp_path / "out"), "--engine", *words.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_imports_no_engine() -> None:
    code = (
        "import sys\nfrom compare.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('ray', 'grpc', 'submitit', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--engine WHERE" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
