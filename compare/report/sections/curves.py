"""Learning curves: all on one pair of axes if they are few, else a panel for each family."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.report.facts.groups import CONTROL_FAMILY, Group, Row
from compare.report.facts.learning import Curve, learning_curve
from compare.report.facts.values import as_mapping, as_number
from compare.report.render.axes import score_axis
from compare.report.render.canvas import (
    SMALL,
    WIDTH,
    MarginLabel,
    Sheet,
    Style,
    baseline_texts,
    draw_baselines,
    draw_margin,
    figure_of,
    folded,
    margin_height,
    margin_width,
    text_size,
    write,
    write_family,
)
from compare.report.render.families import in_order
from compare.report.render.labels import GAP, spread
from compare.report.sections.section import Chart, Section
from compare.report.sections.wording import count, fallback_notes, shown_name, span
from compare.units import plain

MOST_TOGETHER = 8  # with more variants than this, each family has a panel, which shows means only
BACKGROUND = "#dddddd"
PANEL_FOLD = 17  # characters in a line of a name in a panel


@dataclass(frozen=True)
class Course:
    """The learning curves of one row, and their mean over the range that all of them cover."""

    row: Row
    curves: tuple[Curve, ...]
    x: tuple[float, ...]
    score: tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """What the axes of one figure have in common."""

    group: Group
    axis: str
    score_label: str
    furthest: float
    values: Sequence[float]
    changes: Sequence[tuple[float, int]] | None

    @property
    def unit(self) -> str:
        return "training steps" if self.axis == "step" else "training time, seconds"


def part(group: Group) -> Section:
    return Section(charts=[chart for axis in ("step", "seconds") if (chart := learning_curves(group, axis))])


def learning_curves(group: Group, axis: str) -> Chart | None:
    """None where no run has a curve. axis: "step" or "seconds"."""
    courses = [course for row in group.rows if (course := course_of(row, axis))]
    if not courses:
        return None
    words = "steps" if axis == "step" else axis
    alt = f"Learning curves by {words}: {group.title}. {describe_curves(group, axis)}".strip()
    return Chart(f"curves_{words}_{group.slug}", alt, partial(draw_curves, group, axis, courses))


def draw_curves(group: Group, axis: str, courses: Sequence[Course], styles: Mapping[str, Style]) -> Figure:
    curves = [curve for course in courses for curve in course.curves]
    furthest = max(curve.x[-1] for curve in curves)
    changes = shared_changes(curves, furthest)
    families = in_order({course.row.family for course in courses} - {CONTROL_FAMILY})
    together = len(courses) <= MOST_TOGETHER or len(families) < 2

    kinds = {curve.validated for curve in curves}
    what = "Validation" if kinds == {True} else "Training" if kinds == {False} else "Validation or training"
    notes = []
    if False in kinds:
        smoothed = [c.row.name for c in courses if not all(curve.validated for curve in c.curves)]
        notes.append(f"Running mean of the training score (no validation scores): {', '.join(smoothed)}.")
    every_seed = len(courses) <= MOST_TOGETHER
    if any(len(course.curves) > 1 for course in courses):
        notes.append(
            "Thin lines: one seed each; thick: their mean over the range all of them reached."
            if every_seed
            else "Lines: mean of the seeds over the range all of them reached."
        )
    if not together:
        notes.append("Every panel shows full and the control; light grey: the other families.")
    lengths = " → ".join(f"{length:,}" for length in all_lengths(courses))
    if changes is None and every_seed:
        notes.append(f"Rings: the training length changes ({lengths}).")
    elif changes and not together:
        notes.append(f"Vertical lines: the training length changes ({lengths}).")
    if group.baselines:
        scores = ", ".join(f"{name} {group.scale.show(value)}" for name, value in group.baselines.items())
        notes.append(f"Dashed: trivial predictors, scored on the test set{'' if together else f' ({scores})'}.")
    notes += fallback_notes([course.row for course in courses])

    lines = [curve.score for curve in curves] if every_seed else [mean_line(course)[1] for course in courses]
    values = [*(score for line in lines for score in line), *group.baselines.values()]
    look = Look(group, axis, f"{what.lower()} {group.metric}", furthest, values, changes)
    title = f"{what} {group.metric} against {look.unit.split(',')[0]}: {group.title}"
    if together:
        return one_panel(look, title, notes, courses, styles, every_seed=every_seed)
    return panels(look, title, notes, courses, styles, families)


def one_panel(
    look: Look,
    title: str,
    notes: Sequence[str],
    courses: Sequence[Course],
    styles: Mapping[str, Style],
    *,
    every_seed: bool,
) -> Figure:
    baselines = baseline_texts(look.group)
    texts = {course.row.name: folded(course_name(course.row)) for course in courses}
    column = [*texts.values(), *baselines.values()]
    plot = max(370, 1.15 * margin_height(column))
    sheet = Sheet(title, look.group.machine, notes, [course.row for course in courses], body=plot + 92)
    axes = sheet.axes(78, 62, WIDTH - 78 - margin_width(column), plot)
    prepare(axes, look)
    for course in courses:
        style = styles[course.row.name]
        averaged = len(course.curves) > 1 and bool(course.x)
        for curve in course.curves if every_seed or not averaged else ():
            dash, width, alpha = ("-", 0.7, 0.45) if averaged else (style.dash, style.width, 1.0)
            axes.plot(curve.x, curve.score, color=style.colour, linestyle=dash, linewidth=width, alpha=alpha)
            for x, _ in curve.changes if look.changes is None and every_seed else ():
                y = float(np.interp(x, curve.x, curve.score))
                axes.scatter([x], [y], s=34, facecolor="white", edgecolor=style.colour, zorder=4)
        if averaged:
            draw_mean(axes, course, style)
    draw_changes(axes, look.changes or [])
    draw_margin(
        axes, [*draw_baselines(axes, look.group.baselines, baselines), *end_labels(axes, courses, texts, styles)]
    )
    return sheet.figure


def panels(
    look: Look,
    title: str,
    notes: Sequence[str],
    courses: Sequence[Course],
    styles: Mapping[str, Style],
    families: Sequence[str],
) -> Figure:
    """Panels, two side by side, one for each family; the curves of other families are light grey."""
    baselines = {name: folded(name, PANEL_FOLD) for name in look.group.baselines}
    texts = {course.row.name: folded(course_name(course.row), PANEL_FOLD) for course in courses}
    shown = {
        family: [c for c in courses if c.row.family in (family, CONTROL_FAMILY) or c.row.is_reference]
        for family in families
    }
    columns = {
        family: [*(texts[course.row.name] for course in panel), *baselines.values()] for family, panel in shown.items()
    }
    right = max(margin_width(column) for column in columns.values())
    left, gap, above, below = 70.0, 40.0, 34.0, 52.0
    width = (WIDTH - left - gap) / 2 - right
    rows = [families[i : i + 2] for i in range(0, len(families), 2)]
    heights = [max(176.0, *(1.1 * margin_height(columns[family]) for family in row)) for row in rows]
    body = sum(heights) + (above + below) * len(rows)
    sheet = Sheet(title, look.group.machine, notes, [], body=body)
    top = body
    for row, height in zip(rows, heights, strict=True):
        top -= above + height
        for column, family in enumerate(row):
            axes = sheet.axes(left + column * (width + right + gap), top, width, height)
            prepare(axes, look)
            if column:
                axes.set_ylabel("")
            others = [mean_line(course) for course in courses if course not in shown[family]]
            axes.plot(*joined(others), color=BACKGROUND, linewidth=0.9, zorder=1.5)
            for course in reversed(shown[family]):
                draw_mean(axes, course, styles[course.row.name])
            for x, _ in look.changes or ():
                axes.axvline(x, color="#bbbbbb", linewidth=1, zorder=1)
            box = axes.get_window_extent()
            write_family(figure_of(axes), family, box.x0, box.y1 + 14, weight="bold")
            lines = draw_baselines(axes, look.group.baselines, baselines)
            draw_margin(axes, [*lines, *end_labels(axes, shown[family], texts, styles)])
        top -= below
    return sheet.figure


def prepare(axes: Axes, look: Look) -> None:
    axes.set_xlim(0, look.furthest)
    axes.set_xlabel(look.unit)
    score_axis(axes, look.score_label, look.values, look.group.scale)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}" if value < 1000 else plain(value))


def draw_mean(axes: Axes, course: Course, style: Style) -> None:
    axes.plot(*mean_line(course), color=style.colour, linestyle=style.dash, linewidth=style.width, zorder=3)


def end_labels(
    axes: Axes, courses: Sequence[Course], texts: Mapping[str, str], styles: Mapping[str, Style]
) -> list[MarginLabel]:
    labels = []
    for course in courses:
        style = styles[course.row.name]
        x, y = (float(line[-1]) for line in mean_line(course))
        axes.plot([x], [y], marker=style.marker, markersize=5, color=style.colour, zorder=4, clip_on=False)
        labels.append(MarginLabel(x, y, texts[course.row.name], style))
    return labels


def course_of(row: Row, axis: str) -> Course | None:
    """The curves of the finished runs, or of the failed ones where none finished; None without a curve."""
    curves = tuple(curve for record in row.finished or row.records if (curve := learning_curve(record, axis)))
    if not curves:
        return None
    start, stop = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    grid = np.linspace(start, stop, 60) if start < stop else np.array([])
    mean = np.mean([np.interp(grid, curve.x, curve.score) for curve in curves], axis=0)
    return Course(row, curves, tuple(map(float, grid)), tuple(map(float, mean)))


def course_name(row: Row) -> str:
    return shown_name(row) + ("" if row.finished else f" ({row.status})")


def mean_line(course: Course) -> tuple[Sequence[float], Sequence[float]]:
    """The mean curve where the seeds overlap, else the longest curve."""
    if course.x:
        return course.x, course.score
    longest = max(course.curves, key=lambda curve: curve.x[-1])
    return longest.x, longest.score


def joined(lines: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], list[float]]:
    """Many lines as one line with gaps: drawing one line takes a fraction of the time."""
    return [v for x, _ in lines for v in (*x, math.nan)], [v for _, y in lines for v in (*y, math.nan)]


def shared_changes(curves: Sequence[Curve], furthest: float) -> list[tuple[float, int]] | None:
    """The places where the training length changes, if they are about the same for all curves; else None."""
    lengths = {tuple(length for _, length in curve.changes) for curve in curves}
    if len(lengths) > 1:
        return None
    places = np.array([[x for x, _ in curve.changes] for curve in curves])  # (curves, changes)
    if places.size and float(np.ptp(places, axis=0).max()) > 0.04 * furthest:
        return None
    return [(float(x), length) for x, length in zip(places.mean(axis=0), lengths.pop(), strict=True)]


def all_lengths(courses: Sequence[Course]) -> list[int]:
    """The training lengths, in the order of the curves."""
    recorded = (as_mapping(p).get("seq_len") for c in courses for r in c.row.records for p in r.get("curve") or [])
    return [int(n) for n in dict.fromkeys(as_number(length) for length in recorded) if n is not None]


def draw_changes(axes: Axes, changes: Sequence[tuple[float, int]]) -> None:
    """Draws faint vertical lines where the training length changes, with the new length above each."""
    box = axes.get_window_extent()
    texts = [f"length {length:,}" for _, length in changes]
    widths = [text_size(text, SMALL)[0] + 2 * GAP for text in texts]
    middles = [float(axes.transData.transform((x, 0))[0]) for x, _ in changes]
    for (x, _), text, centre in zip(changes, texts, spread(middles, widths, box.x0, box.x1), strict=True):
        axes.axvline(x, color="#bbbbbb", linewidth=1, zorder=1)
        write(figure_of(axes), text, centre, box.y1 + 9, ha="center")


def describe_curves(group: Group, axis: str) -> str:
    """The learning curves in words: their last scores."""
    ends = []
    for row in group.rows:
        curves = [curve for record in row.finished if (curve := learning_curve(record, axis))]
        if curves:
            ends.append((row, sum(curve.score[-1] for curve in curves) / len(curves)))
    if not ends:
        return ""
    return f"{count(len(ends), 'variant')}. Last {group.metric}, mean over seeds: {span(ends, group.scale.show)}."
