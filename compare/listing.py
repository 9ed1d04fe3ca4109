"""What there is to compare, as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import tasks
import zoo


def show() -> None:
    """Print the backends with their traits and cost, and the tasks."""
    console = Console()
    backends = Table(title="Backends: Encoder(attn=NAME), --variants NAME", title_justify="left")
    for header in ("name", "family", "time", "memory", "causal", "options", "what it does"):
        backends.add_column(header, overflow="fold", no_wrap=header == "name")
    for name in zoo.available():
        entry = zoo.describe(name)
        traits = entry.traits
        options = ", ".join(f"{option}={default}" for option, default in entry.options.items())
        causal = "yes" if traits.causal else "no"
        backends.add_row(name, traits.family, traits.time, traits.memory, causal, options, entry.summary)
    console.print(backends)
    listed = Table(title="Tasks: --tasks NAME", title_justify="left")
    for header in ("name", "metric", "lengths", "what it asks"):
        listed.add_column(header, overflow="fold", no_wrap=header == "name")
    for name in tasks.available():
        task = tasks.get(name)
        listed.add_row(name, task.metric, f"{task.min_len} to {task.max_len}", task.summary)
    console.print(listed)
