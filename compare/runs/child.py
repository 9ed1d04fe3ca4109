"""The start of a supervised process, and its messages to the supervisor: JSON lines on stdout."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TextIO

from compare.record import Record
from compare.runs.limits import memory_left

PR_SET_PDEATHSIG = 1


class Events:
    """Sends events to the supervisor."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.last = 0.0

    def send(self, event: Record) -> None:
        self.last = time.perf_counter()
        self.out.write(json.dumps(event) + "\n")
        self.out.flush()

    def phase(self, name: str, done: float | None = None, loss: float | None = None, step: int | None = None) -> None:
        self.send({"phase": name, "done": done, "loss": loss, "step": step})

    def still(self, name: str, done: float | None = None) -> None:
        """Send the progress of an unchanged phase, at most twice a second."""
        if time.perf_counter() - self.last >= 0.5:
            self.phase(name, done)

    def warn(self, text: str) -> None:
        self.send({"warning": text})


def settle_in() -> Events:
    """Reserve stdout for events, and die with the supervisor. Call it before anything else."""
    # Only events reach the supervisor's pipe: the prints of libraries go to stderr.
    events = Events(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    die_with_parent()
    return events


def die_with_parent() -> None:
    """Let the system kill this process when its parent dies: an orphan would train on and disturb the next run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(limit: int | None = None) -> None:
    """Make an allocation that does not fit fail in this process, before the system kills a process of its choice.

    limit: bytes of data this process may hold, its libraries included; None = nearly all free memory.
    """
    adjust = Path("/proc/self/oom_score_adj")
    info = Path("/proc/meminfo")
    if not (adjust.exists() and info.exists()):
        return
    import resource  # exists where /proc does

    adjust.write_text("1000")
    available = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    left = memory_left()
    free = int(available.split()[1]) * 1024
    free = int(0.95 * (free if left is None else min(free, left)))
    limit = free if limit is None else min(limit, free)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
