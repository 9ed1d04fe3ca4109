"""The protocol every task holds, and the registry it is found in.

Shape letters: `B` batch, `N` length.
"""

import difflib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.cache import Columns, Split, Table, load_or_build

IGNORE = -100
"""The target of a position where nothing is asked; torch's cross-entropy skips it by default."""

EvalSplit = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Batch:
    """Token ids and what is asked of them.

    Attributes:
        inputs: (B, N) token ids.
        targets: (B, N) class at each position, `IGNORE` where nothing is asked; (B,) for kind "sequence".
        padding: (B, N), True = padding; None where the batch has no padding anywhere.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    padding: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """What `compare` uses where the command line is silent; the same for every variant.

    Attributes:
        embedding_std: size of the initial token embeddings.
        conv_width: width of the convolution after the embedding; None = no convolution.
        tokens_per_step: batch size = max(1, tokens_per_step // seq_len).
        length_warmup: train on shorter lengths first.
    """

    d_model: int
    n_heads: int
    n_layers: int
    lr: float
    conv_width: int | None
    embedding_std: float
    tokens_per_step: int
    length_warmup: bool


class Task(ABC):
    """Seeded, disjoint splits of one problem at one sequence length.

    A task says how its columns are built (`build`), what they depend on (`cache_key`), how a training
    batch is drawn from them (`draw`) and what an evaluation split is (`whole`); the rest is shared.

    Args:
        seq_len: N, tokens in a sample.

    Raises:
        ValueError: where seq_len is outside [min_len, max_len].
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["token", "sequence"]]
    metric: ClassVar[str] = "accuracy"
    summary: ClassVar[str]
    min_len: ClassVar[int]
    max_len: ClassVar[int]
    defaults: ClassVar[TaskDefaults]

    vocab_size: int
    """Number of input ids."""
    n_classes: int
    """Output size of the head: a target is in [0, n_classes)."""

    def __init__(self, seq_len: int) -> None:
        if not self.min_len <= seq_len <= self.max_len:
            raise ValueError(f"{self.name}: expected {self.min_len} <= seq_len <= {self.max_len}, got {seq_len}")
        self.seq_len = seq_len

    @property
    @abstractmethod
    def cache_key(self) -> str:
        """Everything the built columns depend on, as a folder name."""

    @abstractmethod
    def build(self) -> dict[Split, Columns]:
        """The columns of each split."""

    @abstractmethod
    def prepare(self) -> None:
        """Bring the data into memory, built or from the cache.

        Idempotent, and not required: what needs the data loads it by itself. A call says when.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Batch:
        """One training batch, with at least one target."""

    @abstractmethod
    def whole(self, split: EvalSplit) -> Batch:
        """An evaluation split as one batch, the same on every call, with at least one target a row."""

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """Test score of trivial predictors fitted on train, the weakest first."""

    @abstractmethod
    def provenance(self) -> dict[str, str | int]:
        """Hashes, versions and split sizes: what a record needs to name the data."""

    def tables(self) -> Mapping[Split, Table]:
        """The splits as Arrow tables: from the cache where it holds them, else built."""
        return load_or_build(f"{self.name}-{self.cache_key}", self.build)

    def train_batches(self, batch_size: int, seq_len: int, seed: int) -> Iterator[Batch]:
        """Training batches without end; the same ones for the same seed.

        Args:
            batch_size: B.
            seq_len: the task's own length, or less where its defaults say `length_warmup`.
            seed: of the draw; the data itself does not depend on it.

        Raises:
            ValueError: where the task cannot be trained at seq_len.
        """
        shortest = self.min_len if self.defaults.length_warmup else self.seq_len
        if not shortest <= seq_len <= self.seq_len:
            raise ValueError(f"{self.name}: expected {shortest} <= training seq_len <= {self.seq_len}, got {seq_len}")
        rng = np.random.default_rng(seed)
        return (self.draw(rng, batch_size, seq_len) for _ in itertools.count())

    def eval_batches(self, split: EvalSplit, batch_size: int) -> Iterator[Batch]:
        """All of a split, in order; the last batch may be smaller than B."""
        whole = self.whole(split)
        for start in range(0, len(whole.inputs), batch_size):
            rows = slice(start, start + batch_size)
            padding = None if whole.padding is None else whole.padding[rows]
            if padding is not None and not padding.any():
                padding = None
            yield Batch(whole.inputs[rows], whole.targets[rows], padding)


TaskClass = TypeVar("TaskClass", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def register(task: TaskClass) -> TaskClass:
    """Class decorator: make a task known under its `name`."""
    if task.name in _TASKS:
        raise ValueError(f"expected a new task name, got {task.name!r}, which is {_TASKS[task.name]!r}")
    _TASKS[task.name] = task
    return task


def available() -> tuple[str, ...]:
    """The names of all tasks, sorted."""
    return tuple(sorted(_TASKS))


def get(name: str) -> type[Task]:
    """The task of that name.

    Raises:
        ValueError: for an unknown name, with the closest match and the list.
    """
    if name in _TASKS:
        return _TASKS[name]
    close = difflib.get_close_matches(name, _TASKS, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"expected a task among {', '.join(available())}, got {name!r}{hint}")
