"""What a report says: one file for each subject, with its sentences, tables and charts and their alt texts.

`document` puts them in order. A subject of a whole report gives `sections`; one of a single group gives a `part`, which
`groups.SUBJECTS` lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.sections import (
    answer,
    baselines,
    busy,
    cost,
    decoding,
    failures,
    groups,
    heat_map,
    matrix,
    published,
    reading,
    task_sweeps,
)
from compare.report.sections.data import commands
from compare.report.sections.lead import lead_of
from compare.report.sections.section import Chart, Section

TITLE = "Comparison of attention variants"
OPENING = (matrix,)
BEFORE = (answer, published)
RESULTS = (task_sweeps, groups)
AFTER = (cost, decoding, heat_map, baselines, failures, busy, reading)


@dataclass(frozen=True)
class Document:
    """A report before it is written.

    Attributes:
        groups: what was run.
        warnings: what could not be read, or cannot be compared.
        machines: on which it ran.
        commands: that made it.
        opening: the sections before all else.
        lead: what a newcomer reads first, and its chart, which no other section has; None where nothing was scored.
        before, results, after: the sections, of which `results` has the tables that the page filters.
        charts: of all sections.
    """

    groups: Sequence[Group]
    warnings: Sequence[str]
    machines: Sequence[str]
    commands: Sequence[str]
    opening: Sequence[Section]
    lead: Section | None
    before: Sequence[Section]
    results: Sequence[Section]
    after: Sequence[Section]
    charts: Sequence[Chart]


def document(found: Sequence[Group], warnings: Sequence[str]) -> Document:
    overview = Overview(found)
    opening, before, results, after = (
        [section for subject in subjects for section in subject.sections(overview)]
        for subjects in (OPENING, BEFORE, RESULTS, AFTER)
    )
    charts = [chart for section in (*before, *results, *after) for chart in section.all_charts]
    lead = lead_of(overview)
    first = [chart for chart in charts if lead and chart.stem == lead.stem]
    return Document(
        groups=found,
        warnings=warnings,
        machines=list(dict.fromkeys(group.machine for group in found)),
        commands=commands(found),
        opening=opening,
        lead=Section("The main result", "first", lead.sentences, charts=first, notes=lead.remarks) if lead else None,
        before=before,
        results=[replace(each, charts=[chart for chart in each.charts if chart not in first]) for each in results],
        after=after,
        charts=charts,
    )
