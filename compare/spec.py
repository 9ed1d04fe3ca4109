"""The specification of one run. Everything that can change a result is a field here, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from compare.launch import program
from compare.parallel import processes_of, read_parallel
from compare.schedule import LENGTH_SCHEDULES, LR_SCHEDULES, SHORTEST_DEFAULT, in_words, phase_length
from compare.values import amount, batch, memory, one_rate, positive, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tasks import LengthSchedule, LrSchedule

Option = int | float | str | bool
DataId = tuple[str, int, tuple[tuple[str, Option], ...]]
Kind = Literal["train", "cost", "decode", "probe", "search"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """How a field of ``RunSpec`` is typed, on the command line and in the command that repeats a run.

    Attributes:
        option: ``--`` and the field's name.
        group: group in the help: ``shape``, ``training`` (absent from ``cost``) or ``switches``.
        help, metavar, choices: as in argparse.
        read: converts the typed text to the value; None = the flag is a switch, or takes one of the choices.
        unasked: the value where the flag is not typed; None = the task's, or derived from the task.
    """

    option: str
    group: str
    help: str
    metavar: str | None
    choices: Iterable[str]
    read: Callable[[str], Any] | None
    unasked: Any

    def words(self, value: Any) -> list[str]:
        """The words to type for this value."""
        if isinstance(value, bool):
            return [self.option] * value
        if value is None:
            return []
        return [f"{self.option} {value:g}" if isinstance(value, float) else f"{self.option} {value}"]


def flagged(
    group: str,
    help: str,
    read: Callable[[str], Any] | None = None,
    *,
    default: Any = MISSING,
    of_task: bool = False,
    metavar: str | None = None,
    choices: Iterable[str] = (),
) -> Any:
    """A field with a ``Flag``.

    Args:
        default: the value of records without the field, and where the flag is not typed; none = all records have it.
        of_task: where the flag is not typed, the task's value holds, not the default.
    """
    unasked = None if of_task or default is MISSING else default
    metadata = {"group": group, "help": help, "metavar": metavar, "choices": choices, "read": read, "unasked": unasked}
    return field(default=default, metadata=metadata)


LR_CURVES = "; ".join(f"{name}: {curve.words}" for name, curve in LR_SCHEDULES.items()).replace("%", "%%")
LENGTH_PHASES = "; ".join(f"{name}: {in_words(name)}" for name in LENGTH_SCHEDULES).replace("%", "%%")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One variant on one task at one length with one seed.

    Attributes:
        variant: a name from ``zoo.available()``, or ``module:Class`` of a class from outside, which the worker imports.
        options: the variant's options that differ from its defaults, sorted by name.
        task_options: likewise for the task.
        budget, steps: training stops after this many seconds, or after this many optimizer steps; one is None. With 0
            steps the cost is measured, and nothing is trained or tested.
        batch_size: samples in a micro-batch at ``seq_len``.
        accumulate: micro-batches in an optimizer step.
        lr: the peak learning rate. lr_schedule: how it changes over the training. warmup: share of the training in
            which it rises.
        early_stopping: training ends after this many validations in a row without a better score.
        pretrain: share of the training that is self-supervised. start, teacher: the folder of a kept model, or the
            ``run_id`` of a run that kept its model in the same folder of results. distill: what the teacher gives.
        tune: which weights the training of the task adds and trains; None = it trains all.
        quantize: how the trained model is quantised before its test; None = not.
        length_schedule: how the length of training samples changes over the training.
        test_lens: lengths beside ``seq_len`` at which the trained model is tested. Where one is longer, the encoder is
            built for the longest.
        checkpointing: backward recomputes layers, or the named part of each, instead of storing them. reversible:
            layers add to two streams in turn, and backward undoes them instead of storing them. compile: use
            ``torch.compile``.
        causal: a position sees itself and earlier positions.
        search: the run is part of the search for a learning rate: validated, never tested.
        decode: measure the cost of causal decoding, step by step up to ``seq_len``.
        probe: test only whether ``seq_len`` fits into memory: one step, on samples of the length ``probe`` repeated up
            to ``seq_len``. None = no probe.
        memory_limit: bytes that a process may hold; None = the machine's memory.
        parallel: how several processes share the run, such as ``data=2,tensor=2``; None = it has one process.
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
    batch_size: int = flagged(
        "shape",
        "samples in a micro-batch at full length; auto: the largest that fits into memory, and as many accumulated as "
        "make the task's batch",
        batch,
        metavar="B",
    )
    d_model: int = flagged("shape", "width of the encoder", positive, metavar="C")
    n_heads: int = flagged("shape", "attention heads", positive, metavar="H")
    n_layers: int = flagged("shape", "encoder layers", positive, metavar="L")
    conv_width: int | None
    embedding_std: float
    activation: str = flagged(
        *("shape", "activation of the feed-forward (default: %(default)s)"),
        default="gelu",
        choices=("gelu", "relu", "swiglu"),
    )
    positions: str = flagged(
        *("shape", "position embedding (default: rotary; sinusoidal for pictures)"),
        choices=("sinusoidal", "learned", "rotary", "learned-2d", "rotary-2d", "none"),
    )
    pool: str = flagged(
        *("shape", "what a class is read from: the mean of all positions, or a class token (default: %(default)s)"),
        default="mean",
        choices=("mean", "cls"),
    )
    norm: str = flagged(
        "shape", "place of the norms: before each sublayer, or after it (default: %(default)s)", default="pre",
        choices=("pre", "post"),
    )  # fmt: skip
    norm_type: str = flagged(
        "shape", "LayerNorm or RMSNorm (default: %(default)s)", default="layer", choices=("layer", "rms")
    )
    qk_norm: bool = flagged("shape", "an RMSNorm on the queries and keys of each head", default=False)
    init: str = flagged(
        *(
            "shape",
            "initial weights of the linear maps: the zoo's, nn.Linear's, Glorot's or GPT-2's (default: %(default)s)",
        ),
        default="zoo",
        choices=("zoo", "torch", "xavier", "gpt2"),
    )
    dropout: float = flagged(
        "training",
        "share of the features that training drops after the embedding and in every sublayer (default: %(default)g)",
        share,
        default=0.0,
        metavar="P",
    )
    attention_dropout: float = flagged(
        "training",
        "share of the attention weights that training drops, for variants that hold them (default: %(default)g)",
        share,
        default=0.0,
        metavar="P",
    )
    accumulate: int = flagged(
        "training", "micro-batches in an optimizer step (default: %(default)s)", positive, default=1, metavar="K"
    )
    lr: float = flagged("training", "peak learning rate", one_rate, metavar="RATE")
    weight_decay: float = flagged(
        "training", "weight decay of matrices (default: %(default)g)", amount, default=0.01, metavar="W"
    )
    label_smoothing: float = flagged(
        "training",
        "share of each target that training spreads over all classes (default: %(default)g)",
        share,
        default=0.0,
        metavar="E",
    )
    clip_norm: float = flagged(
        "training",
        "norm that gradients are scaled down to, 0 for no limit (default: %(default)g)",
        amount,
        default=1.0,
        metavar="G",
    )
    early_stopping: int | None = flagged(
        "training",
        "stop after K validations in a row without a better score, and test the weights of the best one",
        positive,
        default=None,
        metavar="K",
    )
    pretrain: float = flagged(
        "training",
        "share of the training that restores hidden tokens or patches of the task's own inputs (causal: predicts the "
        "next one; with --distill attention: learns its weights); the rest trains the task (default: %(default)g)",
        share,
        default=0.0,
        metavar="SHARE",
    )
    start: str | None = flagged(
        "training",
        "begin with the weights of a kept model; with another attention, those that both have",
        str,
        default=None,
        metavar="DIR",
    )
    teacher: str | None = flagged(
        "training", "also learn from the answers of a kept model of the same task", str, default=None, metavar="DIR"
    )
    distill: str = flagged(
        *(
            "training",
            "what to learn from the teacher: answers, hidden states too, or attention (default: %(default)s)",
        ),
        default="answers",
        choices=("answers", "hidden", "attention"),
    )
    tune: str | None = flagged(
        "training",
        "after --start or --pretrain, fix the encoder and train a few new weights beside it, and the head",
        default=None,
        choices=("lora", "adapter", "prompt", "prefix"),
        metavar="METHOD",
    )
    quantize: str | None = flagged(
        "training",
        "test the trained model with weights of int8, and measure its forward pass and its size",
        default=None,
        choices=("int8-dynamic", "int8-weights"),
        metavar="SCHEME",
    )
    lr_schedule: LrSchedule = flagged(
        "training",
        f"how the learning rate changes after its warm-up. {LR_CURVES} (default: the task's)",
        default="cosine",
        of_task=True,
        choices=LR_SCHEDULES,
        metavar="NAME",
    )
    warmup: float = flagged(
        "training",
        "share of the training, below 1, in which the learning rate rises (default: %(default)g)",
        share,
        default=0.02,
        metavar="SHARE",
    )
    length_schedule: LengthSchedule = flagged(
        "training",
        f"how the length of training samples changes, where N is the full length. {LENGTH_PHASES} (default: the "
        f"task's; if it starts below {SHORTEST_DEFAULT} tokens or below the task's shortest sample, the next of these)",
        default="constant",
        of_task=True,
        choices=LENGTH_SCHEDULES,
        metavar="NAME",
    )
    test_lens: tuple[int, ...] = ()
    causal: bool = flagged(
        "switches",
        "causal encoders: a position sees itself and earlier positions; the task bytes becomes next_byte. Skips "
        "variants and tasks without a causal form, unless they are named: then it is an error",
        default=False,
    )
    checkpointing: bool | str = flagged(
        "switches",
        "recompute layers in backward instead of storing them, or only the attention or the feed_forward of each",
        default=False,
        choices=("attention", "feed_forward"),
        metavar="PART",
    )
    ff_chunk: int | None = flagged(
        "switches",
        "positions that a feed-forward computes at once, in forward and in backward",
        positive,
        default=None,
        metavar="K",
    )
    reversible: bool = flagged(
        "switches", "two-stream layers: backward recomputes their inputs instead of storing them", default=False
    )
    compile: bool = flagged("switches", "use torch.compile; its time is told apart from training time", default=False)
    search: bool = False
    decode: bool = False
    probe: int | None = None
    memory_limit: int | None = flagged(
        "switches",
        "memory that a run may use, such as 16GB; a run beyond it gets status oom",
        memory,
        default=None,
        metavar="SIZE",
    )
    parallel: str | None = flagged(
        "switches",
        "how the processes of torchrun share each run. data=N: each trains on its rows of every batch; shard=N: each "
        "also stores only its part of the weights; pipeline=N: each has some layers; tensor=N: each computes some "
        "heads; context=N: each holds a piece of every sequence. data and tensor join with commas, with pipeline or "
        "context (default: data, among all processes)",
        read_parallel,
        default=None,
        metavar="KIND=N,…",
    )
    device: str
    dtype: str
    threads: int

    @property
    def run_id(self) -> str:
        """12 hex digits that identify this spec. A new field does not change them where it has its default."""
        identity = {name: value for name, value in asdict(self).items() if value != DEFAULTS.get(name, ...)}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def kind(self) -> Kind:
        """The purpose of the run."""
        return kind_of(vars(self))

    @property
    def is_causal(self) -> bool:
        """Whether the encoder is causal; for decoding it always is."""
        return self.causal or self.kind == "decode"

    @property
    def max_len(self) -> int:
        """The longest input that the encoder is built for."""
        return max((self.seq_len, *self.test_lens))

    @property
    def data_id(self) -> DataId:
        """The fields that determine the data: runs with equal ids share prepared data."""
        return self.task, self.seq_len, self.task_options

    @property
    def label(self) -> str:
        """The variant and its set options: its name in charts and tables."""
        return " ".join([self.variant, *(f"{name}={value}" for name, value in self.options)])

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        values = json.loads(text)
        for name in ("options", "task_options"):
            values[name] = tuple((option, value) for option, value in values[name])
        values["test_lens"] = tuple(values["test_lens"])
        return cls(**values)

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


FLAGS = {
    each.name: Flag(option=f"--{each.name.replace('_', '-')}", **each.metadata)
    for each in fields(RunSpec)
    if each.metadata
}
"""Name -> flag, for the fields that have a flag of their own."""
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(RunSpec) if field.default is not MISSING}
"""Fields that a stored spec may leave out -> their values then."""


def kind_of(spec: Mapping[str, Any]) -> Kind:
    """The purpose of a run, from the fields of its spec; some may be missing."""
    if spec.get("probe") is not None:
        return "probe"
    if spec.get("decode"):
        return "decode"
    if spec.get("search"):
        return "search"
    return "cost" if spec.get("steps") == 0 else "train"


def read_spec(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's spec, with defaults for missing fields and today's names for fields of older versions."""
    stored = record.get("spec")
    spec = DEFAULTS | (stored if isinstance(stored, dict) else {})
    if "length_warmup" in spec:
        spec["length_schedule"] = "from-16th" if spec.pop("length_warmup") else "constant"
    if "warmup_steps" in spec:
        spec["warmup"] = f"{spec.pop('warmup_steps')} steps"
    return spec


def reproduce(spec: RunSpec) -> str:
    """The command that repeats this run. Options are set by name, and seeds count from 0.

    Search runs and probes of memory are repeated as ordinary runs at their learning rate and length.
    """
    decode = spec.kind == "decode"
    words = [*program(processes_of(spec.parallel)), *(["cost --decode"] if decode else []), "--no-control"]
    words += [f"--variants {spec.variant}", f"--tasks {spec.task}"]
    words += [f"--set {spec.variant}.{name}={value}" for name, value in spec.options]
    words += [shlex.join(["--set", f"{spec.task}.{name}={value}"]) for name, value in spec.task_options]
    words += [f"--seq-len {spec.seq_len}", f"--seeds {spec.seed + 1}", *words_of(spec, "shape")]
    words += [f"--device {spec.device}", f"--dtype {spec.dtype}"]
    if not decode:
        words.append(f"--steps {spec.steps}" if spec.steps is not None else f"--budget {spec.budget:g}")
        words += words_of(spec, "training")
        words += [f"--test-len {','.join(map(str, spec.test_lens))}"] if spec.test_lens else []
    return " ".join([*words, *words_of(spec, "switches")])


def words_of(spec: RunSpec, group: str) -> list[str]:
    """The flags of a group with the values of a spec."""
    return [word for name, flag in FLAGS.items() if flag.group == group for word in flag.words(getattr(spec, name))]
