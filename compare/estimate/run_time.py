"""How a run spends its time: the parts that its spec determines, and what the rest takes by the records of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from compare.estimate.points import Cost, Done, Machine
from compare.schedule import CURVE_POINTS, VALIDATION_SHARE, VALIDATIONS, at_length
from compare.spec import RunSpec

LEAST_TIMED, MOST_TIMED, TIMED_SECONDS = 3, 20, 3.0  # repetitions of a measurement, as in compare/runs/measure.py
FEWEST_RUNS = 8  # of a machine, to learn its overheads from them alone

Pace = Callable[[Cost, int, int], float]
"""Cost, length, samples in a micro-batch -> its value."""
Splits = Callable[[RunSpec, str, int], float | None]
"""Spec, split, length -> the number of samples; None = unknown."""


class Parts(NamedTuple):
    """Seconds of a run by what it does, the optimizer steps it takes, and the FLOPs of its training.

    measuring: steps and forward passes that are timed. counting: passes whose FLOPs are counted.
    """

    measuring: float
    counting: float
    training: float
    evaluating: float
    steps: float
    flops: float


def parts_of(spec: RunSpec, pace: Pace, splits: Splits) -> Parts:
    """What a run does, and how long. Early stopping is not foreseen: the training goes on to its end. A split of
    unknown size takes no time."""
    step = spec.accumulate * pace("step", spec.seq_len, spec.batch_size)
    forward = spec.accumulate * pace("forward", spec.seq_len, spec.batch_size)
    measuring = 0.0 if spec.kind == "search" else 3 * step + 2 * timed(step) + timed(forward)
    lengths = {spec.seq_len, *(length for _, length, _ in spec.phases())}
    counting = sum(pace("step", length, spec.batch_size) for length in lengths)
    if spec.kind == "cost":
        return Parts(measuring, counting, 0.0, 0.0, 0.0, 0.0)
    training, steps, flops = 0.0, 0.0, 0.0
    begin = 0.0
    for end, length, batch in spec.phases():
        own = spec.accumulate * pace("step", length, batch)
        taken = (end - begin) * (spec.steps if spec.steps is not None else (spec.budget or 0.0) / own)
        training += taken * own
        steps += taken
        flops += taken * spec.accumulate * pace("flops", length, batch)
        begin = end
    if spec.steps is None:
        training += step / 2  # the last step begins within the budget
        steps = max(1.0, steps)
    validation = evaluation(spec, "validation", spec.seq_len, spec.batch_size, pace, splits)
    evaluating = validation * validations(spec, training, steps, validation)
    if spec.kind == "train":
        evaluating += evaluation(spec, "test", spec.seq_len, spec.batch_size, pace, splits)
        for length in spec.test_lens:
            batch, most = at_length(spec, length)
            evaluating += evaluation(spec, "test", length, batch, pace, splits, most)
    return Parts(measuring, counting, training, evaluating, steps, flops)


def timed(seconds: float) -> float:
    """How long it takes to time something that takes so many seconds, with a warm-up."""
    return seconds * (1 + min(MOST_TIMED, max(LEAST_TIMED, math.ceil(TIMED_SECONDS / seconds))))


def evaluation(
    spec: RunSpec, split: str, length: int, batch: int, pace: Pace, splits: Splits, most: float = math.inf
) -> float:
    """Seconds to evaluate a split, of at most so many samples."""
    samples = splits(spec, split, length)
    return 0.0 if samples is None else min(samples, most) / batch * pace("forward", length, batch)


def validations(spec: RunSpec, training: float, steps: float, validation: float) -> int:
    """How many validations a training has room for: at its points, as long as they take a tenth of its time."""
    points = max(1, min(CURVE_POINTS, round(steps)))
    count = 0
    for done in (point / points for point in range(1, points + 1)):
        due = done >= spec.pretrain and done * VALIDATIONS >= count + 1
        count += done == 1 or (due and count * validation <= VALIDATION_SHARE * done * training)
    return count


class Overheads(NamedTuple):
    """Seconds of a run beside its training: a start, and factors on its parts."""

    start: float
    measuring: float
    counting: float
    evaluating: float

    def total(self, parts: Parts) -> float:
        """Seconds of the whole run."""
        beside = self.measuring * parts.measuring + self.counting * parts.counting + self.evaluating * parts.evaluating
        return self.start + beside + parts.training


def learn(known: Sequence[tuple[Parts, float]]) -> Overheads:
    """Overheads by least squares of relative errors, none below 0. A part that no run has takes what it is said to.

    known: the parts of finished runs, and their seconds without those of training.
    """
    rows = np.array([[part / rest for part in (1.0, p.measuring, p.counting, p.evaluating)] for p, rest in known])
    factors = nnls(rows, np.ones(len(rows)))[0]
    return Overheads(*map(float, np.where(rows.any(axis=0), factors, 1.0)))


def overheads_of(
    runs: Iterable[Done], machine: Machine, parts: Callable[[Done], Parts | None]
) -> Mapping[bool, Overheads]:
    """Overheads of runs that only measure costs (True) and of all others (False): learnt from the runs of a machine
    where there are enough, else from all runs on the same kind of device. One kind stands in for the other where that
    has no run; without any run there are none."""
    found: dict[bool, Overheads] = {}
    kept = [run for run in runs if run.record.get("wall_seconds") and run.machine.device == machine.device]
    for is_cost in (False, True):
        of_kind = [run for run in kept if (run.spec.kind == "cost") == is_cost]
        own = [run for run in of_kind if run.machine == machine]
        known = [
            (each, rest)
            for run in (own if len(own) >= FEWEST_RUNS else of_kind)
            if (each := parts(run))
            and (rest := run.record["wall_seconds"] - (run.record.get("train_seconds") or 0)) > 0
        ]
        if known:
            found[is_cost] = learn(known)
    for is_cost in (False, True):
        if is_cost not in found and (not is_cost) in found:
            found[is_cost] = found[not is_cost]
    return found
