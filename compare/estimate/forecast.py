"""What runs will cost: seconds, memory, steps and FLOPs of each, from the records of others."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from compare.estimate.law import Basis, Estimate, Estimator
from compare.estimate.points import Cost, Done, Machine, Shape, points_of
from compare.estimate.run_time import Overheads, Parts, Splits, overheads_of, parts_of
from compare.spec import RunSpec

End = Literal["low", "value", "high"]
WORDS: dict[Cost, str] = {"step": "time", "forward": "time of a forward", "memory": "memory", "flops": "FLOPs"}
ONE_STEP: tuple[Cost, Cost] = ("step", "flops")
REST = 1.25  # factor on the range of the time beside the training, whose overheads differ between machines and days


class Range(NamedTuple):
    """A number with the range it lies in."""

    value: float
    low: float
    high: float


class Unknown(NamedTuple):
    """Why a run has no forecast."""

    reason: str


def range_of(estimate: Estimate, times: int = 1) -> Range:
    """``times`` an estimate."""
    return Range(times * estimate.value, times * estimate.low, times * estimate.high)


@dataclass(frozen=True)
class Forecast:
    """What one run will cost.

    Attributes:
        seconds: of the whole run. training: part of these in which it trains.
        steps: optimizer steps. step, step_flops: seconds and FLOPs of one at full length.
        memory: bytes of training; None = no basis. flops: of the whole training.
        evaluated: whether the seconds hold those of validation and test, whose sizes may be unknown.
        basis: of the step at full length. folders: of all that was used.
    """

    seconds: Range
    training: float
    steps: Range
    step: Range
    step_flops: Range
    memory: Range | None
    flops: float
    evaluated: bool
    basis: Basis
    folders: frozenset[str]


@dataclass
class Forecaster:
    """Foresees runs from finished ones.

    Attributes:
        runs: the finished runs. pairs: as in ``Estimator``. splits: the number of samples of splits.
        learnt: overheads computed so far.
    """

    runs: Sequence[Done]
    pairs: Callable[[str, Cost], bool]
    splits: Splits
    learnt: dict[Machine, Mapping[bool, Overheads]] = field(init=False, default_factory=dict)

    @cached_property
    def estimator(self) -> Estimator:
        return Estimator(points_of(self.runs), self.pairs)

    def overheads(self, machine: Machine) -> Mapping[bool, Overheads]:
        """Whether a run only measures costs -> its overheads on a machine."""

        def parts(run: Done) -> Parts | None:
            try:
                return self.parts(run.spec, run.machine, "value")
            except ValueError:
                return None

        if machine not in self.learnt:
            self.learnt[machine] = overheads_of(self.runs, machine, parts)
        return self.learnt[machine]

    def estimate(self, cost: Cost, spec: RunSpec, machine: Machine, length: int, batch: int) -> Estimate:
        """The cost of a micro-batch of a run.

        Raises:
            ValueError: there is no basis.
        """
        found = self.estimator.estimate(cost, Shape.of(spec, length, batch), machine)
        if found is None:
            where = f"on {spec.device} in {spec.dtype}, under the other switches of the run,"
            raise ValueError(f"no record {where} tells the {WORDS[cost]} of {spec.label} at {length:,} tokens")
        return found

    def parts(self, spec: RunSpec, machine: Machine, end: End) -> Parts:
        """What a run does, with all its costs at one end of their ranges.

        Raises:
            ValueError: there is no basis.
        """

        def pace(cost: Cost, length: int, batch: int) -> float:
            return float(getattr(self.estimate(cost, spec, machine, length, batch), end))

        return parts_of(spec, pace, self.splits)

    def forecast(self, spec: RunSpec, machine: Machine) -> Forecast | Unknown:
        """What a run will cost on a machine."""
        try:
            low, mid, high = (self.parts(spec, machine, end) for end in ("low", "value", "high"))
            one, count = (self.estimate(cost, spec, machine, spec.seq_len, spec.batch_size) for cost in ONE_STEP)
        except ValueError as error:
            return Unknown(str(error))
        overheads = self.overheads(machine).get(spec.kind == "cost")
        if overheads is None:
            return Unknown("no record tells what a run takes beside its steps")
        memory = self.estimator.estimate("memory", Shape.of(spec), machine)
        total = overheads.total(mid)
        seconds = Range(
            total,
            low.training + (overheads.total(low) - low.training) / REST,
            high.training + (overheads.total(high) - high.training) * REST,
        )
        used = [one.basis, *([] if memory is None else [memory.basis])]
        return Forecast(
            seconds=seconds,
            training=mid.training,
            steps=Range(mid.steps, *sorted((low.steps, high.steps))),
            step=range_of(one, spec.accumulate),
            step_flops=range_of(count, spec.accumulate),
            memory=None if memory is None else range_of(memory),
            flops=mid.flops,
            evaluated=spec.kind == "cost" or self.splits(spec, "validation", spec.seq_len) is not None,
            basis=one.basis,
            folders=frozenset(folder for basis in used for folder in basis.folders),
        )


def makespan(stages: Sequence[Sequence[float]], workers: int) -> float:
    """Seconds until all stages are done, one after another; within a stage each free worker takes the next run."""
    total = 0.0
    for stage in stages:
        busy = [0.0] * workers
        for seconds in stage:
            heapq.heappush(busy, heapq.heappop(busy) + seconds)
        total += max(busy)
    return total
