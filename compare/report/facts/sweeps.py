"""Sweeps: one option of a variant at several values."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from compare.report.facts.groups import Group, Row
from compare.report.facts.values import as_key, as_mapping, as_number, as_pairs, as_word


class Sweep(NamedTuple):
    """Rows of one variant that differ in one option. points: (value, row), by rising value."""

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
    """The options that were set: "rank=16 sharing=none"."""
    return " ".join(f"{name}={as_word(value)}" for name, value in options_of(row).items())


def sweeps_of(rows: Sequence[Row]) -> list[Sweep]:
    """A sweep for every option that has two numeric values or more among rows of equal other options."""
    by_option: dict[tuple[str, str, str], list[tuple[float, Row]]] = {}
    for row in rows:
        options = options_of(row)
        for option, value in options.items():
            if (number := as_number(value)) is not None:
                others = as_key({name: other for name, other in options.items() if name != option})
                by_option.setdefault((row.variant, option, others), []).append((number, row))
    sweeps = []
    for (variant, option, others), points in by_option.items():
        points.sort(key=lambda point: point[0])
        if points[0][0] < points[-1][0]:
            words = (f"{name}={as_word(value)}" for name, value in json.loads(others).items())
            sweeps.append(Sweep(" ".join([variant, *words]), option, tuple(points)))
    return sweeps


def capacity_group(group: Group) -> Group | None:
    """The group with the rows of its capacity charts: swept ones, reference and control; None without a sweep."""
    swept = {row.name for sweep in sweeps_of(group.rows) for row in sweep.rows}
    rows = tuple(row for row in group.rows if row.name in swept or row.is_reference or row.is_control)
    return replace(group, rows=rows) if swept else None
