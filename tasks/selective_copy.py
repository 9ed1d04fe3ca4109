"""Selective copy: repeat, in order, the few symbols scattered among blanks.

Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (MAD, arXiv 2403.17844), after Gu & Dao, "Mamba"
(arXiv 2312.00752). n = N // 16 symbols out of 14 are scattered over the first N - n positions, with blanks (14)
elsewhere; n markers (15) follow, and the answer at the i-th marker is the i-th symbol. Three symbols, sixteen tokens:

>>> inputs, targets = generate(np.random.default_rng(1), 1, seq_len=16, n_copy=3)
>>> print(inputs[0])
[14 12 14  6 14 14 14 14 10 14 14 14 14 15 15 15]
>>> print(np.where(targets[0] == IGNORE, 0, targets[0]))  # 0 for "not asked", to line up
[ 0  0  0  0  0  0  0  0  0  0  0  0  0 12  6 10]

A marker does not reveal its index, nor a symbol its rank: the model has to count both. The answers are only in the
text, out of reach of a short convolution at the marker.

Every set of positions is equally likely, but their order reveals something: the first symbol is near the start more
often than elsewhere, and the last marker asks for a symbol near the end. A baseline scores a guess by position alone.

Departures from MAD: every set of positions is equally likely, where MAD assigns the blanks to the gaps before the
symbols, so that its last symbol is always right before the copy token; n markers ask for the answers, where MAD has one
copy token and then n blanks; n grows with N (16 at N 256, as in MAD).
"""

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, NoConfig, TaskDefaults, register
from tasks.baselines import majority
from tasks.generated import Generated

SYMBOLS, BLANK, MARKER = 14, 14, 15

Ids = NDArray[np.int16]


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


def nearest_to(points: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(points,) the index of the place nearest to each point, of ascending places, two or more; in a tie the first."""
    right: NDArray[np.int64] = np.clip(np.searchsorted(places, points), 1, len(places) - 1)
    return right - (points - places[right - 1] <= places[right] - points)


@register
class SelectiveCopy(Generated):
    """Selective copy of N // 16 symbols; see the module's docstring."""

    name = "selective_copy"
    kind = "token"
    causal = True
    summary = "repeat, in order, the N // 16 symbols scattered among blanks"
    min_len = 48  # three symbols: with two, a convolution at the last marker reaches the text
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=64,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=2e-3,
        conv_width=5,
        embedding_std=1.0,
        tokens_per_step=4096,
    )
    generator = 1
    seed = 240317844

    fixed_places = "the i-th marker asks for the i-th symbol, which is near i / n of the text more often than elsewhere"
    vocab_size = 16
    n_classes = SYMBOLS

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.n_copy = seq_len // 16

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=seq_len, n_copy=seq_len // 16)

    def baselines(self) -> dict[str, float]:
        """The most frequent symbol of train; of the text; the symbol nearest to the expected position of the i-th.

        The last predictor uses positions alone and counts nothing: of n positions drawn from T, the i-th is on average
        at i (T + 1) / (n + 1), counted from 1.
        """
        train, test = self.whole("train").targets, self.whole("test")
        text = test.inputs[:, : -self.n_copy]
        answers = test.targets[:, -self.n_copy :]
        symbols, places = text[text < SYMBOLS].reshape(answers.shape), np.nonzero(text < SYMBOLS)[1]
        counts = (symbols[..., None] == np.arange(SYMBOLS)).sum(axis=1)
        expected = np.arange(1, self.n_copy + 1) * (text.shape[1] + 1) / (self.n_copy + 1) - 1
        nearest = np.array([nearest_to(expected, row) for row in places.reshape(answers.shape)])
        guessed = np.take_along_axis(symbols, nearest, axis=1)
        return {
            "most frequent symbol": majority(train[train != IGNORE], answers.ravel()),
            "most frequent of the text": float(np.mean(answers == counts.argmax(axis=1)[:, None])),
            "nearest to its expected place": float(np.mean(answers == guessed)),
        }

    def provenance(self) -> dict[str, str | int]:
        return super().provenance() | {"n_copy": self.n_copy}
