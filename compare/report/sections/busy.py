"""Disturbed runs, and how to repeat them."""

from collections.abc import Sequence

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.sections.section import Section, Table
from compare.units import MISSING

BUSY = "Runs on a busy machine"
REPEAT = f'Repeat them on an idle machine with the commands under "{BUSY}".'
HEADER = ("task", "variant", "seed", "disturbed by", "command to repeat it")


def sections(overview: Overview) -> list[Section]:
    rows = busy_runs(overview.groups)
    return [Section(BUSY, "busy", tables=[Table(BUSY, HEADER, rows)])] if rows else []


def busy_runs(groups: Sequence[Group]) -> list[tuple[str, str, str, str, str]]:
    """Every disturbed run: group, variant, seed, what disturbed it, and the command that repeats it."""
    return [
        (group.title, row.name, str(record.get("seed")), words, str(record.get("command") or MISSING))
        for group in groups
        for row in group.rows
        for record in row.finished
        if (words := row.disturbed.get(str(record.get("seed"))))
    ]
