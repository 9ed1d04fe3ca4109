"""Needle in a haystack: which value follows this key, at any distance?

After Kamradt's test of language models (github.com/gkamradt/LLMTest_NeedleInAHaystack) and the key-value retrieval of
Liu et al., "Lost in the Middle" (arXiv 2307.03172). Four needles, each a key and then a value, lie in a haystack of
random ids; the last four tokens ask for each key once, and the answer is its value. Ids below 32 are values, ids from
96 on are keys, the rest hay. Four needles, twenty tokens:

>>> inputs, targets = generate(np.random.default_rng(1), 1, seq_len=20)
>>> print(inputs[0, :16])
[108   4 109   2  56  59  80  34 120  25 118  12  73  87  34  61]
>>> print(inputs[0, 16:], targets[0, 16:])
[109 108 118 120] [ 2  4 12 25]

A value is easy to recognise, but only the key before it shows which question it answers. The task also scores eight
bins of the distance from the first question back to the needle. The four tokens before the questions are always hay, so
a short convolution at a question sees no needle. Questions come last, as in the tests above; needles are equally likely
at all positions before them.

Departures: random ids replace prose and UUIDs; the task asks for every needle, which gives four answers to learn from
and to score where those tests have one.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, Batch, NoConfig, TaskDefaults, register
from tasks.baselines import majority
from tasks.generated import Generated

VALUES, HAY, KEYS = 32, 64, 32  # numbers of ids, in this order
NEEDLES = 4
GAP = 4  # tokens of hay before the questions
BINS = 8

Ids = NDArray[np.int16]


def distinct(rng: np.random.Generator, rows: int, n: int, among: int) -> NDArray[np.int64]:
    """(rows, n) different numbers below ``among``, in random order."""
    return np.argsort(rng.random((rows, among), np.float32), axis=1)[:, :n]


def count_slots(seq_len: int) -> int:
    """The number of positions for a needle: pairs of tokens, the last pair right before the gap."""
    return (seq_len - NEEDLES - GAP) // 2


def generate(rng: np.random.Generator, rows: int, *, seq_len: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N)."""
    slots, end = count_slots(seq_len), seq_len - NEEDLES - GAP
    places = end - 2 - 2 * distinct(rng, rows, NEEDLES, slots)
    keys = (VALUES + HAY + distinct(rng, rows, NEEDLES, KEYS)).astype(np.int16)
    values = distinct(rng, rows, NEEDLES, VALUES).astype(np.int16)
    inputs = rng.integers(VALUES, VALUES + HAY, size=(rows, seq_len), dtype=np.int16)
    np.put_along_axis(inputs, places, keys, axis=1)
    np.put_along_axis(inputs, places + 1, values, axis=1)
    inputs[:, -NEEDLES:] = keys  # places are in random order, and so are the questions
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    targets[:, -NEEDLES:] = values
    return inputs, targets


@register
class Needle(Generated):
    """Four needles in a haystack of N tokens; see the module's docstring."""

    name = "needle"
    kind = "token"
    causal = True
    summary = "find the value beside each key in a haystack; also scored by distance"
    min_len = 32
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=128,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=4e-3,
        conv_width=3,
        embedding_std=0.1,
        tokens_per_step=8192,
    )
    generator = 1
    seed = 230703172

    vocab_size = VALUES + HAY + KEYS
    n_classes = VALUES

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        slots = count_slots(seq_len)
        starts = [-(-number * slots // BINS) for number in range(BINS + 1)]  # the first slot of each bin, rounded up
        back = [GAP + 1 + 2 * start for start in starts]
        self.slice_names = tuple(f"{near}–{far - 1} back" for near, far in pairwise(back))

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=seq_len)

    def to_batch(self, inputs: Ids, targets: Ids) -> Batch:
        batch = super().to_batch(inputs, targets)
        text, questions = batch.inputs[:, :-NEEDLES], batch.inputs[:, -NEEDLES:]
        places = (text[:, None] == questions[..., None]).argmax(axis=-1)
        slots = (text.shape[1] - GAP - 2 - places) // 2  # counted backwards, as in `generate`
        slices = np.zeros(batch.inputs.shape, np.int64)
        slices[:, -NEEDLES:] = slots * BINS // count_slots(batch.inputs.shape[1])
        return Batch(batch.inputs, batch.targets, slices=slices)

    def baselines(self) -> dict[str, float]:
        """The most frequent value of train; the value nearest to the questions, right in one of four."""
        train, test = self.whole("train").targets, self.whole("test")
        text, answers = test.inputs[:, :-NEEDLES], test.targets[:, -NEEDLES:]
        backwards = text[:, ::-1]
        nearest = np.take_along_axis(backwards, (backwards < VALUES).argmax(axis=1)[:, None], axis=1)
        return {
            "most frequent value": majority(train[train != IGNORE], answers.ravel()),
            "nearest value": float(np.mean(answers == nearest)),
        }
