"""Whether other processes disturbed a run, judged by the CPU time and the step times in its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMIT = 0.15
IDLE = 0.05  # share of lost CPU time up to which the system's count says that nothing disturbed a run
WAVERS = 0.5  # how much step times of an undisturbed run may differ; on a virtual machine they differ by a third
STAGES = {"measure": "while it was measured", "train": "in training"}


def disturbance(record: Mapping[str, Any]) -> str:
    """What disturbed a run by more than `LIMIT`, in words; "" where nothing did, or nothing is known.

    Either the run did not get CPU time that it was ready to use, or steps took a different time in training than in the
    measurement, because other processes came, went or use the same GPU. Where the system counts almost no lost CPU
    time, step times may differ by up to a half: the machine itself varies that much, see `wavered`.
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
    """Whether a run was disturbed in training, and so trained less in its time than it would alone: it lost CPU time
    there, or its steps took longer than measured. A disturbed measurement does not change the result of a training."""
    lost, ratio = record.get("train_lost_share"), slowdown(record)
    return (lost is not None and lost > LIMIT) or (ratio is not None and ratio > 1 + allowed(record))


def allowed(record: Mapping[str, Any]) -> float:
    """How much a step in training may differ from the measured step before the run counts as disturbed."""
    lost = [record.get(f"{stage}_lost_share") for stage in STAGES]
    on_gpu = (record.get("spec") or {}).get("device") == "cuda"
    return WAVERS if not on_gpu and all(share is not None and share <= IDLE for share in lost) else LIMIT


def wavered(record: Mapping[str, Any]) -> float | None:
    """The time of a step in training over the measured time, where they differ by more than 15 % although nothing
    disturbed the run; else None."""
    ratio = slowdown(record)
    return ratio if ratio is not None and abs(ratio - 1) > LIMIT and not disturbance(record) else None


def slowdown(record: Mapping[str, Any]) -> float | None:
    """The time of a full-length step in training over the time measured before; None where either is unknown."""
    measured, realised = record.get("step_seconds"), record.get("train_step_seconds")
    return realised / measured if measured and realised else None


def is_known(record: Mapping[str, Any]) -> bool:
    """Whether the record can show a disturbance. Older records, and those of some systems, cannot."""
    return slowdown(record) is not None or any(record.get(f"{stage}_lost_share") is not None for stage in STAGES)
