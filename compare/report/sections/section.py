"""The parts of a report: sections with sentences, tables and charts. Renderers know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.figure import Figure

from compare.report.facts.groups import Group
from compare.report.render.canvas import Style


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the text in the cell.
        key: the sort key; None is missing and sorts last.
        colour: its colour on charts.
        verdict: against full, such as ``better``; "" without one.
        anchor: of the table that it links to.
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
        caption: what it shows, for screen readers.
        header, rows: texts.
        notes: how to read it.
        findings: conclusions, below the table.
        title: its heading in Markdown; the page shows none.
        anchor: the target of links on the page.
        folded: the summary under which the page folds the table; Markdown, which cannot fold, leaves the table out.
        of: the group whose rows the table shows; the page then sorts and filters it, and links to the runs.
        cells: one for each text of `rows`, in a table with `of` or with verdicts.
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

    stem: its file name without ending. alt: its content in words. draw: takes the styles of a report's variants and
    draws the figure. numbers: the anchor of the table with its numbers.
    """

    stem: str
    alt: str
    draw: Callable[[Mapping[str, Style]], Figure]
    numbers: str = ""


class Links(NamedTuple):
    """Links under common words: (anchor, title) pairs."""

    words: str
    to: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """The content of a report on one subject.

    Attributes:
        title: its heading.
        anchor: the target of links on the page.
        sentences: the results in words.
        notes: small print at the end.
        parts: sections within it.
        folded: whether the page shows only its title until a reader opens it.
        links: to the tables with its numbers.
        charts_first: whether its charts say the most. Markdown then begins with them and leaves out the sentences,
            which are in the short answer.
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
