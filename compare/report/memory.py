"""Which memory charts and sentences speak of: what training holds in all, where the records tell it."""

from collections.abc import Sequence
from typing import NamedTuple

from .aggregate import Row, numbers


class Memory(NamedTuple):
    """A field of the records, in words, and what it holds."""

    field: str
    words: str
    holds: str


TRAINING = Memory(
    "train_memory_bytes", "memory of training", "weights, gradients, optimizer state and what a step adds"
)
ADDED = Memory("peak_memory_bytes", "peak memory of a step", "without weights and optimizer state: not all told them")


def memory_of(rows: Sequence[Row]) -> Memory:
    """What a machine must hold to train, where each run with a peak told it; else what a step adds, of all of them."""
    finished = [record for row in rows for record in row.finished]
    whole, added = (len(numbers(finished, memory.field)) for memory in (TRAINING, ADDED))
    return TRAINING if whole and whole >= added else ADDED
