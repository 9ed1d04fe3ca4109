"""Reports and their parts as tests look at them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.render.canvas import choose_styles
from compare.report.render.markdown import markdown_report
from compare.report.render.page import html_page
from compare.report.sections import document
from compare.report.sections.answer import answer
from compare.report.sections.groups import of_group
from compare.report.sections.section import Chart, Table


def drawn(chart: Chart | None, groups: Sequence[Group]) -> Figure | None:
    """The chart in the looks of these groups."""
    return chart and chart.draw(choose_styles(groups))


def charts_of(groups: Sequence[Group], begin: str = "") -> list[Chart]:
    """The charts of a report whose file names begin so."""
    return [chart for chart in document(groups, []).charts if chart.stem.startswith(begin)]


def answer_to(groups: Sequence[Group]) -> list[str]:
    return answer(Overview(groups))


def sentences_of(group: Group) -> list[str]:
    """What is said of a group."""
    return list(of_group(group).sentences)


def tables_of(groups: Sequence[Group], anchor: str) -> list[Table]:
    """Of the section that has this anchor."""
    return [table for section in document(groups, []).after if section.anchor == anchor for table in section.tables]


def markdown_of(groups: Sequence[Group], warnings: Sequence[str] = ()) -> str:
    return markdown_report(document(groups, warnings))


def page_of(groups: Sequence[Group], warnings: Sequence[str] = ()) -> str:
    """The page with empty drawings."""
    report = document(groups, warnings)
    with tempfile.TemporaryDirectory() as folder:
        for chart in report.charts:
            (Path(folder) / f"{chart.stem}.svg").write_text("<svg/>")
        return html_page(report, Path(folder))
