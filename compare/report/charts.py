"""The charts: accuracy against speed, cost against length, learning curves.

All measures of the page are in pixels of a figure 800 wide (100 to the inch); a PNG holds twice as many.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from .aggregate import (
    ENOUGH_SEEDS,
    Chart,
    Curve,
    Estimate,
    Group,
    Row,
    as_mapping,
    as_number,
    learning_curve,
    numbers,
    pareto_front,
    slug,
    status_of,
    tell_apart,
)
from .labels import GAP, Anchor, Box, place, spread
from .units import percent, plain, seconds, size

DPI = 100
WIDTH = 800
INK, FAINT, GREY = "#222222", "#8a8a8a", "#808080"
Dash = str | tuple[float, tuple[float, ...]]
# Okabe-Ito without its yellow, which is lost on white; black is the reference's.
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (7, 2, 1.5, 2)))
TRIVIAL: Dash = (0, (4, 3))
MARKERS = ("o", "s", "^", "D")
LARGEST_MARKER = 520.0  # square points
MOST_WITH_SEEDS = 12  # with more variants than this, learning curves show means only
STYLE = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "attention zoo",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Style:
    colour: str
    dash: Dash
    marker: str


@dataclass(frozen=True)
class MarginLabel:
    """A text right of the axes, tied by a thin line to a height, or to a point where x is given."""

    x: float | None
    y: float
    text: str
    colour: str
    dash: Dash


@dataclass(frozen=True)
class Cost:
    """What a chart of costs shows: a field of the records, in words, and how to write its values."""

    field: str
    title: str
    axis: str
    show: Callable[[float], str]
    powers_of_two: bool


TIME = Cost(
    "forward_backward_seconds",
    "Time of forward + backward against length",
    "forward + backward of one batch",
    seconds,
    powers_of_two=False,
)
MEMORY = Cost("peak_memory_bytes", "Peak memory of training against length", "peak memory", size, powers_of_two=True)


def write_charts(groups: Sequence[Group], folder: Path) -> list[Chart]:
    """Draw everything the groups allow, as PNG and SVG, and remove charts of earlier reports from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    styles = choose_styles(groups)
    drawn: list[Chart] = []
    with matplotlib.rc_context(STYLE):
        for chart, draw in plan(groups, styles):
            figure = draw()
            if figure is not None:
                save(figure, folder / chart.stem)
                drawn.append(chart)
    kept = {chart.stem for chart in drawn}
    for old in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        if old.stem not in kept:
            old.unlink()
    return drawn


def plan(groups: Sequence[Group], styles: Mapping[str, Style]) -> list[tuple[Chart, Callable[[], Figure | None]]]:
    """Each chart and how to draw it; drawing gives None where there is nothing to show."""
    charts: list[tuple[Chart, Callable[[], Figure | None]]] = []
    for group in groups:
        chart = Chart(f"accuracy_speed_{group.slug}", f"Test score against training speed: {group.title}", group.slug)
        charts.append((chart, partial(accuracy_speed, group, styles)))
        for axis, words in (("step", "steps"), ("seconds", "seconds")):
            chart = Chart(f"curves_{words}_{group.slug}", f"Learning curves by {words}: {group.title}", group.slug)
            charts.append((chart, partial(learning_curves, group, axis, styles)))
    for family in families(groups):
        name = slug(family[0].task, family[0].where, family_note(family, groups))
        for stem, cost in (("cost_time", TIME), ("cost_memory", MEMORY)):
            chart = Chart(f"{stem}_{name}", f"{cost.title}: {family[0].task}", "")
            charts.append((chart, partial(cost_against_length, family, cost, styles)))
    return charts


def choose_styles(groups: Sequence[Group]) -> dict[str, Style]:
    """A look for every name, the same on all charts of a report."""
    rows = {name: row for group in groups for row in group.rows for name in (row.name, row.label)}
    looks = (Style(c, d, m) for (d, m), c in itertools.product(zip(DASHES, MARKERS, strict=True), COLOURS))
    styles = {}
    cycle = itertools.cycle(looks)
    for name in sorted(rows):
        row = rows[name]
        if row.is_control:
            styles[name] = Style(GREY, "-", "o")
        elif row.variant == "full" and name == row.label:
            styles[name] = Style("#000000", "-", "o")
        else:
            styles[name] = next(cycle)
    return styles


def save(figure: Figure, path: Path) -> None:
    for suffix, dpi, metadata in ((".png", 2 * DPI, {"Software": None}), (".svg", DPI, {"Date": None})):
        temporary = path.with_name(f".{path.name}{suffix}.tmp")
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)
        os.replace(temporary, path.with_name(path.name + suffix))


def sheet(
    title: str, machine: str, notes: Sequence[str], *, right: float, plot: float, legend: float = 0, left: float = 78
) -> tuple[Figure, Axes]:
    """An empty chart: title and machine above, notes below, all of it measured so that nothing collides.

    Args:
        title: what the axes are, and of what.
        machine: where it was measured.
        notes: what the reader must know; wrapped.
        right: width kept free right of the axes.
        plot: height of the axes.
        legend: height kept free below the axis label.
        left: width for the ticks and the label of the vertical axis.
    """
    titles = wrap(title, 74)
    lines = wrap(machine, 112)
    small = [line for note in notes for line in wrap(note, 116)]
    top = 12 + 22 * len(titles) + 17 * len(lines) + 26
    bottom = 62 + legend + 16 * len(small) + 6
    height = top + plot + bottom
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, plot / height), facecolor="white"
    )
    figure.text(14 / WIDTH, 1 - 10 / height, "\n".join(titles), va="top", size=13, weight="bold", linespacing=1.2)
    figure.text(14 / WIDTH, 1 - (14 + 22 * len(titles)) / height, "\n".join(lines), va="top", size=9.5, color="#555555")
    figure.text(14 / WIDTH, 8 / height, "\n".join(small), va="bottom", size=9, color="#444444", linespacing=1.25)
    axes.grid(visible=True, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def text_size(text: str, points: float) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    box = figure.text(0, 0, text, size=points).get_window_extent(renderer)
    return float(box.width), float(box.height)


def folded(name: str) -> str:
    """A long name over several lines."""
    return "\n".join(wrap(name, 24, break_long_words=False)) or name


def margin_width(texts: Sequence[str]) -> float:
    """How much room labels right of the axes need."""
    return 44 + max((text_size(text, 9.5)[0] for text in texts), default=0)


def draw_margin(axes: Axes, labels: Sequence[MarginLabel]) -> None:
    """Write labels in a column right of the axes, in the order of their points, none over another."""
    box = axes.get_window_extent()
    points = [
        (
            box.x1 if label.x is None else axes.transData.transform((label.x, label.y))[0],
            axes.transData.transform((1, label.y))[1],
        )
        for label in labels
    ]
    heights = [text_size(label.text, 9.5)[1] + GAP for label in labels]
    centres = spread([y for _, y in points], heights, box.y0, box.y1)
    for label, (x, y), centre in zip(labels, points, centres, strict=True):
        bend = [(x, y), (box.x1 + 4, y), (box.x1 + 22, centre), (box.x1 + 32, centre)]
        draw_line(figure_of(axes), bend, label.colour, label.dash)
        write(figure_of(axes), label.text, box.x1 + 36, centre, ha="left")


def figure_of(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def draw_line(figure: Figure, pixels: Sequence[tuple[float, float]], colour: str, dash: Dash) -> None:
    inches = figure.dpi_scale_trans.inverted().transform(pixels)
    line = Line2D(*inches.T, transform=figure.dpi_scale_trans, color=colour, linestyle=dash, linewidth=1.0)
    figure.add_artist(line)


def write(figure: Figure, text: str, x: float, y: float, *, ha: str) -> None:
    """A label at a place in pixels, its middle at y."""
    x, y = figure.dpi_scale_trans.inverted().transform((x, y))
    figure.text(
        *(x, y, text),
        transform=figure.dpi_scale_trans,
        size=9.5,
        ha=ha,
        va="center",
        linespacing=1.05,
        gid="label",
        path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)],
    )


@dataclass(frozen=True)
class Name:
    """A text to be written beside a point in data, round which `radius` pixels are kept free."""

    text: str
    x: float
    y: float
    radius: float
    colour: str


def draw_names(axes: Axes, names: Sequence[Name], lines: Sequence[Box]) -> None:
    """Write each name beside its point, with a thin leader where it had to move away."""
    area = axes.get_window_extent()
    anchors = []
    for name in names:
        x, y = axes.transData.transform((name.x, name.y))
        anchors.append(Anchor(float(x), float(y), name.radius, *text_size(name.text, 9.5)))
    marks = [Box(a.x - a.radius, a.y - a.radius, a.x + a.radius, a.y + a.radius) for a in anchors]
    inside = Box(area.x0 + 3, area.y0 + 3, area.x1 - 3, area.y1 - 1)
    for name, anchor, box in zip(names, anchors, place(anchors, inside, marks, lines), strict=True):
        nearest = (min(max(anchor.x, box.left), box.right), min(max(anchor.y, box.bottom), box.top))
        if math.dist(nearest, (anchor.x, anchor.y)) > anchor.radius + 3 * GAP:
            draw_line(figure_of(axes), [(anchor.x, anchor.y), nearest], name.colour, "-")
        write(figure_of(axes), name.text, (box.left + box.right) / 2, (box.bottom + box.top) / 2, ha="center")


def boxes_along(axes: Axes, points: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes every few pixels along a line through points in data."""
    corners = axes.transData.transform(np.array(points, dtype=float))
    boxes = []
    for start, end in itertools.pairwise(corners):
        for share in np.linspace(0, 1, 1 + int(math.dist(start, end) / 5)):
            x, y = start + share * (end - start)
            boxes.append(Box(x - 2, y - 2, x + 2, y + 2))
    return boxes


def nice_ticks(low: float, high: float) -> list[float]:
    """Round positions on a logarithmic axis: at least three of them where that is possible."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(np.arange(10, 100) / 10)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 8)] if ticks else [low, high]


def log_ticks(axes: Axes, which: str, ticks: Sequence[float], show: Callable[[float], str]) -> None:
    """Make one axis ("x" or "y") logarithmic, with these ticks and no others."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks([], minor=True)
    axis.set_ticks(ticks, labels=[show(tick) for tick in ticks])


def score_axis(axes: Axes, label: str, values: Sequence[float]) -> None:
    low, high = max(min(values), 0.0), min(max(values), 1.0)
    pad = max(0.08 * (high - low), 0.01)  # room for a marker at 0 or 100 %
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}" if -1e-9 < value < 1 + 1e-9 else "")
    axes.set_ylabel(label)


def baseline_labels(axes: Axes, group: Group) -> list[MarginLabel]:
    """Dashed lines for the trivial predictors, and what to call them."""
    labels = []
    for name, value in group.baselines.items():
        axes.axhline(value, color="#555555", linewidth=1.0, linestyle=TRIVIAL, zorder=1)
        labels.append(MarginLabel(None, value, baseline_text(name, value), "#555555", TRIVIAL))
    return labels


def baseline_text(name: str, value: float) -> str:
    return "\n".join(wrap(f"{name} {percent(value)}", 20))


def shown_name(row: Row) -> str:
    return row.name + ("*" if row.fell_back else "")


def fallback_notes(rows: Sequence[Row]) -> list[str]:
    ran = {row.name: row.kernels or "another kernel" for row in rows if row.fell_back}
    return [f"* {name} ran {kernel}" for name, kernel in ran.items()]


def seeds_note(estimates: Mapping[str, Estimate]) -> str:
    counts = {name: found.n for name, found in estimates.items()}
    few = [name for name, n in counts.items() if n < ENOUGH_SEEDS]
    usual = max(counts.values())
    text = f"Mean of {usual} seeds; bars: 95 % t interval." if usual > 1 else "One seed, so no intervals."
    if odd := [f"{name} {n}" for name, n in counts.items() if n != usual]:
        text += f" Other seed counts: {', '.join(odd)}."
    if few:
        text += f" Fewer than {ENOUGH_SEEDS} seeds ({', '.join(few) if len(few) < len(counts) else 'all'}): no ranking."
    return text


@dataclass(frozen=True)
class Spot:
    """Where one row stands on the chart of accuracy against speed."""

    row: Row
    speed: Estimate
    score: Estimate
    memory: Estimate | None


def accuracy_speed(group: Group, styles: Mapping[str, Style]) -> Figure | None:
    spots = [
        Spot(row, speed, score, row.over_seeds("peak_memory_bytes"))
        for row in group.rows
        if (score := row.over_seeds("test_score")) and (speed := row.over_seeds("tokens_per_second"))
    ]
    spots = [spot for spot in spots if spot.speed.mean > 0]
    if not spots:
        return None
    attending = [spot for spot in spots if not spot.row.is_control]
    front = [attending[i] for i in pareto_front([(s.speed.mean, s.score.mean) for s in attending])]
    heaviest = max((spot.memory.mean for spot in spots if spot.memory), default=0.0)

    notes = [seeds_note({spot.row.name: spot.score for spot in spots})]
    if group.test_size:
        half = max(group.test_noise(spot.score.mean) for spot in spots)
        notes[0] += f" Test set: {plain(group.test_size)} predictions, ± {100 * half:.1f} points by itself (binomial)."
    drawn = {spot.row.name for spot in spots}
    if missing := [f"{row.name} ({row.status})" for row in group.rows if row.name not in drawn]:
        notes.append(f"Not drawn, for lack of a score or a speed: {', '.join(missing)}.")
    if unweighed := [spot.row.name for spot in spots if not spot.memory]:
        notes.append(f"Hollow: peak memory not measured ({', '.join(unweighed)}).")
    if len(front) > 1:
        notes.append("Thin line: Pareto front, the control left out.")
    notes += fallback_notes([spot.row for spot in spots])

    baselines = [baseline_text(name, value) for name, value in group.baselines.items()]
    figure, axes = sheet(
        f"Test {group.metric} against training speed: {group.title}",
        group.machine,
        notes,
        right=margin_width(baselines),
        plot=max(390, 19 * len(spots)),
        legend=40,
    )
    speeds = [edge for spot in spots for edge in ends(spot.speed)]
    low, high = max(min(speeds), min(spot.speed.mean for spot in spots) / 3), max(speeds)
    pad = max((high / low) ** 0.12, 1.25)
    axes.set_xlim(low / pad, high * pad)
    log_ticks(axes, "x", nice_ticks(low / pad, high * pad), plain)
    score_axis(
        axes,
        f"test {group.metric}, %",
        [edge for spot in spots for edge in ends(spot.score)] + list(group.baselines.values()),
    )
    axes.set_xlabel("training speed, tokens per second (logarithmic; further right is faster)")

    names, lines = [], []
    for spot in spots:
        style = styles[spot.row.name]
        x, y = spot.speed.mean, spot.score.mean
        area = LARGEST_MARKER * spot.memory.mean / heaviest if spot.memory else 30.0
        face = style.colour if spot.memory else "none"
        axes.scatter([x], [y], s=area, facecolor=face, edgecolor=style.colour, alpha=0.75, linewidth=1, zorder=3)
        for error, (start, end) in (
            (spot.score, ((x, y - (spot.score.half or 0)), (x, y + (spot.score.half or 0)))),
            (spot.speed, ((ends(spot.speed)[0], y), (ends(spot.speed)[1], y))),
        ):
            if error.half:
                axes.plot([start[0], end[0]], [start[1], end[1]], color=style.colour, linewidth=1.3, zorder=4)
                lines += boxes_along(axes, [start, end])
        radius = math.sqrt(area / math.pi) * DPI / 72 + 1
        names.append(Name(folded(shown_name(spot.row)), x, y, radius, style.colour))
    if len(front) > 1:
        corners = [(spot.speed.mean, spot.score.mean) for spot in front]
        axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.9, alpha=0.6, zorder=2)
        lines += boxes_along(axes, corners)
    draw_margin(axes, baseline_labels(axes, group))
    for value in group.baselines.values():
        lines += boxes_along(axes, [(axes.get_xlim()[0], value), (axes.get_xlim()[1], value)])
    draw_names(axes, names, lines)
    draw_size_legend(axes, [spot.memory.mean for spot in spots if spot.memory])
    return figure


def ends(found: Estimate) -> tuple[float, float]:
    half = found.half or 0.0
    return found.mean - half, found.mean + half


def draw_size_legend(axes: Axes, memories: Sequence[float]) -> None:
    """Below the axes: sample markers with their memory."""
    if not memories:
        return
    heaviest, lightest = max(memories), min(memories)
    samples = {2.0 ** round(math.log2(value)) for value in (heaviest, math.sqrt(heaviest * lightest), lightest)}
    samples = samples if len(samples) > 1 else samples | {value / 4 for value in samples}
    handles = [
        axes.scatter([], [], s=LARGEST_MARKER * value / heaviest, color=FAINT, alpha=0.75, label=size(value))
        for value in sorted(samples)
    ]
    box = axes.get_position()
    figure_of(axes).legend(
        handles=[axes.scatter([], [], s=0, label="marker area, peak memory:"), *handles],
        loc="upper left",
        bbox_to_anchor=(box.x0 - 0.03, box.y0 - 48 / figure_of(axes).bbox.height),
        ncols=1 + len(handles),
        frameon=False,
        fontsize=9.5,
        handletextpad=0.7,
        columnspacing=1.6,
    )


@dataclass(frozen=True)
class Course:
    """The learning curves of one row, and their mean where they overlap."""

    row: Row
    curves: tuple[Curve, ...]
    x: tuple[float, ...]
    score: tuple[float, ...]


def learning_curves(group: Group, axis: str, styles: Mapping[str, Style]) -> Figure | None:
    courses = [course for row in group.rows if (course := course_of(row, axis))]
    if not courses:
        return None
    curves = [curve for course in courses for curve in course.curves]
    furthest = max(curve.x[-1] for curve in curves)
    changes = shared_changes(curves, furthest)

    kinds = {curve.validated for curve in curves}
    what = "Validation" if kinds == {True} else "Training" if kinds == {False} else "Validation or training"
    notes = []
    if False in kinds:
        smoothed = [c.row.name for c in courses if not all(curve.validated for curve in c.curves)]
        notes.append(f"Running mean of the training score, for want of validation scores: {', '.join(smoothed)}.")
    every_seed = len(courses) <= MOST_WITH_SEEDS
    if any(len(course.curves) > 1 for course in courses):
        notes.append(
            "Thin lines: one seed each; thick: their mean over the range all of them reached."
            if every_seed
            else "Lines: mean of the seeds over the range all of them reached."
        )
    if changes is None and every_seed:
        notes.append(f"Rings: the training length changes ({' → '.join(f'{n:,}' for n in all_lengths(courses))}).")
    if group.baselines:
        notes.append("Dashed: trivial predictors, scored on the test set.")
    notes += fallback_notes([course.row for course in courses])

    stops = [(course, *last_point(course)) for course in courses]
    at_edge = [stop for stop in stops if stop[1] >= 0.93 * furthest]
    texts = [folded(course_name(course.row)) for course, _, _ in at_edge]
    baselines = [baseline_text(name, value) for name, value in group.baselines.items()]
    unit = "training steps" if axis == "step" else "training time, seconds"
    figure, axes = sheet(
        f"{what} {group.metric} against {unit.split(',')[0]}: {group.title}",
        group.machine,
        notes,
        right=margin_width(texts + baselines),
        plot=max(370, 19 * (len(courses) + len(baselines))),
    )
    axes.set_xlim(0, furthest)
    score_axis(
        axes,
        f"{what.lower()} {group.metric}, %",
        [value for curve in curves for value in curve.score] + list(group.baselines.values()),
    )
    axes.set_xlabel(unit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}" if value < 1000 else plain(value))

    lines = []
    for course in courses:
        style = styles[course.row.name]
        averaged = len(course.curves) > 1 and bool(course.x)
        for curve in course.curves if every_seed or not averaged else ():
            dash, width, alpha = ("-", 0.7, 0.45) if averaged else (style.dash, 1.9, 1.0)
            axes.plot(curve.x, curve.score, color=style.colour, linestyle=dash, linewidth=width, alpha=alpha)
            for x, _ in curve.changes if changes is None else ():
                y = float(np.interp(x, curve.x, curve.score))
                axes.scatter([x], [y], s=34, facecolor="white", edgecolor=style.colour, zorder=4)
        if averaged:
            axes.plot(course.x, course.score, color=style.colour, linestyle=style.dash, linewidth=1.9)
        lines += boxes_along(
            axes, list(zip(*(course.x, course.score) if course.x else course.curves[0][:2], strict=True))
        )
    draw_changes(axes, changes or [])
    labels = baseline_labels(axes, group)
    for (course, x, y), text in zip(at_edge, texts, strict=True):
        labels.append(MarginLabel(x, y, text, styles[course.row.name].colour, styles[course.row.name].dash))
    draw_margin(axes, labels)
    inner = [
        Name(folded(course_name(course.row)), x, y, 4, styles[course.row.name].colour)
        for course, x, y in stops
        if x < 0.93 * furthest
    ]
    for _, x, y in stops:
        axes.plot([x], [y], marker="o", markersize=3, color=FAINT)
    draw_names(axes, inner, lines)
    return figure


def course_of(row: Row, axis: str) -> Course | None:
    """Curves of the runs that finished; of the failed ones where none did."""
    curves = tuple(curve for record in row.finished or row.records if (curve := learning_curve(record, axis)))
    if not curves:
        return None
    start, stop = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    grid = np.linspace(start, stop, 60) if start < stop else np.array([])
    mean = np.mean([np.interp(grid, curve.x, curve.score) for curve in curves], axis=0)
    return Course(row, curves, tuple(map(float, grid)), tuple(map(float, mean)))


def course_name(row: Row) -> str:
    return shown_name(row) + ("" if row.finished else f" ({row.status})")


def last_point(course: Course) -> tuple[float, float]:
    if course.x:
        return course.x[-1], course.score[-1]
    longest = max(course.curves, key=lambda curve: curve.x[-1])
    return longest.x[-1], longest.score[-1]


def shared_changes(curves: Sequence[Curve], furthest: float) -> list[tuple[float, int]] | None:
    """Where the training length changes, if it does so at about the same place for all; None if it does not."""
    lengths = {tuple(length for _, length in curve.changes) for curve in curves}
    if len(lengths) > 1:
        return None
    places = np.array([[x for x, _ in curve.changes] for curve in curves])  # (curves, changes)
    if places.size and float(np.ptp(places, axis=0).max()) > 0.04 * furthest:
        return None
    return [(float(x), length) for x, length in zip(places.mean(axis=0), lengths.pop(), strict=True)]


def all_lengths(courses: Sequence[Course]) -> list[int]:
    """Training lengths in the order the runs went through them."""
    recorded = (as_mapping(p).get("seq_len") for c in courses for r in c.row.records for p in r.get("curve") or [])
    return [int(n) for n in dict.fromkeys(as_number(length) for length in recorded) if n is not None]


def draw_changes(axes: Axes, changes: Sequence[tuple[float, int]]) -> None:
    """Faint vertical lines where the training length changes, the new length written above."""
    box = axes.get_window_extent()
    texts = [f"length {length:,}" for _, length in changes]
    widths = [text_size(text, 9.5)[0] + 2 * GAP for text in texts]
    middles = [float(axes.transData.transform((x, 0))[0]) for x, _ in changes]
    for (x, _), text, centre in zip(changes, texts, spread(middles, widths, box.x0, box.x1), strict=True):
        axes.axvline(x, color="#bbbbbb", linewidth=1, zorder=1)
        write(figure_of(axes), text, centre, box.y1 + 9, ha="center")


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one task that differ in length and in nothing a step's cost depends on: two lengths or more."""
    found: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.machine, group.task, group.cost_conditions), []).append(group)
    return [family for family in found.values() if len({group.seq_len for group in family}) > 1]


def family_note(family: Sequence[Group], groups: Sequence[Group]) -> str:
    """What tells a family from others of its task: nothing where there is only one."""
    first = family[0]
    rivals = [g.cost_conditions for g in groups if (g.machine, g.task) == (first.machine, first.task)]
    return tell_apart(first.cost_conditions, rivals)


def cost_against_length(family: Sequence[Group], cost: Cost, styles: Mapping[str, Style]) -> Figure | None:
    cells: dict[str, dict[int, Row]] = {}
    for group in family:
        for row in group.rows:
            known = cells.setdefault(row.label, {}).get(group.seq_len)
            records = (known.records if known else ()) + row.records
            cells[row.label][group.seq_len] = Row(row.label, "", row.variant, records)
    lines = {
        label: [(n, found.mean) for n, row in sorted(rows.items()) if (found := row.over_seeds(cost.field))]
        for label, rows in cells.items()
    }
    values = [value for line in lines.values() for _, value in line if value > 0]
    if not values:
        return None
    lengths = sorted({group.seq_len for group in family})
    failed: dict[tuple[int, str], list[str]] = {}
    for rows in cells.values():
        for n, row in rows.items():
            if not row.finished:
                failed.setdefault((n, status_of(row.records[-1])), []).append(row.name)

    rows_shown = {label: next(iter(rows.values())) for label, rows in cells.items()}
    fell_back = [row for label in cells for row in cells[label].values() if row.fell_back]
    batches = {n: batch_of(group) for group in family if (n := group.seq_len)}
    notes = ["Mean over seeds."]
    if any(row.spread(cost.field) for rows in cells.values() for row in rows.values()):
        notes[0] += " Bars: quartiles of the repetitions."
    if failed:
        notes[0] += " ×: nothing measured at this length, for the reason named; its height means nothing."
    notes += fallback_notes(fell_back)
    starred = {row.label for row in fell_back}

    texts = {label: folded(row.name + ("*" if label in starred else "")) for label, row in rows_shown.items()}
    at_edge = [label for label, line in lines.items() if line and line[-1][0] == lengths[-1]]
    figure, axes = sheet(
        f"{cost.title}: {family[0].task}" + (f" ({family[0].where})" if family[0].where else ""),
        family[0].machine,
        notes,
        right=margin_width([texts[label] for label in at_edge]),
        left=96,
        plot=max(390, 19 * len(at_edge)),
    )
    axes.set_xlim(lengths[0] / 1.12, lengths[-1] * 1.04)
    varied = len(set(batches.values())) > 1
    log_ticks(axes, "x", lengths, lambda n: f"{n:,.0f}" + (f"\nbatch {batches[int(n)]}" if varied else ""))
    low, high = min(values) / 1.3, max(values) * (3 if failed else 1.3)
    axes.set_ylim(low, high)
    log_ticks(axes, "y", memory_ticks(low, high) if cost.powers_of_two else nice_ticks(low, high), cost.show)
    axes.set_xlabel("sequence length, tokens (logarithmic)")
    axes.set_ylabel(f"{cost.axis} (logarithmic)")

    soft: list[Box] = []
    names: list[Name] = []
    margin: list[MarginLabel] = []
    for label, line in lines.items():
        if not line:
            continue
        style = styles[label]
        axes.plot(*zip(*line, strict=True), color=style.colour, linestyle=style.dash, marker=style.marker, markersize=5)
        for n, row in cells[label].items():
            if quartiles := row.spread(cost.field):
                axes.plot([n, n], quartiles, color=style.colour, linewidth=1)
        soft += boxes_along(axes, line)
        x, y = line[-1]
        if label in at_edge:
            margin.append(MarginLabel(x, y, texts[label], style.colour, style.dash))
        else:
            names.append(Name(texts[label], x, y, 5, style.colour))
    for rank, ((n, status), who) in enumerate(sorted(failed.items())):
        y = high / (high / low) ** (0.04 + 0.05 * (rank % 3))
        axes.plot([n], [y], marker="x", markersize=8, markeredgewidth=2, color=INK)
        names.append(Name(folded(f"{status}: {', '.join(who)}"), n, y, 7, INK))
    draw_margin(axes, margin)
    draw_names(axes, names, soft)
    return figure


def batch_of(group: Group) -> str:
    found = numbers((as_mapping(record.get("spec")) for record in group.records), "batch_size")
    return f"{found[0]:.0f}" if found else "?"


def memory_ticks(low: float, high: float) -> list[float]:
    """Powers of two, at most eight of them."""
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2.0**power for power in powers[:: max(1, math.ceil(len(powers) / 8))]] or nice_ticks(low, high)
