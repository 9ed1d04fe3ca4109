"""Scores at equal terms: at the most steps, training time or FLOPs that every run of a group reached.

The scores are interpolated on the learning curves, between the two nearest validations of each run, and never beyond
its first or last one. The learning rate was annealed over each run's own budget, so a score read midway is below the
final score of a run of that length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compare.report.facts.groups import Group, ScoreBasis
from compare.report.facts.values import Record, as_number
from compare.units import count, plain, seconds


@dataclass(frozen=True)
class Match:
    """A quantity to hold equal. field: of a curve's points. words: its name. show: writes its values."""

    field: str
    words: str
    show: Callable[[float], str]


MATCHES = {
    "steps": Match("step", "steps", plain),
    "time": Match("seconds", "training time", seconds),
    "flops": Match("flops", "FLOPs", count),
}


def match_scores(group: Group, match: str) -> Group:
    """The group with its scores at equal "steps", "time" or "flops"; with "end", the group itself.

    Without validation scores the rows have no scores, and the note of the group's basis says why.
    """
    return group if match == "end" else at_equal(group, MATCHES[match])


def at_equal(group: Group, match: Match) -> Group:
    """The group with its validation scores at the largest x that all its validated runs reached."""
    curves = {
        (row.name, str(record.get("seed"))): validations(record, match.field)
        for row in group.rows
        for record in row.finished
    }
    reached = {run: points[-1][0] for run, points in curves.items() if points}
    at = f"at equal {match.words}"
    if not reached:
        return with_scores(
            group,
            {},
            ScoreBasis("validation", at, f"Nothing {at}: no learning curve has validation scores by {match.words}."),
        )
    shortest = min(reached, key=lambda run: reached[run])
    x = reached[shortest]
    scores = {run: score for run, points in curves.items() if (score := read(points, x)) is not None}
    note = f"Equal {match.words}: {match.show(x)}, the least of any run ({name_of(shortest)})."
    if missing := [name_of(run) for run in curves if run not in reached]:
        note += f" Left out (no validation scores by {match.words}): {'; '.join(missing)}."
    if late := [name_of(run) for run in reached if run not in scores]:
        note += f" No score there (first validated later): {'; '.join(late)}."
    return with_scores(group, scores, ScoreBasis("validation", f"{at} ({match.show(x)})", note))


def with_scores(group: Group, scores: Mapping[tuple[str, str], float], basis: ScoreBasis) -> Group:
    """The group with these scores, by row and seed."""
    by_row: dict[str, dict[str, float]] = {}
    for (name, seed), score in scores.items():
        by_row.setdefault(name, {})[seed] = score
    rows = (replace(row, scores=by_row.get(row.name, {})) for row in group.rows)
    return replace(group, rows=tuple(rows), basis=basis)


def name_of(run: tuple[str, str]) -> str:
    name, seed = run
    return f"{name}, seed {seed}"


def validations(record: Record, field: str) -> list[tuple[float, float]]:
    """The validated points of a run's curve: (steps, seconds or FLOPs; score), with rising x."""
    curve = record.get("curve")
    points = (point for point in (curve if isinstance(curve, list) else []) if isinstance(point, dict))
    pairs = ((as_number(p.get(field)), as_number(p["val_score"])) for p in points if p.get("val_score") is not None)
    return sorted((x, score) for x, score in pairs if x is not None and score is not None)


def read(points: Sequence[tuple[float, float]], at: float) -> float | None:
    """The score at `at`, interpolated between the two nearest points; None before the first and after the last."""
    if not points or not points[0][0] <= at <= points[-1][0]:
        return None
    return float(np.interp(at, [x for x, _ in points], [score for _, score in points]))


def scored(group: Group) -> bool:
    return any(row.scores for row in group.rows)
