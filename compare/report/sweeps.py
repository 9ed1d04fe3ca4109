"""Sweeps: one option of a variant at several values, and what its capacity buys."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from compare.quantities import LAYER_STATE, STEP
from compare.units import MISSING, seconds, size

from .aggregate import Group, Row, as_key, as_mapping, as_number, as_pairs, as_word
from .stats import ENOUGH_SEEDS


class Sweep(NamedTuple):
    """Rows of one variant that differ in one option, by its rising value."""

    variant: str
    option: str
    points: tuple[tuple[float, Row], ...]

    @property
    def name(self) -> str:
        return f"{self.variant} {self.option}"

    @property
    def rows(self) -> list[Row]:
        return [row for _, row in self.points]


def options_of(row: Row) -> dict[str, object]:
    return dict(as_pairs(as_mapping(row.records[0].get("spec")).get("options")))


def options_in_words(row: Row) -> str:
    """ "rank=16 sharing=none", the options that were set."""
    return " ".join(f"{name}={as_word(value)}" for name, value in options_of(row).items())


def sweeps_of(rows: Sequence[Row]) -> list[Sweep]:
    """Every option of a variant that has two numbers or more among the rows, all else that is set being equal."""
    found: dict[tuple[str, str, str], list[tuple[float, Row]]] = {}
    for row in rows:
        options = options_of(row)
        for option, value in options.items():
            if (number := as_number(value)) is not None:
                others = as_key({name: other for name, other in options.items() if name != option})
                found.setdefault((row.variant, option, others), []).append((number, row))
    sweeps = []
    for (variant, option, others), points in found.items():
        points.sort(key=lambda point: point[0])
        if points[0][0] < points[-1][0]:
            words = (f"{name}={as_word(value)}" for name, value in json.loads(others).items())
            sweeps.append(Sweep(" ".join([variant, *words]), option, tuple(points)))
    return sweeps


def capacity_group(group: Group) -> Group | None:
    """What the charts of capacity show: the swept rows, the reference and the control; None where nothing is swept."""
    swept = {row.name for sweep in sweeps_of(group.rows) for row in sweep.rows}
    rows = tuple(row for row in group.rows if row.name in swept or row.is_reference or row.is_control)
    return replace(group, rows=rows) if swept else None


def sweep_table(group: Group) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: of each sweep the best score, and the smallest value whose score is within noise of it.

    None where nothing is swept and scored.
    """
    body, scale = [], group.scale
    for sweep in sweeps_of(group.rows):
        scored = [(value, row, found) for value, row in sweep.points if (found := group.score(row))]
        if len(scored) < 2:
            continue
        top, best, highest = max(scored, key=lambda point: scale.better(point[2].mean))
        line = [sweep.name, ", ".join(f"{value:g}" for value, _, _ in scored), f"{scale.show(highest.mean)} at {top:g}"]
        if min(found.n for _, _, found in scored) < ENOUGH_SEEDS:
            body.append([*line, *3 * [MISSING]])
            continue
        apart = group.score_differences(best)
        below = {name for name, found in apart.items() if found.beyond and scale.better(found.mean) < 0}
        value, row, found = next(point for point in scored if point[1].name not in below)
        state, step = row.over_seeds(LAYER_STATE), row.over_seeds(STEP)
        line += [f"{scale.show(found.mean)} at {value:g}", size(state.mean) if state else MISSING]
        body.append([*line, seconds(step.mean) if step else MISSING])
    header = [
        "sweep",
        "values",
        f"{'lowest' if scale.lower_is_better else 'highest'} {group.basis.words('score')}",
        "smallest within noise of it",
        "its state a layer",
        "its step",
    ]
    return (header, body) if body else None
