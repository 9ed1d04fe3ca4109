"""The base of tasks whose samples come from a seeded generator."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task
from tasks.cache import Row, Rows, Split, fresh, matrix

CHUNK = 2**20  # tokens drawn at a time


class Generated(Task):
    """A task with generated samples of one length; each split has a random stream of its own."""

    generator: ClassVar[int]
    """Raise it when the same arguments generate other samples."""
    seed: ClassVar[int]
    stored: ClassVar[type[np.int16] | type[np.float32]] = np.int16
    """The type of the numbers in rows."""
    max_rows: ClassVar[dict[Split, int]] = {"train": 50_000, "validation": 3_000, "test": 3_000}
    max_tokens: ClassVar[dict[Split, int]] = {"train": 2**25, "validation": 2**21, "test": 2**21}
    """The smaller of the two limits counts."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs and targets of ``rows`` samples, both (rows, …) as stored; seq_len is at most the task's own length.

        Ids and classes are those of the task's own length.
        """

    def draw_train(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `draw`, for training; tasks override it if training and test samples differ."""
        return self.draw(rng, rows, seq_len)

    def count(self, split: Split) -> int:
        """The number of samples to draw for a split."""
        return min(self.max_rows[split], self.max_tokens[split] // self.seq_len)

    @property
    def cache_key(self) -> str:
        return f"{self.seq_len}-g{self.generator}"

    def build(self) -> dict[Split, Rows]:
        seen: set[bytes] = set()
        built: dict[Split, Rows] = {}
        for stream, split in enumerate(reversed(SPLITS), start=1):
            built[split] = Rows(self.count(split), fresh(self._rows(stream, split), "inputs", seen))
        return built

    def _rows(self, stream: int, split: Split) -> Iterator[Row]:
        rng, count = np.random.default_rng([self.seed, stream]), self.count(split)
        draw = self.draw_train if split == "train" else self.draw
        chunk = max(1, CHUNK // self.seq_len)
        for start in range(0, count, chunk):
            for inputs, targets in zip(*draw(rng, min(chunk, count - start), self.seq_len), strict=True):
                yield {"inputs": inputs.tobytes(), "targets": targets.tobytes()}

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        inputs, targets = (matrix(columns[name], self.stored) for name in ("inputs", "targets"))
        return self.to_batch(inputs, targets)

    def to_batch(self, inputs: NDArray[Any], targets: NDArray[Any]) -> Batch:
        """The arrays of `draw` as a batch."""
        return Batch(inputs.astype(np.int64), targets.astype(np.int64))

    @property
    def shortest_train(self) -> int:
        return self.min_len

    def _train(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Iterator[Batch]:
        """At shorter lengths every batch has new samples."""
        if seq_len == self.seq_len:
            yield from super()._train(rng, batch_size, seq_len)
        while True:
            yield self.to_batch(*self.draw_train(rng, batch_size, seq_len))

    def provenance(self) -> dict[str, str | int]:
        test = hashlib.sha256()
        for column in ("inputs", "targets"):
            test.update(b"".join(self.tables["test"][column]))
        rows = {f"{split}_samples": self.size(split) for split in SPLITS}
        return {"generator": self.generator, "numpy": np.__version__, "test_sha256": test.hexdigest(), **rows}
