"""Runs that did not finish."""

from collections.abc import Sequence

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.facts.values import status_of
from compare.report.sections.section import Section, Table
from compare.units import MISSING


def sections(overview: Overview) -> list[Section]:
    rows = failures(overview.groups)
    table = Table("Failed runs", ("task", "variant", "seed", "status", "reason"), rows)
    return [Section("Runs that did not finish", "failures", tables=[table])] if rows else []


def failures(groups: Sequence[Group]) -> list[tuple[str, str, str, str, str]]:
    """Every run that did not finish: group, variant, seed, status, reason."""
    return [
        (
            group.title,
            row.name,
            str(record.get("seed", MISSING)),
            status_of(record),
            str(record.get("reason") or MISSING),
        )
        for group in groups
        for row in group.rows
        for record in row.records
        if status_of(record) != "ok"
    ]
