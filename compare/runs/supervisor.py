"""Starts, watches and ends processes, one for each job. Every run gets a record, whatever its outcome."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from compare.launch import Seat
from compare.record import Record
from compare.runs.environ import worker_environment
from compare.runs.options import RunOptions
from compare.runs.outcome import CALLED_OFF, new_record, record_of_crash
from compare.runs.template import Forked, fork, python_command, start_early
from compare.spec import RunSpec

OnEvent = Callable[[Record], None]


@dataclass
class Worker:
    """A process that does a job.

    is_late: whether it was ended because it took too long. is_called_off: because another process of its run failed.
    """

    process: subprocess.Popen[str] | Forked
    stderr: IO[str]
    is_late: bool = False
    is_called_off: bool = False

    def answer(self, field: str, on_event: OnEvent) -> Record | None:
        """Return this field of the first event that has it, and pass on the events before; None if the process dies."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if field in event:
                return dict(event[field])
            on_event(event)
        self.process.wait()
        return None

    def last_words(self) -> str:
        """The last line that the process wrote to stderr."""
        self.stderr.seek(0)
        lines = self.stderr.read().splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def give_up(self) -> None:
        self.is_late = True
        self.end()

    def call_off(self) -> None:
        self.is_called_off = True
        self.end()

    def end(self) -> None:
        """Kill the process, if it is alive, and its children."""
        if self.process.poll() is not None:
            return
        if sys.platform == "win32" or isinstance(self.process, Forked):
            self.process.kill()
        else:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Place(NamedTuple):
    """One process of a run of several: its seat, variables of its environment, and a context that ends the worker when
    another process of the run fails."""

    seat: Seat
    variables: Mapping[str, str]
    watch: Callable[[Worker], AbstractContextManager[None]]


@contextmanager
def start(
    module: str,
    message: str,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
    forks: bool = False,
) -> Iterator[Worker]:
    """A fresh process that runs the ``main`` of a module; leaving the context ends it.

    Args:
        module: name of the module; its ``main`` begins with ``compare.runs.child.settle_in``.
        message: text for its stdin.
        environment: its complete environment; None = that of this process.
        timeout: seconds after which it is ended; None = never.
        forks: fork it from a process that has imported what runs need, instead of starting a Python.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process: subprocess.Popen[str] | Forked
        if forks:
            process = fork(module, environment or os.environ, stderr)
        else:
            process = subprocess.Popen(
                python_command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process, which ends the worker
            )
        assert process.stdin is not None
        worker = Worker(process, stderr)
        alarm = threading.Timer(min(timeout or math.inf, threading.TIMEOUT_MAX), worker.give_up)
        alarm.daemon = True
        alarm.start()
        try:
            with suppress(BrokenPipeError):  # it died at once; its exit code says why
                process.stdin.write(message)
                process.stdin.close()
            yield worker
        finally:
            alarm.cancel()
            worker.end()  # after its answer it has nothing left to do, and would take seconds to exit
            process.wait()
            if isinstance(process, Forked):
                process.release()


def may_fork(spec: RunSpec) -> bool:
    """Whether a run may begin in a fork: CUDA allows none, and what a template imports counts against a limit."""
    return sys.platform == "linux" and spec.device == "cpu" and spec.memory_limit is None


def make_ready(spec: RunSpec) -> None:
    """Begin the imports of the first of such runs."""
    if may_fork(spec):
        start_early(spec.threads)


def run_one(
    spec: RunSpec,
    on_event: OnEvent,
    run_options: RunOptions | None = None,
    warn: Callable[[str], None] = lambda _: None,
    place: Place | None = None,
) -> Record:
    """Run one spec in a fresh Python and return its record, whatever the outcome.

    place: of this process among those of the run; None = the run has no other.
    """
    run_options = run_options or RunOptions()
    last: Record = {}

    def hear(event: Record) -> None:
        nonlocal last
        if "warning" in event:
            warn(event["warning"])
        else:
            last = event
            on_event(event)

    started, kills = time.perf_counter(), oom_kills()
    message, environment = f"{spec.to_json()}\n{run_options.to_json()}", worker_environment(spec.threads)
    if place is not None:
        message, environment = f"{message}\n{place.seat.to_json()}", {**environment, **place.variables}
    hear({"phase": "loading torch", "done": None, "loss": None, "step": None})
    with (
        start(
            "compare.runs.process", message, environment=environment, timeout=run_options.timeout, forks=may_fork(spec)
        ) as worker,
        nullcontext() if place is None else place.watch(worker),
    ):
        record = worker.answer("record", hear)
        if record is not None:
            return record
        where, wall = place_of(last), time.perf_counter() - started
        if worker.is_called_off:
            return new_record(spec, "error", CALLED_OFF) | {"wall_seconds": wall}
        if worker.is_late:
            reason = f"not done after {run_options.timeout:g} s; stopped in {where}"
            return new_record(spec, "timeout", reason) | {"wall_seconds": wall}
        no_memory = kills is None or oom_kills() != kills
        code, words = worker.process.wait(), worker.last_words()
        return record_of_crash(spec, code, words, wall, where=where, no_memory=no_memory)


def oom_kills() -> int | None:
    """Processes that the system killed for lack of memory since boot; None where it does not count them."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def place_of(event: Record) -> str:
    """Phase and step of a run at its last event, in words."""
    return f"{event['phase']}, after step {event['step']}" if event["step"] is not None else str(event["phase"])
