"""Groups: a section for each, with all its subjects."""

from dataclasses import replace

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.sections import accuracy, capacity, curves, equal_terms, norms, results, slices, test_lengths
from compare.report.sections.section import Section

SUBJECTS = (
    results.part,
    slices.part,
    accuracy.part,
    capacity.part,
    curves.part,
    norms.part,
    test_lengths.part,
    equal_terms.part,
)


def sections(overview: Overview) -> list[Section]:
    return [
        replace(of_group(group, overview.anchor(group)), title=group.title, anchor=f"group-{overview.number(group)}")
        for group in overview.unswept
    ]


def of_group(group: Group, anchor: str = "") -> Section:
    """The section of one group, without a title. anchor: of its table of results."""
    parts = [part(group) for part in SUBJECTS]
    tables = [replace(table, anchor=anchor) if table.of else table for part in parts for table in part.tables]
    return Section(
        sentences=[sentence for part in parts for sentence in part.sentences],
        tables=tables,
        charts=[chart._replace(numbers=anchor) for part in parts for chart in part.charts],
    )
