"""Multi-query associative recall: which value was this key paired with?

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models" (arXiv 2312.04927).
n key-value pairs, then each key once more, at a distance drawn from a power law; at each of these
queries the answer is the value the key was paired with. Two pairs, sixteen tokens, twelve ids:

>>> inputs, targets = generate(np.random.default_rng(2), 1, seq_len=16, n_pairs=2, vocab_size=12)
>>> print(inputs[0])
[ 4 10  3  8  0  0  0  0  0  0  4  0  0  0  3  0]
>>> print(np.where(targets[0] == IGNORE, 0, targets[0]))  # 0 for "not asked", to line up
[ 0  0  0  0  0  0  0  0  0  0 10  0  0  0  8  0]

A value never appears after the context, so an encoder that sees both ways has nothing to copy from.

Departures from the paper: the vocabulary grows with the number of pairs, V = max(128, 4n rounded up to a
power of two), where Zoology has 8192 throughout; n = N // 16. The fill between queries is the id 0, as in
the paper's figure; Zoology's present code draws it at random by default.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, NoConfig, TaskDefaults, register
from tasks.cache import Split
from tasks.generated import Generated

POWER = 0.01

Ids = NDArray[np.int16]


def distinct(rng: np.random.Generator, rows: int, n: int, weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """(rows, n) indices into weights, drawn one after the other without replacement, P(i) ∝ weights[i].

    An exponential race: of clocks with these rates, the first n to ring, in the order they ring.
    """
    race = rng.standard_exponential((rows, len(weights)), dtype=np.float32) / weights
    return np.argsort(race, axis=1)[:, :n]


def generate(rng: np.random.Generator, rows: int, *, seq_len: int, n_pairs: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N).

    Keys are in [1, V/2), values in [V/2, V). Queries sit at even offsets 2s after the 2n tokens of context,
    with P(slot s) ∝ (s + 1)^(a - 1), a = 0.01; 0 fills the rest and is an id like any other, not padding.
    """
    half, context = vocab_size // 2, 2 * n_pairs
    keys = 1 + distinct(rng, rows, n_pairs, np.ones(half - 1, np.float32))
    values = half + distinct(rng, rows, n_pairs, np.ones(half, np.float32))
    slots = np.arange(1, (seq_len - context) // 2 + 1, dtype=np.float32)
    queries = context + 2 * distinct(rng, rows, n_pairs, slots ** (POWER - 1))

    inputs = np.zeros((rows, seq_len), np.int16)
    inputs[:, 0:context:2] = keys
    inputs[:, 1:context:2] = values
    np.put_along_axis(inputs, queries, keys.astype(np.int16), axis=1)
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    np.put_along_axis(targets, queries, values.astype(np.int16), axis=1)
    return inputs, targets


@register
class Mqar(Generated):
    """Multi-query associative recall with N // 16 pairs; see the module's docstring."""

    name = "mqar"
    kind = "token"
    causal = True
    summary = "recall the value each queried key was paired with; N // 16 pairs"
    min_len = 32  # two pairs: with one there is nothing to choose from
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=64,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=2e-3,
        conv_width=3,
        embedding_std=0.1,
        tokens_per_step=4096,
    )

    generator = 2
    seed = 231204927
    max_rows: ClassVar[dict[Split, int]] = {"train": 100_000, "validation": 3_000, "test": 3_000}
    vocab_size: int

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.n_pairs = seq_len // 16
        self.vocab_size = self.n_classes = max(128, 1 << (4 * self.n_pairs - 1).bit_length())

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=seq_len, n_pairs=seq_len // 16, vocab_size=self.vocab_size)

    def baselines(self) -> dict[str, float]:
        """The most frequent value of train; the context's last value; the context's values, in order.

        Any value of the context is right once in n. Their order does better: slots are drawn for the keys in
        the order of the context, and what is drawn first tends to be near, in Zoology's data too.
        """
        train, test = self.whole("train").targets, self.whole("test")
        asked = test.targets[test.targets != IGNORE].reshape(len(test.targets), self.n_pairs)
        values = test.inputs[:, 1 : 2 * self.n_pairs : 2]
        return {
            "most frequent value": float(np.mean(asked == np.bincount(train[train != IGNORE]).argmax())),
            "last value": float(np.mean(asked == values[:, -1:])),
            "values in order": float(np.mean(asked == values)),
        }

    def provenance(self) -> dict[str, str | int]:
        return super().provenance() | {"n_pairs": self.n_pairs}
