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
CALLED_OFF = "another process of the run failed"
LOST_PEER = (CALLED_OFF, "connection closed by peer", "connection reset by peer", "gloo", "nccl", "tcpstore")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class DivergedError(Exception):
    """The loss stopped being a finite number."""


def new_record(spec: RunSpec, status: Status, reason: str) -> Record:
    """The fields that every record has, whatever the outcome of its run."""
    started = now()
    kind = tasks.get(spec.task)
    try:
        traits = zoo.describe(spec.variant).traits
        family, without_effect = traits.family, spec.positions.startswith("rotary") and not traits.rotary
    except ValueError:  # an unknown backend: the run itself reports it
        family, without_effect = None, None
    return {
        "schema": SCHEMA,
        "run_id": spec.run_id,
        "variant": spec.variant,
        "label": spec.label,
        "family": family,
        "rotary_without_effect": without_effect,
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
    """Status and one-line reason of a failure."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
        return "oom", text
    if isinstance(error, DivergedError):
        return "diverged", text
    if isinstance(error, NotImplementedError):
        return "unsupported", text
    return "error", f"{type(error).__name__}: {text}"


def lost_peer(record: Record) -> bool:
    """Whether a run failed only because another of its processes did."""
    return record["status"] == "error" and any(words in record["reason"].lower() for words in LOST_PEER)


def record_of_crash(
    spec: RunSpec, returncode: int, last_words: str, wall_seconds: float, *, where: str, no_memory: bool
) -> Record:
    """The record of a run whose process died without writing one.

    last_words: last line of its stderr. where: its last phase. no_memory: the system may have killed it because memory
    ran out.
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
