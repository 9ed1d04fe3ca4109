"""The machine that runs execute on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from compare.record import Record, now
from compare.runs.limits import memory_limit, usable_cores

PACKAGES = ("torch", "einops", "datasets", "matplotlib", "accelerate", "rich", "numpy", "xformers")


def describe_machine(*, device: str, threads: int, gpu: str | None, command: str) -> Record:
    """Describe the machine, for each record. Contains no user or host name."""
    installed = {name: version for name in PACKAGES if (version := version_of(name))}
    return {
        "python": platform.python_version(),
        "torch": installed.get("torch"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": threads,
        "memory_bytes": _memory_bytes(),
        "device": device,
        "gpu": gpu,
        "packages": installed,
        "git_commit": _git_commit(),
        "command": command,
        "started": now(),
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(there, memory_limit() or there)


def _git_commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
