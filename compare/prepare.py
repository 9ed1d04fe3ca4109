"""Build the data of a comparison before its runs, once each, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from compare.run import PLAIN_SECONDS
from compare.spec import DataId, RunSpec
from compare.worker import make_task


def prepare_data(specs: list[RunSpec], console: Console) -> dict[DataId, str]:
    """Bring the data of all runs into the cache, and say what came of it.

    Returns:
        What could not be prepared, and why, in one line.
    """
    failed = {}
    for data_id, spec in {spec.data_id: spec for spec in specs}.items():
        task = make_task(spec)
        title = f"{spec.task} · N {spec.seq_len}"
        try:
            with show_progress(f"{title}: preparing data", console) as on_progress:
                task.prepare(on_progress)
                facts = task.facts
        except (ValueError, OSError) as error:
            failed[data_id] = " ".join(str(error).split())
            console.print(f"[red]error:[/] {escape(failed[data_id])}", highlight=False, soft_wrap=True)
        else:
            for note in facts["notes"]:
                console.print(escape(f"{title}: {note}"), highlight=False, soft_wrap=True)
    return failed


@contextmanager
def show_progress(title: str, console: Console) -> Iterator[Callable[[float], None]]:
    """A bar with the time left on a terminal; a line now and then elsewhere."""
    if not console.is_terminal:
        last = time.perf_counter()

        def on_line(done: float) -> None:
            nonlocal last
            if time.perf_counter() - last >= PLAIN_SECONDS:
                last = time.perf_counter()
                console.print(escape(f"{title} {done:.0%}"), highlight=False, soft_wrap=True)

        yield on_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=2, transient=True) as progress:
        bar = progress.add_task(escape(title), total=1.0)
        yield lambda done: progress.update(bar, completed=done)
