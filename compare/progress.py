"""What a comparison shows while it works: a live table on a terminal, plain lines elsewhere, JSON, or errors alone.

Nothing is drawn unless an event came, and at most twice a second: drawing must not take time from what is measured.
"""

from __future__ import annotations

import json
import statistics
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

from compare.record import Record
from compare.spec import RunSpec

PLAIN_SECONDS = 15.0  # between lines where there is no terminal to draw on
DRAW_SECONDS = 0.5
OVERHEAD = 15.0  # seconds of a run beside its budget, until one has ended
STYLES = {"ok": "green", "running": "bold", "waiting": "dim"}


class Runs:
    """All runs of a comparison: what ended, what runs, and how long the rest will take, about."""

    def __init__(self, specs: Sequence[RunSpec], records: Sequence[Record]) -> None:
        """records: of the runs that ended earlier."""
        self.specs = list(specs)
        self.numbers = {spec.run_id: number for number, spec in enumerate(self.specs, 1)}
        self.records = {record["run_id"]: record for record in records}
        self.current: RunSpec | None = None
        self.event: Record = {}
        self.since = self.trained_since = 0.0

    def start(self, spec: RunSpec, at: float) -> None:
        self.current, self.event, self.since, self.trained_since = spec, {}, at, at

    def update(self, event: Record, at: float) -> None:
        if event["phase"] == "training" and self.event.get("phase") != "training":
            self.trained_since = at
        self.event = event

    def finish(self, record: Record) -> None:
        self.records[record["run_id"]], self.current = record, None

    def title(self, spec: RunSpec) -> str:
        lr = f" · lr {spec.lr:g}" if spec.search else ""
        where = f"{spec.task} · N {spec.seq_len} · seed {spec.seed}{lr}"
        return f"{self.numbers[spec.run_id]}/{len(self.specs)} {spec.label} · {where}"

    def estimate(self, spec: RunSpec) -> float | None:
        """Seconds of a whole run: of its like with other seeds, else its budget and what comes beside it."""
        ended = [(other, self.records[other.run_id]) for other in self.specs if other.run_id in self.records]
        took = [(other, record["wall_seconds"]) for other, record in ended if "wall_seconds" in record]
        alike = [wall for other, wall in took if (other.label, other.data_id) == (spec.label, spec.data_id)]
        if alike:
            return statistics.fmean(alike)
        if spec.budget is not None:
            beside = [wall - other.budget for other, wall in took if other.budget is not None and wall > other.budget]
            return spec.budget + (statistics.fmean(beside) if beside else OVERHEAD)
        same = [wall for other, wall in took if other.data_id == spec.data_id] or [wall for _, wall in took]
        return statistics.fmean(same) if same else None

    def left_of_run(self, at: float) -> float | None:
        """Seconds left of the run that runs; None where nothing tells."""
        if self.current is None:
            return None
        done = self.event.get("done")
        if self.event.get("phase") == "training" and done:
            whole = self.current.budget or (at - self.trained_since) / done
            return whole * (1 - float(done))
        whole = self.estimate(self.current)
        return None if whole is None else max(0.0, whole - (at - self.since))

    def left(self, at: float) -> float | None:
        """Seconds left of the comparison; None where nothing tells."""
        waiting = [s for s in self.specs if s.run_id not in self.records and s is not self.current]
        parts = [self.estimate(spec) for spec in waiting] + [self.left_of_run(at)] * (self.current is not None)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


class Progress:
    """Plain lines: what a log holds. The others show the same in their own way."""

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
        """Where the results are to be looked at."""
        self.say(f"charts and tables: {path}")

    @contextmanager
    def preparing(self, title: str) -> Iterator[Callable[[float], None]]:
        """Show the share done, 0 to 1, of what comes before the runs."""
        self.last = time.perf_counter()

        def on_progress(done: float) -> None:
            if self.is_due(PLAIN_SECONDS):
                self.say(f"{title} {done:.0%}")

        yield on_progress

    @contextmanager
    def comparing(self, specs: Sequence[RunSpec], records: Sequence[Record]) -> Iterator[None]:
        """Show these runs; ``records`` are of those that ended earlier."""
        self.runs = Runs(specs, records)
        yield

    def started(self, spec: RunSpec) -> None:
        self.last = time.perf_counter()
        self.runs.start(spec, self.last)
        self.say(f"{self.runs.title(spec)}: started")

    def update(self, event: Record) -> None:
        """An event of the run that was started."""
        at = time.perf_counter()
        self.runs.update(event, at)
        if self.is_due(PLAIN_SECONDS):
            self.say(f"  {describe_phase(event)}{left_in_words(self.runs.left_of_run(at))}")

    def finished(self, spec: RunSpec, record: Record) -> None:
        self.runs.finish(record)
        self.say(f"{self.runs.title(spec)}: {outcome(record)}")

    def is_due(self, seconds: float) -> bool:
        """Whether so much time has passed since the last time that it had."""
        if time.perf_counter() - self.last < seconds:
            return False
        self.last = time.perf_counter()
        return True


class TableProgress(Progress):
    """A live table of all runs; the outcome of each goes by above it and stays."""

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

    def update(self, event: Record) -> None:
        self.runs.update(event, time.perf_counter())
        if self.is_due(DRAW_SECONDS):
            self.live.refresh()

    def table(self) -> RenderableType:
        """As many runs as fit, the current one among them."""
        runs, at = self.runs, time.perf_counter()
        room = max(1, self.console.height - 4)
        current = runs.numbers[runs.current.run_id] if runs.current else len(runs.records)
        first = max(0, min(current - 1 - room * 2 // 3, len(runs.specs) - room))
        shown = runs.specs[first : first + room]
        common = {name: len({getattr(s, name) for s in runs.specs}) == 1 for name in ("task", "seq_len", "seed")}
        rows = [(spec, *self.state(spec, at)) for spec in shown]
        width = self.console.width - max((len(left) for *_, left in rows), default=0) - 4
        state_width = min(max((len(state) for _, _, state, _ in rows), default=0), width * 3 // 5)
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for spec, style, state, left in rows:
            run = Text(run_name(spec, common, width - state_width), style=style)
            table.add_row(run, Text(cut(state, state_width), style=style), Text(left, style=style))
        return Group(table, Text(cut(self.summary(first, len(shown), at), self.console.width), style="dim"))

    def state(self, spec: RunSpec, at: float) -> tuple[str, str, str]:
        """Style of a run, its state in words, and the time that it took or has left."""
        if spec is self.runs.current:
            left = self.runs.left_of_run(at)
            return STYLES["running"], describe_phase(self.runs.event), left_in_words(left).removeprefix(", ")
        record = self.runs.records.get(spec.run_id)
        if record is None:
            return STYLES["waiting"], "waiting", ""
        took = clock(record["wall_seconds"]) if "wall_seconds" in record else ""
        if record["status"] != "ok":
            return "red", f"{record['status']}: {record['reason']}", took
        return (
            STYLES["ok"],
            f"{record['metric']} {record['test_score']:.1%}" if "test_score" in record else "done",
            took,
        )

    def summary(self, first: int, shown: int, at: float) -> str:
        runs = self.runs
        failed = sum(record["status"] != "ok" for record in runs.records.values())
        parts = [f"{len(runs.records)} of {len(runs.specs)} runs done"]
        parts += [f"{failed} failed"] * (failed > 0)
        parts += [f"{clock(left)} left" for left in [runs.left(at)] if left is not None]
        parts += [f"showing {first + 1} to {first + shown}"] * (shown < len(runs.specs))
        return " · ".join(parts)


class QuietProgress(Progress):
    """Nothing but what went wrong, on ``console``, and at the end the path of the report on stdout."""

    def say(self, text: str) -> None:
        pass

    def report(self, path: Path) -> None:
        print(path)

    def finished(self, spec: RunSpec, record: Record) -> None:
        super().finished(spec, record)
        if record["status"] != "ok":
            self.error(f"{self.runs.title(spec)}: {outcome(record)}")


class JsonProgress(Progress):
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

    def update(self, event: Record) -> None:
        at = time.perf_counter()
        self.runs.update(event, at)
        assert self.runs.current is not None
        left = {"seconds_left": self.runs.left_of_run(at), "comparison_seconds_left": self.runs.left(at)}
        self.send("progress", run_id=self.runs.current.run_id, **event, **left)

    def finished(self, spec: RunSpec, record: Record) -> None:
        self.runs.finish(record)
        told = ("status", "reason", "metric", "test_score", "wall_seconds")
        self.send("finished", **self.name(spec), **{name: record.get(name) for name in told})

    def name(self, spec: RunSpec) -> dict[str, object]:
        told = ("run_id", "label", "task", "seq_len", "seed")
        return {name: getattr(spec, name) for name in told}


def choose_progress(*, quiet: bool, as_json: bool) -> Progress:
    """How this comparison is shown."""
    if as_json:
        return JsonProgress(Console(stderr=True))
    if quiet:
        return QuietProgress(Console(stderr=True))
    console = Console()
    return TableProgress(console) if console.is_terminal else Progress(console)


def describe_phase(event: Record) -> str:
    if not event:
        return "starting"
    if event["done"] is None:
        return str(event["phase"])
    loss = "" if event["loss"] is None else f", loss {event['loss']:.3f}"
    return f"{event['phase']} {event['done']:.0%}{loss}"


def left_in_words(seconds: float | None) -> str:
    return "" if seconds is None else f", {clock(seconds)} left"


def clock(seconds: float) -> str:
    """90 -> 1:30, 4000 -> 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def run_name(spec: RunSpec, common: dict[str, bool], width: int) -> str:
    """The variant, and what else not all runs have in common; the variant is cut first."""
    lr = f" · lr {spec.lr:g}" if spec.search else ""
    parts = {"task": f" · {spec.task}", "seq_len": f" · N {spec.seq_len}", "seed": f" · seed {spec.seed}"}
    rest = "".join(text for name, text in parts.items() if not common[name]) + lr
    return cut(cut(spec.label, max(6, width - len(rest))) + rest, width)


def outcome(record: Record) -> str:
    """One line on how a run ended."""
    if record["status"] != "ok":
        return f"{record['status']}: {record['reason']}"
    score = f"{record['metric']} {record['test_score']:.1%}, " if "test_score" in record else ""
    return (
        f"{score}{record['tokens_per_second']:,.0f} tokens/s, step {record['step_seconds']:.3g} s, "
        f"{record['wall_seconds']:.0f} s in all"
    )
