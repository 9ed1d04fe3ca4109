"""All tasks of a report in one map: rows are variants, columns tasks, and each cell is the difference to full."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from compare.report.facts.groups import Group, Row
from compare.report.facts.overview import Overview
from compare.report.facts.scale import FRACTION, Scale
from compare.report.facts.stats import ENOUGH_SEEDS, Difference, Estimate
from compare.report.facts.values import distinct_slugs
from compare.report.render.canvas import INK, SMALL, WIDTH, Sheet, Style, folded, text_size
from compare.report.render.families import colour_of, in_order
from compare.report.sections.section import Chart, Section, Table
from compare.units import sentence

COLUMNS = 8  # in one figure
COLOURS = colormaps["RdBu"]  # red below full, blue above: distinct for red-green colour blindness too
ENDS = (0.15, 0.85)  # the part of the colour map in use: every number stays readable on its cell
EMPTY = "#d9d9d9"
CELL = 34.0  # least height of a row, pixels
SMALLEST = 8.0  # points
HATCHES = {"noise": "////", "few": "....", "busy": "xxx", "": ""}
OPTIONS_DIFFER = "† this variant's options differ between tasks; the tables of results name them."
MARKS = {
    "noise": "within noise of full",
    "busy": "on a busy machine: no verdict",
    "few": f"fewer than {ENOUGH_SEEDS} seeds",
    "failed": "no run finished",
    "absent": "not run",
    "": "",
}


@dataclass(frozen=True)
class Cell:
    """The result of one variant on one task.

    Attributes:
        estimate: the difference to full, or the score itself; None without a score.
        relative: whether `estimate` is a difference.
        mark: a key of MARKS.
        status: how the runs ended, where none finished.
        scale: of the task's scores.
    """

    estimate: Estimate | Difference | None
    relative: bool
    mark: str
    status: str = ""
    scale: Scale = FRACTION

    @property
    def lines(self) -> tuple[str, str]:
        """The text in the cell: the number and its half interval, in points, percent or the unit of the scores."""
        if self.estimate is None:
            return self.status or "–", ""
        factor, decimals = self.scale.factor, self.scale.decimals
        rounded = round(factor * self.estimate.mean, decimals) or 0.0  # no -0.0
        number = f"{rounded:{'+' if self.relative else ''}.{decimals}f}".replace("-", "−")
        return number, self.half

    @property
    def gain(self) -> float:
        """How much better than full; 0 without a difference to full."""
        return self.scale.better(self.estimate.mean) if self.estimate and self.relative else 0.0

    @property
    def half(self) -> str:
        """The half interval, or the number of seeds that solved the task, or the ends of a cut interval."""
        if self.estimate is None or self.estimate.half is None:
            return ""
        if self.estimate.solved is not None:
            solved = self.estimate.solved[0] if isinstance(self.estimate, Difference) else self.estimate.solved
            return f"{solved} of {self.estimate.n} solved"
        factor, decimals = self.scale.factor, self.scale.decimals
        if self.estimate.is_cut:
            return " to ".join(f"{factor * end:.{decimals}f}" for end in self.estimate.ends).replace("-", "−")
        return f"± {factor * self.estimate.half:.{decimals}f}"

    @property
    def words(self) -> str:
        """The text of the cell and its mark in one line."""
        if self.estimate is None:
            return self.status or MARKS["absent"]
        unit = self.scale.points if self.relative else self.scale.unit
        notes = [f"n={self.estimate.n}", *([MARKS[self.mark]] if self.mark else [])]
        return f"{' '.join(part for part in self.lines if part)} {unit} ({', '.join(notes)})"


@dataclass(frozen=True)
class Line:
    """One variant over all tasks: its rows, at most one for each group, and a cell for each group."""

    name: str
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]

    @property
    def family(self) -> str:
        return self.rows[0].family

    @property
    def options_differ(self) -> bool:
        return len({row.name for row in self.rows}) > 1

    @property
    def shown_name(self) -> str:
        """The name, with the sign that OPTIONS_DIFFER explains where its options differ."""
        return self.name + (" †" if self.options_differ else "")


@dataclass(frozen=True)
class HeatMap:
    """The scored groups of one machine, at most COLUMNS of them, and their variants ordered by family."""

    groups: tuple[Group, ...]
    lines: tuple[Line, ...]
    part: str
    stem: str = ""
    """Begins its file names; no two maps of a report share it."""

    @property
    def title(self) -> str:
        where = f" ({self.groups[0].where})" if self.groups[0].where else ""
        score = sentence(self.groups[0].basis.words("score"))
        return f"{score} of every variant on every task, as the difference to full{where}{self.part}"

    @property
    def scales(self) -> list[Scale]:
        """The scales of its tasks, each once."""
        return list(dict.fromkeys(group.scale for group in self.groups))

    @property
    def alt(self) -> str:
        """What the figure shows, with its extremes."""
        pairs = ((line, zip(line.cells, self.groups, strict=True)) for line in self.lines)
        cells = [(cell, line.name, group) for line, columns in pairs for cell, group in columns]
        differences = [item for item in cells if item[0].relative and item[0].estimate]
        marks = [cell.mark for cell, _, _ in cells]
        text = f"{self.title}: {len(self.lines)} variants on {len(self.groups)} tasks."
        for scale in self.scales:
            of_scale = sorted((item for item in differences if item[2].scale == scale), key=lambda item: item[0].gain)
            if of_scale:
                ends = of_scale[0], of_scale[-1]
                low, high = (f"{name} on {group.task} {cell.words}" for cell, name, group in ends)
                behind, ahead = ("behind", "ahead") if scale.lower_is_better else ("below", "above")
                text += f" Furthest {behind} full: {low}. Furthest {ahead}: {high}."
        counts = [(marks.count(mark), MARKS[mark]) for mark in ("noise", "busy", "few", "failed", "absent")]
        return text + " Cells: " + ", ".join(f"{count} {words}" for count, words in counts if count) + "."


def sections(overview: Overview) -> list[Section]:
    parts = [
        Section(
            tables=[
                Table(
                    *(heat.title, *heat_table(heat)),
                    notes=heat_notes(heat),
                    anchor=f"heat-{number}",
                    folded="This chart as a table",
                )
            ],
            charts=[Chart(heat.stem, heat.alt, partial(draw_heat_map, heat), f"heat-{number}")],
            charts_first=True,
        )
        for number, heat in enumerate(heat_maps(overview.once))
    ]
    return [Section("Tasks and variants", "tasks", parts=parts)] if parts else []


def heat_maps(groups: Sequence[Group]) -> list[HeatMap]:
    """Maps of at most COLUMNS columns, for each machine on which two tasks or more have scores."""
    maps = []
    for scored in scored_by_machine(groups):
        parts = math.ceil(len(scored) / COLUMNS)
        names = [f", part {number} of {parts}" if parts > 1 else "" for number in range(1, parts + 1)]
        lines = make_lines(scored)
        for name, places in zip(names, np.array_split(np.arange(len(scored)), parts), strict=True):
            shown = [Line(line.name, line.rows, tuple(line.cells[i] for i in places)) for line in lines]
            maps.append(HeatMap(tuple(scored[i] for i in places), tuple(shown), name))
    stems = distinct_slugs([("tasks", heat.groups[0].where, heat.part) for heat in maps])
    return [replace(heat, stem=stem) for heat, stem in zip(maps, stems, strict=True)]


def scored_by_machine(groups: Sequence[Group]) -> list[list[Group]]:
    """The scored groups of each machine that has two tasks or more."""
    machines: dict[str, list[Group]] = {}
    for group in groups:
        if any(row.scores for row in group.rows):
            machines.setdefault(group.machine, []).append(group)
    return [scored for scored in machines.values() if len({group.task for group in scored}) > 1]


def make_lines(groups: Sequence[Group]) -> list[Line]:
    """A line for each variant, or for each setting of a variant where a group has several of its settings."""
    crowded = {row.variant for g in groups for row in g.rows if sum(r.variant == row.variant for r in g.rows) > 1}
    by_name: dict[str, dict[int, Row]] = {}
    for index, group in enumerate(groups):
        for row in group.rows:
            by_name.setdefault(row.name if row.variant in crowded else row.variant, {})[index] = row
    lines = []
    for places in by_name.values():
        rows = tuple(places.values())
        name = rows[0].name if len({row.name for row in rows}) == 1 else rows[0].variant
        cells = (make_cell(places.get(index), group) for index, group in enumerate(groups))
        lines.append(Line(name, rows, tuple(cells)))
    order = in_order({line.family for line in lines})
    return sorted(lines, key=lambda line: (order.index(line.family), not line.rows[0].is_reference, line.name))


def make_cell(row: Row | None, group: Group) -> Cell:
    if row is None:
        return Cell(None, relative=False, mark="absent")
    score = group.score(row)
    if score is None:
        return Cell(None, relative=False, mark="failed", status=row.status)
    scale = group.scale
    difference = group.against_full.get(row.name)
    estimate = difference or score
    if difference is None and len(group.fair_scores(row)) < len(row.scores):
        return Cell(estimate, relative=False, mark="busy")
    if estimate.n < ENOUGH_SEEDS:
        return Cell(estimate, difference is not None, "few", scale=scale)
    mark = "noise" if difference and not difference.beyond else ""
    return Cell(estimate, difference is not None, mark, scale=scale)


def column_names(groups: Sequence[Group]) -> list[str]:
    """A name for each group of one machine: task, length, and the conditions that differ between groups."""
    return [f"{g.task} {g.seq_len:,}" + (f" {g.conditions}" if g.conditions else "") for g in groups]


def heat_table(heat: HeatMap) -> tuple[list[str], list[list[str]]]:
    """The map as header and rows of text."""
    body = [[line.shown_name, *(c.words for c in line.cells)] for line in heat.lines]
    return ["variant", *column_names(heat.groups)], body


def heat_notes(heat: HeatMap) -> list[str]:
    """How to read a map."""
    marks = {cell.mark for line in heat.lines for cell in line.cells}
    notes = ["Points above (+) or below (−) full on the same seeds, ± half of the 95 % interval."]
    if any(cell.estimate and not cell.relative for line in heat.lines for cell in line.cells):
        notes.append("White, without a sign: the score in %, of full and where full has no score.")
    names = zip(column_names(heat.groups), heat.groups, strict=True)
    lower = [
        f"{name} (in {g.scale.unit}, full colour at ± {furthest_of(heat, g.scale.unit):.{g.scale.decimals}f})"
        for name, g in names
        if g.scale.lower_is_better
    ]
    if lower:
        notes.append(f"Lower is better, so − is better than full: {', '.join(lower)}. Blue is better everywhere.")
    if "noise" in marks:
        notes.append("Hatched: within noise of full, including the sampling noise of the test set.")
    if "busy" in marks:
        notes.append("Crossed: disturbed (e.g. by other processes), so no verdict on scores under a time budget.")
    if "few" in marks:
        notes.append(f"Dotted: fewer than {ENOUGH_SEEDS} seeds, so no ranking.")
    if marks & {"failed", "absent"}:
        notes.append("Grey: no run finished (the cell says how the runs ended), or not run (–).")
    if any(line.options_differ for line in heat.lines):
        notes.append(OPTIONS_DIFFER)
    return notes


def draw_heat_map(heat: HeatMap, styles: Mapping[str, Style]) -> Figure:
    del styles  # the number in a cell decides its colour
    names = [folded(line.shown_name) for line in heat.lines]
    left = 40 + max(text_size(name, SMALL, "bold")[0] for name in names)
    width = min((WIDTH - left - 16) / len(heat.groups), 120.0)
    heads = [fold_to(name, width - 8) for name in column_names(heat.groups)]
    points = SMALL if max(text_size(text, SMALL, "bold")[0] for text in heads) < width - 4 else SMALLEST
    head = max(text_size(text, points, "bold")[1] for text in heads) + 10
    heights = [max(CELL, text_size(name, SMALL)[1] + 8) for name in names]
    sheet = Sheet(
        heat.title,
        heat.groups[0].machine,
        heat_notes(heat),
        [line.rows[0] for line in heat.lines],
        body=head + sum(heights) + 62,
    )
    # One unit of these axes is one pixel, the origin at the upper left of the cells.
    axes = sheet.axes(left, 58, width * len(heat.groups), sum(heights))
    axes.set(xlim=(0, width * len(heat.groups)), ylim=(sum(heights), 0))
    axes.axis("off")
    for column, text in enumerate(heads):
        middle = (column + 0.5) * width
        axes.text(middle, -6, text, ha="center", va="bottom", size=points, weight="bold", linespacing=1.05)
    furthest = {scale.unit: furthest_of(heat, scale.unit) for scale in heat.scales}
    top = 0.0
    for line, name, height in zip(heat.lines, names, heights, strict=True):
        axes.plot([10 - left + 6], [top + height / 2], "s", color=colour_of(line.family), markersize=8, clip_on=False)
        weight = "bold" if line.rows[0].is_reference else "normal"
        axes.text(-10, top + height / 2, name, ha="right", va="center", size=SMALL, weight=weight, linespacing=1.05)
        for column, cell in enumerate(line.cells):
            draw_cell(axes, cell, (column * width, top, width, height), furthest[heat.groups[column].scale.unit])
        top += height
    main = next((scale for scale in heat.scales if furthest[scale.unit]), None)
    if main:
        draw_key(sheet, left, furthest[main.unit], main)
    return sheet.figure


def furthest_of(heat: HeatMap, unit: str = "%") -> float:
    """The largest difference to full among the cells of one unit, which takes the strongest colour."""
    return max((abs(c.gain) for line in heat.lines for c in line.cells if c.scale.unit == unit), default=0.0)


def shade(value: float, furthest: float) -> str:
    """The colour of a difference. Its strength grows as the square root, which keeps small differences visible."""
    share = math.copysign(math.sqrt(min(abs(value) / furthest, 1.0)), value) if furthest else 0.0
    return to_hex(COLOURS(ENDS[0] + (ENDS[1] - ENDS[0]) * (share + 1) / 2))


def ink_on(colour: str) -> str:
    """Black or white, whichever is readable on a colour."""
    return "#ffffff" if luminance(colour) < 0.18 else "#000000"


def luminance(colour: str) -> float:
    coded = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in coded)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def fill_of(cell: Cell, furthest: float) -> str:
    if cell.estimate is None:
        return EMPTY
    return shade(cell.gain, furthest) if cell.relative else "#ffffff"


def draw_cell(axes: Axes, cell: Cell, box: tuple[float, float, float, float], furthest: float) -> None:
    x, y, width, height = box
    fill = fill_of(cell, furthest)
    axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor="none"))
    ink = ink_on(fill)
    hatch = HATCHES.get(cell.mark)
    if hatch:
        # Pale, so that the number stays the darkest thing in the cell.
        pattern = Rectangle((x, y), width, height, fill=False, hatch=hatch, edgecolor=ink, linewidth=0, alpha=0.35)
        axes.add_patch(pattern)
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="white", linewidth=1.5))
    number, half = cell.lines
    if cell.estimate is None:
        number = fold_to(number, width - 6, SMALLEST)
    texts = [(number, SMALL if cell.estimate else SMALLEST, "bold" if cell.estimate and not cell.mark else "normal")]
    texts += [(half, SMALLEST, "normal")] if half else []
    for (text, points, weight), down in zip(texts, (-7.5, 7.5) if half else (0.0,), strict=True):
        axes.text(
            *(x + width / 2, y + height / 2 + down, text),
            ha="center",
            va="center",
            size=points,
            weight=weight,
            color=ink,
            gid="cell",
            path_effects=[withStroke(linewidth=2.5, foreground=fill)] if hatch else [],
        )


def draw_key(sheet: Sheet, left: float, furthest: float, scale: Scale) -> None:
    """Draws the colour key below the cells, in points or the unit of the scores; the left side is worse."""
    axes = sheet.axes(left, 26, 300, 12)
    axes.grid(visible=False)
    shares = np.linspace(-1, 1, 101)
    values = np.sign(shares) * shares**2 * furthest
    for share, value in zip(shares, values, strict=True):
        axes.add_patch(Rectangle((share - 0.01, 0), 0.04, 1, color=shade(float(value), furthest), linewidth=0))
    ticks = {
        share: f"{scale.factor * scale.sign * math.copysign(share**2, share) * furthest:+.{scale.decimals}f}".replace(
            "-", "−"
        )
        for share in (-1.0, -0.5, 0.5, 1.0)
    } | {0.0: "0"}
    axes.set(xlim=(-1.01, 1.01), ylim=(0, 1), yticks=[])
    axes.set_xticks(list(ticks), labels=list(ticks.values()), size=SMALLEST + 0.5)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=3, pad=2)
    axes.text(1.06, 0.5, f"{scale.points} to full", va="center", size=SMALL, color=INK)


def fold_to(text: str, width: float, points: float = SMALL) -> str:
    """A text in lines of at most this many pixels; long names also break after an underscore."""
    lines = [""]
    for word in text.replace("_", "_\0").replace(" ", " \0").split("\0"):
        if lines[-1] and text_size((lines[-1] + word).rstrip(), points, "bold")[0] > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)
