"""Which memory charts and sentences show: that of all training where the records have it."""

from collections.abc import Sequence

from compare.quantities import STEP_MEMORY, TRAINING_MEMORY, Quantity
from compare.report.facts.groups import Row
from compare.report.facts.values import numbers


def memory_of(rows: Sequence[Row]) -> Quantity:
    """The memory of training, if every run with a peak memory recorded it; else the peak memory of a step."""
    finished = [record for row in rows for record in row.finished]
    whole, added = (len(numbers(finished, memory.field)) for memory in (TRAINING_MEMORY, STEP_MEMORY))
    return TRAINING_MEMORY if whole and whole >= added else STEP_MEMORY
