"""Which memory charts and sentences speak of: what training holds in all, where the records tell it."""

from collections.abc import Sequence

from compare.quantities import STEP_MEMORY, TRAINING_MEMORY, Quantity
from compare.report.facts.groups import Row
from compare.report.facts.values import numbers


def memory_of(rows: Sequence[Row]) -> Quantity:
    """What a machine must hold to train, where each run with a peak told it; else what a step adds, of all of them."""
    finished = [record for row in rows for record in row.finished]
    whole, added = (len(numbers(finished, memory.field)) for memory in (TRAINING_MEMORY, STEP_MEMORY))
    return TRAINING_MEMORY if whole and whole >= added else STEP_MEMORY
