"""Tables of all backends and tasks, on the terminal or in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import tasks
import zoo
from compare.report import in_short, of_plan, of_roofline, of_tip
from zoo.entry import Entry, format_added, format_bytes

Rows = list[list[str]]
TASK_HEADERS = ["name", "what it asks", "metric", "causal", "lengths", "default", "options"]
SUITE_HEADERS = ["suite", "purpose", "tasks", "seconds per run"]
WHAT = ["name", "year", "causal", "what it does", "options"]
COST = ["name", "time", "memory", "parameters added", "capacity"]
KEPT = ["name", "directions", "state", "cache"]
FORM = ["exact", "directions", "exceptions", "options", "source"]
SHORT = ["name", "what it does", "family", "time", "causal"]
MARKDOWN = ["name", "what it does", "family", "year", *COST[1:-1], "state", "cache", "capacity", *FORM]
TIP = "tip:"
PUBLISHED = "published"
PICTURE = "picture"
ROOFLINE = "roofline"
WRAPPED = ("time", "directions", "what it does", "options", "what it asks", "lengths", "purpose", "tasks")


def backends() -> list[Entry]:
    """The registered backends, grouped by family: exact first, then by the family's oldest year, controls last."""
    entries = [zoo.describe(name) for name in zoo.available()]
    first: dict[str, int] = {}
    for entry in entries:
        family, year = entry.traits.family, entry.traits.year or 9999
        first[family] = min(year, first.get(family, year))

    def order(entry: Entry) -> tuple[bool, bool, int, str, int, str]:
        family, year = entry.traits.family, entry.traits.year or 9999
        return family == "control", family != "exact", first[family], family, year, entry.name

    return sorted(entries, key=order)


def columns(entry: Entry) -> dict[str, str]:
    """Header -> cell, for every column that a table of backends may have."""
    traits, capacity, added = entry.traits, entry.capacity, entry.parameters_added
    return {
        "name": entry.name,
        "what it does": entry.summary.rstrip("."),
        "family": traits.family,
        "year": "" if traits.year is None else str(traits.year),
        "time": traits.time,
        "memory": traits.memory,
        "parameters added": "unknown" if added is None else format_added(added),
        "state": "" if entry.state_bytes is None else format_bytes(entry.state_bytes),
        "cache": "" if entry.cache_bytes is None else format_bytes(entry.cache_bytes),
        "capacity": "" if capacity is None else "{}={}".format(*capacity),
        "exact": "yes" if traits.exact else "no",
        "causal": "yes" if traits.causal else "no",
        "directions": entry.directions,
        "exceptions": ", ".join(traits.exceptions),
        "options": ", ".join(f"{option}={default}" for option, default in entry.options.items()),
        "source": traits.source,
    }


def task_rows() -> Rows:
    """One row for each registered task, under ``TASK_HEADERS``."""
    rows = []
    for name in tasks.available():
        task = tasks.get(name)
        lengths = ", ".join(map(str, task.lengths)) or f"{task.min_len} to {task.max_len}"
        if task.min_len == task.max_len:
            lengths = str(task.max_len)
        options = ", ".join(f"{option}={default}" for option, default in tasks.options(name).items())
        metric = f"{task.metric.name} (lower is better)" if task.metric.lower_is_better else task.metric.name
        causal = "only" if task.causal_only else "yes" if task.causal else "no"
        if task.causal_form:
            causal = f"as {task.causal_form}"
        rows.append([name, task.summary, metric, causal, lengths, str(task.defaults.seq_len), options])
    return rows


def suite_rows() -> Rows:
    """One row for each suite, under ``SUITE_HEADERS``."""
    return [
        [
            name,
            suite.summary,
            ", ".join(task if length is None else f"{task} at {length}" for task, length in suite.tasks.items()),
            f"{suite.budget:g}",
        ]
        for name, suite in tasks.SUITES.items()
    ]


def show() -> None:
    """Print the backends by family, their cost, and the tasks."""
    console = Console()
    entries = backends()
    for title, headers in (
        ("Backends: Encoder(attn=NAME), --variants NAME, --set NAME.OPTION=VALUE", WHAT),
        ("Cost (python -m compare list NAME describes one backend)", COST),
        ("Bytes at 1,024 positions: the state that a query reads, the cache that steps keep", KEPT),
    ):
        table = make_table(title, headers)
        for family, members in groupby(entries, key=lambda entry: entry.traits.family):
            table.add_row(f"[bold]{family}[/]")
            for entry in members:
                cells = columns(entry)
                table.add_row(*(cells[header] for header in headers))
            table.add_section()
        console.print(table)
    for title, headers, rows in (
        ("Tasks: --tasks NAME, --set NAME.OPTION=VALUE", TASK_HEADERS, task_rows()),
        ("Suites: --tasks SUITE", SUITE_HEADERS, suite_rows()),
    ):
        table = make_table(title, headers)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def make_table(title: str, headers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in ("parameters added", "state", "cache") else "left"
        shown = header.replace("parameters added", "added\nparams")
        table.add_column(shown, no_wrap=header not in WRAPPED, justify=justify, overflow="fold")
    return table


def markdown() -> dict[str, str]:
    """Name of a marker -> table, for README and docs: the zoo's own backends, the tasks and the suites."""
    own = [columns(entry) for entry in backends() if entry.own]
    return {
        "backends": markdown_table(SHORT, [[row[header] for header in SHORT] for row in own]),
        "backends in full": markdown_table(MARKDOWN, [[row[header] for header in MARKDOWN] for row in own]),
        "tasks": markdown_table(TASK_HEADERS, task_rows()),
        "suites": markdown_table(SUITE_HEADERS, suite_rows()),
    }


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *([f"`{first}`", *rest] for first, *rest in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results(folder: Path, shown_as: str, chart: str = "") -> str:
    """A chart of a folder of results and the first sentences of its report, as Markdown.

    Args:
        folder: holds records.jsonl and charts.
        shown_as: path of the folder, relative to the file that shows the chart.
        chart: stem of the chart; "" = the first chart of the report. ``tip:NAME`` = a table of what a tip changes;
            ``published`` = a table of the scores beside published ones, and what the report says of them;
            ``roofline`` = the chart and the table of what limits each variant, and the rates of the machine;
            ``picture`` = the first chart without sentences.

    Raises:
        ValueError: the folder has no such chart, no run with the tip, no published comparison, or no measured rates.
    """
    if chart == PUBLISHED:
        table = of_plan(folder)
        said = "\n".join(f"- {finding}" for finding in table.findings)
        return f"{markdown_table(table.header, table.rows)}\n\n{said}"
    if chart.startswith(TIP):
        return markdown_table(*of_tip(folder, chart.removeprefix(TIP)))
    if chart == ROOFLINE:
        limits = of_roofline(folder)
        (drawn,), (table,) = limits.charts, limits.tables
        parts = picture(folder, shown_as, drawn.stem), *limits.sentences
        return "\n\n".join([*parts, markdown_table(table.header, table.rows)])
    stem, sentences = in_short(folder)
    shown = picture(folder, shown_as, stem if chart in ("", PICTURE) else chart)
    return shown if chart == PICTURE else f"{shown}\n\n{' '.join(sentences)}"


def picture(folder: Path, shown_as: str, stem: str) -> str:
    """A chart of a folder of results, as Markdown."""
    path = folder / "charts" / f"{stem}.png"
    if not path.is_file():
        raise ValueError(f"chart {path} does not exist")
    return f"![{path.stem.replace('_', ' ')}]({shown_as}/charts/{path.name})"


def results_in(text: str, folder: Path) -> dict[str, str]:
    """Content of a marker ``<!-- results/… -->`` in a text -> the results that belong after it.

    A marker names a folder of results, relative to the ``folder`` of the text, and the stem of a chart if it shows
    another chart than the first, or one of the words that ``results`` knows.
    """
    markers = re.findall(r"^<!-- ((?:\.\./)*results/\S+)(?: (\S+))? -->$", text, re.M)
    return {" ".join(filter(None, (name, chart))): results(folder / name, name, chart) for name, chart in markers}


def written(path: Path) -> str:
    """The text of a file, with the content between its markers written anew.

    Markers are ``<!-- backends -->`` and ``<!-- /backends -->``, for instance. Content comes from ``markdown`` and
    ``results_in``.

    Raises:
        ValueError: the file has no such marker, or lacks a closing one.
    """
    text = path.read_text(encoding="utf-8")
    blocks = {name: table for name, table in markdown().items() if f"<!-- {name} -->\n" in text}
    blocks |= results_in(text, path.parent)
    if not blocks:
        known = ", ".join(f"<!-- {name} -->" for name in markdown())
        raise ValueError(f"expected a marker, <!-- results/FOLDER --> or one of {known}, found none")
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not closed:
            raise ValueError(f"expected a line {end.strip()} after {start.strip()}, found none")
        text = before + start + block + end + after
    return text
