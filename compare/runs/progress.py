"""How far a training has come, in steps or seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from compare.runs.score import Tally
from compare.spec import RunSpec


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step, tokens, flops, seconds: totals of the training so far.
        loading: part of these seconds in which batches were made. validating: seconds of validation, beside them.
        cpu: CPU seconds of the process in these seconds.
        spent: seconds of the process and of the machine, validation included, as `clocks` counts them.
        full: seconds per micro-batch of the latest steps at full length, without loading.
        seq_len, taken: the length of the current phase, and the micro-batches taken in it.
        curve: its points so far.
        best: step of the best validation so far. worse: validations since then.
        restored: losses of the self-supervised steps since the last point.
        norms: gradient norms of the steps since the last point, where they were finite, and their number.
        tally: loss and score of the steps since the last point.
    """

    tally: Tally
    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    loading: float = 0.0
    validating: float = 0.0
    cpu: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    full: list[float] = field(default_factory=list)
    seq_len: int = 0
    taken: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    worse: int = 0
    restored: list[float] = field(default_factory=list)
    norms: tuple[float, int] = (0.0, 0)


def part_of(spec: RunSpec, done: float) -> tuple[bool, float]:
    """Whether a training of which this share is done is in its self-supervised part, and the share of that part."""
    if done < spec.pretrain:
        return True, done / spec.pretrain
    return False, (done - spec.pretrain) / (1 - spec.pretrain)


def share_done(spec: RunSpec, step: int, seconds: float) -> float:
    """The share of the training that is done: 0 to 1, or a little above after the last step of a budget."""
    return step / spec.steps if spec.steps is not None else seconds / (spec.budget or math.inf)
