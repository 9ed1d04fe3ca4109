"""The runs of a comparison while it goes on: which have ended, which go on, and how long the rest takes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from compare.record import Record
from compare.spec import Option, RunSpec

OVERHEAD = 15.0  # seconds that a run takes beside its budget, assumed until one has ended


@dataclass
class Running:
    """A run that goes on: since when, its last event, and since when it trains."""

    spec: RunSpec
    since: float
    event: Record = field(default_factory=dict)
    trained_since: float = 0.0


class Runs:
    """All runs of a comparison: finished ones, those that go on, and an estimate of the time left."""

    def __init__(self, specs: Sequence[RunSpec], records: Sequence[Record]) -> None:
        """records: of the runs that ended earlier."""
        self.specs = {spec.run_id: spec for spec in specs}
        self.numbers = {run_id: number for number, run_id in enumerate(self.specs, 1)}
        self.records = {record["run_id"]: record for record in records}
        self.shared: dict[str, set[tuple[str, Option]]] = {}  # options that all runs of a task have
        for spec in specs:
            self.shared[spec.task] = self.shared.get(spec.task, set(spec.task_options)) & set(spec.task_options)
        self.firsts: dict[object, RunSpec] = {}  # the first run of each variant on its data
        for spec in specs:
            self.firsts.setdefault((spec.label, spec.data_id, spec.kind), spec)
        self.weight_decays = {spec.weight_decay for spec in specs if spec.kind == "search"}
        self.running: dict[str, Running] = {}
        self.estimates: tuple[Estimate, list[float | None]] | None = None  # and those of the waiting runs

    def start(self, spec: RunSpec, at: float) -> None:
        self.running[spec.run_id] = Running(spec, at)
        self.estimates = None

    def update(self, spec: RunSpec, event: Record, at: float) -> None:
        run = self.running[spec.run_id]
        if event["phase"] == "training" and run.event.get("phase") != "training":
            run.trained_since = at
        run.event = event

    def finish(self, record: Record) -> None:
        self.records[record["run_id"]] = record
        del self.running[record["run_id"]]
        self.estimates = None

    def title(self, spec: RunSpec) -> str:
        where = f"{self.task_of(spec)} · N {spec.seq_len} · seed {spec.seed}{self.setting_of(spec)}"
        return f"{self.numbers[spec.run_id]}/{len(self.specs)} {spec.label} · {where}"

    def task_of(self, spec: RunSpec) -> str:
        """The task, with the options in which its runs differ."""
        own = (f"{name}={value}" for name, value in spec.task_options if (name, value) not in self.shared[spec.task])
        return " ".join([spec.task, *own])

    def setting_of(self, spec: RunSpec) -> str:
        """The settings that a search run tries, and those in which a run differs from the first of its variant."""
        first, apart = self.firsts[spec.label, spec.data_id, spec.kind], {"seed"}
        tried = ""
        if spec.kind == "search":
            apart |= {"lr", "weight_decay"}
            tried = f" · lr {spec.lr:g}" + f" · weight decay {spec.weight_decay:g}" * (len(self.weight_decays) > 1)
        changed = {name: value for name, value in vars(spec).items() if name not in apart}
        return tried + "".join(
            f" · {name.replace('_', ' ')} {value}" for name, value in changed.items() if value != getattr(first, name)
        )

    def time_left(self, at: float, spec: RunSpec | None = None) -> tuple[float | None, float | None]:
        """Seconds left of a run that goes on, and of the comparison; None where unknown.

        The comparison's are those of all runs, divided by the number that go on at once.
        """
        if self.estimates is None:
            estimate = Estimate([(self.specs[r], record["wall_seconds"]) for r, record in self.timed()])
            over = self.records.keys() | self.running.keys()
            self.estimates = estimate, [estimate.of(s) for run_id, s in self.specs.items() if run_id not in over]
        estimate, parts = self.estimates
        lefts = {run_id: left_of(run, estimate, at) for run_id, run in self.running.items()}
        parts = [*parts, *lefts.values()]
        known = [part for part in parts if part is not None]
        whole = sum(known) / max(1, len(lefts)) if len(known) == len(parts) else None
        longest = max((left for left in lefts.values() if left is not None), default=0.0)
        return None if spec is None else lefts.get(spec.run_id), None if whole is None else max(whole, longest)

    def timed(self) -> Iterator[tuple[str, Record]]:
        """Records with the duration of the run; a run whose data could not be prepared has none."""
        known = ((r, record) for r, record in self.records.items() if r in self.specs)
        return ((r, record) for r, record in known if record.get("wall_seconds") is not None)


def left_of(run: Running, estimate: Estimate, at: float) -> float | None:
    """Seconds left of a run; None where unknown."""
    done, budget = run.event.get("done"), run.spec.budget
    if run.event.get("phase") == "training" and done:
        return (budget or (at - run.trained_since) / float(done)) * (1 - float(done))
    whole = estimate.of(run.spec)
    return None if whole is None else max(0.0, whole - (at - run.since))


class Estimate:
    """Estimates the seconds of whole runs from finished ones: of the same variant and data, else of other runs."""

    def __init__(self, took: Sequence[tuple[RunSpec, float]]) -> None:
        self.of_like: dict[object, list[float]] = defaultdict(list)
        self.of_data: dict[object, list[float]] = defaultdict(list)
        for spec, wall in took:
            self.of_like[spec.label, spec.data_id].append(wall)
            self.of_data[spec.data_id].append(wall)
        self.of_all = [wall for _, wall in took]
        self.overheads = [wall - spec.budget for spec, wall in took if spec.budget is not None and wall > spec.budget]

    def of(self, spec: RunSpec) -> float | None:
        """The estimate for a run; None before any run has ended."""
        alike = self.of_like.get((spec.label, spec.data_id))
        if alike is None and spec.budget is not None:
            return spec.budget + statistics.fmean(self.overheads or [OVERHEAD])
        known = alike or self.of_data.get(spec.data_id) or self.of_all
        return statistics.fmean(known) if known else None
