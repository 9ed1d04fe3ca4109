"""Schedules of the learning rate and of the length of samples, by name, and of validations; the same for every variant.

Those of rate and length depend on the share of the training that is done, so that a budget in seconds and one in steps
mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from compare.spec import RunSpec
    from tasks import LengthSchedule, LrSchedule

FIRST_FACTOR = 0.1  # warm-up starts here, not at 0, where the first step of a short training would change nothing
HELD = 0.85  # share of the training at the peak rate
SHORTEST_DEFAULT = 128  # tokens; below that a shorter sample saves no time
CURVE_POINTS = 50  # of a training
VALIDATIONS = 10  # of a training
VALIDATION_SHARE = 0.1  # of the training time, at most, apart from the last validation
TEST_TOKENS = 2**19  # at most, at another length than that of training: softmax at 65,536 takes minutes for them


class LrCurve(NamedTuple):
    """words: description. factor: (share done, share of warm-up) -> factor on the peak rate; shares are 0 to 1."""

    words: str
    factor: Callable[[float, float], float]


LR_SCHEDULES: dict[LrSchedule, LrCurve] = {
    "constant-then-linear": LrCurve(
        f"constant for {100 * HELD:.0f} % of the training, then linear to 0",
        lambda done, _: min(1.0, (1 - done) / (1 - HELD)),
    ),
    "cosine": LrCurve("half a cosine to 0", lambda done, _: 0.5 * (1 + math.cos(math.pi * done))),
    "linear": LrCurve("linear to 0", lambda done, _: 1 - done),
    "inverse-square-root": LrCurve(
        "1 / √(share of the training done) after the warm-up",
        lambda done, warmup: math.sqrt(warmup / max(done, warmup)),
    ),
    "constant": LrCurve("constant to the end", lambda _done, _warmup: 1.0),
}


def lr_factor(name: LrSchedule, warmup: float, done: float) -> float:
    """The factor on the peak learning rate.

    Args:
        name: name of the schedule.
        warmup: share of the training in which the rate rises from a tenth of the schedule's to all of it.
        done: share of the training that is done; 1 or more counts as 1.
    """
    rising = 1.0 if done >= warmup else FIRST_FACTOR + (1 - FIRST_FACTOR) * done / warmup
    return rising * LR_SCHEDULES[name].factor(min(done, 1.0), warmup)


class Phase(NamedTuple):
    """end: share of the training at which it ends. divisor: samples have N / divisor tokens. tokens: tokens of a
    micro-batch, as a share of those at N."""

    end: float
    divisor: int
    tokens: float


LENGTH_SCHEDULES: dict[LengthSchedule, tuple[Phase, ...]] = {
    "from-64th": (Phase(0.45, 64, 0.5), Phase(0.65, 16, 0.5), Phase(0.8, 4, 0.5), Phase(1.0, 1, 1.0)),
    "from-16th": (Phase(0.5, 16, 0.25), Phase(0.75, 4, 0.25), Phase(1.0, 1, 1.0)),
    "constant": (Phase(1.0, 1, 1.0),),
}
"""Many short steps learn local structure, few long ones distant structure. The schedule with the shortest samples comes
first.

Micro-batches of shorter samples have fewer tokens than those at N, because more steps learn more: full on noisy_recall
at 128 tokens falls below a loss of 1 by 1.0 M tokens in steps of 4,096, by 1.2 M in steps of 8,192, by 1.8 M in steps
of 16,384 (one seed).
"""


def phase_length(seq_len: int, phase: Phase) -> int:
    """Length of samples in a phase. Below N it is even: some tasks have two equal halves."""
    return seq_len if phase.divisor == 1 else seq_len // (2 * phase.divisor) * 2


def shortest_length(name: LengthSchedule, seq_len: int) -> int:
    """Length of the shortest samples of a schedule."""
    return min(phase_length(seq_len, phase) for phase in LENGTH_SCHEDULES[name])


def default_lengths(name: LengthSchedule, seq_len: int, shortest_train: int) -> LengthSchedule:
    """The task's schedule or, if its samples would be too short, the next one that starts with long enough samples."""
    names = list(LENGTH_SCHEDULES)
    least = max(shortest_train, SHORTEST_DEFAULT)
    later = names[names.index(name) :]
    return next((schedule for schedule in later if shortest_length(schedule, seq_len) >= least), "constant")


def in_words(name: LengthSchedule) -> str:
    """ "50 % at N/16, 25 % at N/4, 25 % at N"."""
    begin, parts = 0.0, []
    for phase in LENGTH_SCHEDULES[name]:
        where = "N" if phase.divisor == 1 else f"N/{phase.divisor}"
        parts.append(f"{100 * (phase.end - begin):.0f} % at {where}")
        begin = phase.end
    return ", ".join(parts)


def at_length(spec: RunSpec, seq_len: int) -> tuple[int, int]:
    """Samples in a batch of about the usual number of tokens, and samples to evaluate, at another length."""
    return max(1, spec.batch_size * spec.seq_len // seq_len), max(1, TEST_TOKENS // seq_len)
