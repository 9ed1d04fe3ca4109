"""One self-contained HTML page: no network, no files beside it, readable on a phone, on paper and by ear."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from compare.report.facts.groups import Group, Row
from compare.report.facts.scaling import length_series
from compare.report.facts.task_sweeps import TaskSweep, representatives, task_sweeps
from compare.report.facts.values import Record, as_mapping, as_pairs, slug, status_of
from compare.report.render.families import colour_of, in_order
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
from compare.report.sections.heat_map import HEAT, heat_maps, heat_notes, heat_table
from compare.report.sections.lead import Lead, lead_of
from compare.report.sections.published import published_tables
from compare.report.sections.reading import READING
from compare.report.sections.results import columns_of, notes
from compare.report.sections.section import Cell, Chart
from compare.report.sections.slices import slice_table
from compare.report.sections.summary import summarise
from compare.report.sections.task_sweeps import held, kept_state, task_sweep_table
from compare.report.sections.test_lengths import table_by_length
from compare.spec import read_spec
from compare.units import MISSING

HERE = Path(__file__).parent
TITLE = "Comparison of attention variants"
IN_A_URL = {ord(sign): f"%{ord(sign):02X}" for sign in "%#'&:"}
# Fields that the details of a run show elsewhere.
TOLD = frozenset({"schema", "variant", "label", "family", "task", "seq_len", "seed", "kernel", "command"}) | {
    "task_summary",
    "remark",
}


@dataclass(frozen=True)
class Run:
    """One record of the page and what leads to it."""

    record: Record
    group: Group
    row: Row
    row_id: str
    anchor: str


class Section(NamedTuple):
    """A part of the page under a heading; nothing of it is shown where it has no content."""

    anchor: str
    title: str
    content: str

    @property
    def html(self) -> str:
        if not self.content:
            return ""
        head = f'<h2 id="{self.anchor}-title">{escape(self.title)}</h2>'
        return f'<section id="{self.anchor}" aria-labelledby="{self.anchor}-title">{head}\n{self.content}\n</section>'


def html_page(groups: Sequence[Group], charts: Sequence[Chart], folder: Path, warnings: Sequence[str]) -> str:
    """The whole page.

    Args:
        groups: what was run.
        charts: what was drawn of them.
        folder: where the charts' SVG files lie, to be embedded.
        warnings: what went wrong in reading.
    """
    runs = list_runs(groups)
    sweeps = task_sweeps(groups)
    once, swept = representatives(groups, sweeps), {group.slug for sweep in sweeps for group in sweep.groups}
    lead = lead_of(groups, sweeps)
    first = lead_section(lead, groups, charts, folder) if lead else ""
    charts = [chart for chart in charts if not lead or chart.stem != lead.stem]
    of_group = {group.slug: group_section(n, group, runs, charts, folder) for n, group in enumerate(groups)}
    before = [Section("summary", "In short", summary_section(groups))]
    before.append(Section("published", "Beside published figures", published_section(groups)))
    results = [
        Section(f"sweep-{number}", sweep.heading, sweep_section(sweep, of_group, charts, folder))
        for number, sweep in enumerate(sweeps)
    ]
    results += [
        Section(f"group-{number}", group.title, of_group[group.slug])
        for number, group in enumerate(groups)
        if group.slug not in swept
    ]
    after = [
        Section("cost", "Cost against length", length_section("", cost_tables(once), groups, charts, folder)),
        Section(
            *("decoding", "Decoding, token by token"),
            length_section(DECODING, decode_tables(once), groups, charts, folder),
        ),
        Section("tasks", "Tasks and variants", heat_section(once, charts, folder)),
        Section("baselines", "Trivial baselines", baselines_section(groups)),
        Section("failures", "Runs that did not finish", failures_section(groups)),
        Section("busy", BUSY, busy_section(groups)),
        Section("reading", "How to read this", bullets(READING)),
        Section("runs", "Every run", every_run(groups, runs)),
        Section("commands", "The commands that made this", commands_section(groups)),
    ]
    sections = [section for section in (*before, *results, *after) if section.content]
    contents = "".join(f'<li><a href="#{each.anchor}">{escape(each.title)}</a></li>' for each in sections)
    head = [f"<h1>{TITLE}</h1>"]
    machines = dict.fromkeys(group.machine for group in groups)
    head += [f'<p class="warning"><strong>Warning:</strong> {escape(warning)}</p>' for warning in warnings]
    if not groups:
        head.append("<p>There are no records to report on.</p>")
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<link rel="icon" href="data:,">\n<title>{TITLE}</title>',
        f"<style>{asset('page.css')}</style>\n</head>\n<body>",
        '<a class="skip" href="#main">Skip to the results</a>',
        "<header>\n" + "\n".join(head) + "\n</header>",
        '<main id="main">',
        first,
        *(f'<p class="soft">{escape(machine)}</p>' for machine in machines),
        f'<nav class="contents" aria-label="Contents"><ul>{contents}</ul></nav>',
        *(section.html for section in before),
        f"<div>{filter_form(groups)}",
        *(section.html for section in results),
        "</div>",
        *(section.html for section in after),
        "</main>",
        f'<script type="application/json" id="told">{facts(runs)}</script>',
        f'<script type="module">{asset("page.js")}</script>\n</body>\n</html>\n',
    ]
    return "\n".join(part for part in parts if part)


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def summary_section(groups: Sequence[Group]) -> str:
    """What came out, in words, before any table."""
    return bullets(answer(groups)) if groups else ""


def bullets(lines: Sequence[str], css: str = "") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{css}">{items}</ul>' if items else ""


def swatch(colour: str | None) -> str:
    return f'<span class="swatch" style="background:{colour}"></span>' if colour else ""


def filter_form(groups: Sequence[Group]) -> str:
    """What hides rows of all tables of results; the script shows the form and does the hiding."""
    if not groups:
        return ""
    chips = "".join(
        f'<label class="chip"><input type="checkbox" name="family" value="{escape(family)}" checked>'
        f"{swatch(colour_of(family))}{escape(family)}</label>"
        for family in in_order({row.family for group in groups for row in group.rows})
    )
    return (
        '<form class="filters" id="filters" role="search" aria-label="Filter the tables of results" hidden>'
        '<label for="filter-text">Filter the tables</label>'
        '<input type="search" id="filter-text" placeholder="variant or family" autocomplete="off" spellcheck="false">'
        f'<fieldset><legend class="unseen">Families</legend>{chips}</fieldset>'
        '<label class="chip"><input type="checkbox" id="hide-failed">hide failed</label>'
        '<button type="button" class="plain" id="show-all">Show all</button>'
        '<p class="soft" role="status" id="filter-status"></p></form>'
    )


def lead_section(lead: Lead, groups: Sequence[Group], charts: Sequence[Chart], folder: Path) -> str:
    """What a newcomer reads and sees first."""
    told = "".join(f"<p>{escape(words)}</p>" for words in lead.sentences)
    table = f"table-{groups.index(lead.of)}" if isinstance(lead.of, Group) else lead.of.stem
    drawn = [figure(chart, folder, table) for chart in charts if chart.stem == lead.stem]
    return (
        '<section class="first" id="first" aria-labelledby="first-title"><h2 class="unseen" id="first-title">The main '
        f'result</h2><div class="told">{told}</div>{"".join(drawn)}{bullets(lead.remarks, css="soft")}</section>'
    )


def sweep_section(sweep: TaskSweep, of_group: Mapping[str, str], charts: Sequence[Chart], folder: Path) -> str:
    """One sweep of a task: what came out in words, its chart, its table, and each value's results to be unfolded."""
    body = [bullets([told for told in (held(sweep), kept_state(sweep)) if told])]
    body.append(f'<div id="{sweep.stem}">{simple_table(sweep.heading, *task_sweep_table(sweep))}</div>')
    body.append(figures([chart for chart in charts if chart.stem == sweep.stem], folder, sweep.stem))
    body += [
        f"<details><summary><h3>{escape(f'{sweep.option}={value:g}')}</h3></summary>{of_group[group.slug]}</details>"
        for value, group in sweep.points
    ]
    return "\n".join(part for part in body if part)


def group_section(number: int, group: Group, runs: Sequence[Run], charts: Sequence[Chart], folder: Path) -> str:
    """One group: what came out in words, its table, how to read it, its charts."""
    parts = [bullets(summarise(group)), group_table(number, group, runs), bullets(notes(group), css="soft")]
    if sliced := slice_table(group):
        parts.append(simple_table(f"Score by slice: {group.title}", *sliced))
    if swept := sweep_table(group):
        parts.append(simple_table(f"Capacity: {group.title}", *swept))
    if longer := table_by_length(group):
        parts.append(simple_table(f"Score by test length: {group.title}", *longer))
    if equal := equal_table(group):
        parts.append(simple_table(f"At equal terms: {group.title}", equal.header, equal.rows))
        parts.append(bullets(equal.notes, css="soft"))
    parts.append(figures([chart for chart in charts if chart.group == group.slug], folder, f"table-{number}"))
    return "\n".join(part for part in parts if part)


def group_table(number: int, group: Group, runs: Sequence[Run]) -> str:
    """The results of one group: sorts by its head, and each row leads to its runs."""
    shown = columns_of(group)
    first_runs = {run.row_id: run.anchor for run in reversed(runs)}
    head = "".join(f'<th scope="col"><button type="button">{escape(column.title)}</button></th>' for column in shown)
    body = []
    for index, row in enumerate(group.rows):
        first, *rest = (column.cell(row, group) for column in shown)
        row_id = f"{number}-{index}"
        name = f'<a href="#{first_runs[row_id]}">{breakable(first.text)}</a>'
        told = f'data-name="{escape(row.name)}" data-family="{escape(row.family)}" data-row="{row_id}"'
        flags = (' class="control"' if row.is_control else "") + ("" if row.finished else " data-failed")
        cells = "".join(table_cell(cell) for cell in rest)
        body.append(f'<tr {told}{flags}><th scope="row" data-key="{key_of(first)}">{name}</th>{cells}</tr>')
    caption = f'<caption><span class="unseen">{escape(group.title)}: results. </span>A row opens its runs.</caption>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(f"Results: {group.title}")}">'
        f'<table class="results" id="table-{number}">{caption}<thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="soft" id="table-{number}-hidden"></p>'
    )


def breakable(name: str) -> str:
    """A name that may go on in the next line behind an underscore."""
    return escape(name).replace("_", "_<wbr>")


def key_of(cell: Cell) -> str:
    return "" if cell.key is None else escape(str(cell.key))


def table_cell(cell: Cell) -> str:
    css = ' class="text"' if isinstance(cell.key, str) else ""
    shown, bracket, spread = cell.text.partition(" [")
    quartiles = f' <span class="spread">[{escape(spread)}</span>' if bracket else ""
    return f'<td{css} data-key="{key_of(cell)}">{swatch(cell.colour)}{escape(shown)}{quartiles}</td>'


def simple_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f'<td class="text">{escape(cell)}</td>' for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f'<caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figures(charts: Sequence[Chart], folder: Path, numbers: str = "") -> str:
    """Charts as images that carry their own drawing, so that nothing in one can disturb another.

    Args:
        charts: what to show.
        folder: where their files lie.
        numbers: where on the page the numbers stand that they show.
    """
    shown = [figure(chart, folder, numbers) for chart in charts]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def figure(chart: Chart, folder: Path, numbers: str) -> str:
    table = f'<a href="#{numbers}">The numbers</a>' if numbers else ""
    name, drawing = escape(chart.stem), embedded(folder / f"{chart.stem}.svg")
    return (
        '<figure><div class="drawing" tabindex="0" role="group" aria-label="Chart">'
        f"<img alt=\"{escape(chart.alt)}\" {size_of(drawing)} src='data:image/svg+xml,{drawing}'></div>"
        f'<figcaption>{table}<a class="svg" download="{name}.svg" href="charts/{name}.svg">SVG</a>'
        f'<a download="{name}.png" href="charts/{name}.png">PNG</a></figcaption></figure>'
    )


def size_of(drawing: str) -> str:
    """Width and height as attributes, so that nothing on the page moves when a drawing appears."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)
    return 'width="{:.0f}" height="{:.0f}"'.format(*map(float, found.groups())) if found else ""


def embedded(path: Path) -> str:
    """A drawing fit for a data URL in single quotes: two decimals of a point are enough on a page."""
    lines = re.compile(r' d="[^"]*"')
    text = lines.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), path.read_text(encoding="utf-8"))
    return " ".join(text.split()).translate(IN_A_URL)


def length_section(
    kind: str, found: Sequence[CostTable], groups: Sequence[Group], charts: Sequence[Chart], folder: Path
) -> str:
    """How cost grows with length, as tables and charts of one kind, and where the numbers of each length stand."""
    if not (drawn := figures([chart for chart in charts if chart.group == kind], folder)):
        return ""
    once = representatives(groups, task_sweeps(groups))
    series = [group for series in length_series(once) for group in series if not group.decodes]
    measured_at = [group for group in groups if group.decodes] if kind == DECODING else series
    links = [f'<a href="#table-{groups.index(group)}">{escape(group.title)}</a>' for group in measured_at]
    tables = [
        part
        for costs in found
        for part in (simple_table(costs.title, costs.header, costs.body), bullets(costs.notes, css="soft"))
    ]
    return f'{"".join(tables)}{drawn}<p class="soft">The numbers of each length: {", ".join(links)}.</p>'


def heat_section(groups: Sequence[Group], charts: Sequence[Chart], folder: Path) -> str:
    """The heat maps, and the same as tables."""
    parts = []
    for number, heat in enumerate(heat_maps(groups)):
        drawn = [chart for chart in charts if (chart.group, chart.stem) == (HEAT, heat.stem)]
        parts.append(figures(drawn, folder, f"heat-{number}"))
        table = simple_table(heat.title, *heat_table(heat))
        reading = bullets(heat_notes(heat), css="soft")
        parts.append(f'<details id="heat-{number}"><summary>The same as a table</summary>{table}{reading}</details>')
    return "\n".join(parts)


def published_section(groups: Sequence[Group]) -> str:
    return "".join(
        f"<h3>{escape(table.title)}</h3>{simple_table(table.title, table.header, table.body)}{bullets(table.notes)}"
        for table in published_tables(groups)
    )


def baselines_section(groups: Sequence[Group]) -> str:
    found = baseline_rows(groups)
    return simple_table("Trivial predictors", ("task", "baseline", "score"), found) if found else ""


def failures_section(groups: Sequence[Group]) -> str:
    found = failures(groups)
    return simple_table("Failed runs", ("task", "variant", "seed", "status", "reason"), found) if found else ""


def busy_section(groups: Sequence[Group]) -> str:
    found = busy_runs(groups)
    return simple_table(BUSY, BUSY_HEADER, found) if found else ""


def commands_section(groups: Sequence[Group]) -> str:
    return "".join(f"<pre>{escape(command)}</pre>" for command in commands(groups))


def list_runs(groups: Sequence[Group]) -> list[Run]:
    """Every record, with an anchor of its own: folders reported together may hold the same run twice."""
    runs, used = [], Counter[str]()
    for number, group in enumerate(groups):
        for index, row in enumerate(group.rows):
            for record in row.records:
                anchor = "run-" + slug(str(record.get("run_id")))
                used[anchor] += 1
                anchor += f"-{used[anchor]}" if used[anchor] > 1 else ""
                runs.append(Run(record, group, row, f"{number}-{index}", anchor))
    return runs


def every_run(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    """A line for each run; the script unfolds what is known of it."""
    if not runs:
        return ""
    parts = ["<noscript><p>What is known of each run is in records.jsonl, under its run_id.</p></noscript>"]
    for number, group in enumerate(groups):
        lines = [run_line(index, run) for index, run in enumerate(runs) if run.row_id.startswith(f"{number}-")]
        title = f"<h3>{escape(group.title)}</h3> ({len(lines)} runs)"
        back = f'<p><a href="#table-{number}">To the table</a></p>'
        parts.append(f"<details><summary>{title}</summary>{back}{''.join(lines)}</details>")
    return "\n".join(parts)


def run_line(index: int, run: Run) -> str:
    record = run.record
    reason = f": {record['reason']}" if record.get("reason") else ""
    title = escape(f"{run.row.name} · seed {record.get('seed', MISSING)} · {status_of(record)}{reason}")
    place = f'id="{run.anchor}" data-run="{index}" data-row="{run.row_id}"'
    found_by = f'<p class="soft">run_id {escape(str(record.get("run_id")))}</p>'
    return f"<details {place}><summary>{title}</summary>{found_by}</details>"


def facts(runs: Sequence[Run]) -> str:
    """What is known of the runs as JSON, each environment, data set and common setting once."""
    specs = [read_spec(run.record) for run in runs]
    specs = [spec | {name: dict(as_pairs(spec.get(name))) for name in ("options", "task_options")} for spec in specs]
    shared = {
        key: value for key, value in (specs[0] if specs else {}).items() if all(s.get(key, ...) == value for s in specs)
    }
    environments: dict[str, int] = {}
    data: dict[str, int] = {}
    told = []
    for run, spec in zip(runs, specs, strict=True):
        kernel = str(run.record.get("kernel") or MISSING)
        told.append(
            {
                "command": str(run.record.get("command") or MISSING),
                "kernel": kernel + (" (not the one it is named for)" if run.record.get("kernel_fallback") else ""),
                "spec": {key: value for key, value in spec.items() if key not in shared},
                "measured": measured(run.record),
                "data": data.setdefault(as_json(as_mapping(run.record.get("data"))), len(data)),
                "environment": environments.setdefault(as_json(run.group.environment), len(environments)),
            }
        )
    whole = {
        "shared": shared,
        "environments": [json.loads(text) for text in environments],
        "data": [json.loads(text) for text in data],
        "runs": told,
    }
    return as_json(whole).replace("<", "\\u003c")


def measured(record: Record) -> dict[str, Any]:
    """The numbers and words of a record that have no part of the page of their own."""
    return {key: v for key, v in record.items() if key not in TOLD and isinstance(v, int | float | str) and v != ""}


def as_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
