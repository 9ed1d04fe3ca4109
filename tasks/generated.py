"""What tasks share whose samples a seeded generator draws."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task
from tasks.cache import Row, Rows, Split, fresh, matrix

MAX_TOKENS: dict[Split, int] = {"train": 2**25, "validation": 2**21, "test": 2**21}
CHUNK = 2**20  # tokens that are drawn at a time


class Generated(Task):
    """A task whose samples, all of one length, a seeded generator draws; each split from a stream of its own."""

    generator: ClassVar[int]
    """Raise it when the same arguments generate something else."""
    seed: ClassVar[int]
    max_rows: ClassVar[dict[Split, int]] = {"train": 50_000, "validation": 3_000, "test": 3_000}

    @abstractmethod
    def draw(self, rng: np.random.Generator, rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs and targets of so many samples, (rows, …) both, as `take` reads them."""

    @property
    def cache_key(self) -> str:
        return f"{self.seq_len}-g{self.generator}"

    def build(self) -> dict[Split, Rows]:
        seen: set[bytes] = set()
        built: dict[Split, Rows] = {}
        for stream, split in enumerate(reversed(SPLITS), start=1):
            count = min(self.max_rows[split], MAX_TOKENS[split] // self.seq_len)
            built[split] = Rows(count, fresh(self._rows(stream, count), "inputs", seen))
        return built

    def _rows(self, stream: int, count: int) -> Iterator[Row]:
        rng = np.random.default_rng([self.seed, stream])
        chunk = max(1, CHUNK // self.seq_len)
        for start in range(0, count, chunk):
            for inputs, targets in zip(*self.draw(rng, min(chunk, count - start)), strict=True):
                yield {"inputs": inputs.tobytes(), "targets": targets.tobytes()}

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        found = self.tables[split][rows]
        inputs, targets = (matrix(found[column], np.int16).astype(np.int64) for column in ("inputs", "targets"))
        return Batch(inputs, targets)

    def provenance(self) -> dict[str, str | int]:
        test = hashlib.sha256()
        for column in ("inputs", "targets"):
            test.update(b"".join(self.tables["test"][column]))
        rows = {f"{split}_samples": self.size(split) for split in SPLITS}
        return {"generator": self.generator, "numpy": np.__version__, "test_sha256": test.hexdigest(), **rows}
