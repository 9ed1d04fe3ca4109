"""Whether others disturbed a run, by what its record says that it had of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMIT = 0.15
IDLE = 0.05  # share of CPU time lost, up to which the system says that nothing disturbed a run
WAVERS = 0.5  # by how much steps of an undisturbed run may differ; on a virtual machine they do by a third
STAGES = {"measure": "while it was measured", "train": "in training"}


def disturbance(record: Mapping[str, Any]) -> str:
    """What disturbed a run by more than `LIMIT`, in words; "" where nothing did, or nothing is known.

    Either it did not get the CPU time that it was ready to use, or a step took another time in training than when it
    was measured, as where others came or went, or use the same GPU. Where the system counts lost CPU time and there was
    hardly any, times that differ by up to a half are the machine's own wavering: see `wavered`.
    """
    words = [
        f"{100 * lost:.0f} % of its CPU time lost to others {when}"
        for stage, when in STAGES.items()
        if (lost := record.get(f"{stage}_lost_share")) is not None and lost > LIMIT
    ]
    ratio = slowdown(record)
    if ratio is not None and abs(ratio - 1) > allowed(record):
        words.append(f"steps took {ratio:.2f} times as long in training as measured")
    return ", ".join(words)


def slowed(record: Mapping[str, Any]) -> bool:
    """Whether a run was disturbed in training, so that it did less in its time than it would alone: it lost CPU time
    there, or its steps took longer than measured. A disturbed measurement does not change what a training ends with."""
    lost, ratio = record.get("train_lost_share"), slowdown(record)
    return (lost is not None and lost > LIMIT) or (ratio is not None and ratio > 1 + allowed(record))


def allowed(record: Mapping[str, Any]) -> float:
    """By how much a step in training may differ from what was measured before it counts as disturbed."""
    lost = [record.get(f"{stage}_lost_share") for stage in STAGES]
    on_gpu = (record.get("spec") or {}).get("device") == "cuda"
    return WAVERS if not on_gpu and all(share is not None and share <= IDLE for share in lost) else LIMIT


def wavered(record: Mapping[str, Any]) -> float | None:
    """The time of a step in training over that measured, where they differ by more than 15 % though nothing disturbed
    the run; None elsewhere."""
    ratio = slowdown(record)
    return ratio if ratio is not None and abs(ratio - 1) > LIMIT and not disturbance(record) else None


def slowdown(record: Mapping[str, Any]) -> float | None:
    """The time of a step at full length in training over that measured before; None where one is not known."""
    measured, realised = record.get("step_seconds"), record.get("train_step_seconds")
    return realised / measured if measured and realised else None


def is_known(record: Mapping[str, Any]) -> bool:
    """Whether anything tells if the run was disturbed. Older records, and those of some systems, do not."""
    return slowdown(record) is not None or any(record.get(f"{stage}_lost_share") is not None for stage in STAGES)
