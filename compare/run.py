"""Run specs one after another, each in a fresh process, and write a record as each ends."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from compare.record import Record, append_record, read_records
from compare.spec import DataId, RunSpec
from compare.worker import new_record, record_of_crash

PLAIN_SECONDS = 15.0  # between lines where there is no terminal to draw on
OnEvent = Callable[[Record], None]


def run_all(specs: list[RunSpec], records: Path, console: Console, unprepared: dict[DataId, str]) -> list[Record]:
    """Run what has no record yet; ``records`` holds the finished runs at any moment.

    Runs with ``unprepared`` data become records of status ``error``, with the reason given. Runs that ended in
    ``error`` are tried again; every other status is a finished run.

    Returns:
        One record for each spec that is done, earlier ones included. Fewer than specs after Ctrl-C.
    """
    finished = {}
    if records.exists():
        known, warnings = read_records(records)
        for warning in warnings:
            console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
        finished = {r["run_id"]: r for r in known if r["status"] != "error"}
    done = [finished[s.run_id] for s in specs if s.run_id in finished]
    todo = [s for s in specs if s.run_id not in finished]
    if done:
        console.print(f"{len(done)} of {len(specs)} runs are already in {escape(str(records))}", soft_wrap=True)
    for number, spec in enumerate(todo, len(done) + 1):
        title = f"{number}/{len(specs)} {spec.label} · {spec.task} · N {spec.seq_len} · seed {spec.seed}"
        if spec.data_id in unprepared:
            record = new_record(spec, "error", unprepared[spec.data_id])
        else:
            with show_progress(title, spec, console) as on_event:
                record = run_one(spec, on_event)
        record["command"] = reproduce(spec)
        append_record(records, record)
        done.append(record)
        console.print(f"{escape(title)}: {escape(outcome(record))}", highlight=False, soft_wrap=True)
    return done


def run_one(spec: RunSpec, on_event: OnEvent) -> Record:
    """Run one spec in a fresh Python and return its record, whatever becomes of it."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(spec.threads)}
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends the worker
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it died at once; its exit says why
                process.stdin.write(spec.to_json())
                process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                if "record" in event:
                    process.wait()
                    return dict(event["record"])
                on_event(event)
            returncode = process.wait()
        finally:
            process.kill()
            process.wait()
        stderr.seek(0)
        return record_of_crash(spec, returncode, stderr.read(), time.perf_counter() - started)


@contextmanager
def show_progress(title: str, spec: RunSpec, console: Console) -> Iterator[OnEvent]:
    """A bar with the time left on a terminal; a line now and then elsewhere."""
    if not console.is_terminal:
        console.print(f"{escape(title)}: started", highlight=False, soft_wrap=True)
        yield plain_progress(console, spec)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # Twice a second: drawing must not take time from what is being measured.
    with Progress(*columns, console=console, refresh_per_second=2, transient=True) as progress:
        task = progress.add_task(escape(title), total=1.0, phase="starting", left="")
        since = time.perf_counter()

        def on_event(event: Record) -> None:
            progress.update(
                task,
                completed=event["done"] or 0.0,
                phase=describe_phase(event),
                left=describe_left(event, spec, time.perf_counter() - since),
            )

        yield on_event


def plain_progress(console: Console, spec: RunSpec) -> OnEvent:
    since = time.perf_counter()
    last = since

    def on_event(event: Record) -> None:
        nonlocal last
        if time.perf_counter() - last >= PLAIN_SECONDS:
            last = time.perf_counter()
            left = describe_left(event, spec, last - since)
            console.print(f"  {describe_phase(event)} {left}", highlight=False, soft_wrap=True)

    return on_event


def describe_phase(event: Record) -> str:
    if event["done"] is None:
        return str(event["phase"])
    loss = "" if event["loss"] is None else f", loss {event['loss']:.3f}"
    return f"{event['phase']} {event['done']:.0%}{loss}"


def describe_left(event: Record, spec: RunSpec, elapsed: float) -> str:
    """Training time left: from the budget, or from the pace so far."""
    if not event["done"]:
        return ""
    left = spec.budget * (1 - event["done"]) if spec.budget else elapsed * (1 / event["done"] - 1)
    return f"{left // 60:.0f}:{left % 60:02.0f} left"


def outcome(record: Record) -> str:
    """One line on how a run ended."""
    if record["status"] != "ok":
        return f"{record['status']}: {record['reason']}"
    if record["spec"]["probe"] is not None:
        return "fits"
    score = f"{record['metric']} {record['test_score']:.1%}, " if "test_score" in record else ""
    return (
        f"{score}{record['tokens_per_second']:,.0f} tokens/s, step {record['step_seconds']:.3g} s, "
        f"{record['wall_seconds']:.0f} s in all"
    )


def reproduce(spec: RunSpec) -> str:
    """The command that repeats this run alone. Options go by name, and seeds count from 0."""
    words = ["python -m compare --no-control", f"--variants {spec.variant}", f"--tasks {spec.task}"]
    words += [f"--set {spec.variant}.{name}={value}" for name, value in spec.options]
    words += [shlex.join(["--set", f"{spec.task}.{name}={value}"]) for name, value in spec.task_options]
    words += [f"--seq-len {spec.seq_len}", f"--seeds {spec.seed + 1}"]
    words.append(f"--steps {spec.steps}" if spec.steps is not None else f"--budget {spec.budget:g}")
    words += [f"--batch-size {spec.batch_size}", f"--accumulate {spec.accumulate}"]
    words += [f"--d-model {spec.d_model}", f"--n-heads {spec.n_heads}", f"--n-layers {spec.n_layers}"]
    words += [f"--positions {spec.positions}", f"--lr {spec.lr:g}", f"--device {spec.device}", f"--dtype {spec.dtype}"]
    words.append("--length-warmup" if spec.length_warmup else "--no-length-warmup")
    words += ["--checkpointing"] * spec.checkpointing + ["--compile"] * spec.compile
    words += [f"--memory-limit {spec.memory_limit}"] if spec.memory_limit else []
    return " ".join(words)
