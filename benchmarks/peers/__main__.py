"""The command line ``python -m benchmarks.peers``: our backends against public implementations of the same methods."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
DESCRIPTION = """Compare each backend with public packages of the same method: time of forward + backward and peak
memory of one layer (d_model 256, 4 heads, batch 1, float32, CPU). The benchmark times only layers
that give the same outputs and gradients. Each measurement runs alone, in a fresh process. A pair
takes about two minutes for the five lengths on 2 cores, and the comparison with full attention
about 15 seconds a backend."""
EPILOG = """Ctrl-C keeps finished measurements. A later run into the same folder replaces the backends and
lengths that it measures and keeps the others."""


def main(arguments: list[str] | None = None, adapters: str = "benchmarks.peers") -> NoReturn:
    """Run the command line; exit code 0 done, 1 a bar is missed (with --check), 2 usage, 130 interrupted.

    Args:
        adapters: the package whose modules, except names with a leading underscore, are the adapters.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    from rich.console import Console

    console = Console()
    console.print("peers: loading the backends", highlight=False)
    import torch

    from benchmarks.peers import _report
    from compare.record import now, write_atomically
    from compare.runs.machine import describe_machine

    peers, backends = find(adapters), subquadratic()
    known = sorted({*peers, *backends})
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser().error(f"{unknown[0]!r} has no peer and is not a sub-quadratic backend; known: {', '.join(known)}")
    chosen = options.names or known
    tasks = [Task("peer", name, peers[name], n) for name in chosen if name in peers for n in options.seq_len]
    if options.full_len:
        tasks += [Task("full", name, name, options.full_len) for name in chosen if name in backends]

    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "peers.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.peers", *words])
    environment = describe_machine(device="cpu", threads=torch.get_num_threads(), gpu=None, command=command)
    interrupted = False
    try:
        measure(tasks, options.rounds, {"run": now(), "environment": environment}, file, console)
    except KeyboardInterrupt:
        interrupted = True
    rows = _report.read_rows(file)
    if rows:
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
        _report.write_files(rows, options.out)
        show(_report.Results(rows), console)
        console.print(f"files: {file}, peers.md, peers.png", highlight=False, soft_wrap=True)
    if interrupted:
        console.print("interrupted: finished measurements are kept", highlight=False)
        sys.exit(130)
    sys.exit(1 if options.check and _report.Results(rows).misses() else 0)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("names", nargs="*", metavar="NAME", help="backends (all)")
    found.add_argument(
        "--seq-len",
        type=lengths,
        default=[1024, 2048, 4096, 8192, 16384],
        metavar="N,M",
        help="lengths (1024,2048,4096,8192,16384)",
    )
    found.add_argument(
        "--rounds", type=positive, metavar="K", help="timed steps of each side (6 or more, about 5 seconds)"
    )
    found.add_argument(
        "--full-len",
        type=int,
        default=8192,
        metavar="N",
        help="length of the comparison with full attention; 0 skips it (%(default)s)",
    )
    found.add_argument(
        "--out", type=Path, default=Path("results/cpu-2core/peers"), metavar="DIR", help="folder (%(default)s)"
    )
    found.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    return found


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def lengths(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def find(package: str) -> dict[str, str]:
    """Adapter name -> module."""
    path = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
    return {name: f"{package}.{name}" for name in names}


def subquadratic() -> list[str]:
    import zoo

    return [name for name in zoo.available() if zoo.describe(name).traits.subquadratic]


@dataclass(frozen=True)
class Task:
    """One cell of a table: a pair of an adapter at a length, or a backend against full attention."""

    kind: str
    backend: str
    subject: str
    length: int
    index: int = 0
    package: str = ""

    @property
    def weight(self) -> float:
        """The approximate duration in seconds."""
        return 12 + self.length / 800

    def __str__(self) -> str:
        against = "full attention" if self.kind == "full" else self.package or "its peer"
        return f"{self.backend} against {against} at {self.length:,}"


def measure(tasks: list[Task], rounds: int | None, common: Row, file: Path, console: Console) -> None:
    """Measure the tasks one after another; append the row of each as it ends."""
    from compare.record import append_record

    todo = list(tasks)
    with progress(console) as tell:
        started, done = time.perf_counter(), 0.0
        while todo:
            task = todo.pop(0)
            left = sum(t.weight for t in (task, *todo))
            if done:
                left *= (time.perf_counter() - started) / done
            tell.begin(task, done, sum(t.weight for t in todo), left)
            row = common | {"kind": task.kind, "backend": task.backend, "package": "", "seq_len": task.length}
            row |= measure_one(task, rounds, tell.phase)
            append_record(file, row)
            tell.end(task, row)
            if task.index == 0:  # the first row says how many pairs the adapter has
                others = range(1, row.get("pairs", 1))
                todo[:0] = [Task(task.kind, task.backend, task.subject, task.length, i) for i in others]
            done += task.weight


def measure_one(task: Task, rounds: int | None, say: Callable[[str], None]) -> Row:
    from benchmarks.peers._start import row_of, start
    from benchmarks.peers._worker import Job

    if task.kind == "full":
        with start(Job("full", task.subject, task.length, rounds=rounds)) as worker:
            return row_of(worker, say)
    with start(Job("time", task.subject, task.length, task.index, rounds=rounds)) as worker:
        row = row_of(worker, say)
    if row["status"] != "ok":
        return row
    say("memory of each")
    # This measures memory, not time, so both sides run at once, each in a process of its own.
    ours, theirs = (Job("memory", task.subject, task.length, task.index, side) for side in ("ours", "theirs"))
    with start(ours) as first, start(theirs) as second:
        for found in (row_of(first), row_of(second)):
            row = found | row if found["status"] == "ok" else row | found
    return row


class Plain:
    """Progress where there is no terminal to draw on: a line as a task begins and one as it ends."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def begin(self, task: Task, done: float, after: float, left: float) -> None:
        self.console.print(f"{task}: started, about {clock(left)} left", highlight=False, soft_wrap=True)

    def phase(self, phase: str) -> None:
        pass

    def end(self, task: Task, row: Row) -> None:
        from rich.markup import escape

        self.console.print(escape(outcome(task, row)), highlight=False, soft_wrap=True)


class Bar(Plain):
    """A bar with the time left."""

    def __init__(self, console: Console, bars: Any) -> None:
        super().__init__(console)
        self.bars, self.bar = bars, bars.add_task("starting", total=None, left="")

    def begin(self, task: Task, done: float, after: float, left: float) -> None:
        self.title = str(task)
        total = done + task.weight + after
        self.bars.update(self.bar, description=self.title, completed=done, total=total, left=f"{clock(left)} left")

    def phase(self, phase: str) -> None:
        self.bars.update(self.bar, description=f"{self.title}: {phase}")


@contextmanager
def progress(console: Console) -> Iterator[Plain]:
    if not console.is_terminal:
        yield Plain(console)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # Twice a second: drawing must not take time from what is being measured.
    with Progress(*columns, console=console, refresh_per_second=2, transient=True) as bars:
        yield Bar(console, bars)


def clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def outcome(task: Task, row: Row) -> str:
    from benchmarks.peers._report import memory_ratio, told

    package = row["package"] if task.kind == "peer" else "full attention"
    name = f"{task.backend} against {package or 'its peer'} at {task.length:,}"
    if row["status"] != "ok":
        return f"{name}: {row['status']}, {row['reason']}"
    low, median, high = row["time_ratio"]
    memory = f", memory {told(memory_ratio(row))}" if task.kind == "peer" else ""
    return f"{name}: time {median:.2f} ({low:.2f} to {high:.2f} in {row['rounds']} rounds){memory}"


def show(results: Any, console: Console) -> None:
    from rich.table import Table

    from benchmarks.peers._report import EACH, MEMORY, RULES, TIME

    tables = [(f"{m.title}, ours over theirs", results.table(m)) for m in (TIME, MEMORY)] if results.rows else []
    if results.against_full:
        tables.append((f"Time {results.full_title()}", results.full_table()))
    for title, (heading, body) in tables:
        table = Table(title=title, title_justify="left")
        for column in heading:
            table.add_column(column, justify="left" if column in ("backend", "peer") else "right")
        for row in body:
            table.add_row(*row, end_section=len(body) > 1 and row is body[-2] and body[-1][0] == "median")
        console.print(table)
    console.print(RULES, highlight=False)
    misses = results.misses()
    console.print("Missed:" if misses else "All bars are met.", highlight=False)
    for miss in misses:
        console.print(f"  {miss}", markup=False, highlight=False, soft_wrap=True)
    excesses = results.excesses()
    if excesses:
        console.print(f"Single lengths above {EACH}:", highlight=False)
    for excess in excesses:
        console.print(f"  {excess}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
