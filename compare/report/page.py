"""One self-contained HTML page: no network, no files beside it, readable on a phone."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .aggregate import Chart, Group, Record, Row, as_mapping, status_of
from .scaling import cost_tables
from .summary import summarise
from .tables import MISSING, READING, Cell, baseline_rows, columns_of, commands, failures, notes, slice_table

CSS = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5a5a60; --page: #fff; --card: #f5f5f7; --rule: #d5d5da;
  --link: #0058a8; --bad: #a52a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --soft: #a8a8b0; --page: #17171a; --card: #232328; --rule: #414149; --link: #7db8f5;
    --bad: #ff9a76; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 80ch; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
.soft { color: var(--soft); font-size: .9rem; }
.warning { border-left: 4px solid var(--bad); padding: .3rem .8rem; background: var(--card); }
pre { background: var(--card); padding: .7rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; margin: .4rem 0; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid var(--rule); border-radius: 8px; overflow-x: auto; }
figure img { display: block; width: 100%; min-width: 600px; max-width: 900px; height: auto; margin: 0 auto; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; margin: .8rem 0; }
.scroll:focus-visible, figure:focus-visible { outline: 2px solid var(--link); }
@media (max-width: 640px) { .charts::before { content: "Charts scroll sideways."; color: var(--soft); } }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
td:not(.text), .results td { white-space: nowrap; }
td.text { min-width: 11ch; }
td:has(.swatch) { white-space: nowrap; }
thead th { background: var(--card); vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
.results tr > :first-child { position: sticky; left: 0; background: var(--page); min-width: 7rem; max-width: 14rem;
  overflow-wrap: break-word; border-right: 1px solid var(--rule); }
.results thead tr > :first-child { background: var(--card); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th button::after { content: " ↕"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " ↑"; color: inherit; }
th[aria-sort=descending] button::after { content: " ↓"; color: inherit; }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .4em; border-radius: 2px;
  outline: 1px solid var(--rule); }
tr.control > * { color: var(--soft); font-style: italic; }
details { border: 1px solid var(--rule); border-radius: 6px; padding: .3rem .7rem; margin: .3rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.results")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    const sign = descending ? -1 : 1;
    const key = row => row.cells[column].dataset.key;
    const rows = [...body.rows].sort((a, b) =>
      (key(a) === "") - (key(b) === "") || sign * compare(key(a), key(b)));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...rows);
  }));
}
"""


def html_page(groups: Sequence[Group], charts: Sequence[Chart], folder: Path, warnings: Sequence[str]) -> str:
    """The whole page.

    Args:
        groups: what was run.
        charts: what was drawn of them.
        folder: where the charts' SVG files lie, to be embedded.
        warnings: what went wrong in reading.
    """
    machines = list(dict.fromkeys(group.machine for group in groups))
    parts = ["<h1>Comparison of attention variants</h1>"]
    parts += [f'<p class="soft">{escape(machine)}</p>' for machine in machines]
    parts += [f'<p class="warning"><strong>Warning:</strong> {escape(warning)}</p>' for warning in warnings]
    parts += [f"<pre>{escape(command)}</pre>" for command in commands(groups)]
    if not groups:
        parts.append("<p>There are no records to report on.</p>")
    for number, group in enumerate(groups):
        parts.append(f'<h3><a href="#group-{number}">{escape(group.title)}</a></h3>{bullets(summarise(group))}')
    for number, group in enumerate(groups):
        parts.append(f'<section id="group-{number}"><h2>{escape(group.title)}</h2>')
        parts.append(results_table(group))
        parts.append(bullets(notes(group), css="soft"))
        if sliced := slice_table(group):
            parts.append(simple_table(*sliced))
        parts.append(figures([chart for chart in charts if chart.group == group.slug], folder))
        parts.append("</section>")
    if across := [chart for chart in charts if not chart.group]:
        parts += ["<h2>Cost against length</h2>", figures(across, folder)]
        for costs in cost_tables(groups):
            parts += [f"<h3>{escape(costs.title)}</h3>", simple_table(costs.header, costs.body)]
            parts.append(bullets(costs.notes, css="soft"))
    if trivial := baseline_rows(groups):
        parts += ["<h2>Trivial baselines</h2>", simple_table(("task", "baseline", "score"), trivial)]
    if failed := failures(groups):
        parts.append("<h2>Runs that did not finish</h2>")
        parts.append(simple_table(("task", "variant", "seed", "status", "reason"), failed))
    parts += ["<h2>How to read this</h2>", bullets(READING)]
    if groups:
        parts.append("<h2>Every run</h2>")
    for group in groups:
        parts.append(f"<h3>{escape(group.title)}</h3>")
        parts += [run_details(row, record, group.environment) for row in group.rows for record in row.records]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n<title>Comparison of attention variants</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def bullets(lines: Sequence[str], css: str = "") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{css}">{items}</ul>' if items else ""


def figures(charts: Sequence[Chart], folder: Path) -> str:
    """Charts as images that carry their own drawing, so that nothing in one can disturb another."""
    shown = []
    for chart in charts:
        drawing = base64.b64encode((folder / f"{chart.stem}.svg").read_bytes()).decode("ascii")
        shown.append(
            f'<figure tabindex="0"><img alt="{escape(chart.alt)}" src="data:image/svg+xml;base64,{drawing}"></figure>'
        )
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def results_table(group: Group) -> str:
    shown = columns_of(group)
    head = "".join(f'<th scope="col"><button type="button">{escape(column.title)}</button></th>' for column in shown)
    body = []
    for row in group.rows:
        cells = [column.cell(row, group) for column in shown]
        first, *rest = (table_cell(cell, tag) for cell, tag in zip(cells, ("th", *("td",) * len(cells)), strict=False))
        css = ' class="control"' if row.is_control else ""
        body.append(f"<tr{css}>{first}{''.join(rest)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(f"Results: {group.title}")}">'
        f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def table_cell(cell: Cell, tag: str) -> str:
    key = "" if cell.key is None else str(cell.key)
    scope = ' scope="row"' if tag == "th" else ""
    css = ' class="text"' if isinstance(cell.key, str) else ""
    swatch = f'<span class="swatch" style="background:{cell.colour}"></span>' if cell.colour else ""
    return f'<{tag}{scope}{css} data-key="{escape(key)}">{swatch}{escape(cell.text)}</{tag}>'


def simple_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body = "".join("<tr>" + "".join(f'<td class="text">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def run_details(row: Row, record: Record, environment: Mapping[str, object]) -> str:
    """Everything known of one run, folded away."""
    status = status_of(record)
    reason = f": {record['reason']}" if record.get("reason") else ""
    kernel = str(record.get("kernel") or MISSING) + (" (not the one it is named for)" if row.fell_back else "")
    blocks = (
        ("Command", str(record.get("command") or MISSING)),
        ("Kernel", kernel),
        ("Configuration", as_json(as_mapping(record.get("spec")))),
        ("Data", as_json(as_mapping(record.get("data")))),
        ("Environment", as_json(environment)),
    )
    inside = "".join(f"<h3>{title}</h3><pre>{escape(text)}</pre>" for title, text in blocks)
    title = escape(f"{row.name} · seed {record.get('seed', MISSING)} · {status}{reason}")
    return f"<details><summary>{title}</summary>{inside}</details>"


def as_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) if value else MISSING
