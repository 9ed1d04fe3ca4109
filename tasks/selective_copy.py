"""Selective copy: say again, in order, the few symbols that lie scattered among blanks.

Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (MAD, arXiv 2403.17844), after Gu & Dao, "Mamba"
(arXiv 2312.00752). n = N // 16 symbols out of 14 lie anywhere in the first N - n positions, blanks (14) elsewhere; n
markers (15) follow, and at the i-th marker the answer is the i-th symbol. Three symbols, sixteen tokens:

>>> inputs, targets = generate(np.random.default_rng(1), 1, seq_len=16, n_copy=3)
>>> print(inputs[0])
[14 12 14  6 14 14 14 14 10 14 14 14 14 15 15 15]
>>> print(np.where(targets[0] == IGNORE, 0, targets[0]))  # 0 for "not asked", to line up
[ 0  0  0  0  0  0  0  0  0  0  0  0  0 12  6 10]

A marker says nothing of its number, and a symbol nothing of its rank: both have to be counted. The answers
stand nowhere but in the text.

Departures from MAD: every set of places is equally likely, where MAD deals the blanks out to the gaps before the
symbols, so that its last symbol always stands right before the copy token; n markers ask for the answers, where MAD
has one copy token and then n blanks; n grows with N (16 at N 256, as there).
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, SPLITS, Batch, NoConfig, Task, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Row, Rows, Split, fresh, matrix

MAX_ROWS: dict[Split, int] = {"train": 50_000, "validation": 3_000, "test": 3_000}
MAX_TOKENS: dict[Split, int] = {"train": 2**25, "validation": 2**21, "test": 2**21}
CHUNK = 2**20  # tokens that are drawn at a time

SYMBOLS, BLANK, MARKER = 14, 14, 15

Ids = NDArray[np.int16]


class Generated(Task):
    """A task whose samples, all of one length, a seeded generator draws; each split from a stream of its own."""

    generator: ClassVar[int]
    """Raise it when the same arguments generate something else."""
    seed: ClassVar[int]

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
            count = min(MAX_ROWS[split], MAX_TOKENS[split] // self.seq_len)
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


def generate(rng: np.random.Generator, rows: int, *, seq_len: int, n_copy: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N)."""
    text = seq_len - n_copy
    symbols = rng.integers(SYMBOLS, size=(rows, n_copy), dtype=np.int16)
    places = np.sort(np.argpartition(rng.random((rows, text)), n_copy, axis=1)[:, :n_copy])
    inputs = np.full((rows, seq_len), BLANK, np.int16)
    np.put_along_axis(inputs, places, symbols, axis=1)
    inputs[:, text:] = MARKER
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    targets[:, text:] = symbols
    return inputs, targets


@register
class SelectiveCopy(Generated):
    """Selective copy of N // 16 symbols; see the module's docstring."""

    name = "selective_copy"
    kind = "token"
    summary = "say again, in order, the N // 16 symbols scattered among blanks"
    min_len = 48  # three symbols: of two, the convolution at the last marker would see the last
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=64,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=2e-3,
        conv_width=5,
        embedding_std=0.1,
        tokens_per_step=4096,
    )
    generator = 1
    seed = 240317844

    vocab_size = 16
    n_classes = SYMBOLS

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.n_copy = seq_len // 16

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=self.seq_len, n_copy=self.n_copy)

    def baselines(self) -> dict[str, float]:
        """The most frequent symbol, of train and of the text; the symbol nearest to where the i-th is expected.

        The last neither counts nor looks at more than places: of n places drawn from T the i-th is, on average, at
        i (T + 1) / (n + 1), counted from 1.
        """
        train, test = self.whole("train").targets, self.whole("test")
        text = test.inputs[:, : -self.n_copy]
        answers = test.targets[:, -self.n_copy :]
        symbols, places = text[text < SYMBOLS].reshape(answers.shape), np.nonzero(text < SYMBOLS)[1]
        counts = (symbols[..., None] == np.arange(SYMBOLS)).sum(axis=1)
        expected = np.arange(1, self.n_copy + 1) * (text.shape[1] + 1) / (self.n_copy + 1) - 1
        nearest = [np.abs(row[:, None] - expected).argmin(axis=0) for row in places.reshape(answers.shape)]
        guessed = np.take_along_axis(symbols, np.stack(nearest), axis=1)
        scores = {
            "most frequent symbol": majority(train[train != IGNORE], answers.ravel()),
            "most frequent of the text": float(np.mean(answers == counts.argmax(axis=1)[:, None])),
            "nearest to its expected place": float(np.mean(answers == guessed)),
        }
        return dict(sorted(scores.items(), key=lambda score: score[1]))

    def provenance(self) -> dict[str, str | int]:
        return super().provenance() | {"n_copy": self.n_copy}
