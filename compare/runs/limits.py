"""The cores and memory that control groups (v1 and v2) of containers, job queues or services leave to this process."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM = Path("/")


def usable_cores(system: Path = SYSTEM) -> float:
    """Cores that this process may use; a quota may be a fraction of a core."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    least = float(there)
    for folder in groups(system, "cpu"):
        # "150000 100000", or two files: microseconds of CPU time in a period of microseconds
        quota = words(folder / "cpu.max") or words(folder / "cpu.cfs_quota_us") + words(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0].isdecimal():  # neither "max" nor "-1"
            least = min(least, int(quota[0]) / int(quota[1]))
    return int(least) if least.is_integer() else round(least, 2)


def memory_limit(system: Path = SYSTEM) -> int | None:
    """Bytes that the groups of this process may hold together; None where there is no limit."""
    return min((limit for _, limit in memory_groups(system)), default=None)


def memory_left(system: Path = SYSTEM) -> int | None:
    """Bytes of that limit that are free or hold droppable copies of files; None where there is no limit."""
    left = []
    for folder, limit in memory_groups(system):
        used = words(folder / "memory.current") or words(folder / "memory.usage_in_bytes") or ["0"]
        stat = words(folder / "memory.stat")
        kept = dict(zip(stat[::2], stat[1::2], strict=False))
        files = kept.get("total_inactive_file") or kept.get("inactive_file") or "0"
        left.append(max(0, limit - int(used[0]) + int(files)))
    return min(left, default=None)


def memory_groups(system: Path) -> list[tuple[Path, int]]:
    """The folders of this process's groups that have a limit, and the limit."""
    limits = []
    for folder in groups(system, "memory"):
        limit = words(folder / "memory.max") or words(folder / "memory.limit_in_bytes")
        if limit and limit[0].isdecimal() and int(limit[0]) < 2**60:  # v1 writes "no limit" as a number near 2**63
            limits.append((folder, int(limit[0])))
    return limits


def groups(system: Path, controller: str) -> list[Path]:
    """The folders of this process's group and of the groups above it, as far as they are visible."""
    folders = []
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = system / "sys/fs/cgroup" / (controller if controllers else "")
            own = mount / path.strip("/")
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(mount) and folder.is_dir()]
    return folders


def words(file: Path) -> list[str]:
    """The words of a small file; empty where it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []
