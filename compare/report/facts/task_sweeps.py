"""Sweeps of a task: groups that differ in one of its options."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compare.quantities import LAYER_STATE
from compare.report.facts.groups import Group, Row
from compare.report.facts.scale import Scale
from compare.report.facts.stats import Estimate, estimate
from compare.report.facts.values import as_key, as_number, conditions_in_words, distinct_slugs
from compare.units import sentence, slug


@dataclass(frozen=True)
class TaskSweep:
    """Groups that differ in one option of their task.

    Attributes:
        option: the option of the task.
        points: its values and their groups, by rising value.
        title: the task, length and conditions that the groups share.
        slug: ends its file names; no two sweeps of a report share it.
    """

    option: str
    points: tuple[tuple[float, Group], ...]
    title: str
    slug: str = ""

    @property
    def scale(self) -> Scale:
        return self.points[0][1].scale

    @property
    def groups(self) -> list[Group]:
        return [group for _, group in self.points]

    @property
    def task(self) -> str:
        return self.groups[0].task

    @property
    def seq_len(self) -> int:
        return self.groups[0].seq_len

    @property
    def stem(self) -> str:
        return f"task_sweep_{self.slug}"

    @property
    def score_words(self) -> str:
        """The name of the score. At equal terms that differ between values, it leaves these out."""
        first = self.groups[0]
        if len({group.basis for group in self.groups}) == 1:
            return first.basis.words(first.metric)
        return f"{first.basis.split} {first.metric} at equal terms"

    @property
    def heading(self) -> str:
        return f"{sentence(self.score_words)} against {self.option}: {self.title}"

    @property
    def rows(self) -> dict[str, dict[float, Row]]:
        """Name -> value -> row; the reference first, the control last."""
        by_name: dict[str, dict[float, Row]] = {}
        for value, group in self.points:
            for row in group.rows:
                by_name.setdefault(row.name, {})[value] = row
        return dict(sorted(by_name.items(), key=lambda item: next(iter(item[1].values())).is_control))

    @property
    def scores(self) -> dict[str, dict[float, Estimate]]:
        """Name -> value -> score, where there is one."""
        groups = dict(self.points)
        return {
            name: {value: score for value, row in rows.items() if (score := groups[value].score(row))}
            for name, rows in self.rows.items()
        }

    def state(self, name: str) -> Estimate | None:
        """State of one layer, in bytes, over all values; None without records of it."""
        values = [state.mean for row in self.rows[name].values() if (state := row.over_seeds(LAYER_STATE))]
        return estimate(values)


def task_sweeps(groups: Sequence[Group]) -> list[TaskSweep]:
    """A sweep for every option of a task that has two numeric values or more among scored groups of equal other
    conditions."""
    by_option: dict[tuple[str, str, int, str, str], list[tuple[float, Group]]] = {}
    for group in groups:
        if any(row.scores for row in group.rows):
            for option, value in group.task_options.items():
                if (number := as_number(value)) is not None:
                    key = (*place_of(group), option, without(group, option))
                    by_option.setdefault(key, []).append((number, group))
    sweeps = []
    for (machine, task, seq_len, option, own), points in by_option.items():
        if len({value for value, _ in points}) > 1:
            rivals = [without(group, option) for group in groups if place_of(group) == (machine, task, seq_len)]
            extra = "; ".join(part for part in (conditions_in_words(own, rivals), points[0][1].where) if part)
            title = f"{task}, length {seq_len:,}" + (f" ({extra})" if extra else "")
            sweeps.append(TaskSweep(option, tuple(sorted(points, key=lambda point: point[0])), title))
    slugs = distinct_slugs([(slug(sweep.option), sweep.title) for sweep in sweeps])
    return [replace(sweep, slug=name) for sweep, name in zip(sweeps, slugs, strict=True)]


def place_of(group: Group) -> tuple[str, str, int]:
    return group.machine, group.task, group.seq_len


def without(group: Group, option: str) -> str:
    return as_key({name: value for name, value in json.loads(group.setting).items() if name != option})


def unswept(groups: Sequence[Group], sweeps: Sequence[TaskSweep]) -> list[Group]:
    """The groups outside the sweeps."""
    swept = {id(group) for sweep in sweeps for group in sweep.groups}
    return [group for group in groups if id(group) not in swept]


def representatives(groups: Sequence[Group], sweeps: Sequence[TaskSweep]) -> list[Group]:
    """The groups, but of each sweep only the largest value, so that a report shows the cost of a step once."""
    others = {id(group) for sweep in sweeps for group in sweep.groups[:-1]}
    return [group for group in groups if id(group) not in others]


def baseline_lines(points: Sequence[tuple[float, Group]]) -> dict[str, list[tuple[float, float]]]:
    """Name of a trivial predictor -> (value, score) pairs."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for value, group in points:
        for name, score in group.baselines.items():
            lines.setdefault(name, []).append((value, score))
    return lines
