"""The CPU time that this process used and that other processes took meanwhile, as the system counts it.

Linux counts both; elsewhere only the CPU seconds of this process are known. A container sees the whole host in
/proc/stat, so CPU time that others took does not by itself mean that a run was disturbed: its own waiting does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

SYSTEM = Path("/")
SHORTEST = 0.2  # seconds; /proc/stat counts hundredths, too coarse for less


def clocks(system: Path = SYSTEM) -> dict[str, float]:
    """Seconds so far: ``wall``; ``cpu``, in which threads of this process ran; and where the system counts them
    ``waiting``, in which its threads were ready but did not run, and ``busy`` and ``idle`` of the cores it may use.
    Time that a hypervisor gave to other guests is busy."""
    read = {"wall": time.perf_counter(), "cpu": time.process_time()}
    try:
        tasks = [task.read_text() for task in system.glob("proc/self/task/*/schedstat")]
        lines = (system / "proc/stat").read_text().splitlines()
    except OSError:  # a thread that ended meanwhile, or a system without them
        return read
    waited = [int(words[1]) for text in tasks if len(words := text.split()) == 3]
    if any(waited):  # 0 where the kernel does not count it
        read["waiting"] = sum(waited) / 1e9
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    if counted := [list(map(int, words[1:])) for line in lines if (words := line.split())[0] in cores]:
        tick = os.sysconf("SC_CLK_TCK")
        # user nice system idle iowait irq softirq steal
        read["busy"] = sum(sum(core[:3]) + sum(core[5:8]) for core in counted) / tick
        read["idle"] = sum(sum(core[3:5]) for core in counted) / tick
    return read


def add_since(spent: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """``spent`` plus the time between two readings of `clocks`."""
    passed = {name: after[name] - before[name] for name in after if name in before}
    return {name: spent.get(name, 0.0) + passed.get(name, 0.0) for name in {**spent, **passed}}


def shares(spent: Mapping[str, float], threads: int, *, alone: bool = True) -> dict[str, float | None]:
    """``others_share``: the share of the usable cores that other processes took. ``lost_share``: the share of the CPU
    time that this process would have used but did not get. From 0 to 1; None where unknown, or the time is too short.

    The lost time is the larger of two: the time in which threads were ready but did not run, which holds in containers
    too; and the time that ``threads`` threads left unused while no core was idle, which covers a hypervisor's guests.

    alone: the run has no other process. Else busy cores may be its own, and only the first of the two counts.
    """
    wall, cpu = spent.get("wall", 0.0), spent.get("cpu", 0.0)
    lost, others_share = [], None
    if alone and wall >= SHORTEST and "busy" in spent:
        others = max(0.0, spent["busy"] - cpu)
        others_share = others / max(spent["busy"] + spent["idle"], others, 1e-9)
        lost.append(min(others, max(0.0, threads * wall - cpu - spent["idle"])))
    if wall >= SHORTEST and "waiting" in spent:
        lost.append(max(0.0, spent["waiting"]))
    lost_share = max(lost) / max(cpu + max(lost), 1e-9) if lost else None
    return {"others_share": others_share, "lost_share": lost_share}
