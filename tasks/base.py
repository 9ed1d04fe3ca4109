"""The protocol of every task, and the registry of tasks.

Shape letters: `B` batch, `N` length, `F` features.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.cache import Rows, Split, Table, digest_of, load_or_build, load_or_compute

IGNORE = -100
"""The target of a position without a question; torch's cross-entropy skips it by default."""

EvalSplit = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
POOL = 32  # training batches filled together if samples differ in length

Kind = Literal["token", "restore", "sequence", "pair", "value"]
"""The answer of a task: "token" a class at each position; "restore" the same, from the encoder's output at the last
position alone; "sequence" a class of the whole input; "pair" a class of two inputs; "value" a number."""


@dataclass(frozen=True)
class Metric:
    """The kind of a score.

    Attributes:
        name: such as "accuracy".
        unit: unit in reports: "%" for scores that are fractions, else the unit of the score itself.
        lower_is_better: whether the lower of two scores is better.
        bounds: the least and the largest possible score; None = no bound.
    """

    name: str
    unit: str = "%"
    lower_is_better: bool = False
    bounds: tuple[float | None, float | None] = (0.0, 1.0)


ACCURACY = Metric("accuracy")
EXPLAINED_VARIANCE = Metric("explained variance", bounds=(None, 1.0))
"""1 - MSE / variance of the targets."""
BITS_PER_BYTE = Metric("bits per byte", unit="bits", lower_is_better=True, bounds=(0.0, None))
"""The mean cross-entropy to the base 2 over targets that are bytes."""

LrSchedule = Literal["constant-then-linear", "cosine", "linear", "inverse-square-root", "constant"]
LengthSchedule = Literal["from-64th", "from-16th", "constant"]
"""Names of schedules; compare/schedule.py defines them."""

OnProgress = Callable[[float], None]
"""Called with the completed share, 0 to 1."""


def ignore(_share: float) -> None:
    """An OnProgress that shows nothing."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets.

    Attributes:
        inputs: (B, N) token ids, int64; (B, N, F) float32 if the task has features instead of tokens; for kind "pair"
            (B, 2, N) token ids.
        targets: kinds "token" and "restore": (B, N) class at each position, `IGNORE` without a question, int64;
            "sequence" and "pair": (B,) class, int64; "value": (B,) float32.
        padding: (B, N), for kind "pair" (B, 2, N), True = padding; None if the batch has no padding.
        slices: shaped as targets, the index of the target's slice in the task's `slice_names`; None without slices.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    padding: NDArray[np.bool_] | None = None
    slices: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """Default settings of `compare` for the task, the same for every variant.

    Attributes:
        seq_len: N.
        embedding_std: size of the initial token embeddings.
        conv_width: width of the convolution after the embedding; None = no convolution.
        positions: kind of positions of the encoder. Rotary positions encode the distance of two tokens, not their place
            in a picture.
        tokens_per_step: batch size = max(1, tokens_per_step // seq_len).
        lr_schedule: schedule of the learning rate.
        length_schedule: schedule of the length of training samples; if its first samples would be too short, the next
            schedule that starts with longer samples.
        budget: seconds of training of each run; None = the general default.
    """

    seq_len: int
    d_model: int
    n_heads: int
    n_layers: int
    lr: float
    conv_width: int | None
    embedding_std: float
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "rotary"
    tokens_per_step: int
    lr_schedule: LrSchedule = "cosine"
    length_schedule: LengthSchedule = "constant"
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """A task without options."""


class Task(ABC):
    """Seeded, disjoint splits of one problem at one sequence length.

    A task defines the rows of its splits (`build`), everything that the rows depend on (`cache_key`), and how rows
    become a batch (`take`); this class has the rest.

    Args:
        seq_len: N, the number of tokens in a sample, or the largest if samples differ in length.
        config: an instance of the task's `config_type`; None = its defaults.

    Raises:
        ValueError: seq_len is outside [min_len, max_len], or not among the task's `lengths`.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    summary: ClassVar[str]
    min_len: ClassVar[int]
    max_len: ClassVar[int]
    lengths: ClassVar[tuple[int, ...]] = ()
    """The allowed lengths; empty = any from min_len to max_len."""
    defaults: ClassVar[TaskDefaults]
    config_type: ClassVar[type] = NoConfig
    """A frozen dataclass of plain values (int, float, str, bool) that checks itself with ValueError."""
    own_data: ClassVar[bool] = False
    """The task needs files from the user."""
    remarks: ClassVar[Mapping[str, str]] = {}
    """Variant -> why it cannot solve the task, in words that a newcomer understands, without a full stop."""
    metric: ClassVar[Metric] = ACCURACY
    """The kind of its scores; `EXPLAINED_VARIANCE` for kind "value"."""
    causal: ClassVar[bool] = False
    """A causal encoder can solve the task: each answer depends only on positions before its question."""
    causal_only: ClassVar[bool] = False
    """Other encoders would see the answer, so the encoder is always causal."""
    causal_form: ClassVar[str] = ""
    """The task that replaces this task for a causal encoder; "" = the same task, if `causal`."""
    picture: ClassVar[bool] = False
    """The positions are those of a square picture, row by row."""
    fixed_places: ClassVar[str] = ""
    """How the task's definition ties answers to fixed positions, in words; "" = no position reveals more of an answer
    than another."""

    vocab_size: int | None
    """Number of input ids; None if the inputs are features."""
    n_features: int | None = None
    """F, if the inputs are features."""
    n_classes: int
    """Output size of the head: a target is in [0, n_classes); 1 for kind "value"."""
    slice_names: tuple[str, ...] = ()
    """Parts of the test set that get scores of their own."""

    def __init__(self, seq_len: int, config: Any = None) -> None:
        if self.lengths and seq_len not in self.lengths:
            raise ValueError(f"{self.name}: expected seq_len among {', '.join(map(str, self.lengths))}, got {seq_len}")
        if not self.min_len <= seq_len <= self.max_len:
            raise ValueError(f"{self.name}: expected {self.min_len} <= seq_len <= {self.max_len}, got {seq_len}")
        self.seq_len = seq_len
        self.config = self.config_type() if config is None else config

    @property
    @abstractmethod
    def cache_key(self) -> str:
        """Everything that the rows depend on, as a folder name."""

    @abstractmethod
    def build(self) -> Mapping[Split, Rows]:
        """The rows of each split, generated while they are read; the caller reads whole splits in this order.

        Raises:
            ValueError: a fault of the data, in one line.
        """

    @abstractmethod
    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        """The samples ``rows`` of a split as a batch, padded to the longest of them; the same on every call.

        Every row of an evaluation split has at least one target.
        """

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """Test score of trivial predictors fitted on train."""

    @abstractmethod
    def provenance(self) -> dict[str, str | int]:
        """Hashes, versions and split sizes that identify the data in a record."""

    def notes(self) -> list[str]:
        """Sentences for the user about dropped and cut data."""
        return []

    @cached_property
    def tables(self) -> Mapping[Split, Table]:
        """The splits as Arrow tables, from the cache or newly built."""
        return self._load(ignore)

    def _load(self, on_progress: OnProgress) -> Mapping[Split, Table]:
        return load_or_build(f"{self.name}-{self.cache_key}", self.build, on_progress)

    def prepare(self, on_progress: OnProgress = ignore) -> None:
        """Build the tables if the cache lacks them, then open them. Optional: the first use of `tables` does the same.

        Raises:
            ValueError: a fault of the data, in one line.
        """
        if "tables" not in self.__dict__:
            self.tables = self._load(on_progress)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Baselines, the weakest first, provenance ("data") and notes; computed once and stored in the cache."""

        def compute() -> dict[str, Any]:
            worst_first = sorted(
                self.baselines().items(), key=lambda scored: scored[1], reverse=self.metric.lower_is_better
            )
            baselines = dict(worst_first)
            data = self.provenance() | {"rows_sha256": digest_of(self.tables)}
            return {"baselines": baselines, "data": data, "notes": self.notes()}

        self.prepare()
        return load_or_compute(f"{self.name}-{self.cache_key}", f"facts-{self.seq_len}", compute)

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, for tasks whose classes have names."""
        return ()

    def ids_of(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        """The inputs for new texts, each cut to seq_len; a text without ids gives an empty array.

        Raises:
            ValueError: the inputs of the task are no texts.
        """
        raise ValueError(f"{self.name}: expected a task whose inputs are texts")

    def hidden(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which inputs of a new text ask for an answer, shaped as ids; for tasks of kind "token"."""
        raise ValueError(f"{self.name}: expected a task that restores hidden parts of texts")

    def filled(self, text: bytes, answers: NDArray[np.int64]) -> bytes:
        """A new text with the answers in place of what it hides, in order; for tasks of kind "token"."""
        raise ValueError(f"{self.name}: expected a task that restores hidden parts of texts")

    @property
    def shortest_train(self) -> int:
        """The least length of training batches; seq_len if the task cannot train at shorter lengths."""
        return self.seq_len

    def size(self, split: Split) -> int:
        """The number of samples in a split."""
        return len(self.tables[split])

    def labels(self, split: Split) -> NDArray[np.int64]:
        """(size,) the column "label" of a split, for tasks whose rows have this column."""
        return np.array(self.tables[split].data.column("label"), np.int64)

    def sample_lengths(self, split: Split) -> NDArray[np.int64] | None:
        """(size,) length of each sample after truncation; None if all are seq_len long."""
        return None

    def train_batches(self, batch_size: int, seq_len: int, seed: int) -> Iterator[Batch]:
        """Endless training batches, the same for the same seed.

        Args:
            batch_size: B.
            seq_len: from `shortest_train` to the task's own length.
            seed: seed of the order; stored data does not depend on it.

        Raises:
            ValueError: the task cannot train at seq_len.
        """
        if not self.shortest_train <= seq_len <= self.seq_len:
            raise ValueError(
                f"{self.name}: expected {self.shortest_train} <= training seq_len <= {self.seq_len}, got {seq_len}"
            )
        return self._train(np.random.default_rng(seed), batch_size, seq_len)

    def _train(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Iterator[Batch]:
        """Epoch after epoch, each in a new order; if samples differ in length, batches group similar lengths."""
        assert seq_len == self.seq_len
        lengths = self.sample_lengths("train")
        waiting = np.empty(0, np.int64)
        while True:
            while len(waiting) < POOL * batch_size:
                waiting = np.concatenate([waiting, rng.permutation(self.size("train"))])
            pool, waiting = waiting[: POOL * batch_size], waiting[POOL * batch_size :]
            if lengths is not None:
                pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches = pool.reshape(POOL, batch_size)
            for rows in batches if lengths is None else rng.permutation(batches):
                yield self.take("train", rows)

    def eval_batches(self, split: EvalSplit, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        """Batches of a whole split, the longest samples first; the last batch may be smaller than B.

        most: at most so many samples, evenly spread over the split; None = all.
        """
        lengths = self.sample_lengths(split)
        size = self.size(split)
        order = np.arange(size) if lengths is None else np.argsort(-lengths, kind="stable")
        if most is not None and most < size:
            order = order[np.arange(most) * size // most]
        for start in range(0, len(order), batch_size):
            yield self.take(split, order[start : start + batch_size])

    def whole(self, split: Split) -> Batch:
        """A small split as one batch, in its own order."""
        return self.take(split, np.arange(self.size(split)))


TaskClass = TypeVar("TaskClass", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def register(task: TaskClass) -> TaskClass:
    """Class decorator: register a task under its `name`."""
    if task.name in _TASKS:
        raise ValueError(f"cannot register {task!r} as {task.name!r}: {_TASKS[task.name]!r} has this name")
    _TASKS[task.name] = task
    return task


def available() -> tuple[str, ...]:
    """The names of all tasks, sorted."""
    return tuple(sorted(_TASKS))


def get(name: str) -> type[Task]:
    """The task called ``name``.

    Raises:
        ValueError: an unknown name; the message has the closest match and all names.
    """
    if name in _TASKS:
        return _TASKS[name]
    close = difflib.get_close_matches(name, _TASKS, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"expected a task among {', '.join(available())}, got {name!r}{hint}")


def options(name: str) -> dict[str, Any]:
    """The options of a task and their defaults: the fields of its `config_type`."""
    return {field.name: field.default for field in fields(get(name).config_type)}
