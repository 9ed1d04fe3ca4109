"""Next byte: predict the next byte at every byte of Python source; scored in bits per byte.

The causal form of `bytes`, with the same corpus, ids and splits. The target of a position is the next byte, so an
encoder that sees both directions would copy it:

>>> batch = shifted(encode(b"import re")[None])
>>> print(batch.inputs[0])
[106 110 113 112 115 117  33 115]
>>> print(batch.targets[0])
[110 113 112 115 117  33 115 102]

Bits per byte are the mean of -log2 p(next byte); lower is better, and a uniform guess scores 8. A score depends on the
length: validation and test are consecutive windows, a model predicts each byte except the first of the stream once, and
no state passes from window to window. The i-th prediction of a window sees i bytes, on average half the window, so the
score is higher (worse) than with a sliding window. Scores by the length of the context (slices) show the value of
context.
"""

import lzma
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tasks.base import BITS_PER_BYTE, IGNORE, Batch, NoConfig, register
from tasks.bytes import PAD, Corpus, encode
from tasks.cache import Split

BYTES = 256
LONGEST_CONTEXT = 4  # bytes that the n-gram sees
CONTEXTS = (1, 16, 128, 1024, 8192)  # where slices of the test set begin

__all__ = ["NextByte", "encode", "shifted"]


def shifted(ids: NDArray[np.int64]) -> Batch:
    """Ids (B, N + 1) as inputs and targets (B, N), with `PAD` only at the end of a row. Slices: by bytes seen."""
    padding = ids[:, 1:] == PAD
    seen = np.broadcast_to(np.arange(1, ids.shape[1]), padding.shape)
    return Batch(
        inputs=np.where(padding, PAD, ids[:, :-1]),
        targets=np.where(padding, IGNORE, ids[:, 1:]),
        padding=padding if padding.any() else None,
        slices=np.searchsorted(CONTEXTS, seen, side="right") - 1,
    )


def backed_off(
    train: NDArray[np.uint8], test: NDArray[np.uint8], known: NDArray[np.int64]
) -> Iterator[NDArray[np.float64]]:
    """The probability of each byte of test given no, one, two … up to `LONGEST_CONTEXT` bytes before it: (N,) each.

    From counts of train; each context backs off to the next shorter one with Witten & Bell's weights (1991):
    p_k(b | c) = (count(c, b) + d(c) p_(k-1)(b)) / (count(c) + d(c)), with d(c) different bytes seen after c.

    Args:
        train, test: streams of bytes; test: (N,).
        known: (N,) the number of bytes before each byte that a prediction may use.
    """
    probability = np.full(len(test), 1 / BYTES)
    for order in range(LONGEST_CONTEXT + 1):
        grams = np.sort(packed(train, order))
        wanted, of = np.unique(packed(np.pad(test, (order, 0)), order), return_inverse=True)
        context = wanted - wanted % BYTES
        kinds = np.concatenate([[0], np.cumsum(np.append(True, grams[1:] != grams[:-1]))])
        start, stop = np.searchsorted(grams, context), np.searchsorted(grams, context + BYTES)
        count = np.searchsorted(grams, wanted, side="right") - np.searchsorted(grams, wanted)
        count, seen, different = count[of], (stop - start)[of], (kinds[stop] - kinds[start])[of]
        mixed = (count + different * probability) / np.maximum(seen + different, 1)
        probability = np.where((seen > 0) & (order <= known), mixed, probability)
        yield probability


def packed(stream: NDArray[np.uint8], order: int) -> NDArray[np.int64]:
    """Each byte and the ``order`` before it as one number, the byte itself last: (N,) -> (N - order,)."""
    numbers = np.zeros(len(stream) - order, np.int64)
    for start in range(order + 1):
        numbers = numbers * BYTES + stream[start : len(stream) - order + start]
    return numbers


@register
class NextByte(Corpus):
    """The next byte of Python's standard library; see the module's docstring."""

    name = "next_byte"
    metric = BITS_PER_BYTE
    causal = True
    causal_only = True
    summary = "predict the next byte of Python's standard library, at every byte; also scored by context"
    vocab_size = 257
    n_classes = 257  # `PAD` is never an answer

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        starts = [*(start for start in CONTEXTS if start <= seq_len), seq_len + 1]
        self.slice_names = tuple(f"after {first:,} to {last - 1:,} bytes" for first, last in pairwise(starts))

    def size(self, split: Split) -> int:
        """The number of consecutive windows."""
        return -(-(len(self.streams[split]) - 1) // self.seq_len)

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        stream = self.streams[split]
        places = rows[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        ids = np.where(places < len(stream), stream[np.minimum(places, len(stream) - 1)].astype(np.int64) + 1, PAD)
        return shifted(ids)

    def _train(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Iterator[Batch]:
        """Windows start anywhere."""
        windows = sliding_window_view(self.streams["train"], seq_len + 1)
        while True:
            yield shifted(windows[rng.integers(len(windows), size=batch_size)].astype(np.int64) + 1)

    def baselines(self) -> dict[str, float]:
        """Bits per byte of a uniform guess, of byte frequencies, of an n-gram with back-off that sees up to 4 bytes of
        the window, and of `xz -9e` on the whole test set, which neither knows train nor is limited to a window."""
        train, test = self.streams["train"], self.streams["test"]
        context = 1 + np.arange(-1, len(test) - 1) % self.seq_len
        bits = [-np.log2(p[1:]).mean() for p in backed_off(train, test, context)]
        packed_size = len(lzma.compress(test.tobytes(), preset=9 | lzma.PRESET_EXTREME))
        return {
            "uniform": float(np.log2(BYTES)),
            "unigram": float(bits[0]),
            f"{LONGEST_CONTEXT + 1}-gram": float(bits[-1]),
            "xz of the test set": 8 * packed_size / len(test),
        }
