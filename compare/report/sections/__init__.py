"""The content of a report: one file for each subject, with its sentences, tables, charts and alt texts.

`document` orders them. The file of a subject of the whole report defines `sections`. The file of a subject of one group
defines `part`, which `groups.SUBJECTS` lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compare.report.facts.ablation import Ablation
from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.sections import (
    ablation,
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
    roofline,
    task_sweeps,
)
from compare.report.sections.data import commands
from compare.report.sections.lead import lead_of
from compare.report.sections.section import Chart, Section

TITLE = "Comparison of attention variants"
OPENING = (matrix,)
BEFORE = (answer, ablation, published)
RESULTS = (task_sweeps, groups)
AFTER = (cost, roofline, decoding, heat_map, baselines, failures, busy, reading)


@dataclass(frozen=True)
class Document:
    """A report that no renderer has written yet.

    Attributes:
        groups: the groups of runs.
        warnings: what could not be read, or cannot be compared.
        machines: the machines that it ran on.
        commands: the commands that produced its records.
        opening: the sections at the top.
        lead: what a newcomer reads first, with its chart, which no other section shows; None without scores.
        before, results, after: the other sections, in order; the page filters the tables of `results`.
        charts: the charts of all sections.
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


def document(all_groups: Sequence[Group], warnings: Sequence[str], ablations: Sequence[Ablation] = ()) -> Document:
    overview = Overview(all_groups, ablations)
    opening, before, results, after = (
        [section for subject in subjects for section in subject.sections(overview)]
        for subjects in (OPENING, BEFORE, RESULTS, AFTER)
    )
    charts = [chart for section in (*before, *results, *after) for chart in section.all_charts]
    lead = lead_of(overview)
    first = [chart for chart in charts if lead and chart.stem == lead.stem]
    return Document(
        groups=all_groups,
        warnings=warnings,
        machines=list(dict.fromkeys(group.machine for group in all_groups)),
        commands=commands(all_groups),
        opening=opening,
        lead=Section("The main result", "first", lead.sentences, charts=first, notes=lead.remarks) if lead else None,
        before=before,
        results=[replace(each, charts=[chart for chart in each.charts if chart not in first]) for each in results],
        after=after,
        charts=charts,
    )
