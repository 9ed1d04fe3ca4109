"""Tips of the trade: each changes the settings of a run in one way, and `ablate` measures what the change buys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from compare.errors import UsageError, closest
from compare.flags import CONTROL
from compare.quantities import (
    FORWARD,
    RECOMPUTED,
    RECOMPUTED_MEMORY,
    SPEED,
    STATE,
    TOKEN,
    TRAINING_MEMORY,
    TRAINING_TIME,
    WEIGHTS,
    Quantity,
)
from compare.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Tip:
    """One change.

    Attributes:
        summary: the change, and what it is for.
        changes: the fields of ``RunSpec`` that it sets, or a function that returns them for a spec.
        memory, speed: the quantities that it is judged by; of a speed in seconds, less is faster.
        before: what these are compared with, where the runs with the tip measure it themselves; None = the same
            quantities of the baseline.
        pictures: whether it needs positions in a picture.
        teacher: the field that names the run of full whose model the run needs; "" = none.
        elsewhere: whether the model learns from more than the task, so that its learning curve says more than its end.
    """

    summary: str
    changes: Mapping[str, Any] | Callable[[RunSpec], Mapping[str, Any]]
    memory: Quantity = TRAINING_MEMORY
    speed: Quantity = SPEED
    before: tuple[Quantity, Quantity] | None = None
    pictures: bool = False
    teacher: str = ""
    elsewhere: bool = False

    @property
    def by_training(self) -> bool:
        """Whether it is judged by memory and speed of the training."""
        return (self.memory, self.speed, self.before) == (TRAINING_MEMORY, SPEED, None)

    def applied(self, spec: RunSpec, teacher: str) -> RunSpec:
        """The spec with the tip. teacher: the ``run_id`` of its teacher."""
        changed = replace(spec, **(self.changes(spec) if callable(self.changes) else self.changes))
        named: dict[str, Any] = {self.teacher: teacher} if self.teacher else {}
        return replace(changed, **named)


MICRO_BATCHES = 4
CHUNKS = 4


def accumulated(spec: RunSpec) -> dict[str, int]:
    """The same samples a step, in up to ``MICRO_BATCHES`` micro-batches."""
    parts = next(n for n in range(MICRO_BATCHES, 0, -1) if spec.batch_size % n == 0)
    return {"batch_size": spec.batch_size // parts, "accumulate": spec.accumulate * parts}


def enlarged(spec: RunSpec) -> dict[str, int]:
    """Four times the samples a step: more micro-batches where there are several, because one fills the memory."""
    name = "accumulate" if spec.accumulate > 1 else "batch_size"
    return {name: 4 * getattr(spec, name)}


def reduced(spec: RunSpec) -> dict[str, int]:
    """A quarter of the samples a step: smaller micro-batches, or fewer where they hold less than four."""
    if spec.batch_size >= 4:
        return {"batch_size": spec.batch_size // 4}
    samples = max(1, spec.batch_size * spec.accumulate // 4)
    size = next(n for n in range(spec.batch_size, 0, -1) if samples % n == 0)
    return {"batch_size": size, "accumulate": samples // size}


def tuning(summary: str, method: str) -> Tip:
    return Tip(summary=f"as pretrain, then {summary}", changes={"pretrain": 0.5, "tune": method}, elsewhere=True)


TIPS: dict[str, Tip] = {
    "no-warmup": Tip(summary="the learning rate begins at its peak", changes={"warmup": 0.0}),
    "long-warmup": Tip(summary="the learning rate rises for a tenth of the training", changes={"warmup": 0.1}),
    "constant-lr": Tip(summary="the learning rate stays at its peak to the end", changes={"lr_schedule": "constant"}),
    "cosine-lr": Tip(summary="the learning rate falls by half a cosine", changes={"lr_schedule": "cosine"}),
    "linear-lr": Tip(summary="the learning rate falls linearly", changes={"lr_schedule": "linear"}),
    "inverse-sqrt-lr": Tip(
        summary="the learning rate falls as 1 / √(share of the training done)",
        changes={"lr_schedule": "inverse-square-root"},
    ),
    "full-length": Tip(summary="no shorter samples at the start", changes={"length_schedule": "constant"}),
    "small-batch": Tip(summary="a quarter of the samples in a step", changes=reduced),
    "large-batch": Tip(summary="four times the samples in a step", changes=enlarged),
    "accumulate": Tip(
        summary=f"the same batch in {MICRO_BATCHES} micro-batches, whose gradients add up", changes=accumulated
    ),
    "dropout": Tip(summary="a tenth of the features of each sublayer is dropped", changes={"dropout": 0.1}),
    "attention-dropout": Tip(summary="a tenth of the attention weights is dropped", changes={"attention_dropout": 0.1}),
    "weight-decay": Tip(summary="ten times the weight decay", changes=lambda s: {"weight_decay": 10 * s.weight_decay}),
    "no-weight-decay": Tip(summary="no weight decay", changes={"weight_decay": 0.0}),
    "label-smoothing": Tip(
        summary="a tenth of each target is spread over all classes", changes={"label_smoothing": 0.1}
    ),
    "early-stopping": Tip(
        summary="training ends after two validations without a better score; the best weights are tested",
        changes={"early_stopping": 2},
        speed=TRAINING_TIME,
    ),
    "no-clipping": Tip(summary="gradients of any norm are taken as they are", changes={"clip_norm": 0.0}),
    "post-norm": Tip(summary="norms after the sublayers, not before", changes={"norm": "post"}),
    "rmsnorm": Tip(summary="RMSNorm in place of LayerNorm", changes={"norm_type": "rms"}),
    "qk-norm": Tip(summary="queries and keys of each head are normalised", changes={"qk_norm": True}),
    "init-torch": Tip(summary="linear maps drawn as nn.Linear draws them", changes={"init": "torch"}),
    "init-xavier": Tip(summary="linear maps drawn by Glorot's rule", changes={"init": "xavier"}),
    "init-gpt2": Tip(summary="linear maps drawn with a deviation of 0.02, as GPT-2's", changes={"init": "gpt2"}),
    "cls": Tip(
        summary="the class is read from a class token, not from the mean", changes={"pool": "cls"}, pictures=True
    ),
    "learned-2d": Tip(
        summary="learned positions of rows and columns", changes={"positions": "learned-2d"}, pictures=True
    ),
    "rotary-2d": Tip(summary="rotary positions of rows and columns", changes={"positions": "rotary-2d"}, pictures=True),
    "amp": Tip(summary="autocast to bfloat16", changes={"dtype": "bfloat16"}),
    "amp-fp16": Tip(summary="autocast to float16 with loss scaling", changes={"dtype": "float16"}),
    "checkpoint": Tip(summary="backward recomputes whole layers", changes={"checkpointing": True}),
    "checkpoint-attention": Tip(
        summary="backward recomputes the attention of each layer", changes={"checkpointing": "attention"}
    ),
    "checkpoint-feed-forward": Tip(
        summary="backward recomputes the feed-forward of each layer", changes={"checkpointing": "feed_forward"}
    ),
    "reversible": Tip(summary="reversible layers store nothing", changes={"reversible": True}),
    "ff-chunk": Tip(
        summary="a quarter of the positions in a feed-forward at a time",
        changes=lambda s: {"ff_chunk": -(-s.seq_len // CHUNKS)},
    ),
    "compile": Tip(summary="torch.compile", changes={"compile": True}),
    "cache": Tip(
        summary="causal decoding with a state, beside a forward over all positions for each token",
        changes={"decode": True, "steps": 0, "budget": None, "batch_size": 1, "accumulate": 1},
        memory=STATE,
        speed=TOKEN,
        before=(RECOMPUTED_MEMORY, RECOMPUTED),
    ),
    "int8": Tip(
        summary="the trained model is tested with weights and inputs of int8",
        changes={"quantize": "int8-dynamic"},
        memory=WEIGHTS,
        speed=FORWARD,
    ),
    "int8-weights": Tip(
        summary="the trained model is tested with weights of int8",
        changes={"quantize": "int8-weights"},
        memory=WEIGHTS,
        speed=FORWARD,
    ),
    "pretrain": Tip(
        summary="half of the training restores hidden tokens or patches of the same inputs",
        changes={"pretrain": 0.5},
        elsewhere=True,
    ),
    "lora": tuning("trains updates of rank 8 and the head", "lora"),
    "adapter": tuning("trains bottlenecks of width 8 and the head", "adapter"),
    "prompt": tuning("trains 16 vectors before the input and the head", "prompt"),
    "prefix": tuning("trains 16 vectors before each layer and the head", "prefix"),
    "distil": Tip(
        summary="also learns from the answers of full, trained before on the same seed",
        changes={},
        teacher="teacher",
        elsewhere=True,
    ),
    "distil-hidden": Tip(
        summary="as distil, and from the states between the layers of full",
        changes={"distill": "hidden"},
        teacher="teacher",
        elsewhere=True,
    ),
    "distil-attention": Tip(
        summary="half of the training learns the attention weights of full",
        changes={"distill": "attention", "pretrain": 0.5},
        teacher="teacher",
        elsewhere=True,
    ),
    "convert": Tip(
        summary="begins with the weights of full, trained before on the same seed",
        changes={},
        teacher="start",
        elsewhere=True,
    ),
}
"""Name -> tip. Several joined by + apply together."""
BASELINE, TEACHER = "baseline", "teacher"
"""What the records of `ablate` name the runs without a tip, and those of teachers that are not among the variants."""


def read_tips(text: str) -> list[str]:
    """``amp,amp+checkpoint`` or ``all`` -> names, each once.

    Raises:
        ValueError: an unknown name, or an empty one.
    """
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return list(TIPS)
    for name in names:
        if "cache" in name.split("+") and name != "cache":
            raise ValueError(f"{name}: cache decodes and trains nothing, so no other tip can join it")
        for part in name.split("+"):
            if part not in TIPS:
                raise ValueError(f"expected a tip among {', '.join(TIPS)}, got {part!r}{closest(part, list(TIPS))}")
    return list(dict.fromkeys(names))


def apply(name: str, spec: RunSpec, teacher: str) -> RunSpec:
    """The spec with a tip, or with several joined by +. teacher: the ``run_id`` of its teacher."""
    for part in name.split("+"):
        spec = TIPS[part].applied(spec, teacher)
    return spec


def lost_part(name: str, spec: RunSpec, teacher: str) -> str:
    """The part of a combination that changes a spec alone, but not beside the other parts; "" where each counts."""
    parts = name.split("+")
    changed = apply(name, spec, teacher)
    for place, part in enumerate(parts):
        others = "+".join(parts[:place] + parts[place + 1 :])
        if others and apply(others, spec, teacher) == changed != spec and apply(part, spec, teacher) != spec:
            return part
    return ""


def teacher_of(spec: RunSpec, specs: Sequence[RunSpec]) -> RunSpec:
    """The run of full on the same data with the same seed, among the specs, or else with the settings of the spec."""
    plain = replace(spec, variant="full", options=(), quantize=None, tune=None)
    alike = (s for s in specs if (s.variant, s.data_id, s.seed) == ("full", spec.data_id, spec.seed) and not s.options)
    return next((s for s in alike if s.quantize is s.tune is None), plain)


class Tipped(NamedTuple):
    """Runs with tips.

    Attributes:
        rows: each run once, its tip (``BASELINE`` for one without), and the ``run_id`` of its baseline.
        idle: which tips equal others there, in words.
    """

    rows: list[tuple[RunSpec, str, str]]
    idle: list[str]

    @property
    def specs(self) -> tuple[RunSpec, ...]:
        return tuple(spec for spec, _, _ in self.rows)


def with_tips(specs: Sequence[RunSpec], tips: Sequence[str]) -> Tipped:
    """The specs, each followed by itself with each tip, at its own learning rate.

    The control gets no tips beside other variants: it is there to show what a task needs attention for.

    Raises:
        UsageError: a combination in which one part undoes or repeats another.
    """
    import tasks  # brings numpy, which --help does not need

    rows, idle = dict[RunSpec, tuple[str, str]](), dict[str, None]()
    taught = any(TIPS[part].teacher for name in tips for part in name.split("+"))
    compared = [spec for spec in specs if spec.variant != CONTROL] or specs
    for spec in specs:
        if spec not in compared:
            rows[spec] = BASELINE, spec.run_id
            continue
        teacher = teacher_of(spec, specs)
        if taught:  # before the runs that need its model
            rows.setdefault(teacher, (BASELINE if teacher in specs else TEACHER, teacher.run_id))
        rows.setdefault(spec, (BASELINE, spec.run_id))
        for name in tips:
            changed = apply(name, spec, teacher.run_id)
            if lost := lost_part(name, spec, teacher.run_id):
                raise UsageError(f"--tips {name}: {lost} changes nothing beside the others: leave out one of them")
            if any(TIPS[part].pictures for part in name.split("+")) and not tasks.get(spec.task).picture:
                idle[f"{name} on {spec.task}, which has no pictures"] = None
            elif changed.label_smoothing and tasks.get(spec.task).kind == "value":
                idle[f"{name} on {spec.task}, whose answers are numbers"] = None
            elif changed.warmup == 0 and changed.lr_schedule == "inverse-square-root":
                idle[f"{name} on {spec.task}, whose learning rate peaks at the end of its warm-up"] = None
            elif changed in rows:
                idle[f"{name} on {spec.task} equals {rows[changed][0]}"] = None
            else:
                rows[changed] = name, spec.run_id
    by_seed = sorted(rows.items(), key=lambda row: row[0].seed)  # so that an interrupted comparison is balanced
    return Tipped([(spec, *row) for spec, row in by_seed], list(idle))
