"""Multi-query associative recall: which value was this key paired with?

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models" (arXiv 2312.04927).
n key-value pairs in a row form the context. After the context each key comes once more, at a distance drawn from a
power law, and the answer there is the value of the key. Random ids fill the rest. Two pairs, sixteen tokens, twelve
ids, values from 6 on:

>>> inputs, targets = generate(np.random.default_rng(1), 1, seq_len=16, n_pairs=2, vocab_size=12)
>>> print(inputs[0])
[10  9 10  7  4  8  5 10  5  3  3  6  4  2  0  6]
>>> print(np.where(targets[0] == IGNORE, 0, targets[0]))  # 0 for "not asked", to line up
[ 0  0  0  0  0  0  0  0 10  0  0  0  8  0  0  0]

The context begins at a random even position that leaves room for the questions after it, so no block, landmark or
projection at fixed positions holds the pairs more often than another. If the context always began at 0, a global block
of the first tokens would see it, and BigBird and Linformer would score more than they deserve.

The fill neither reveals an answer nor makes one ambiguous: it has every id except the sample's keys, and no value
right after a question, which would look like another pair. So a value follows an asked key at one position only, in
either direction. Every question comes after the context, so a causal encoder has seen the pair of its key.

Departures from Zoology:
- Zoology's context always begins at 0. A later context leaves less room, so questions are nearer: 14 tokens on average
  at N 64, where Zoology has 19.
- Zoology draws slots for the keys in the order of the context, so it tends to ask for earlier keys sooner: guessing the
  values in order is right in 28 % at n 4. Here the keys get their slots in random order: 25 %, as for any guess.
- Zoology's fill is any id, including a key of the sample before a value, or 0 throughout (`random_non_queries`).
- The vocabulary grows with the number of pairs, V = max(128, 4n rounded up to a power of two), where Zoology always
  has 8192; n = N // 16.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, NoConfig, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Split
from tasks.generated import Generated

POWER = 0.01

Ids = NDArray[np.int16]


def distinct(rng: np.random.Generator, rows: int, n: int, weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """(rows, n) indices into weights, drawn one after another without replacement, P(i) ∝ weights[i].

    An exponential race: the first n of the clocks with these rates to ring, in the order in which they ring.
    weights: (slots,) or (rows, slots); a clock of rate 0 rings after all others.
    """
    with np.errstate(divide="ignore"):
        race = rng.standard_exponential((rows, weights.shape[-1]), dtype=np.float32) / weights
    return np.argsort(race, axis=1)[:, :n]


def generate(rng: np.random.Generator, rows: int, *, seq_len: int, n_pairs: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N), N >= 4 n_pairs.

    Keys are in [1, V/2), values in [V/2, V). The 2n tokens of context begin at an even place up to N - 4n. Questions
    are at even offsets 2s after the context, with P(slot s) ∝ (s + 1)^(a - 1), a = 0.01.
    """
    half, context = vocab_size // 2, 2 * n_pairs
    start = 2 * rng.integers((seq_len - 2 * context) // 2 + 1, size=(rows, 1))
    shuffled = 1 + distinct(rng, rows, half - 1, np.ones(half - 1, np.float32))
    keys, others = shuffled[:, :n_pairs], shuffled[:, n_pairs:]
    values = half + distinct(rng, rows, n_pairs, np.ones(half, np.float32))
    slots = np.arange(1, (seq_len - context) // 2 + 1, dtype=np.float32)
    weights = np.where(start + context + 2 * slots <= seq_len, slots ** np.float32(POWER - 1), np.float32(0))
    queries = start + context + 2 * rng.permuted(distinct(rng, rows, n_pairs, weights), axis=1)

    others = np.append(others, np.zeros((rows, 1), others.dtype), axis=1)  # ids of the fill other than values
    fill = np.append(others, np.broadcast_to(np.arange(half, vocab_size), (rows, half)), axis=1)
    among = np.full((rows, seq_len), fill.shape[1])
    np.put_along_axis(among, queries + 1, others.shape[1], axis=1)
    inputs = np.take_along_axis(fill, rng.integers(among), axis=1).astype(np.int16)

    pairs = start + np.arange(context)
    np.put_along_axis(inputs, pairs[:, ::2], keys.astype(np.int16), axis=1)
    np.put_along_axis(inputs, pairs[:, 1::2], values.astype(np.int16), axis=1)
    np.put_along_axis(inputs, queries, keys.astype(np.int16), axis=1)
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    np.put_along_axis(targets, queries, values.astype(np.int16), axis=1)
    return inputs, targets


@register
class Mqar(Generated):
    """Multi-query associative recall with N // 16 pairs; see the module's docstring."""

    name = "mqar"
    kind = "token"
    summary = "recall the value each queried key was paired with; N // 16 pairs"
    min_len = 32  # two pairs: one pair would leave no choice
    max_len = 65_536
    causal = True
    defaults = TaskDefaults(
        seq_len=64,
        d_model=64,
        n_heads=4,
        n_layers=2,
        lr=3e-3,
        conv_width=3,
        embedding_std=0.1,
        tokens_per_step=4096,
    )

    generator = 3
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
        """The most frequent value of train; the context's last value; the context's values, in order."""
        train, test = self.whole("train").targets, self.whole("test")
        everyone, places = np.nonzero(test.targets != IGNORE)
        answers = test.targets[everyone, places].reshape(-1, self.n_pairs)
        keys = np.zeros((len(test.inputs), self.vocab_size), np.bool_)
        keys[everyone, test.inputs[everyone, places]] = True
        start = np.take_along_axis(keys, test.inputs, axis=1).argmax(axis=1)[:, None]
        values = np.take_along_axis(test.inputs, start + 1 + 2 * np.arange(self.n_pairs), axis=1)
        return {
            "most frequent value": majority(train[train != IGNORE], answers.ravel()),
            "last value": float(np.mean(answers == values[:, -1:])),
            "values in order": float(np.mean(answers == values)),
        }

    def provenance(self) -> dict[str, str | int]:
        return super().provenance() | {"n_pairs": self.n_pairs}
