"""Scores at equal terms."""

from typing import NamedTuple

from compare.report.facts.equal_terms import MATCHES, match_scores, scored
from compare.report.facts.groups import Group
from compare.report.sections.flags import marked
from compare.report.sections.results import unit_of
from compare.report.sections.wording import score_text
from compare.units import MISSING


class Equal(NamedTuple):
    """Scores at equal terms: header, rows, and at what they were read."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def equal_table(group: Group) -> Equal | None:
    """Each variant's score at equal steps, time and FLOPs; None where no run was validated."""
    views = [match_scores(group, match) for match in MATCHES]
    if not any(map(scored, views)):
        return None
    header, columns = ["variant"], [[marked(row, group) for row in group.rows]]
    for view in filter(scored, views):
        header += [f"{view.basis.at}, {unit_of(group)}", f"Δ to full, {group.scale.points}"]
        columns.append([score_text(view.score(row), group.scale) for row in view.rows])
        columns.append(
            [group.scale.change(d) if (d := view.against_full.get(row.name)) else MISSING for row in view.rows]
        )
    return Equal(header, [list(cells) for cells in zip(*columns, strict=True)], [view.basis.note for view in views])
