"""What a report is made of: sections, each with its sentences, tables and charts. Renderers know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.figure import Figure

from compare.report.facts.groups import Group
from compare.report.render.canvas import Style


@dataclass(frozen=True)
class Cell:
    """What a cell of a table shows.

    Attributes:
        text: its words.
        key: what it sorts by; None: missing, sorts last.
        colour: that stands for it on charts.
        verdict: against full, as ``better``; "" where there is none.
        anchor: of the table that it leads to.
    """

    text: str
    key: float | str | None
    colour: str | None = None
    verdict: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: what it shows, for those who cannot see the page.
        header, rows: texts.
        notes: how to read it.
        findings: what it shows, below it.
        title: its heading in Markdown; the page has none.
        anchor: what links on the page lead to.
        folded: words under which the page folds it away; Markdown, which cannot, leaves it out.
        of: the group whose rows its lines are; the page sorts and filters such a table, and leads to the runs.
        cells: of such a table, and of one whose cells have verdicts, as many as there are texts.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    findings: Sequence[str] = ()
    title: str = ""
    anchor: str = ""
    folded: str = ""
    of: Group | None = None
    cells: Sequence[Sequence[Cell]] = ()


class Chart(NamedTuple):
    """A chart.

    stem: its file name without ending. alt: what it shows, in words. draw: draws it in the looks of a report's
    variants. numbers: where on the page its numbers stand.
    """

    stem: str
    alt: str
    draw: Callable[[Mapping[str, Style]], Figure]
    numbers: str = ""


class Links(NamedTuple):
    """Words, and the anchors and titles that they lead to."""

    words: str
    to: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """What a report says of one subject.

    Attributes:
        title: its heading.
        anchor: what links on the page lead to.
        sentences: what came out.
        notes: in small print, last.
        parts: sections within it.
        folded: whether the page shows its title alone until it is opened.
        links: to the tables that its numbers come from.
        charts_first: whether its charts say the most. In Markdown they stand first, and its sentences only in the
            short answer.
    """

    title: str = ""
    anchor: str = ""
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    parts: Sequence[Section] = ()
    folded: bool = False
    links: Links | None = None
    charts_first: bool = False

    @property
    def all_charts(self) -> Iterator[Chart]:
        """Its own and those of its parts."""
        yield from self.charts
        for part in self.parts:
            yield from part.all_charts
