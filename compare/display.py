"""Displays of a running comparison: a live table on a terminal, plain lines elsewhere, JSON, or errors only.

They draw only after an event, and at most twice a second: drawing must not take time from measurements.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from compare.load import disturbance
from compare.progress import Runs
from compare.record import Record, is_search
from compare.spec import RunSpec

PLAIN_SECONDS = 15.0  # between lines where there is no terminal to draw on
DRAW_SECONDS = 0.5
STATE_WIDTH = 24  # least width of a state such as "training 34%, loss 2.345"
STYLES = {"ok": "green", "failed": "red", "running": "bold", "waiting": "dim"}


class Display:
    """Plain lines, for a log. Subclasses show the same events in their own way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.runs = Runs([], [])
        self.last = 0.0

    def say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)

    def error(self, text: str) -> None:
        self.console.print(f"[red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)

    def report(self, path: Path) -> None:
        """Say where the report is."""
        self.say(f"charts and tables: {path}")

    @contextmanager
    def preparing(self, title: str) -> Iterator[Callable[[float], None]]:
        """Show the progress, 0 to 1, of preparations before the runs."""
        self.last = time.perf_counter()

        def on_progress(done: float) -> None:
            if self.is_due(PLAIN_SECONDS):
                self.say(f"{title} {done:.0%}")

        yield on_progress

    @contextmanager
    def comparing(self, specs: Sequence[RunSpec], records: Sequence[Record]) -> Iterator[None]:
        """Show these runs; ``records`` belong to runs that ended earlier."""
        self.runs = Runs(specs, records)
        yield

    def started(self, spec: RunSpec) -> None:
        self.last = time.perf_counter()
        self.runs.start(spec, self.last)
        self.say(f"{self.runs.title(spec)}: started")

    def update(self, spec: RunSpec, event: Record) -> None:
        """Show an event of a run."""
        at = time.perf_counter()
        self.runs.update(spec, event, at)
        if self.is_due(PLAIN_SECONDS):
            left, _ = self.runs.time_left(at, spec)
            which = f"{self.runs.title(spec)}: " if len(self.runs.running) > 1 else ""
            self.say(f"  {which}{describe_phase(event)}{'' if left is None else f', {clock(left)} left'}")

    def finished(self, spec: RunSpec, record: Record) -> None:
        self.runs.finish(record)
        self.say(f"{self.runs.title(spec)}: {outcome(record)}")

    def is_due(self, seconds: float) -> bool:
        """Whether ``seconds`` have passed since the last call that returned True."""
        if time.perf_counter() - self.last < seconds:
            return False
        self.last = time.perf_counter()
        return True


class TableDisplay(Display):
    """A live table of all runs; the outcome of each run is printed above the table and stays."""

    @contextmanager
    def preparing(self, title: str) -> Iterator[Callable[[float], None]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self.console, refresh_per_second=1 / DRAW_SECONDS, transient=True) as bar:
            task = bar.add_task(escape(title), total=1.0)
            yield lambda done: bar.update(task, completed=done)

    @contextmanager
    def comparing(self, specs: Sequence[RunSpec], records: Sequence[Record]) -> Iterator[None]:
        with (
            super().comparing(specs, records),
            Live(console=self.console, get_renderable=self.table, auto_refresh=False, transient=True) as self.live,
        ):
            yield

    def started(self, spec: RunSpec) -> None:
        self.runs.start(spec, time.perf_counter())
        self.live.refresh()

    def update(self, spec: RunSpec, event: Record) -> None:
        self.runs.update(spec, event, time.perf_counter())
        if self.is_due(DRAW_SECONDS):
            self.live.refresh()

    def table(self) -> RenderableType:
        """The table: as many runs as fit, including those that go on."""
        runs, at = self.runs, time.perf_counter()
        room = max(1, self.console.height - 4)
        current = [runs.numbers[run_id] for run_id in runs.running] or [len(runs.records)]
        first = max(0, min(max(current) - 1 - room * 2 // 3, max(0, min(current) - 1), len(runs.specs) - room))
        shown = list(runs.specs.items())[first : first + room]
        tasks = {run_id: runs.task_of(spec) for run_id, spec in shown}
        varied = {name for name in ("seq_len", "seed") if len({getattr(s, name) for s in runs.specs.values()}) > 1}
        varied |= {"task"} if len({(s.task, s.task_options) for s in runs.specs.values()}) > 1 else set()
        rows = [(spec, tasks[run_id], *self.state(spec, run_id, at)) for run_id, spec in shown]
        width = self.console.width - max((len(took) for *_, took in rows), default=0) - 6
        longest = max((len(self.run_name(spec, task, varied, width)) for spec, task, *_ in rows), default=0)
        states = max((len(state) for *_, state, _ in rows), default=0)
        state_width = min(states, max(STATE_WIDTH, width - longest))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for spec, task, style, state, took in rows:
            run = Text(self.run_name(spec, task, varied, width - state_width), style=style)
            table.add_row(run, Text(cut(state, state_width), style=style), Text(took, style=style))
        return Group(
            table, Text(cut(self.summary(first, len(shown), runs.time_left(at)[1]), self.console.width), style="dim")
        )

    def run_name(self, spec: RunSpec, task: str, varied: set[str], width: int) -> str:
        """The variant and the settings in which runs differ; if the width is short, the variant is cut first."""
        parts = {"task": f" · {task}", "seq_len": f" · N {spec.seq_len}", "seed": f" · seed {spec.seed}"}
        rest = "".join(text for name, text in parts.items() if name in varied) + self.runs.setting_of(spec)
        return cut(cut(spec.label, max(6, width - len(rest))) + rest, width)

    def state(self, spec: RunSpec, run_id: str, at: float) -> tuple[str, str, str]:
        """Style of a run, its state in words, and the time it took; for one that goes on, the time left."""
        if run := self.runs.running.get(run_id):
            left, _ = self.runs.time_left(at, spec)
            return STYLES["running"], describe_phase(run.event), "" if left is None else f"{clock(left)} left"
        record = self.runs.records.get(run_id)
        if record is None:
            return STYLES["waiting"], "waiting", ""
        wall, score = record.get("wall_seconds"), record.get("test_score")
        took = "" if wall is None else clock(wall)
        if record["status"] != "ok":
            return STYLES["failed"], f"{record['status']}: {record.get('reason') or 'no reason recorded'}", took
        return STYLES["ok"], "done" if score is None else score_text(record), took

    def summary(self, first: int, shown: int, left: float | None) -> str:
        runs = self.runs
        failed = sum(record["status"] != "ok" for record in runs.records.values())
        parts = [f"{len(runs.records)} of {len(runs.specs)} runs done"]
        parts += [f"{len(runs.running)} running"] * (len(runs.running) > 1)
        parts += [f"{failed} failed"] * (failed > 0)
        parts += [] if left is None else [f"{clock(left)} left"]
        parts += [f"showing {first + 1} to {first + shown}"] * (shown < len(runs.specs))
        return " · ".join(parts)


class QuietDisplay(Display):
    """Only failures, on ``console``, and at the end the path of the report on stdout."""

    def say(self, text: str) -> None:
        pass

    def report(self, path: Path) -> None:
        print(path)

    def finished(self, spec: RunSpec, record: Record) -> None:
        super().finished(spec, record)
        if record["status"] != "ok":
            self.error(f"{self.runs.title(spec)}: {outcome(record)}")


class JsonDisplay(Display):
    """Each event as a line of JSON on stdout."""

    def send(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event} | fields), flush=True)

    def say(self, text: str) -> None:
        self.send("message", text=text)

    def warn(self, text: str) -> None:
        self.send("warning", text=text)

    def error(self, text: str) -> None:
        self.send("error", text=text)

    def report(self, path: Path) -> None:
        self.send("report", path=str(path))

    @contextmanager
    def preparing(self, title: str) -> Iterator[Callable[[float], None]]:
        def on_progress(done: float) -> None:
            if self.is_due(DRAW_SECONDS):
                self.send("preparing", title=title, done=done)

        yield on_progress

    def started(self, spec: RunSpec) -> None:
        self.runs.start(spec, time.perf_counter())
        self.send("started", **self.name(spec), number=self.runs.numbers[spec.run_id], of=len(self.runs.specs))

    def update(self, spec: RunSpec, event: Record) -> None:
        at = time.perf_counter()
        self.runs.update(spec, event, at)
        left, left_of_all = self.runs.time_left(at, spec)
        times = {"seconds_left": left, "comparison_seconds_left": left_of_all}
        self.send("progress", run_id=spec.run_id, **event, **times)

    def finished(self, spec: RunSpec, record: Record) -> None:
        self.runs.finish(record)
        sent = ("status", "reason", "metric", "test_score", "train_steps", "wall_seconds")
        self.send("finished", **self.name(spec), **{name: record.get(name) for name in sent})

    def name(self, spec: RunSpec) -> dict[str, object]:
        return {name: getattr(spec, name) for name in ("run_id", "label", "task", "seq_len", "seed")}


def choose_display(*, quiet: bool, as_json: bool) -> Display:
    """Choose the display by the flags and the terminal."""
    if as_json:
        return JsonDisplay(Console(stderr=True))
    if quiet:
        return QuietDisplay(Console(stderr=True))
    console = Console()
    # With FORCE_COLOR rich takes a log for a terminal. TERM=dumb means that lines cannot be redrawn.
    return TableDisplay(console) if console.is_interactive and console.file.isatty() else Display(console)


def describe_phase(event: Record) -> str:
    if not event:
        return "starting"
    if event["done"] is None:
        return str(event["phase"])
    loss = "" if event["loss"] is None else f", loss {event['loss']:.3f}"
    return f"{event['phase']} {event['done']:.0%}{loss}"


def clock(seconds: float) -> str:
    """90 -> 1:30, 4000 -> 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def score_text(record: Record, field: str = "test_score") -> str:
    """ "accuracy 97.5%", "bits per byte 2.345"."""
    fraction = (record.get("metric_scale") or {}).get("unit", "%") == "%"
    return f"{record.get('metric') or 'score'} {record[field]:{'.1%' if fraction else '.3f'}}"


def outcome(record: Record) -> str:
    """One line on how a run ended."""
    if record["status"] != "ok":
        return f"{record['status']}: {record['reason']}"
    if "token_seconds" in record:
        took = f"{record['wall_seconds']:.0f} s in total"
        return f"{1e3 * record['token_seconds']:.3g} ms per token, {record['cache_bytes']:,} bytes of state, {took}"
    parts = []
    if "test_score" in record:
        parts.append(score_text(record, "test_score"))
    elif is_search(record):
        parts.append(f"validation {score_text(record, 'val_score')}")
    if "train_steps" in record:
        parts.append(f"{record['train_steps']:,} steps")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s, step {record['step_seconds']:.3g} s")
    if not parts:  # a probe of memory
        return "fits into memory"
    busy = disturbance(record)
    parts.append(
        f"{record['wall_seconds']:.0f} s in total" + (f"; disturbed (e.g. by other processes): {busy}" if busy else "")
    )
    return ", ".join(parts)
