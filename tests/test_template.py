"""Runs begin in forks of a process that has imported torch; each is as fresh as a new Python."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compare.record import Record
from compare.runs import supervisor, template
from compare.runs.supervisor import run_one
from tests.learning import small_spec

SPEC = replace(small_spec("mqar", 32, steps=3, batch_size=8), d_model=16, n_heads=1, n_layers=1)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="templates fork on Linux only")


@pytest.fixture(autouse=True)
def none_idle() -> None:
    template.close_all()


def idle() -> int:
    """The process of the only idle template."""
    (only,) = template.IDLE
    return only.process.pid


def scores(record: Record) -> list[object]:
    assert record["status"] == "ok", record["reason"]
    return [record[name] for name in ("test_score", "test_loss", "train_tokens", "saved_bytes", "params")]


def test_a_fork_learns_what_a_new_python_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run_one(SPEC, lambda _: None) for _ in range(2))
    monkeypatch.setattr(supervisor, "may_fork", lambda _: False)
    assert scores(first) == scores(second) == scores(run_one(SPEC, lambda _: None))


def test_one_template_serves_runs_of_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    run_one(SPEC, lambda _: None)
    first = idle()
    run_one(replace(SPEC, seed=1), lambda _: None)
    assert idle() == first
    monkeypatch.setenv("ATTENTION_ZOO_TEST", "another environment")
    run_one(SPEC, lambda _: None)
    assert idle() != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_the_first_run_takes_the_template_that_began_early() -> None:
    supervisor.make_ready(SPEC)
    early = idle()
    assert run_one(SPEC, lambda _: None)["status"] == "ok"
    assert idle() == early
    supervisor.make_ready(replace(SPEC, threads=SPEC.threads + 1))
    assert idle() != early


def test_a_template_that_died_is_replaced() -> None:
    run_one(SPEC, lambda _: None)
    os.kill(idle(), signal.SIGKILL)
    assert run_one(SPEC, lambda _: None)["status"] == "ok"


def test_a_template_that_dies_takes_its_fork_along() -> None:
    run_one(SPEC, lambda _: None)
    parent = idle()
    forks: list[int] = []

    def kill(event: Record) -> None:
        if event["phase"] == "training" and not forks:
            forks.extend(map(int, children(parent)))
            os.kill(parent, signal.SIGKILL)

    record = run_one(replace(SPEC, steps=100_000), kill)
    assert record["status"] == "error"
    assert record["reason"].startswith("killed by signal 9 (SIGKILL) in training")
    assert not template.IDLE
    (fork,) = forks
    assert "compare.runs" not in command(fork), "it trains on"


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command(pid: int) -> str:
    """The command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"memory_limit": 2**30}])
def test_what_a_fork_would_spoil_begins_in_a_new_python(change: dict[str, object]) -> None:
    assert supervisor.may_fork(SPEC)
    assert not supervisor.may_fork(replace(SPEC, **change))


def test_no_run_stays_below_an_idle_template() -> None:
    run_one(SPEC, lambda _: None)
    assert not children(idle())
