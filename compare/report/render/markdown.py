"""The report as Markdown."""

import re
from collections.abc import Sequence

from compare.report.facts.groups import Group
from compare.report.facts.task_sweeps import representatives, task_sweeps, unswept
from compare.report.sections.answer import answer
from compare.report.sections.baselines import baseline_rows
from compare.report.sections.busy import BUSY, BUSY_HEADER, busy_runs
from compare.report.sections.capacity import sweep_table
from compare.report.sections.cost import cost_tables
from compare.report.sections.data import commands
from compare.report.sections.decoding import DECODING, decode_tables
from compare.report.sections.equal_terms import equal_table
from compare.report.sections.failures import failures
from compare.report.sections.growth import CostTable
from compare.report.sections.heat_map import HEAT
from compare.report.sections.lead import lead_of
from compare.report.sections.published import published_tables
from compare.report.sections.reading import READING
from compare.report.sections.results import columns_of, notes
from compare.report.sections.section import Chart
from compare.report.sections.slices import slice_table
from compare.report.sections.summary import summarise
from compare.report.sections.task_sweeps import task_sweep_table
from compare.report.sections.test_lengths import table_by_length

SIGNS = str.maketrans({"\\": r"\\", "`": r"\`", "&": "&amp;", "<": "&lt;"})
BRACKETS = str.maketrans({"[": r"\[", "]": r"\]"})


def markdown(text: str) -> str:
    """Words in one line of Markdown as they are: no HTML, no code, no link or picture, no second line."""
    return " ".join(text.translate(SIGNS).replace("](", "]\\(").splitlines())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def code(command: str) -> str:
    """A command as a block, fenced by more backticks than it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"{fence}sh\n{command}\n{fence}"


def markdown_report(groups: Sequence[Group], charts: Sequence[Chart], warnings: Sequence[str]) -> str:
    """The whole of report.md."""
    sweeps = task_sweeps(groups)
    lead = lead_of(groups, sweeps)
    parts = ["# Comparison of attention variants", *(f"> **Warning:** {markdown(w)}" for w in warnings)]
    if lead:
        parts += [*map(markdown, lead.sentences), *(image(chart) for chart in charts if chart.stem == lead.stem)]
        parts.append(bullets(lead.remarks))
        charts = [chart for chart in charts if chart.stem != lead.stem]
    parts += [f"Machine: {markdown(machine)}" for machine in dict.fromkeys(group.machine for group in groups)]
    parts += map(code, commands(groups))
    if not groups:
        parts.append("There are no records to report on.")
    if groups:
        parts += ["## In short", bullets(answer(groups))]
    for told in published_tables(groups):
        parts += [f"## {markdown(told.title)}", markdown_table(told.header, told.body), bullets(told.notes)]
    for sweep in sweeps:
        parts += [f"## {markdown(sweep.heading)}", *(image(chart) for chart in charts if chart.stem == sweep.stem)]
        parts.append(markdown_table(*task_sweep_table(sweep)))
        for value, group in sweep.points:
            parts += [f"### {markdown(f'{sweep.option}={value:g}')}", *group_parts(group, charts, "####")]
    for group in unswept(groups, sweeps):
        parts += [f"## {markdown(group.title)}", *group_parts(group, charts)]
    once = representatives(groups, sweeps)
    if across := [image(chart) for chart in charts if not chart.group]:
        parts += ["## Cost against length", *across, *map(with_notes, cost_tables(once))]
    if decoded := [image(chart) for chart in charts if chart.group == DECODING]:
        parts += ["## Decoding, token by token", *decoded, *map(with_notes, decode_tables(once))]
    if maps := [image(chart) for chart in charts if chart.group == HEAT]:
        parts += ["## Tasks and variants", *maps]
    if trivial := baseline_rows(groups):
        parts += ["## Trivial baselines", markdown_table(("task", "baseline", "score"), trivial)]
    if failed := failures(groups):
        header = ("task", "variant", "seed", "status", "reason")
        parts += ["## Runs that did not finish", markdown_table(header, failed)]
    if busy := busy_runs(groups):
        parts += [f"## {BUSY}", markdown_table(BUSY_HEADER, busy)]
    parts += ["## How to read this", bullets(READING)]
    return "\n\n".join(part for part in parts if part) + "\n"


def group_parts(group: Group, charts: Sequence[Chart], level: str = "###") -> list[str]:
    """One group without its heading: what came out in words, its tables, its charts; `level` of headings within it."""
    shown = columns_of(group)
    table = [[column.cell(row, group).text for column in shown] for row in group.rows]
    parts = [bullets(summarise(group))]
    parts += [markdown_table([column.title for column in shown], table), bullets(notes(group))]
    if sliced := slice_table(group):
        parts.append(markdown_table(*sliced))
    if swept := sweep_table(group):
        parts.append(markdown_table(*swept))
    if longer := table_by_length(group):
        parts.append(markdown_table(*longer))
    if equal := equal_table(group):
        parts += [f"{level} At equal terms", markdown_table(equal.header, equal.rows), bullets(equal.notes)]
    return parts + [image(chart) for chart in charts if chart.group == group.slug]


def with_notes(table: CostTable) -> str:
    return "\n\n".join([f"### {markdown(table.title)}", markdown_table(table.header, table.body), bullets(table.notes)])


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def image(chart: Chart) -> str:
    return f"![{markdown(chart.alt).translate(BRACKETS)}](charts/{chart.stem}.png)"
