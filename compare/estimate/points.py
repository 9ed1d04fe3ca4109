"""From records to measured points: what one micro-batch of a variant cost, at which sizes, on which machine."""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tasks
from compare.load import disturbance
from compare.record import Record, read_records
from compare.report import read_environment
from compare.report.facts.grouping import Source
from compare.report.facts.values import as_number
from compare.spec import Option, RunSpec, read_spec
from compare.units import plural
from tasks.generated import Generated

Cost = Literal["step", "forward", "memory", "flops"]
"""Of a micro-batch: seconds of a training step, seconds of a forward pass in evaluation mode, bytes of training, FLOPs
of forward and backward."""
TIMED: tuple[Cost, ...] = ("step", "forward")
SAME = (
    *("device", "dtype", "checkpointing", "reversible", "compile", "ff_chunk"),
    *("pretrain", "distill", "tune", "quantize"),
)
"""Fields of a spec that must agree: no size makes up for a difference."""
NEAR = (
    *("task", "d_model", "n_heads", "n_layers", "conv_width", "activation", "positions", "pool", "norm_type"),
    *("qk_norm", "dropout", "attention_dropout", "causal"),
)
"""Fields whose difference a law in the sizes can bridge, roughly."""
ADAM_BYTES = 12  # of a parameter: its value and the two moments of the optimizer, in float32


class Machine(NamedTuple):
    """The hardware that a time depends on: the GPU, or the processor with its cores and threads."""

    device: str
    name: str
    cores: float = 0.0
    threads: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> Machine:
        """The machine of a description, as ``describe_machine`` makes it; some fields may be missing."""
        if environment.get("device") == "cuda":
            return cls("cuda", str(environment.get("gpu") or "an unknown GPU"))
        cores, threads = (
            as_number(environment.get(name)) or default for name, default in (("cores", 0), ("threads", 1))
        )
        return cls("cpu", str(environment.get("cpu") or "an unknown processor"), cores, max(1, int(threads)))

    @property
    def words(self) -> str:
        return self.name if self.device == "cuda" else f"{self.name}, {self.threads} {plural(self.threads, 'thread')}"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a micro-batch, and all else that its cost depends on.

    Attributes:
        label: the variant and its options. same: the values of ``SAME``. near: those of ``NEAR``.
        batch, seq_len: samples in the micro-batch, and their length.
        d_model, n_layers: sizes of the encoder. classes: output size of the head; 0 = unknown.
    """

    label: str
    same: str
    near: str
    batch: int
    seq_len: int
    d_model: int
    n_layers: int
    classes: int

    @classmethod
    def of(cls, spec: RunSpec, seq_len: int | None = None, batch: int | None = None) -> Shape:
        """The micro-batches of a run at full length, or at another length and batch size."""
        values = {name: getattr(spec, name) for name in (*SAME, *NEAR)}
        classes = classes_of(spec.task, spec.seq_len, spec.task_options)
        return cls(
            label=spec.label,
            same=json.dumps([values[name] for name in SAME] + [spec.teacher is not None]),
            near=json.dumps([values[name] for name in NEAR] + [classes]),
            batch=batch or spec.batch_size,
            seq_len=seq_len or spec.seq_len,
            d_model=spec.d_model,
            n_layers=spec.n_layers,
            classes=classes,
        )

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len


@lru_cache
def classes_of(task: str, seq_len: int, options: tuple[tuple[str, Option], ...]) -> int:
    """The classes of a task; 0 for one whose classes depend on its data, or that is unknown here."""
    if task not in tasks.available():
        return 0
    kind = tasks.get(task)
    if not issubclass(kind, Generated):
        return classes if isinstance(classes := getattr(kind, "n_classes", 0), int) else 0
    try:
        return int(kind(min(seq_len, kind.max_len), kind.config_type(**dict(options))).n_classes)
    except (TypeError, ValueError):  # options of another version
        return 0


@dataclass(frozen=True)
class Point:
    """What was measured at one shape on one machine: cost -> its values, and the folders of the records."""

    shape: Shape
    machine: Machine
    values: dict[Cost, list[float]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def median(self, cost: Cost) -> float:
        return statistics.median(self.values[cost])


class Done(NamedTuple):
    """A finished run: its record, its spec, its machine, and the folder of its record."""

    record: Record
    spec: RunSpec
    machine: Machine
    folder: str


def find_folders(roots: Iterable[Path]) -> list[Path]:
    """The folders with records under some roots, each once, sorted."""
    found: dict[Path, Path] = {}
    for path in (path for root in roots for path in root.rglob("records.jsonl")):
        found.setdefault(path.parent.resolve(), path.parent)
    return [folder for _, folder in sorted(found.items())]


def read_folder(folder: Path) -> list[Done]:
    """The finished runs of a folder that nothing disturbed, without probes and runs that decode."""
    records, _ = read_records(folder / "records.jsonl")
    environment, _ = read_environment(folder / "environment.json")
    return list(finished(Source(records, environment), str(folder)))


def finished(source: Source, folder: str) -> Iterator[Done]:
    """The runs of a source that are a basis; see ``read_folder``."""
    for record in source.records:
        if record["status"] != "ok" or disturbance(record):
            continue
        try:
            spec = RunSpec.from_json(json.dumps(read_spec(record)))
            run = Done(record, spec, Machine.of(source.environment_of(record)), folder)
            deque(measured(run), maxlen=0)
        except (TypeError, KeyError, ValueError, ArithmeticError):  # of another version, or written by hand
            continue
        if spec.kind in ("train", "search", "cost"):
            yield run


def points_of(runs: Iterable[Done]) -> list[Point]:
    """One point for each shape and machine."""
    points: dict[tuple[Shape, Machine], Point] = {}
    for run in runs:
        for shape, cost, value in measured(run):
            point = points.setdefault((shape, run.machine), Point(shape, run.machine))
            point.values.setdefault(cost, []).append(value)
            point.folders.add(run.folder)
    return list(points.values())


def measured(run: Done) -> Iterator[tuple[Shape, Cost, float]]:
    """All costs that a record holds, those of shorter samples in training included."""
    record, spec = run.record, run.spec
    full = Shape.of(spec)
    for name in ("step_seconds", "train_step_seconds"):
        if seconds := record.get(name):
            yield full, "step", seconds / spec.accumulate
    if seconds := record.get("forward_seconds"):
        yield full, "forward", seconds / spec.accumulate
    if flops := record.get("flops"):
        yield full, "flops", flops / spec.accumulate
    if memory := memory_of(record):
        yield full, "memory", memory
    if spec.pretrain == 0:
        yield from in_phases(spec, record.get("curve") or [])


def memory_of(record: Record) -> float | None:
    """Bytes of training. Older records lack what is held between steps: weights and moments are added."""
    total, step, parameters = (record.get(name) for name in ("train_memory_bytes", "peak_memory_bytes", "params"))
    return total or (step + ADAM_BYTES * parameters if step and parameters else None)


def in_phases(spec: RunSpec, curve: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Shape, Cost, float]]:
    """Median step time and mean FLOPs in each phase of a training, from its curve."""
    for _, length, batch in spec.phases():
        within = [
            (a, b) for a, b in pairwise(curve) if a["seq_len"] == b["seq_len"] == length and b["step"] > a["step"]
        ]
        if len(within) < 3:
            continue
        micro = [(b["step"] - a["step"]) * spec.accumulate for a, b in within]
        shape = Shape.of(spec, length, batch)
        paces = [(b["seconds"] - a["seconds"]) / n for (a, b), n in zip(within, micro, strict=True)]
        yield shape, "step", statistics.median(paces)
        if length < spec.seq_len and curve[-1].get("flops"):
            yield shape, "flops", sum(b["flops"] - a["flops"] for a, b in within) / sum(micro)
