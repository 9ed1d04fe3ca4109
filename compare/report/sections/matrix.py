"""Several tasks in one table: a row for each variant, a column for each task, a verdict against full in each cell."""

from collections.abc import Sequence

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.facts.scale import WITHIN
from compare.report.facts.stats import ENOUGH_SEEDS
from compare.report.render.families import colour_of
from compare.report.sections.answer import is_as_good
from compare.report.sections.heat_map import OPTIONS_DIFFER, Line, column_names, make_lines, scored_by_machine
from compare.report.sections.section import Cell, Section, Table

SIGNS = {"better": "▲", "as good": "≈", "worse": "▼", "inconclusive": "?", "no verdict": "·", "": ""}


def sections(overview: Overview) -> list[Section]:
    """A table for each machine on which two tasks or more have scores."""
    tables = [table_of(overview, groups) for groups in scored_by_machine(overview.once)]
    return [Section("Every variant on every task", "matrix", tables=tables)] if tables else []


def table_of(overview: Overview, groups: Sequence[Group]) -> Table:
    lines = make_lines(groups)
    anchors = [overview.anchor(group) for group in groups]
    cells = [
        [
            Cell(line.shown_name, line.name, colour_of(line.family)),
            *(cell_of(line, index, group, anchors[index]) for index, group in enumerate(groups)),
        ]
        for line in lines
    ]
    machine = f" ({groups[0].where})" if groups[0].where else ""
    return Table(
        f"Every variant on every task{machine}: the score against full",
        ["variant", *column_names(groups)],
        [[cell.text for cell in row] for row in cells],
        notes=notes(lines, groups),
        cells=cells,
    )


def cell_of(line: Line, index: int, group: Group, anchor: str) -> Cell:
    """A variant's verdict and number in one group, with a link to the group's table."""
    cell = line.cells[index]
    verdict = verdict_of(line, index, group)
    number = cell.lines[0]
    if cell.estimate is not None and not cell.relative:
        number = cell.scale.show(cell.estimate.mean)
    return Cell(
        f"{SIGNS[verdict]} {number}".strip(), cell.gain, verdict=verdict, anchor=anchor if cell.estimate else ""
    )


def verdict_of(line: Line, index: int, group: Group) -> str:
    """A key of SIGNS; "" without a difference to full."""
    cell = line.cells[index]
    if cell.mark == "busy":
        return "no verdict"
    if cell.estimate is None or not cell.relative:
        return ""
    if cell.mark == "few":
        return "no verdict"
    name = next(row.name for row in line.rows if any(row is each for each in group.rows))
    if not cell.mark and cell.gain > 0:
        return "better"
    if is_as_good(group, name):
        return "as good"
    return "inconclusive" if cell.mark else "worse"


def notes(lines: Sequence[Line], groups: Sequence[Group]) -> list[str]:
    """How to read the cells."""
    lower = [group for group in groups if group.scale.lower_is_better]
    margin = f"{100 * WITHIN:g} point worse" + f" ({100 * WITHIN:g} % where lower is better)" * bool(lower)
    meanings = {
        "better": "better than full",
        "as good": f"as good: at most {margin}",
        "worse": "worse",
        "inconclusive": "inconclusive: the interval is too wide",
        "no verdict": f"no verdict: fewer than {ENOUGH_SEEDS} seeds, or a busy machine",
    }
    sentences = [
        "; ".join(f"{SIGNS[verdict]} {words}" for verdict, words in meanings.items()) + ".",
        "Numbers with + or −: the difference to full on the same seeds, in points. Numbers without a sign: the score.",
    ]
    if lower:
        names = (f"{name} (in {g.scale.unit})" for name, g in zip(column_names(lower), lower, strict=True))
        sentences.append(f"Lower is better, so − is better than full: {', '.join(names)}.")
    if any(line.options_differ for line in lines):
        sentences.append(OPTIONS_DIFFER)
    return sentences
