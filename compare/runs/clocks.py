"""What a process used of the machine, and what others took meanwhile, as the system counts it.

Linux tells it; elsewhere only the CPU seconds of the process are known. A container sees the whole host in /proc/stat,
busy or not, so what others took does not say by itself that a run was disturbed: what it waited for does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

SYSTEM = Path("/")
SHORTEST = 0.2  # seconds; /proc/stat counts hundredths, which say little of less


def clocks(system: Path = SYSTEM) -> dict[str, float]:
    """Seconds that have passed: ``wall``; ``cpu``, what all threads of this process ran; and where they can be had
    ``waiting``, what these threads were ready to run and did not, and ``busy`` and ``idle`` of the cores that the
    process may use, with what a hypervisor gave to others as busy."""
    found = {"wall": time.perf_counter(), "cpu": time.process_time()}
    try:
        tasks = [task.read_text() for task in system.glob("proc/self/task/*/schedstat")]
        lines = (system / "proc/stat").read_text().splitlines()
    except OSError:  # a thread that ended meanwhile, or a system without them
        return found
    waited = [int(words[1]) for text in tasks if len(words := text.split()) == 3]
    if any(waited):  # kernels that do not count it say 0
        found["waiting"] = sum(waited) / 1e9
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    if counted := [list(map(int, words[1:])) for line in lines if (words := line.split())[0] in cores]:
        tick = os.sysconf("SC_CLK_TCK")
        # user nice system idle iowait irq softirq steal
        found["busy"] = sum(sum(core[:3]) + sum(core[5:8]) for core in counted) / tick
        found["idle"] = sum(sum(core[3:5]) for core in counted) / tick
    return found


def add_since(spent: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """``spent`` and what passed between two readings of `clocks`."""
    passed = {name: after[name] - before[name] for name in after if name in before}
    return {name: spent.get(name, 0.0) + passed.get(name, 0.0) for name in {**spent, **passed}}


def shares(spent: Mapping[str, float], threads: int) -> dict[str, float | None]:
    """``others_share``: of the cores that the process may use, what others took. ``lost_share``: of the CPU time that
    the process would have used, what it did not get. From 0 to 1; None where the system does not tell, or too short.

    What was lost is the larger of two: the time that threads were ready and did not run, which is right in containers
    too; and what ``threads`` threads left unused while no core stood idle, which sees a hypervisor's other guests.
    """
    wall, cpu = spent.get("wall", 0.0), spent.get("cpu", 0.0)
    lost, others_share = [], None
    if wall >= SHORTEST and "busy" in spent:
        others = max(0.0, spent["busy"] - cpu)
        others_share = others / max(spent["busy"] + spent["idle"], others, 1e-9)
        lost.append(min(others, max(0.0, threads * wall - cpu - spent["idle"])))
    if wall >= SHORTEST and "waiting" in spent:
        lost.append(max(0.0, spent["waiting"]))
    lost_share = max(lost) / max(cpu + max(lost), 1e-9) if lost else None
    return {"others_share": others_share, "lost_share": lost_share}
