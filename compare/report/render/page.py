"""One self-contained HTML page: no network, no files beside it, readable on a phone, on paper and by ear."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from compare.report.facts.groups import Group, Row
from compare.report.facts.values import Record, as_mapping, as_pairs, slug, status_of
from compare.report.render.families import colour_of, in_order
from compare.report.sections import TITLE, Document
from compare.report.sections.section import Cell, Chart, Section, Table
from compare.spec import read_spec
from compare.units import MISSING

HERE = Path(__file__).parent
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


def html_page(report: Document, folder: Path) -> str:
    """The whole page. folder: where the charts' SVG files lie, to be embedded."""
    groups = report.groups
    runs = list_runs(groups)
    first_runs = {run.row_id: run.anchor for run in reversed(runs)}
    before, results, after = (
        [(section.anchor, section.title, content(section, first_runs, folder)) for section in sections]
        for sections in (report.before, report.results, report.after)
    )
    after += [("runs", "Every run", every_run(groups, runs))] if runs else []
    commands = "".join(f"<pre>{escape(command)}</pre>" for command in report.commands)
    after += [("commands", "The commands that made this", commands)] if commands else []
    contents = "".join(
        f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in (*before, *results, *after)
    )
    head = [f"<h1>{TITLE}</h1>"]
    head += [f'<p class="warning"><strong>Warning:</strong> {escape(warning)}</p>' for warning in report.warnings]
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
        lead_section(report.lead, folder) if report.lead else "",
        *(f'<p class="soft">{escape(machine)}</p>' for machine in report.machines),
        f'<nav class="contents" aria-label="Contents"><ul>{contents}</ul></nav>',
        *(under_heading(*each) for each in before),
        f"<div>{filter_form(groups)}",
        *(under_heading(*each) for each in results),
        "</div>",
        *(under_heading(*each) for each in after),
        "</main>",
        f'<script type="application/json" id="told">{facts(runs)}</script>',
        f'<script type="module">{asset("page.js")}</script>\n</body>\n</html>\n',
    ]
    return "\n".join(part for part in parts if part)


def under_heading(anchor: str, title: str, content: str) -> str:
    head = f'<h2 id="{anchor}-title">{escape(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{head}\n{content}\n</section>'


def content(section: Section, first_runs: Mapping[str, str], folder: Path, *, dense: bool = False) -> str:
    """A section without its title, its parts on lines of their own where it is not dense."""
    dense = dense or bool(section.links) or any(part.title and not part.folded for part in section.parts)
    found = [bullets(section.sentences)]
    for table in section.tables:
        if not table.folded:
            found += [table_of(table, first_runs), bullets(table.notes, css="soft"), bullets(table.findings)]
    found.append(figures(section.charts, folder))
    for table in section.tables:
        if table.folded:
            notes = bullets(table.notes, css="soft")
            shown = f"<summary>{escape(table.folded)}</summary>{table_of(replace(table, anchor=''), first_runs)}{notes}"
            found.append(f'<details id="{table.anchor}">{shown}</details>')
    for part in section.parts:
        inner = content(part, first_runs, folder, dense=dense)
        if part.folded:
            found.append(f"<details><summary><h3>{escape(part.title)}</h3></summary>{inner}</details>")
        else:
            found.append((f"<h3>{escape(part.title)}</h3>" if part.title else "") + inner)
    if section.links:
        links = ", ".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in section.links)
        found.append(f'<p class="soft">The numbers of each length: {links}.</p>')
    return ("" if dense else "\n").join(part for part in found if part)


def table_of(table: Table, first_runs: Mapping[str, str]) -> str:
    if table.of:
        return group_table(table, table.of, first_runs)
    drawn = simple_table(table.caption, table.header, table.rows)
    return f'<div id="{table.anchor}">{drawn}</div>' if table.anchor else drawn


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


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


def lead_section(lead: Section, folder: Path) -> str:
    """What a newcomer reads and sees first."""
    told = "".join(f"<p>{escape(words)}</p>" for words in lead.sentences)
    drawn = "".join(figure(chart, folder) for chart in lead.charts)
    return (
        f'<section class="first" id="{lead.anchor}" aria-labelledby="{lead.anchor}-title">'
        f'<h2 class="unseen" id="{lead.anchor}-title">{escape(lead.title)}</h2>'
        f'<div class="told">{told}</div>{drawn}{bullets(lead.notes, css="soft")}</section>'
    )


def group_table(table: Table, group: Group, first_runs: Mapping[str, str]) -> str:
    """The results of one group: sorts by its head, and each row leads to its runs."""
    number = table.anchor.removeprefix("table-")
    head = "".join(f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in table.header)
    body = []
    for index, (row, (first, *rest)) in enumerate(zip(group.rows, table.cells, strict=True)):
        row_id = f"{number}-{index}"
        name = f'<a href="#{first_runs[row_id]}">{breakable(first.text)}</a>'
        told = f'data-name="{escape(row.name)}" data-family="{escape(row.family)}" data-row="{row_id}"'
        flags = (' class="control"' if row.is_control else "") + ("" if row.finished else " data-failed")
        cells = "".join(table_cell(cell) for cell in rest)
        body.append(f'<tr {told}{flags}><th scope="row" data-key="{key_of(first)}">{name}</th>{cells}</tr>')
    caption = f'<caption><span class="unseen">{escape(group.title)}: results. </span>A row opens its runs.</caption>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f'<table class="results" id="{table.anchor}">{caption}<thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="soft" id="{table.anchor}-hidden"></p>'
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


def figures(charts: Sequence[Chart], folder: Path) -> str:
    """Charts as images that carry their own drawing, so that nothing in one can disturb another."""
    shown = [figure(chart, folder) for chart in charts]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def figure(chart: Chart, folder: Path) -> str:
    table = f'<a href="#{chart.numbers}">The numbers</a>' if chart.numbers else ""
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
