"""Schedules of learning rate and length: what their names promise, at any budget."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest

import tasks
from compare.arguments import run_parser
from compare.errors import UsageError
from compare.plan import plan_runs
from compare.schedule import (
    LENGTH_SCHEDULES,
    LR_SCHEDULES,
    default_lengths,
    in_words,
    lr_factor,
    phase_length,
)
from compare.spec import RunSpec
from tasks import LengthSchedule, LrSchedule

SHARES = [step / 1000 for step in range(1001)]


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(run_parser().parse_args(["--no-control", "--variants", "full", *words]), "cpu", 1).specs


def test_every_name_has_one_entry_and_every_task_names_one() -> None:
    assert set(LR_SCHEDULES) == set(get_args(LrSchedule))
    assert set(LENGTH_SCHEDULES) == set(get_args(LengthSchedule))
    for name in tasks.available():
        defaults = tasks.get(name).defaults
        assert defaults.lr_schedule in LR_SCHEDULES
        assert defaults.length_schedule in LENGTH_SCHEDULES


@pytest.mark.parametrize("curve", LR_SCHEDULES)
def test_the_rate_rises_to_its_peak_and_then_never_again(curve: LrSchedule) -> None:
    for warmup in (0.02, 0.3):
        factors = [lr_factor(curve, warmup, done) for done in SHARES]
        peak = factors.index(max(factors))
        assert all(0 <= factor <= 1 for factor in factors)
        assert all(a <= b for a, b in pairwise(factors[: peak + 1]))
        assert all(a >= b for a, b in pairwise(factors[peak:]))
        assert peak <= 1000 * warmup
        assert factors[0] == pytest.approx(0.1)
        assert lr_factor(curve, warmup, 1.3) == factors[-1], "the last step of a budget in seconds ends late"


def test_the_curves_are_what_they_are_called() -> None:
    assert [lr_factor("constant-then-linear", 0, done) for done in (0, 0.5, 0.85, 1)] == [1, 1, 1, 0]
    assert lr_factor("constant-then-linear", 0, 0.925) == pytest.approx(0.5)
    assert [lr_factor("linear", 0, done) for done in (0, 0.25, 1)] == [1, 0.75, 0]
    assert lr_factor("cosine", 0, 0.25) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert lr_factor("cosine", 0, 1) == 0
    assert [lr_factor("inverse-square-root", 0.01, done) for done in (0.01, 0.04, 1)] == pytest.approx([1, 0.5, 0.1])


def test_the_first_step_of_a_short_training_does_something() -> None:
    for name in LR_SCHEDULES:
        assert lr_factor(name, 0.02, 0.0) >= 0.1


@pytest.mark.parametrize("lengths", LENGTH_SCHEDULES)
def test_lengths_grow_to_the_full_one_and_their_batches_are_no_larger(lengths: LengthSchedule) -> None:
    (spec,) = specs("--tasks", "needle", "--seq-len", "8192", "--length-schedule", lengths)
    phases = spec.phases()
    ends, sampled, sizes = zip(*phases, strict=True)
    assert list(ends) == sorted(set(ends))
    assert list(sampled) == sorted(set(sampled))
    assert (ends[-1], sampled[-1], sizes[-1]) == (1.0, 8192, spec.batch_size)
    assert all(length * size <= 8192 * spec.batch_size for _, length, size in phases)
    assert in_words(lengths).count("%") == len(phases)


def test_shorter_lengths_are_even() -> None:
    for name, phases in LENGTH_SCHEDULES.items():
        assert all(phase_length(8210, phase) % 2 == 0 for phase in phases[:-1]), name
    assert phase_length(999, LENGTH_SCHEDULES["constant"][0]) == 999
    (spec,) = specs("--tasks", "duplicate", "--seq-len", "8210", "--length-schedule", "from-16th")
    for _, length, size in spec.phases()[:-1]:
        batch = next(tasks.get("duplicate")(8210).train_batches(size, length, 0))
        assert batch.inputs.shape == (size, length)


@pytest.mark.parametrize(
    ("seq_len", "shortest", "found"),
    [
        (8192, 16, "from-64th"),
        (8192, 128, "from-64th"),
        (8192, 129, "from-16th"),
        (2048, 16, "from-16th"),
        (2047, 16, "constant"),
        (8192, 1024, "constant"),
        (64, 64, "constant"),
    ],
)
def test_a_default_that_would_start_too_short_gives_way_to_the_next(seq_len: int, shortest: int, found: str) -> None:
    assert default_lengths("from-64th", seq_len, shortest) == found
    assert default_lengths("constant", seq_len, shortest) == "constant"


def test_schedules_reach_the_run() -> None:
    (spec,) = specs()
    assert (spec.task, spec.seq_len, spec.length_schedule) == ("noisy_recall", 8192, "from-64th")
    assert spec.lr_schedule == tasks.get("noisy_recall").defaults.lr_schedule
    (spec,) = specs("--tasks", "bytes", "--seq-len", "1024")
    assert spec.length_schedule == "constant"
    words = ["--lr-schedule", "inverse-square-root", "--warmup", "0.1", "--length-schedule", "from-16th"]
    (spec,) = specs("--tasks", "mqar", "--seq-len", "512", *words)
    assert (spec.lr_schedule, spec.warmup, spec.length_schedule) == ("inverse-square-root", 0.1, "from-16th")


@pytest.mark.parametrize("task", [name for name in tasks.available() if name not in ("classify", "retrieval")])
def test_a_schedule_below_a_tasks_least_is_said_in_one_line(task: str) -> None:
    kind = tasks.get(task)
    seq_len = kind.defaults.seq_len if kind.lengths else min(max(kind.min_len, 64), kind.max_len)
    with pytest.raises(UsageError, match=f"from-64th .* trains at .* of {seq_len} tokens, but {task} has") as error:
        specs("--tasks", task, "--seq-len", str(seq_len), "--length-schedule", "from-64th")
    assert "\n" not in str(error.value)
