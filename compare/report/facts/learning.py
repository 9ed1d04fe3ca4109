"""Learning curves of the records."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compare.report.facts.values import Record, as_number


class Curve(NamedTuple):
    """A learning curve.

    x: steps or seconds. score: at each x. changes: (x, new training length) pairs. validated: whether the scores are
    validation scores.
    """

    x: list[float]
    score: list[float]
    changes: list[tuple[float, int]]
    validated: bool


def learning_curve(record: Record, axis: str) -> Curve | None:
    """Validation scores where there are at least two, else training scores, smoothed by a running mean.

    Args:
        record: one run.
        axis: "step" or "seconds".
    """
    points = points_of(record, axis)
    changes = [
        (x, int(now))
        for (_, before), (x, point) in itertools.pairwise(points)
        if (now := as_number(point.get("seq_len"))) is not None
        and (was := as_number(before.get("seq_len"))) is not None
        and now != was
    ]
    for field in ("val_score", "train_score"):
        seen = [(x, score) for x, point in points if (score := as_number(point.get(field))) is not None]
        if len(seen) >= 2:
            validated = field == "val_score"
            scores = [score for _, score in seen]
            return Curve([x for x, _ in seen], scores if validated else smooth(scores), changes, validated)
    return None


def line_of(record: Record, axis: str, field: str) -> tuple[list[float], list[float]] | None:
    """A field of the points against the axis; None where fewer than two points have it."""
    seen = [(x, y) for x, point in points_of(record, axis) if (y := as_number(point.get(field))) is not None]
    return ([x for x, _ in seen], [y for _, y in seen]) if len(seen) > 1 else None


def points_of(record: Record, axis: str) -> list[tuple[float, Record]]:
    """The points of a curve, each with its place on the axis."""
    raw = record.get("curve")
    return [
        (x, point)
        for point in (raw if isinstance(raw, list) else [])
        if isinstance(point, dict) and (x := as_number(point.get(axis))) is not None
    ]


def smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a tenth of the points; the window shrinks at the ends."""
    reach = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]
