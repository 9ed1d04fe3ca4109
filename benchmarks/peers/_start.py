"""Starts the measuring processes and returns their rows."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from benchmarks.peers._worker import Job
from compare.runs import supervisor
from compare.runs.supervisor import Worker

Row = dict[str, Any]
TIMEOUT = 300.0


@contextmanager
def start(job: Job) -> Iterator[Worker]:
    """A fresh process for a job; leaving the context ends it."""
    forks = sys.platform == "linux"
    with supervisor.start(Job.__module__, json.dumps(asdict(job)), timeout=TIMEOUT, forks=forks) as worker:
        yield worker


def row_of(worker: Worker, on_phase: Callable[[str], None] = lambda _: None) -> Row:
    """Wait for the end of a process; returns a row in any case."""
    row = worker.answer("row", lambda event: on_phase(event["phase"]))
    if row is not None:
        return row
    code = worker.process.returncode
    if worker.is_late:
        return {"status": "timeout", "reason": f"took longer than {TIMEOUT:.0f} s", "side": ""}
    if code == -signal.SIGKILL:
        return {"status": "oom", "reason": "killed by the system, most likely out of memory", "side": ""}
    return {"status": "error", "reason": f"exit {code}: {worker.last_words()}", "side": ""}
