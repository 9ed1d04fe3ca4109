"""Noisy recall: which value was this key paired with? The pairs are hidden among hay.

Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (MAD, arXiv 2403.17844), its noisy in-context
recall. The first half holds key-value pairs at random even positions, with hay between them; in the second half every
other token is one of the keys, and the answer is its value. Ids: values, then hay, then keys. Two pairs, twenty tokens,
ten values:

>>> inputs, targets = generate(np.random.default_rng(1), 1, seq_len=20, n_pairs=2, n_values=10, n_keys=10)
>>> print(inputs[0, :10])
[19 67 51 23 73 42 79  4 78  8]
>>> print(inputs[0, 10:])
[78 58 79 13 78 27 78 41 78 41]
>>> print(np.where(targets[0, 10:] == IGNORE, 0, targets[0, 10:]))  # 0 for "not asked", to line up
[8 0 4 0 8 0 8 0 8 0]

The second half holds no answers, so an encoder that sees both directions has nothing to copy there. Every question
comes after all pairs, so a causal encoder has seen the pair of its key. One long sample asks thousands of questions, so
a few samples teach a lot. Without hay a method would only have to store all tokens; with hay it has to find the pairs.

The task also scores eight bins of the distance from a question back to the last pair of its key.

The task requires content-based lookup of a key, which softmax attention can do. A recurrence has to store all pairs in
a state of fixed size: the more pairs, the smaller the share that it recalls. Linformer fails: its learned projections
mix the N positions into M with weights that are fixed before any key is seen. A pair at a random position shares each
of the M summaries with about N / M other tokens, and nothing separates it from them. A window sees only nearby pairs.

Departures from MAD:
- The questions fill a half of their own, without answers after them. MAD repeats pairs throughout the sample and asks
  at each repetition, so a value to copy may be near, and right after the question.
- Each pair comes once. `hay` below 1 repeats pairs in the first half: 0.2 is MAD's own share of hay.
- 64 keys, 64 values and 64 ids of hay, where MAD has 8, 8 and 16 at N 128; the number of pairs is an option, where
  MAD's is random.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, Batch, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Split
from tasks.generated import Generated

HAY = 64  # ids
BINS = 8
MOST_VALUES, MOST_KEYS = 8_192, 16_384  # all ids together are below 2**15

Ids = NDArray[np.int16]


def count_slots(seq_len: int) -> int:
    """The number of slots for pairs in the first half."""
    return seq_len // 4


def generate(
    rng: np.random.Generator,
    rows: int,
    *,
    seq_len: int,
    n_pairs: int,
    n_values: int,
    n_keys: int,
    hay: float = 1.0,
) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N).

    Keys of a sample differ; values are drawn with replacement. Of the slots beyond those of the pairs, the share
    ``hay`` holds hay; each of the rest repeats a pair.
    """
    slots = count_slots(seq_len)
    keys = n_values + HAY + np.argsort(rng.random((rows, n_keys), np.float32), axis=1)[:, :n_pairs]
    values = rng.integers(n_values, size=(rows, n_pairs))

    pair_of_slot = np.where(rng.random((rows, slots)) < hay, -1, rng.integers(n_pairs, size=(rows, slots)))
    pair_of_slot[:, :n_pairs] = np.arange(n_pairs)
    pair_of_slot = rng.permuted(pair_of_slot, axis=1)  # the number of each slot's pair, -1 = hay
    pair_of_question = rng.integers(n_pairs, size=(rows, len(range(2 * slots, seq_len, 2))))

    inputs = rng.integers(n_values, n_values + HAY, size=(rows, seq_len), dtype=np.int16)
    for shift, ids in enumerate((keys, values)):
        slot_ids = inputs[:, shift : 2 * slots : 2]
        np.copyto(slot_ids, np.take_along_axis(ids, pair_of_slot, axis=1), where=pair_of_slot >= 0, casting="same_kind")
    inputs[:, 2 * slots :: 2] = np.take_along_axis(keys, pair_of_question, axis=1)
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    targets[:, 2 * slots :: 2] = np.take_along_axis(values, pair_of_question, axis=1)
    return inputs, targets


@dataclass(frozen=True, kw_only=True)
class NoisyRecallConfig:
    """The amount to recall.

    Attributes:
        pairs: key-value pairs in a sample, at most N / 4; at most N / 8 at shorter training lengths N.
        values: number of value ids; a guess is right in one of so many cases.
        keys: number of key ids; at least the number of pairs.
        hay: share of the first half, apart from the pairs, that is hay; the rest repeats pairs.
    """

    pairs: int = 16
    values: int = 64
    keys: int = 64
    hay: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("pairs", MOST_KEYS), ("values", MOST_VALUES), ("keys", MOST_KEYS)):
            value = getattr(self, name)
            if not 2 <= value <= most:
                raise ValueError(f"expected 2 <= noisy_recall.{name} <= {most}, got {value}")
        if not 0 <= self.hay <= 1:
            raise ValueError(f"expected 0 <= noisy_recall.hay <= 1, a share, got {self.hay}")


@register
class NoisyRecall(Generated):
    """Recall of key-value pairs among hay; see the module's docstring.

    Raises:
        ValueError: the pairs do not fit into the first half.
    """

    name = "noisy_recall"
    kind = "token"
    summary = "recall the value paired with each key, from pairs hidden among random tokens"
    min_len = 32
    max_len = 65_536
    config_type = NoisyRecallConfig
    causal = True
    remarks: ClassVar[Mapping[str, str]] = {
        "linformer": "its learned projections mix all positions into a few summaries, with weights that are fixed "
        "before any key is seen; a pair that may stand anywhere is blurred with its neighbours, and no question can "
        "look it up",
        "local": "a token sees only those within its window, and most pairs lie further back",
    }
    defaults = TaskDefaults(
        seq_len=8192,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=3e-3,
        conv_width=3,
        embedding_std=0.1,
        positions="none",
        tokens_per_step=8192,
        lr_schedule="constant-then-linear",
        length_schedule="from-64th",
        budget=60,
    )
    generator = 1
    seed = 2403178441
    max_tokens: ClassVar[dict[Split, int]] = {"train": 2**24, "validation": 2**17, "test": 2**18}

    vocab_size: int

    def __init__(self, seq_len: int, config: NoisyRecallConfig | None = None) -> None:
        super().__init__(seq_len, config)
        pairs, slots = self.config.pairs, count_slots(seq_len)
        if pairs > slots:
            raise ValueError(
                f"noisy_recall: expected pairs <= seq_len / 4 = {slots}, got {pairs}: take fewer or a longer seq_len"
            )
        self.n_classes = self.config.values
        self.n_keys = max(self.config.keys, pairs)
        self.vocab_size = self.n_classes + HAY + self.n_keys
        starts = [2, *(-(-number * seq_len // BINS) for number in range(1, BINS + 1))]
        self.slice_names = tuple(f"{near}–{far - 1} back" for near, far in pairwise(starts))

    @property
    def cache_key(self) -> str:
        config = self.config
        return f"{super().cache_key}-p{config.pairs}-v{config.values}-k{self.n_keys}-h{config.hay:g}"

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        pairs = self.config.pairs if seq_len == self.seq_len else min(self.config.pairs, seq_len // 8)
        return generate(
            rng,
            rows,
            seq_len=seq_len,
            n_pairs=pairs,
            n_values=self.n_classes,
            n_keys=self.n_keys,
            hay=self.config.hay,
        )

    def to_batch(self, inputs: Ids, targets: Ids) -> Batch:
        batch = super().to_batch(inputs, targets)
        rows, length = batch.inputs.shape
        half, everyone = 2 * count_slots(length), np.arange(rows)[:, None]
        places = np.zeros((rows, self.vocab_size), np.int64)
        places[everyone, batch.inputs[:, :half:2]] = np.arange(0, half, 2)  # the last of two pairs of a key remains
        slices = np.zeros(batch.inputs.shape, np.int64)
        back = np.arange(half, length, 2) - places[everyone, batch.inputs[:, half::2]]
        slices[:, half::2] = back * BINS // length
        return Batch(batch.inputs, batch.targets, slices=slices)

    def baselines(self) -> dict[str, float]:
        """The most frequent value of train; the last value before the questions; the most frequent of the sample."""
        train, test = self.whole("train").targets, self.whole("test")
        half = 2 * count_slots(self.seq_len)
        tokens, answers = test.inputs[:, 1:half:2], test.targets[:, half::2]
        is_value = tokens < self.n_classes
        last = tokens.shape[1] - 1 - is_value[:, ::-1].argmax(axis=1)
        commonest = np.array([np.bincount(row[real]).argmax() for row, real in zip(tokens, is_value, strict=True)])
        return {
            "most frequent value": majority(train[train != IGNORE], answers.ravel()),
            "last value": float(np.mean(answers == np.take_along_axis(tokens, last[:, None], axis=1))),
            "most frequent of the sample": float(np.mean(answers == commonest[:, None])),
        }

    def provenance(self) -> dict[str, str | int]:
        return super().provenance() | {"n_keys": self.n_keys}
