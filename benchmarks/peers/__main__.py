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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

from benchmarks.peers._worker import Shape

Row = dict[str, Any]
DTYPES = ("float32", "bfloat16")
DESCRIPTION = """Compare each backend with public packages of the same method: the time of forward + backward, of
forward and of inference, and the peak memory of a training step, of one layer on a CPU. The
benchmark times only layers that give the same outputs and gradients. Each measurement runs alone,
in a fresh process. A pair takes about four minutes for the five shapes on 2 cores, and the
comparison with full attention about 10 seconds a backend."""
EPILOG = """Ctrl-C keeps finished measurements. A later run into the same folder replaces the backends, shapes
and dtypes that it measures and keeps the others."""
SHAPES = "1x2048x512x8,8x1000x384x6,1x8192x512x8,1x16384x256x4,4x4096x256x4"
FULL_SHAPE = "1x8192x256x4"


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

    from benchmarks.peers import _chart, _report
    from compare.record import now, write_atomically
    from compare.runs.machine import describe_machine

    peers, backends = find(adapters), subquadratic()
    known = sorted({*peers, *backends})
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser().error(f"{unknown[0]!r} has no peer and is not a sub-quadratic backend; known: {', '.join(known)}")
    chosen = options.names or known
    each = [(shape, dtype) for shape in options.shapes for dtype in options.dtype]
    tasks = [Task("peer", name, peers[name], *one) for name in chosen if name in peers for one in each]
    tasks += [Task("full", name, name, shape) for name in chosen if name in backends for shape in options.full_shape]

    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "peers.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.peers", *words])
    environment = describe_machine(device="cpu", threads=torch.get_num_threads(), gpu=None, command=command)
    interrupted = False
    try:
        measure(tasks, options.rounds, {"run": now(), "environment": environment}, file, console)
    except KeyboardInterrupt:
        interrupted = True
    rows, misses = _report.read_rows(file), []
    if rows:
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
        _chart.write_files(rows, options.out)
        misses = show(rows, console)
        console.print(f"files: {file}, peers.md, peers.png", highlight=False, soft_wrap=True)
    if interrupted:
        console.print("interrupted: finished measurements are kept", highlight=False)
        sys.exit(130)
    sys.exit(1 if options.check and misses else 0)


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
        "--shapes",
        type=shapes,
        default=shapes(SHAPES),
        metavar="BxNxDxH,…",
        help=f"batch, length, d_model and heads of the layers ({SHAPES})",
    )
    found.add_argument(
        "--dtype",
        type=dtypes,
        default=["float32"],
        metavar="T,…",
        help="float32, bfloat16 by autocast, or both (float32)",
    )
    found.add_argument(
        "--rounds",
        type=positive,
        metavar="K",
        help="timed steps of each side (6 or more, about 3 seconds a mode)",
    )
    found.add_argument(
        "--full-shape",
        type=shapes,
        default=shapes(FULL_SHAPE),
        metavar="BxNxDxH",
        help=f"shape of the comparison with full attention; an empty word skips it ({FULL_SHAPE})",
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


def shapes(text: str) -> list[Shape]:
    found = []
    for part in filter(None, text.split(",")):
        numbers = part.split("x")
        if len(numbers) != len(Shape._fields) or not all(number.isdecimal() and int(number) for number in numbers):
            raise argparse.ArgumentTypeError(
                f"expected batch x length x d_model x heads, like 1x2048x512x8, got {part!r}"
            )
        shape = Shape(*map(int, numbers))
        if shape.d_model % shape.n_heads:
            raise argparse.ArgumentTypeError(f"expected a d_model that the heads divide, got {part!r}")
        found.append(shape)
    return found


def dtypes(text: str) -> list[str]:
    for part in (found := text.split(",")):
        if part not in DTYPES:
            raise argparse.ArgumentTypeError(f"expected {' or '.join(DTYPES)}, got {part!r}")
    return found


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
    """One cell of a table: a pair of an adapter at a shape, or a backend against full attention."""

    kind: str
    backend: str
    subject: str
    shape: Shape
    dtype: str = "float32"
    index: int = 0

    @property
    def weight(self) -> float:
        """The approximate duration in seconds."""
        return 12 + self.shape.batch * self.shape.length * self.shape.d_model / 200_000

    def __str__(self) -> str:
        from benchmarks.peers._report import title_of

        return title_of({"kind": self.kind, "backend": self.backend, "shape": self.shape, "dtype": self.dtype})


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
            row = common | {"kind": task.kind, "backend": task.backend, "shape": task.shape, "dtype": task.dtype}
            row |= {"package": ""}
            row |= measure_one(task, rounds, tell.phase)
            append_record(file, row)
            tell.end(row)
            if task.index == 0:  # the first row says how many pairs the adapter has
                others = range(1, row.get("pairs", 1))
                todo[:0] = [replace(task, index=i) for i in others]
            done += task.weight


def measure_one(task: Task, rounds: int | None, say: Callable[[str], None]) -> Row:
    from benchmarks.peers._start import row_of, start
    from benchmarks.peers._worker import Job

    if task.kind == "full":
        with start(Job("full", task.subject, task.shape, rounds=rounds)) as worker:
            return row_of(worker, say)
    job = Job("time", task.subject, task.shape, task.dtype, task.index, rounds=rounds)
    with start(job) as worker:
        row = row_of(worker, say)
    if row["status"] != "ok":
        return row
    say("memory of each")
    # This measures memory, not time, so both sides run at once, each in a process of its own.
    ours, theirs = (replace(job, what="memory", side=side) for side in ("ours", "theirs"))
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

    def end(self, row: Row) -> None:
        from rich.markup import escape

        self.console.print(escape(outcome(row)), highlight=False, soft_wrap=True)


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


def outcome(row: Row) -> str:
    from benchmarks.peers._report import MEMORY, title_of, told

    if row["status"] != "ok":
        return f"{title_of(row)}: {row['status']}, {row['reason']}"
    parts = [f"{mode} {told(times['time_ratio'][1])}" for mode, times in row["times"].items()]
    if row["kind"] == "peer":
        parts.append(f"memory {told(MEMORY.ratio(row))}")
    return f"{title_of(row)}: {', '.join(parts)}"


def show(rows: list[Row], console: Console) -> list[str]:
    """Print the tables and the bars that are missed, which it returns."""
    from rich.table import Table

    from benchmarks.peers._report import RULES, by_dtype

    parts = by_dtype(rows)
    for title, heading, body in (table for results in parts for table in results.tables()):
        table = Table(title=title, title_justify="left")
        for column in heading:
            table.add_column(column, justify="left" if column in ("backend", "peer") else "right")
        for row in body:
            table.add_row(*row, end_section=len(body) > 1 and row is body[-2] and body[-1][0] == "median")
        console.print(table)
    console.print(RULES, highlight=False)
    misses = [miss for results in parts for miss in results.misses()]
    console.print("Missed:" if misses else "All bars are met.", highlight=False)
    for miss in misses:
        console.print(f"  {miss}", markup=False, highlight=False, soft_wrap=True)
    return misses


if __name__ == "__main__":
    main()
