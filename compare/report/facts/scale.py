"""The scale of a group's scores: how to write them, and which of two is better."""

import math
from dataclasses import dataclass

from compare.report.facts.stats import Difference, Estimate
from compare.units import percent

WITHIN = 0.01  # a variant this much worse than full is still as good: in points, or as a share of full's score


@dataclass(frozen=True)
class Scale:
    """The scale of a metric, from the records; old records have none, and their scores are fractions.

    Attributes:
        unit: "%" for fractions, which are written in percent; else the unit of the scores.
        lower_is_better: whether the lower of two scores is better.
        bounds: the least and the largest possible score; None is unbounded.
    """

    unit: str = "%"
    lower_is_better: bool = False
    bounds: tuple[float | None, float | None] = (0.0, 1.0)

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds, infinite where a side is unbounded."""
        low, high = self.bounds
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def is_fraction(self) -> bool:
        return self.unit == "%"

    @property
    def is_share(self) -> bool:
        """Whether a score is the share of right predictions; the size of the test set then gives its noise."""
        return self.bounds == (0.0, 1.0)

    @property
    def sign(self) -> int:
        """The factor on a difference that makes more better."""
        return -1 if self.lower_is_better else 1

    @property
    def factor(self) -> float:
        """The factor from a score to the number shown."""
        return 100.0 if self.is_fraction else 1.0

    @property
    def decimals(self) -> int:
        return 1 if self.is_fraction else 3

    @property
    def points(self) -> str:
        """The unit of a difference."""
        return "points" if self.is_fraction else self.unit

    def better(self, difference: float) -> float:
        """How much better the first of two scores is, from the first minus the second."""
        return self.sign * difference

    def show(self, score: float) -> str:
        """ "97.5 %", "2.345 bits"."""
        return percent(score) if self.is_fraction else f"{score:.{self.decimals}f} {self.unit}"

    def level(self, score: float) -> str:
        """As `show`, before the name of the metric: "97.5 %", "2.345"."""
        return percent(score) if self.is_fraction else f"{score:.{self.decimals}f}"

    def lead(self, score: float, other: float) -> float:
        """How much better a score is than another: their difference for fractions, else a share of the other."""
        return self.better(score - other) / (1.0 if self.is_fraction else other)

    def number(self, estimate: Estimate) -> str:
        """ "97.5 ± 0.8", "98.8 (94.9 to 100.0)", "2 of 3 solved"; without the unit."""
        return in_numbers(estimate, self.factor, self.decimals)

    def change(self, difference: Estimate | Difference) -> str:
        """A difference with its sign, in points or in the unit: "−4.1 ± 1.2"."""
        return in_points(difference, self.factor, self.decimals)

    def change_in_words(self, difference: Difference) -> str:
        """The same with its unit: "−4.1 ± 1.2 points"; without it before a count of solved seeds."""
        return self.change(difference) + ("" if difference.solved else f" {self.points}")

    def margin(self, full: float) -> float:
        """How much worse than full a variant may be and still be as good, in units of the score."""
        return WITHIN if self.is_fraction else WITHIN * full

    def axis(self, words: str) -> str:
        """The label of an axis of scores, whose top is the best."""
        return f"{words}, %" if self.is_fraction else f"{words}{' (lower is better)' * self.lower_is_better}"


FRACTION = Scale()
OLDER = {"explained variance": Scale(bounds=(None, 1.0))}
"""The scales of metrics in old records, which name the metric only."""


def in_points(difference: Estimate | Difference, factor: float = 100, decimals: int = 1) -> str:
    """A difference of scores with its sign, by default in percentage points: "−4.1 ± 1.2"."""
    ends = (difference.mean, *difference.ends)
    mean, low, high = (f"{round(factor * value, decimals) or 0.0:+.{decimals}f}".replace("-", "−") for value in ends)
    if isinstance(difference, Difference) and difference.solved:
        return f"{mean}; {difference.solved[0]} against {difference.solved[1]} of {difference.n} seeds solved"
    if difference.is_cut:
        return f"{mean}, {low} to {high}"
    return mean if difference.half is None else f"{mean} ± {factor * difference.half:.{decimals}f}"


def in_numbers(estimate: Estimate, factor: float = 100, decimals: int = 1) -> str:
    """A score and its interval without the unit, by default in percent: "97.2 ± 1.2", "98.8 (94.9 to 100.0)", "2 of 3
    solved"."""
    mean, low, high = (f"{factor * value:.{decimals}f}" for value in (estimate.mean, *estimate.ends))
    if estimate.solved is not None:
        return f"{estimate.solved} of {estimate.n} solved"
    if estimate.is_cut:
        return f"{mean} ({low} to {high})"
    return mean if estimate.half is None else f"{mean} ± {factor * estimate.half:.{decimals}f}"
