"""Scores by slice of the test set."""

from compare.report.facts.groups import Group
from compare.report.sections.results import unit_of
from compare.report.sections.section import Section, Table
from compare.report.sections.wording import score_text


def part(group: Group) -> Section:
    """The score of each variant on each slice of the test set, where there are slices."""
    by_name = {row.name: row.slices() for row in group.rows}
    names = list(dict.fromkeys(name for slices in by_name.values() for name in slices))
    if not names:
        return Section()
    body = [
        [
            label,
            *(score_text(part and part._replace(bounds=group.bounds), group.scale) for part in map(slices.get, names)),
        ]
        for label, slices in by_name.items()
    ]
    header = ["variant", *(f"{name}, {unit_of(group)}" for name in names)]
    return Section(tables=[Table(f"Score by slice: {group.title}", header, body)])
