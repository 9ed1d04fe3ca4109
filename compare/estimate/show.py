"""The table of a plan, and its totals, for people and for machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from compare.estimate.forecast import Forecast, Range, Unknown, makespan
from compare.spec import RunSpec
from compare.units import MISSING, count, plural, significant, size

WIDE = 150  # columns, where no terminal sets a width
HEADER = ("task · N", "variant", "runs", "a run", "range", "steps", "memory", "FLOPs", "")


@dataclass(frozen=True)
class Line:
    """Equal runs, but for their seeds and rates.

    Attributes:
        spec: one of them. number: how many. forecast: of each.
    """

    spec: RunSpec
    number: int
    forecast: Forecast | Unknown

    @property
    def where(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.spec.task_options)
        return f"{self.spec.task}{f' ({options})' if options else ''} · {self.spec.seq_len:,}"

    @property
    def runs(self) -> str:
        return f"{self.number} search" if self.spec.kind == "search" else str(self.number)


@dataclass(frozen=True)
class Prices:
    """workers: runs at the same time. watts, price: of one worker, and of its hour; None = not given."""

    workers: int
    watts: float | None
    price: float | None


@dataclass(frozen=True)
class Totals:
    """Sums over all runs that have a forecast.

    Attributes:
        runs: their number. unknown: that of the others.
        wall: seconds on all workers together. hours: of workers. flops: of all trainings.
        energy: kWh. money: in the unit of the price. None where watts or price are not given.
    """

    runs: int
    unknown: int
    wall: Range
    hours: Range
    flops: float
    energy: Range | None
    money: Range | None


def add_up(lines: Sequence[Line], prices: Prices) -> Totals:
    """The totals of a plan. The search ends before the other runs begin.

    The ends of the ranges are those of all runs together, as if all estimates missed to the same side.
    """
    known = [(line, line.forecast) for line in lines if isinstance(line.forecast, Forecast)]

    def total(end: int) -> tuple[float, float]:
        stages = [
            [forecast.seconds[end] for line, forecast in known if (line.spec.kind == "search") == search
             for _ in range(line.number)]
            for search in (True, False)
        ]  # fmt: skip
        return makespan(stages, prices.workers), sum(map(sum, stages)) / 3600

    (wall, hours), (low, low_hours), (high, high_hours) = (total(end) for end in range(3))
    spent = Range(hours, low_hours, high_hours)

    def priced(each: float | None) -> Range | None:
        return None if each is None else Range(*(each * hour for hour in spent))

    return Totals(
        runs=sum(line.number for line, _ in known),
        unknown=sum(line.number for line in lines if isinstance(line.forecast, Unknown)),
        wall=Range(wall, low, high),
        hours=spent,
        flops=sum(line.number * forecast.flops for line, forecast in known),
        energy=priced(None if prices.watts is None else prices.watts / 1000),
        money=priced(prices.price),
    )


def duration(seconds: float) -> str:
    """45 s, 12.5 min, 8.1 h, 3.4 days, 2.1 years."""
    for limit, unit, word in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (6.3e7, 86_400, "days")):
        if seconds < limit:
            return f"{significant(seconds / unit)} {word}"
    return f"{significant(seconds / 3.156e7)} years"


def spread(each: Range, show: Callable[[float], str]) -> str:
    return f"{show(each.low)} to {show(each.high)}"


def show_plan(lines: Sequence[Line], totals: Totals, prices: Prices, notes: Sequence[str], threads: int) -> None:
    """Print the table, what its estimates rest on, and the totals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in HEADER:
        table.add_column(title, justify="right" if title in HEADER[2:8] else "left", no_wrap=title != "variant")
    bases: dict[str, str] = {}
    for line in lines:
        forecast = line.forecast
        said = forecast.reason if isinstance(forecast, Unknown) else basis_words(forecast)
        mark = bases.setdefault(said, f"[{len(bases) + 1}]")
        cells = ["unknown", *[MISSING] * 4] if isinstance(forecast, Unknown) else cells_of(forecast, line.spec)
        table.add_row(line.where, line.spec.label, line.runs, *cells, mark.replace("[", "\\["))
    console.print(table)
    for said, mark in bases.items():
        console.print(f"{mark} {said}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    for text in (*total_words(totals, prices, threads, lines[0].spec.device), *notes):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def cells_of(forecast: Forecast, spec: RunSpec) -> list[str]:
    return [
        duration(forecast.seconds.value),
        spread(forecast.seconds, duration),
        count(forecast.steps.value) if spec.kind != "cost" else MISSING,
        MISSING if forecast.memory is None else size(forecast.memory.value),
        count(forecast.flops) if spec.kind != "cost" else MISSING,
    ]


def basis_words(forecast: Forecast) -> str:
    missing = "" if forecast.evaluated else "; without validation and test, whose sizes are unknown"
    return f"{forecast.basis.words}{missing} ({', '.join(sorted(forecast.folders))})"


def total_words(totals: Totals, prices: Prices, threads: int, device: str) -> list[str]:
    """The totals in sentences."""
    if not totals.runs:
        return ["No run has an estimate."]
    workers = f"{prices.workers:,} {plural(prices.workers, 'worker')}"
    each = "1 GPU" if device == "cuda" else f"{threads} {plural(threads, 'core')}"
    hours = "GPU-hours" if device == "cuda" else "core-hours"
    factor = 1 if device == "cuda" else threads
    spent = Range(*(factor * hour for hour in totals.hours))
    trained = f", {count(totals.flops)} FLOPs of training" if totals.flops else ""
    words = [
        f"{totals.runs:,} {plural(totals.runs, 'run')} on {workers} of {each}: {duration(totals.wall.value)} "
        f"({spread(totals.wall, duration)}), {significant(spent.value)} {hours}{trained}."
    ]
    if totals.energy is not None:
        words.append(
            f"Energy: {significant(totals.energy.value)} kWh ({spread(totals.energy, significant)}): "
            f"{prices.watts:g} W times the hours of all workers; cooling and idle machines are not in it."
        )
    if totals.money is not None:
        words.append(
            f"Price: {significant(totals.money.value)} ({spread(totals.money, significant)}): {prices.price:g} an hour "
            "times the hours of all workers."
        )
    if totals.unknown:
        words.append(f"Not included: {totals.unknown:,} {plural(totals.unknown, 'run')} without an estimate.")
    return words


def as_json(lines: Sequence[Line], totals: Totals, notes: Sequence[str]) -> dict[str, Any]:
    """The plan as plain values. Ranges are [low, value, high]."""

    def plain(each: Range | None) -> list[float] | None:
        return None if each is None else [each.low, each.value, each.high]

    rows = []
    for line in lines:
        spec, forecast = line.spec, line.forecast
        row: dict[str, Any] = {"task": spec.task, "task_options": dict(spec.task_options), "seq_len": spec.seq_len}
        row |= {"variant": spec.label, "kind": spec.kind, "runs": line.number}
        if isinstance(forecast, Unknown):
            rows.append(row | {"unknown": forecast.reason})
            continue
        basis = {"words": forecast.basis.words, "kind": forecast.basis.kind, "lengths": list(forecast.basis.lengths)}
        basis |= {"machine": forecast.basis.machine.words, "folders": sorted(forecast.folders)}
        row |= {"seconds": plain(forecast.seconds), "train_seconds": forecast.training, "steps": plain(forecast.steps)}
        row |= {"step_seconds": plain(forecast.step), "train_memory_bytes": plain(forecast.memory)}
        rows.append(row | {"train_flops": forecast.flops, "basis": basis})
    sums: dict[str, Any] = {"runs": totals.runs, "unknown": totals.unknown, "wall_seconds": plain(totals.wall)}
    sums |= {"worker_hours": plain(totals.hours), "train_flops": totals.flops}
    sums |= {"kwh": plain(totals.energy), "price": plain(totals.money)}
    return {"rows": rows, "totals": sums, "notes": list(notes)}
