"""Scores at equal terms."""

from compare.report.facts.equal_terms import MATCHES, match_scores, scored
from compare.report.facts.groups import Group
from compare.report.sections.flags import flags_of, in_words, marked
from compare.report.sections.results import unit_of
from compare.report.sections.section import Section, Table
from compare.report.sections.wording import options_set, score_text
from compare.units import MISSING


def part(group: Group) -> Section:
    if not any(row.finished for row in group.rows):
        return Section()
    table = equal_table(group)
    return Section(sentences=[*options_set(group), *unequal(group)], tables=[table] if table else [])


def unequal(group: Group) -> list[str]:
    """One sentence on the rows that are not on equal terms."""
    flagged = [in_words(row, group) for row in group.rows if flags_of(row, group)]
    return [f"Not on equal terms: {', '.join(flagged)}."] if flagged else []


def equal_table(group: Group) -> Table | None:
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
    return Table(
        f"At equal terms: {group.title}",
        header,
        [list(cells) for cells in zip(*columns, strict=True)],
        [view.basis.note for view in views],
        title="At equal terms",
    )
