"""Estimates beside finished runs: each folder is estimated from all others, and compared with what happened."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from compare.estimate.forecast import Forecaster, Range, Unknown
from compare.estimate.law import Basis
from compare.estimate.points import Cost, Done, Shape, memory_of, read_folder
from compare.estimate.splits import split_sizes

WITHIN = 0.3  # the share by which an estimate may miss
QUANTITIES = ("run", "steps taken", "step", "memory", "FLOPs of a step")


class Compared(NamedTuple):
    """One estimate beside the truth.

    Attributes:
        folder, label: of the run. quantity: one of ``QUANTITIES``. basis: of the step.
        ratio: estimate / truth. inside: whether the range held the truth.
    """

    folder: str
    label: str
    quantity: str
    basis: Basis
    ratio: float
    inside: bool

    @property
    def close(self) -> bool:
        return is_close(self.ratio)


def is_close(ratio: float) -> bool:
    return 1 / (1 + WITHIN) <= ratio <= 1 + WITHIN


class Checked(NamedTuple):
    """The result of a check.

    Attributes:
        compared: all comparisons. unknown: folder -> runs without a forecast.
        totals: folder -> seconds of all its runs, estimated and taken.
        repeats: folder, quantity -> ratios from ``repeats``.
    """

    compared: list[Compared]
    unknown: dict[str, int]
    totals: dict[str, tuple[float, float]]
    repeats: dict[tuple[str, str], list[float]]


def check(folders: Sequence[Path], wanted: Sequence[Path], pairs: Callable[[str, Cost], bool]) -> Checked:
    """Estimate the runs of each wanted folder from the records of all other folders."""
    runs = {folder.resolve(): read_folder(folder) for folder in (*folders, *wanted)}
    result = Checked([], {}, {}, {})
    for folder in wanted:
        others = [run for other, own in runs.items() if other != folder.resolve() for run in own]
        forecaster = Forecaster(others, pairs, split_sizes(others))
        own = runs[folder.resolve()]
        for run in own:
            compare_run(run, folder.name, forecaster, result)
        for quantity in QUANTITIES:
            result.repeats[folder.name, quantity] = repeats(own, quantity)
    return result


def truths_of(run: Done) -> dict[str, float]:
    """Quantity -> what a run took, where its record says it."""
    record = run.record
    truths = {
        "run": record.get("wall_seconds"),
        "steps taken": record.get("train_steps") if run.spec.steps is None else None,
        "step": record.get("step_seconds") or record.get("train_step_seconds"),
        "memory": memory_of(record),
        "FLOPs of a step": record.get("flops"),
    }
    return {quantity: truth for quantity, truth in truths.items() if truth}


def compare_run(run: Done, folder: str, forecaster: Forecaster, result: Checked) -> None:
    """Add the comparisons of a run to the result."""
    forecast = forecaster.forecast(run.spec, run.machine)
    if isinstance(forecast, Unknown):
        result.unknown[folder] = result.unknown.get(folder, 0) + 1
        return
    estimates: dict[str, Range | None] = {
        "run": forecast.seconds,
        "steps taken": forecast.steps,
        "step": forecast.step,
        "memory": forecast.memory,
        "FLOPs of a step": forecast.step_flops,
    }
    for quantity, truth in truths_of(run).items():
        if (estimate := estimates[quantity]) is not None:
            ratio, inside = estimate.value / truth, estimate.low <= truth <= estimate.high
            result.compared.append(Compared(folder, run.spec.label, quantity, forecast.basis, ratio, inside))
    if wall := run.record.get("wall_seconds"):
        before = result.totals.get(folder, (0.0, 0.0))
        result.totals[folder] = before[0] + forecast.seconds.value, before[1] + wall


def repeats(runs: Sequence[Done], quantity: str) -> list[float]:
    """Each run / the median of the others that differ from it in seed and rate alone. No estimate can be closer."""
    alike: dict[tuple[Shape, str], list[float]] = {}
    for run in runs:
        if quantity in (truths := truths_of(run)):
            alike.setdefault((Shape.of(run.spec), run.spec.kind), []).append(truths[quantity])
    return [
        value / statistics.median([*values[:place], *values[place + 1 :]])
        for values in alike.values()
        if len(values) > 1
        for place, value in enumerate(values)
    ]


class Summary(NamedTuple):
    """Of several comparisons: their number, the median ratio, the ratio furthest from 1, and how many are close, and
    inside their ranges."""

    number: int
    median: float
    worst: float
    close: int
    inside: int

    @classmethod
    def of(cls, compared: Sequence[Compared]) -> Summary:
        ratios = [each.ratio for each in compared]
        worst = max(ratios, key=lambda ratio: max(ratio, 1 / ratio))
        close, inside = (sum(held) for held in zip(*((c.close, c.inside) for c in compared), strict=True))
        return cls(len(ratios), statistics.median(ratios), worst, close, inside)


def misses(compared: Sequence[Compared], folder: str, quantity: str) -> dict[str, float]:
    """Variant -> its median ratio, where that is further off than ``WITHIN``; the furthest first."""
    ratios: dict[str, list[float]] = {}
    for each in compared:
        if (each.folder, each.quantity) == (folder, quantity):
            ratios.setdefault(each.label, []).append(each.ratio)
    medians = {label: statistics.median(own) for label, own in ratios.items()}
    far = {label: ratio for label, ratio in medians.items() if not is_close(ratio)}
    return dict(sorted(far.items(), key=lambda item: -max(item[1], 1 / item[1])))
