"""Needle in a haystack: what value stood beside this key, however far back?

After Kamradt's test of language models (github.com/gkamradt/LLMTest_NeedleInAHaystack) and the key-value retrieval of
Liu et al., "Lost in the Middle" (arXiv 2307.03172). Four needles, each a key and then a value, lie in a haystack of
random ids; the last token asks for one of the four keys, and its value is the answer. Hay and values are ids
below 96, keys are 96 to 127. Eighteen tokens:

>>> inputs, targets = generate(np.random.default_rng(0), 1, seq_len=18)
>>> print(inputs[0])
>>> print(targets[0, -1])  # the only one

A key is easy to see, but three of the four are the wrong ones; a value looks like hay, but for the key before it.
The score is also given by how far back the needle is, in eight bins. Nothing but hay lies in the four tokens before
the question, or a short convolution could see a needle from there.

Departures: random ids instead of prose and of UUIDs.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, Batch, NoConfig, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Split
from tasks.selective_copy import Generated

HAY, KEYS, NEEDLES = 96, 32, 4
GAP = 4  # tokens between the nearest needle there can be and the question
BINS = 8

Ids = NDArray[np.int16]


def distinct(rng: np.random.Generator, rows: int, n: int, among: int) -> NDArray[np.int64]:
    """(rows, n) different numbers below ``among``, in random order."""
    return np.argsort(rng.random((rows, among), np.float32), axis=1)[:, :n]


def count_slots(seq_len: int) -> int:
    """Places for a needle: pairs of tokens, the last of them GAP before the question."""
    return (seq_len - 1 - GAP) // 2


def generate(rng: np.random.Generator, rows: int, *, seq_len: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N)."""
    slots = count_slots(seq_len)
    places = seq_len - 1 - GAP - 2 * slots + 2 * distinct(rng, rows, NEEDLES, slots)
    keys = HAY + distinct(rng, rows, NEEDLES, KEYS)
    values = distinct(rng, rows, NEEDLES, HAY)
    inputs = rng.integers(HAY, size=(rows, seq_len), dtype=np.int16)
    np.put_along_axis(inputs, places, keys.astype(np.int16), axis=1)
    np.put_along_axis(inputs, places + 1, values.astype(np.int16), axis=1)
    inputs[:, -1] = keys[:, 0]  # any of them, as their order is random
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    targets[:, -1] = values[:, 0]
    return inputs, targets


@register
class Needle(Generated):
    """One needle out of four in a haystack of N tokens; see the module's docstring."""

    name = "needle"
    kind = "token"
    summary = "find the value beside the asked key in a haystack; scored by distance too"
    min_len = 32
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=128,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=2e-3,
        conv_width=3,
        embedding_std=0.1,
        tokens_per_step=8192,
    )
    generator = 1
    seed = 230703172

    vocab_size = HAY + KEYS
    n_classes = HAY

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        slots = count_slots(seq_len)
        starts = [-(-number * slots // BINS) for number in range(BINS + 1)]  # the slots of each bin, the nearest first
        back = [GAP + 1 + 2 * start for start in starts]
        self.slice_names = tuple(f"{near}–{far - 1} back" for near, far in pairwise(back))

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=self.seq_len)

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        batch = super().take(split, rows)
        place = (batch.inputs[:, :-1] == batch.inputs[:, -1:]).argmax(axis=1)
        slot = (self.seq_len - 1 - GAP - 2 - place) // 2  # counted from the question
        slices = np.zeros_like(batch.targets, np.int64)
        slices[:, -1] = slot * BINS // count_slots(self.seq_len)
        return Batch(batch.inputs, batch.targets, slices=slices)

    def baselines(self) -> dict[str, float]:
        """The most frequent value of train; the value of the last needle, which is right once in four."""
        train, test = self.whole("train").targets, self.whole("test")
        answers = test.targets[:, -1]
        last_key = self.seq_len - 2 - (test.inputs[:, -2::-1] >= HAY).argmax(axis=1)
        return {
            "most frequent value": majority(train[:, -1], answers),
            "value of the last needle": float(np.mean(test.inputs[np.arange(len(answers)), last_key + 1] == answers)),
        }
