"""How runs end: the status of each record and its reason."""

from __future__ import annotations

import json
import signal
from typing import Literal

import tasks
import zoo
from compare.record import SCHEMA, Record, now
from compare.spec import RunSpec

Status = Literal["ok", "oom", "diverged", "timeout", "unsupported", "error"]
RETRIED = ("timeout", "error")
"""Runs that ended so are tried again; every other status is final."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class DivergedError(Exception):
    """The loss stopped being a finite number."""


def new_record(spec: RunSpec, status: Status, reason: str) -> Record:
    """The fields that every record has, whatever became of its run."""
    started = now()
    kind = tasks.get(spec.task)
    try:
        traits = zoo.describe(spec.variant).traits
        family, unturned = traits.family, spec.positions == "rotary" and not traits.rotary
    except ValueError:  # a backend that cannot be found, which the run tells itself
        family, unturned = None, None
    return {
        "schema": SCHEMA,
        "run_id": spec.run_id,
        "variant": spec.variant,
        "label": spec.label,
        "family": family,
        "rotary_without_effect": unturned,
        "task": spec.task,
        "task_summary": kind.summary,
        "remark": kind.remarks.get(spec.variant, ""),
        "seq_len": spec.seq_len,
        "seed": spec.seed,
        "causal": spec.is_causal,
        "status": status,
        "reason": reason,
        "spec": json.loads(spec.to_json()),
        "started": started,
    }


def explain(error: Exception) -> tuple[Status, str]:
    """Status and a one-line reason for what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
        return "oom", text
    if isinstance(error, DivergedError):
        return "diverged", text
    if isinstance(error, NotImplementedError):
        return "unsupported", text
    return "error", f"{type(error).__name__}: {text}"


def record_of_crash(
    spec: RunSpec, returncode: int, last_words: str, wall_seconds: float, *, where: str, no_memory: bool
) -> Record:
    """The record of a run whose process died without writing one.

    last_words: of its stderr. where: what it was at. no_memory: the system may have killed it for want of memory.
    """
    oom = returncode == -9 and no_memory
    if oom:
        reason = f"killed by the system (signal 9, SIGKILL) in {where}, most likely out of memory"
    elif returncode < 0:
        name = signal.Signals(-returncode).name
        reason = f"killed by signal {-returncode} ({name}) in {where}: {last_words}"
    else:
        reason = f"exit code {returncode} in {where}: {last_words}"
    return new_record(spec, "oom" if oom else "error", reason) | {"wall_seconds": wall_seconds}
