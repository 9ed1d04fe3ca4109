"""Trivial predictors."""

from collections.abc import Sequence

from compare.report.facts.groups import Group


def baseline_rows(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Every trivial predictor: group, name, score."""
    return [(group.title, name, group.scale.show(value)) for group in groups for name, value in group.baselines.items()]
