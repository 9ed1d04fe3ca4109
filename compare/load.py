"""Whether other processes disturbed a run, judged by the CPU time and the step times in its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMIT = 0.15  # share of CPU time lost, or relative change of the step time, above which a run counts as disturbed
IDLE = 0.05  # share of CPU time lost, up to which the machine counts as idle
WAVERS = 0.5  # replaces LIMIT for step times on an idle machine: on a virtual machine they vary by a third
STAGES = {"measure": "while it was measured", "train": "in training"}


def disturbance(record: Mapping[str, Any]) -> str:
    """In words, what disturbed a run by more than `LIMIT`; "" where nothing did, or the record does not say.

    A run is disturbed if it did not get the CPU time that it was ready to use, or if a training step took longer or
    shorter than the measured step: other processes came or went, or use the same GPU. If the system counts lost CPU
    time and hardly any was lost, differences of up to `WAVERS` do not count: see `wavered`.
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
    """Whether a run was slowed in training: it lost CPU time there, or its steps took longer than measured. Under a
    time budget it then trained for fewer steps. A disturbed measurement alone does not change the score."""
    lost, ratio = record.get("train_lost_share"), slowdown(record)
    return (lost is not None and lost > LIMIT) or (ratio is not None and ratio > 1 + allowed(record))


def allowed(record: Mapping[str, Any]) -> float:
    """The relative change of the step time, from measurement to training, up to which a run is not disturbed."""
    lost = [record.get(f"{stage}_lost_share") for stage in STAGES]
    on_gpu = (record.get("spec") or {}).get("device") == "cuda"
    return WAVERS if not on_gpu and all(share is not None and share <= IDLE for share in lost) else LIMIT


def wavered(record: Mapping[str, Any]) -> float | None:
    """The ratio of `slowdown` where it is off by more than `LIMIT` though nothing disturbed the run; else None."""
    ratio = slowdown(record)
    return ratio if ratio is not None and abs(ratio - 1) > LIMIT and not disturbance(record) else None


def slowdown(record: Mapping[str, Any]) -> float | None:
    """Time of a training step at full length, divided by the measured time; None where one of them is not recorded."""
    measured, realised = record.get("step_seconds"), record.get("train_step_seconds")
    return realised / measured if measured and realised else None


def is_known(record: Mapping[str, Any]) -> bool:
    """Whether the record says if the run was disturbed. Older records, and those of some systems, do not."""
    return slowdown(record) is not None or any(record.get(f"{stage}_lost_share") is not None for stage in STAGES)
