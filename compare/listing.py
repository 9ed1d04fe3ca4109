"""What there is to compare, as tables on the terminal or in Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import tasks
import zoo

Rows = list[list[str]]
BACKEND_HEADERS = ["name", "what it does", "family", "time", "memory", "exact", "causal", "options", "source"]
TASK_HEADERS = ["name", "what it asks", "metric", "lengths"]


def backend_rows() -> Rows:
    """One row a registered backend, under ``BACKEND_HEADERS``."""
    rows = []
    for name in zoo.available():
        entry = zoo.describe(name)
        traits = entry.traits
        options = ", ".join(f"{option}={default}" for option, default in entry.options.items())
        exact, causal = ("yes" if trait else "no" for trait in (traits.exact, traits.causal))
        cost = [traits.family, traits.time, traits.memory]
        rows.append([name, entry.summary.rstrip("."), *cost, exact, causal, options, traits.source])
    return rows


def task_rows() -> Rows:
    """One row a registered task, under ``TASK_HEADERS``."""
    found = [(name, tasks.get(name)) for name in tasks.available()]
    return [[name, task.summary, task.metric, f"{task.min_len} to {task.max_len}"] for name, task in found]


def show() -> None:
    """Print the backends with their traits and cost, and the tasks."""
    console = Console()
    for title, headers, rows in (
        ("Backends: Encoder(attn=NAME), --variants NAME", BACKEND_HEADERS[:-2], [row[:-2] for row in backend_rows()]),
        ("Options: --set NAME.OPTION=VALUE", ["name", "options", "source"], [[r[0], *r[-2:]] for r in backend_rows()]),
        ("Tasks: --tasks NAME", TASK_HEADERS, task_rows()),
    ):
        table = Table(title=title, title_justify="left")
        for number, header in enumerate(headers):
            table.add_column(header, no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown_table(headers: list[str], rows: Rows) -> str:
    """A Markdown table; the README's tables are made by this."""
    lines = [headers, ["---"] * len(headers), *([f"`{first}`", *rest] for first, *rest in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
