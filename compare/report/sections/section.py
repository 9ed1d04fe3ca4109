"""What a section of a report is made of."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Cell:
    """What is shown, what it sorts by (None: missing, sorts last), and the colour that stands for it on charts."""

    text: str
    key: float | str | None
    colour: str | None = None


class Chart(NamedTuple):
    """A drawn chart: its file name without ending, what it shows in words, and the group it belongs to
    (its slug; "" for a chart across lengths)."""

    stem: str
    alt: str
    group: str
