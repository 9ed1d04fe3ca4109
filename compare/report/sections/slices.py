"""Scores by slice of the test set."""

from compare.report.facts.groups import Group
from compare.report.sections.results import unit_of
from compare.report.sections.wording import score_text


def slice_table(group: Group) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: the score of each variant on each slice of the test set; None where there are no slices."""
    found = {row.name: row.slices() for row in group.rows}
    names = list(dict.fromkeys(name for slices in found.values() for name in slices))
    if not names:
        return None
    body = [
        [
            label,
            *(score_text(part and part._replace(bounds=group.bounds), group.scale) for part in map(slices.get, names)),
        ]
        for label, slices in found.items()
    ]
    return ["variant", *(f"{name}, {unit_of(group)}" for name in names)], body
