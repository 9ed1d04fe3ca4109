"""Every quantity that runs measure: its field in the records, its title, how it is shown, which direction is better.

A new quantity needs an entry here and a line where it is measured. The reader of records, the tables of a report,
table.csv, table.tex and `diff` take it from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from compare.kinds import AMOUNT, MEASURED, NUMBER, SHARE, Kind
from compare.units import count, percent, plain, seconds, size


class Latex(NamedTuple):
    """A column of the LaTeX tables: its heading, and the factor and decimals of its numbers."""

    heading: str
    factor: float = 1.0
    decimals: int = 0


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A field of the records.

    Attributes:
        field: name in the records.
        title: name in table.csv, in `diff`, and wherever the quantity has no other name.
        unit: unit of the recorded number; "" = table.csv has no column for it.
        show: formats a value for people.
        words: name in sentences and charts; "" = the title.
        holds: what the bytes of a memory include.
        column: heading in the tables of results; None = no column.
        latex: column in table.tex; None = no column.
        better: which of two values is better; "" where neither is.
        timed: whether a busy machine changes it.
        quartiles: whether a record also has the quartiles of its repetitions.
        floor: the smallest relative change that `diff` shows, for a score the smallest difference; 0: `diff` shows
            every change, because the quantity has no noise; None: `diff` does not compare it.
        kind: values that the field may hold.
    """

    field: str
    title: str
    unit: str = ""
    show: Callable[[float], str] = plain
    words: str = ""
    holds: str = ""
    column: str | None = None
    latex: Latex | None = None
    better: Literal["high", "low", ""] = ""
    timed: bool = False
    quartiles: bool = False
    floor: float | None = None
    kind: Kind = AMOUNT

    @property
    def spread_field(self) -> str:
        """The field of its quartiles."""
        return f"{self.field}_spread"

    @property
    def told(self) -> str:
        """Its name in sentences and charts."""
        return self.words or self.title


FRACTION = "fraction"
"""The unit of scores. Scores on another scale have columns of their own in table.csv."""

TEST_SCORE = Quantity(
    field="test_score",
    title="test score",
    unit=FRACTION,
    show=percent,
    latex=Latex("test score (%)", 100, 1),
    better="high",
    floor=0.001,
    kind=NUMBER,
)
SPEED = Quantity(
    field="tokens_per_second",
    title="training speed",
    unit="tokens/s",
    column="tokens/s",
    latex=Latex("tokens/s"),
    better="high",
    timed=True,
    kind=MEASURED,
)
STEP = Quantity(
    field="step_seconds",
    title="step",
    unit="s",
    show=seconds,
    words="time of a training step",
    column="step",
    latex=Latex("step (ms)", 1e3, 1),
    better="low",
    timed=True,
    quartiles=True,
    floor=0.1,
    kind=MEASURED,
)
FORWARD = Quantity(
    field="forward_seconds",
    title="forward",
    unit="s",
    show=seconds,
    column="forward",
    better="low",
    timed=True,
    quartiles=True,
    floor=0.1,
    kind=MEASURED,
)
FORWARD_BACKWARD = Quantity(
    field="forward_backward_seconds",
    title="forward + backward",
    unit="s",
    show=seconds,
    column="forward + backward",
    latex=Latex("fwd + bwd (ms)", 1e3, 1),
    better="low",
    timed=True,
    quartiles=True,
    kind=MEASURED,
)
TRAINING_MEMORY = Quantity(
    field="train_memory_bytes",
    title="memory of training",
    unit="B",
    show=size,
    holds="weights, gradients, optimizer state and what a step adds",
    column="memory of training",
    latex=Latex("memory (MiB)", 2**-20, 1),
    better="low",
    floor=0.05,
)
STEP_MEMORY = Quantity(
    field="peak_memory_bytes",
    title="peak memory",
    unit="B",
    show=size,
    words="peak memory of a step",
    holds="without weights and optimizer state, which some records lack",
    column="peak memory of a step",
    latex=Latex("peak of a step (MiB)", 2**-20, 1),
    better="low",
    floor=0.05,
)
SAVED = Quantity(
    field="saved_bytes",
    title="saved for backward",
    unit="B",
    show=size,
    words="bytes saved for backward",
    column="saved for backward",
    better="low",
    floor=0.05,
)
LAYER_STATE = Quantity(
    field="state_bytes",
    title="state a layer",
    show=size,
    words="bytes of state",
    column="state a layer",
    better="low",
)
COMMUNICATED = Quantity(
    field="communicated_bytes",
    title="communicated a step",
    unit="B",
    show=size,
    words="bytes that a process sends in a step",
    column="communicated a step",
    better="low",
    floor=0.05,
)
FLOPS = Quantity(field="flops", title="FLOPs of a step", unit="FLOP", show=count, column="FLOPs/step", floor=0)
MOVED = Quantity(field="moved_bytes", title="bytes moved by a step", unit="B", show=size)
TOKEN = Quantity(
    field="token_seconds",
    title="time per token",
    unit="s",
    show=seconds,
    column="time per token",
    latex=Latex("token (ms)", 1e3, 3),
    better="low",
    timed=True,
    quartiles=True,
    floor=0.1,
    kind=MEASURED,
)
STATE = Quantity(
    field="cache_bytes",
    title="state of a sample",
    unit="B",
    show=size,
    words="state",
    column="state of a sample",
    latex=Latex("state (KiB)", 2**-10, 1),
    better="low",
    floor=0,
)
RECOMPUTED = Quantity(
    field="recompute_seconds",
    title="time per token by recomputing",
    unit="s",
    show=seconds,
    better="low",
    timed=True,
    quartiles=True,
    floor=0.1,
    kind=MEASURED,
)
RECOMPUTED_MEMORY = Quantity(
    field="recompute_bytes", title="memory of recomputing", unit="B", show=size, better="low", floor=0.05
)
PREFILL = Quantity(
    field="prefill_seconds",
    title="prefill",
    unit="s",
    show=seconds,
    words="time of a prefill",
    better="low",
    timed=True,
    quartiles=True,
    floor=0.1,
    kind=MEASURED,
)
WEIGHTS = Quantity(
    field="weights_bytes",
    title="weights",
    unit="B",
    show=size,
    words="bytes of weights",
    better="low",
    floor=0,
)
PARAMETERS = Quantity(
    field="params",
    title="parameters",
    unit="count",
    show=count,
    column="parameters",
    latex=Latex("parameters"),
    floor=0,
)
TRAINED_PARAMETERS = Quantity(
    field="trained_params", title="trained parameters", unit="count", show=count, better="low"
)
TRAINING_TIME = Quantity(field="train_seconds", title="training time", unit="s", show=seconds, better="low", timed=True)
TRAINING_STEPS = Quantity(field="train_steps", title="training steps", unit="count")

QUANTITIES = (
    TEST_SCORE,
    Quantity(field="val_score", title="validation score", unit=FRACTION, show=percent, kind=NUMBER),
    Quantity(field="test_loss", title="test loss", unit="nats", kind=NUMBER),
    SPEED,
    STEP,
    FORWARD,
    FORWARD_BACKWARD,
    TRAINING_MEMORY,
    STEP_MEMORY,
    SAVED,
    LAYER_STATE,
    COMMUNICATED,
    FLOPS,
    MOVED,
    TOKEN,
    STATE,
    RECOMPUTED,
    RECOMPUTED_MEMORY,
    PREFILL,
    WEIGHTS,
    PARAMETERS,
    TRAINED_PARAMETERS,
    TRAINING_STEPS,
    TRAINING_TIME,
    Quantity(field="compile_seconds", title="compile time", unit="s", show=seconds),
    Quantity(field="graph_breaks", title="graph breaks", unit="count", show=count),
    Quantity(field="train_cpu_seconds", title="CPU time of training", unit="s", show=seconds),
    Quantity(
        field="train_others_share",
        title="machine time that others took in training",
        unit="share",
        show=percent,
        kind=SHARE,
    ),
    Quantity(field="train_lost_share", title="CPU time lost in training", unit="share", show=percent, kind=SHARE),
    Quantity(field="train_step_seconds", title="time of a step in training", unit="s", show=seconds, kind=MEASURED),
)
