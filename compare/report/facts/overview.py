"""All groups of a report, with their sweeps and series."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from compare.report.facts.ablation import Ablation
from compare.report.facts.groups import Group
from compare.report.facts.scaling import Series, series_of
from compare.report.facts.task_sweeps import TaskSweep, representatives, task_sweeps, unswept


@dataclass(frozen=True)
class Overview:
    """The groups of a report, and what tips change in them."""

    groups: Sequence[Group]
    ablations: Sequence[Ablation] = ()

    @cached_property
    def sweeps(self) -> list[TaskSweep]:
        return task_sweeps(self.groups)

    @cached_property
    def unswept(self) -> list[Group]:
        """The groups outside sweeps."""
        return unswept(self.groups, self.sweeps)

    @cached_property
    def once(self) -> list[Group]:
        """All groups, but of each sweep only the largest value, so that a report shows the cost of a step once."""
        return representatives(self.groups, self.sweeps)

    @cached_property
    def series(self) -> list[Series]:
        return series_of(self.once)

    def number(self, group: Group) -> int:
        return next(number for number, each in enumerate(self.groups) if each is group)

    def anchor(self, group: Group) -> str:
        """The anchor of its table of results."""
        return f"table-{self.number(group)}"
