"""What one run is. Everything that can change a result is a field here, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from compare.schedule import LENGTH_SCHEDULES, phase_length

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tasks import LengthSchedule, LrSchedule

Option = int | float | str | bool
DataId = tuple[str, int, tuple[tuple[str, Option], ...]]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One variant on one task at one length with one seed.

    Attributes:
        variant: a name from ``zoo.available()``, or ``module:Class`` of a class from outside, which the worker imports.
        options: the variant's options that differ from its defaults, sorted by name.
        task_options: likewise those of the task.
        budget, steps: training stops after this many seconds, or after this many optimizer steps; one is None. With 0
            steps the cost is measured, and nothing is trained or tested.
        batch_size: samples in a micro-batch at ``seq_len``.
        accumulate: micro-batches in an optimizer step.
        lr: the peak learning rate. lr_schedule: how it changes over the training. warmup: share of the training in
            which it rises.
        length_schedule: how the length of training samples changes over the training.
        test_lens: lengths beside ``seq_len`` at which the trained model is tested. Where one is longer, the encoder is
            built for the longest.
        checkpointing: layers are run again in backward instead of kept. reversible: layers add to two streams in turn,
            and are undone in backward instead of kept. compile: through ``torch.compile``.
        causal: the encoder sees the past alone.
        search: it looks for a learning rate: validated, never tested.
        decode: the cost of the causal encoder that goes position by position up to ``seq_len`` is measured.
        probe: it asks only whether ``seq_len`` fits into memory: one step, on samples of this length repeated up to
            ``seq_len``. None = no probe.
        memory_limit: bytes that the process may hold; None = what the machine has.
        device: ``cpu`` or ``cuda``. dtype: ``float32``, or the autocast type ``bfloat16`` or ``float16``.
        threads: CPU threads of the process.
    """

    variant: str
    options: tuple[tuple[str, Option], ...] = ()
    task: str
    task_options: tuple[tuple[str, Option], ...] = ()
    seq_len: int
    seed: int
    budget: float | None
    steps: int | None
    batch_size: int
    accumulate: int = 1
    d_model: int
    n_heads: int
    n_layers: int
    conv_width: int | None
    embedding_std: float
    positions: str
    norm: str = "pre"
    activation: str = "gelu"
    dropout: float = 0.0
    lr: float
    lr_schedule: LrSchedule = "cosine"
    warmup: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    length_schedule: LengthSchedule = "constant"
    test_lens: tuple[int, ...] = ()
    checkpointing: bool = False
    reversible: bool = False
    compile: bool = False
    causal: bool = False
    search: bool = False
    decode: bool = False
    probe: int | None = None
    memory_limit: int | None = None
    device: str
    dtype: str
    threads: int

    @property
    def run_id(self) -> str:
        """12 hex digits that name this spec. A new field leaves it as it is where its default holds."""
        told = {name: value for name, value in asdict(self).items() if value != DEFAULTS.get(name, ...)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def max_len(self) -> int:
        """The longest input that the encoder is built for."""
        return max((self.seq_len, *self.test_lens))

    @property
    def data_id(self) -> DataId:
        """What the data depends on: runs that share it share what has to be prepared."""
        return self.task, self.seq_len, self.task_options

    @property
    def label(self) -> str:
        """The variant and what was set for it: what charts and tables call it."""
        return " ".join([self.variant, *(f"{name}={value}" for name, value in self.options)])

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        fields = json.loads(text)
        for field in ("options", "task_options"):
            fields[field] = tuple((name, value) for name, value in fields[field])
        fields["test_lens"] = tuple(fields["test_lens"])
        return cls(**fields)

    def phases(self) -> list[tuple[float, int, int]]:
        """The phases of training: (share of the training at which it ends, length, samples in a micro-batch)."""
        return [
            (
                phase.end,
                phase_length(self.seq_len, phase),
                max(1, round(phase.tokens * phase.divisor * self.batch_size)),
            )
            for phase in LENGTH_SCHEDULES[self.length_schedule]
        ]


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(RunSpec) if field.default is not MISSING}
"""Fields that a spec may leave out, and what they are then."""


def read_spec(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's spec with what it leaves out; what older versions called otherwise has its present name."""
    found = record.get("spec")
    spec = DEFAULTS | (found if isinstance(found, dict) else {})
    if "length_warmup" in spec:
        spec["length_schedule"] = "from-16th" if spec.pop("length_warmup") else "constant"
    if "warmup_steps" in spec:
        spec["warmup"] = f"{spec.pop('warmup_steps')} steps"
    return spec


def reproduce(spec: RunSpec) -> str:
    """The command that repeats this run alone. Options go by name, and seeds count from 0.

    Runs of a search and probes of memory are repeated as ordinary runs at their learning rate and length.
    """
    command = "python -m compare cost --decode" if spec.decode else "python -m compare"
    words = [f"{command} --no-control", f"--variants {spec.variant}", f"--tasks {spec.task}"]
    words += [f"--set {spec.variant}.{name}={value}" for name, value in spec.options]
    words += [shlex.join(["--set", f"{spec.task}.{name}={value}"]) for name, value in spec.task_options]
    words += [f"--seq-len {spec.seq_len}", f"--seeds {spec.seed + 1}"]
    words += [f"--batch-size {spec.batch_size}"]
    words += [f"--d-model {spec.d_model}", f"--n-heads {spec.n_heads}", f"--n-layers {spec.n_layers}"]
    words += [
        f"--activation {spec.activation}",
        f"--positions {spec.positions}",
        f"--device {spec.device}",
        f"--dtype {spec.dtype}",
    ]
    if not spec.decode:
        words.append(f"--steps {spec.steps}" if spec.steps is not None else f"--budget {spec.budget:g}")
        words += [f"--accumulate {spec.accumulate}", f"--lr {spec.lr:g}", f"--weight-decay {spec.weight_decay:g}"]
        words += [f"--lr-schedule {spec.lr_schedule}", f"--warmup {spec.warmup:g}"]
        words.append(f"--length-schedule {spec.length_schedule}")
        words += [f"--test-len {','.join(map(str, spec.test_lens))}"] if spec.test_lens else []
    words += ["--causal"] * spec.causal + ["--checkpointing"] * spec.checkpointing + ["--reversible"] * spec.reversible
    words += ["--compile"] * spec.compile
    words += [f"--memory-limit {spec.memory_limit}"] if spec.memory_limit else []
    return " ".join(words)
