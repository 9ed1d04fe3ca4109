"""Cores that a run has to itself, among all runs that clusters do on this machine, for whichever comparison.

A run holds a name for each core, which no other process can take, and which the system frees when its process ends in
any way: an abstract socket of Linux. Other systems can neither hold nor pin cores.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compare.runs.limits import words

SYSTEM = Path("/")
AGAIN = 0.2  # seconds until cores that others hold are tried again


@contextmanager
def own_cores(threads: int | None) -> Iterator[None]:
    """Wait for cores that no other run holds, and pin this thread and the processes that it starts to them.

    threads: how many physical cores to hold, at most all; None = all, so that no other run is on the machine.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    cores = physical_cores(before)
    number = len(cores) if threads is None else min(threads, len(cores))
    with ExitStack() as stack:
        while (held := hold(cores, number, stack)) is None:
            time.sleep(AGAIN)
        os.sched_setaffinity(0, set().union(*held))
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def hold(cores: Collection[frozenset[int]], number: int, stack: ExitStack) -> list[frozenset[int]] | None:
    """Hold so many of the cores until the stack is closed; None, and none held, where fewer are free."""
    with ExitStack() as trial:
        held: list[frozenset[int]] = []
        for core in cores:
            if len(held) == number:
                break
            name = trial.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            try:
                name.bind(f"\0attention-zoo-core-{min(core)}")
            except OSError:  # another run holds it
                continue
            held.append(core)
        if len(held) < number:
            return None
        stack.push(trial.pop_all())
        return held


def physical_cores(usable: Collection[int], system: Path = SYSTEM) -> list[frozenset[int]]:
    """The usable CPUs, those of one physical core together, in rising order."""
    cores: dict[int, set[int]] = {}
    for cpu in sorted(usable):
        folder = system / f"sys/devices/system/cpu/cpu{cpu}/topology"
        text = "".join(words(folder / "thread_siblings_list")) or str(cpu)  # "0-1", or "0,64"
        cores.setdefault(int(text.replace("-", ",").split(",")[0]), set()).add(cpu)
    return [frozenset(core) for core in cores.values()]
