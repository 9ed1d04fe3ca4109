"""Trivial predictors."""

from collections.abc import Sequence

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.sections.section import Section, Table


def sections(overview: Overview) -> list[Section]:
    rows = baseline_rows(overview.groups)
    table = Table("Trivial predictors", ("task", "baseline", "score"), rows)
    return [Section("Trivial baselines", "baselines", tables=[table])] if rows else []


def baseline_rows(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Every trivial predictor: group, name, score."""
    return [(group.title, name, group.scale.show(value)) for group in groups for name, value in group.baselines.items()]
