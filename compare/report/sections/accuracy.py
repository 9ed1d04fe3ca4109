"""Accuracy against cost: training speed and memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from compare import quantities
from compare.quantities import Quantity
from compare.report.facts.groups import Group, Row
from compare.report.facts.memory import memory_of
from compare.report.facts.scale import FRACTION, Scale
from compare.report.facts.stats import Estimate, pareto_front
from compare.report.facts.sweeps import Sweep, sweeps_of
from compare.report.render.axes import log_ticks, memory_ticks, nice_ticks, score_axis
from compare.report.render.canvas import (
    DPI,
    FAINT,
    INK,
    SMALL,
    SOFT,
    TRIVIAL,
    WIDTH,
    MarginLabel,
    Name,
    Sheet,
    Style,
    baseline_texts,
    box_along,
    boxes_along,
    boxes_at,
    draw_baselines,
    draw_margin,
    draw_names,
    figure_of,
    folded,
    margin_width,
)
from compare.report.render.labels import Box
from compare.report.sections.flags import flag_notes, marked
from compare.report.sections.section import Chart, Section
from compare.report.sections.wording import count, means, seeds_note, span
from compare.units import sentence, size

LARGEST_MARKER = 520.0  # square points, where few variants are shown
PLAIN_MARKER = 80.0
VALUE_REACH = 12.0  # pixels from a point to its option's value; a value that must stand further off is not written


@dataclass(frozen=True)
class Against:
    """The cost on the other axis.

    stem: begins the file names. axis: its label. pareto: whether to draw the Pareto front.
    """

    quantity: Quantity
    stem: str
    axis: str
    pareto: bool = False

    @property
    def words(self) -> str:
        return self.quantity.told

    @property
    def ticks(self) -> Callable[[float, float], list[float]]:
        return memory_ticks if self.quantity.show is size else nice_ticks


SPEED = Against(
    quantities.SPEED,
    "accuracy_speed",
    "training speed, tokens per second (logarithmic; further right is faster)",
    pareto=True,
)


def weight_of(rows: Sequence[Row]) -> Against:
    """The memory axis: of all training where the records have it, else of a step."""
    memory = memory_of(rows)
    axis = f"{memory.told}: {memory.holds} (logarithmic)"
    return Against(memory, "accuracy_memory", axis, pareto=True)


@dataclass(frozen=True)
class Spot:
    """The place of one row on a chart of accuracy."""

    row: Row
    cost: Estimate
    score: Estimate
    memory: Estimate | None

    @property
    def reach(self) -> tuple[float, float]:
        """The ends of its vertical line: of the interval, or of the seeds where only some solve the task."""
        seeds = self.row.scores.values()
        return self.score.ends if self.score.solved is None else (min(seeds), max(seeds))


@dataclass(frozen=True)
class Scatter:
    """What a chart of accuracy shows.

    spots: of the rows with a cost above 0. free: of the rows with cost 0, which a logarithmic axis cannot show.
    front: the Pareto front of the spots, by rising cost.
    """

    group: Group
    against: Against
    spots: Sequence[Spot]
    free: Sequence[Spot]
    front: Sequence[Spot]

    @cached_property
    def sweeps(self) -> list[Sweep]:
        return sweeps_of([spot.row for spot in self.spots])

    @cached_property
    def values(self) -> dict[str, str]:
        """Row name -> its option's value, for every row of a sweep but the last, which is labelled with its name."""
        named = {sweep.rows[-1].name for sweep in self.sweeps}
        points = (point for sweep in self.sweeps for point in sweep.points)
        return {row.name: f"{value:g}" for value, row in points if row.name not in named}

    @property
    def memories(self) -> list[float]:
        return [spot.memory.mean for spot in self.spots if spot.memory]

    @property
    def scores(self) -> list[float]:
        return [edge for spot in (*self.spots, *self.free) for edge in spot.reach]

    @property
    def span(self) -> tuple[float, float]:
        """The ends of the cost axis."""
        means = [spot.cost.mean for spot in self.spots]
        edges = [edge for spot in self.spots for edge in spot.cost.ends]
        low, high = max(min(edges), min(means) / 1.6), min(max(edges), max(means) * 1.6)
        pad = max((high / low) ** 0.12, 1.25)
        return low / pad, high * pad

    @property
    def largest(self) -> float:
        """The area of the largest marker, in square points."""
        return LARGEST_MARKER if len(self.spots) <= 12 else LARGEST_MARKER / 2

    def area(self, spot: Spot) -> float:
        """The area of its marker, in square points."""
        if spot.memory:
            return self.largest * spot.memory.mean / max(self.memories)
        return 30.0 if self.against is SPEED else PLAIN_MARKER


@dataclass
class Taken:
    """The names to place, and what is already drawn, which names must not cover."""

    names: list[Name]
    marks: list[Box]
    lines: list[Box]


def part(group: Group) -> Section:
    charts = (accuracy_chart(group, against) for against in (SPEED, weight_of(group.rows)))
    return Section(charts=[chart for chart in charts if chart])


def accuracy_chart(group: Group, against: Against, begin: str = "") -> Chart | None:
    """None where no row has both a score and a cost. begin: begins the alt text."""
    plot = scatter_of(group, against)
    if not plot.spots:
        return None
    title = sentence(f"{begin}{group.basis.words('score')} against {against.words}: {group.title}")
    alt = f"{title}. {describe_accuracy(group, against)}".strip()
    return Chart(f"{against.stem}_{group.slug}", alt, partial(draw_accuracy, plot))


def scatter_of(group: Group, against: Against) -> Scatter:
    memory = memory_of(group.rows)
    all_spots = [
        Spot(row, cost, score, row.over_seeds(memory) if against is SPEED else None)
        for row in group.rows
        if (score := group.score(row)) and (cost := row.over_seeds(against.quantity))
    ]
    spots, free = [s for s in all_spots if s.cost.mean > 0], [s for s in all_spots if s.cost.mean <= 0]
    sign = 1 if against.quantity.better == "high" else -1
    attending = [s for s in spots if against.pareto and s.row.attends and group.is_fair(s.row, against.quantity)]
    places = [(sign * s.cost.mean, group.scale.better(s.score.mean)) for s in attending]
    return Scatter(group, against, spots, free, [attending[i] for i in pareto_front(places)])


def draw_accuracy(plot: Scatter, styles: Mapping[str, Style]) -> Figure:
    group, against, spots, scale = plot.group, plot.against, plot.spots, plot.group.scale
    looks = dict(styles) | {row.name: styles[sweep.rows[0].name] for sweep in plot.sweeps for row in sweep.rows}
    baselines = baseline_texts(group)
    levels = {spot.row.name: folded(f"{spot.row.name} {scale.show(spot.score.mean)}, at 0", 20) for spot in plot.free}
    height = max(390.0, 26.0 * (len(spots) - len(plot.values)), 13.0 * len(spots))
    legend = 40 if plot.memories else 0
    sheet = Sheet(
        f"{sentence(group.basis.words(group.metric))} against {against.words}: {group.title}",
        group.machine,
        accuracy_notes(plot),
        [spot.row for spot in spots],
        body=height + 86 + legend,
    )
    axes = sheet.axes(78, 62 + legend, WIDTH - 78 - margin_width([*baselines.values(), *levels.values()]), height)
    shown, far = near_baselines(group.baselines, plot.scores, scale)
    set_axes(axes, plot, [*plot.scores, *shown.values()])
    taken = Taken([], [], [])
    for spot in sorted(spots, key=lambda spot: -(spot.memory.mean if spot.memory else 0)):
        draw_spot(axes, plot, spot, looks[spot.row.name], taken)
    draw_lines(axes, plot, looks, taken)
    below = [MarginLabel(None, axes.get_ylim()[0], baselines[name], Style(SOFT, TRIVIAL, "v")) for name in far]
    beside = draw_baselines(axes, {spot.row.name: spot.score.mean for spot in plot.free}, levels)
    draw_margin(axes, [*draw_baselines(axes, shown, baselines), *beside, *below])
    across = [*shown.values(), *(spot.score.mean for spot in plot.free)]
    low, high = plot.span
    taken.marks += [box_along(axes, (low, value), (high, value)) for value in across]
    draw_names(axes, sorted(taken.names, key=lambda name: name.reach < math.inf), taken.marks, taken.lines)
    draw_size_legend(axes, plot.memories, plot.largest, memory_of(group.rows).told)
    return sheet.figure


def set_axes(axes: Axes, plot: Scatter, scores: Sequence[float]) -> None:
    group, against = plot.group, plot.against
    axes.set_xlim(*plot.span)
    log_ticks(axes, "x", against.ticks(*plot.span), against.quantity.show)
    score_axis(axes, group.basis.words(group.metric), scores, group.scale)
    axes.set_xlabel(against.axis)


def draw_spot(axes: Axes, plot: Scatter, spot: Spot, style: Style, taken: Taken) -> None:
    """Draws a row's mark with its intervals, or with its seeds where only some solve the task."""
    x, y = spot.cost.mean, spot.score.mean
    area = plot.area(spot)
    shape, reach = marker_shape(style.marker)
    face = "none" if plot.against is SPEED and not spot.memory else style.colour
    axes.scatter(
        *([x], [y], area * shape),
        marker=style.marker,
        facecolor=face,
        edgecolor=style.colour if face == "none" else "white",
        alpha=0.85,
        linewidth=0.8,
        zorder=3,
    )
    low_score, high_score = spot.reach
    bars = [(spot.score, ((x, low_score), (x, high_score)))]
    if spot.score.solved is not None:
        bars = []
        seeds = list(spot.row.scores.values())
        axes.plot([x] * len(seeds), seeds, color=style.colour, linewidth=0.9, linestyle=":", zorder=2.5)
        axes.scatter([x] * len(seeds), seeds, s=16, facecolor="white", edgecolor=style.colour, zorder=3.5)
        taken.lines.append(box_along(axes, (x, low_score), (x, high_score)))
        taken.marks += boxes_at(axes, [(x, seed) for seed in seeds], 4)
    low, high = plot.span
    bars.append((spot.cost, ((max(spot.cost.ends[0], low), y), (min(spot.cost.ends[1], high), y))))
    for error, (start, end) in bars:
        if error.half:
            axes.plot(*zip(start, end, strict=True), color=style.colour, linewidth=1.2, alpha=0.6, zorder=2.5)
            taken.lines.append(box_along(axes, start, end))
    taken.names.append(name_of(plot, spot, reach * math.sqrt(area * shape) * DPI / 72 + 1, style))


def name_of(plot: Scatter, spot: Spot, radius: float, style: Style) -> Name:
    """The text beside a mark: the row's name or, in a sweep, its option's value."""
    text, reach = plot.values.get(spot.row.name), VALUE_REACH
    if text is None:
        solved = "" if spot.score.solved is None else f" {plot.group.scale.number(spot.score)}"
        text, reach = folded(marked(spot.row, plot.group) + solved), math.inf
    return Name(text, spot.cost.mean, spot.score.mean, radius, style.colour, style.weight, reach)


def draw_lines(axes: Axes, plot: Scatter, looks: Mapping[str, Style], taken: Taken) -> None:
    """Draws lines through the values of each sweep, and along the Pareto front."""
    places = {spot.row.name: (spot.cost.mean, spot.score.mean) for spot in plot.spots}
    for sweep in plot.sweeps:
        corners, style = [places[row.name] for row in sweep.rows], looks[sweep.rows[0].name]
        axes.plot(*zip(*corners, strict=True), color=style.colour, linewidth=1.3, linestyle=style.dash, zorder=2.2)
        taken.lines += boxes_along(axes, corners)
    if len(plot.front) > 1:
        corners = [places[spot.row.name] for spot in plot.front]
        axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.9, alpha=0.6, zorder=2)
        taken.lines += boxes_along(axes, corners)


def near_baselines(
    baselines: Mapping[str, float], scores: Sequence[float], scale: Scale = FRACTION
) -> tuple[dict[str, float], list[str]]:
    """The best trivial predictor and others near enough to stretch the axis for, with scores; the names of the rest."""
    heights = {name: scale.better(value) for name, value in baselines.items()}  # larger is higher on the axis
    best = max(heights.values(), default=scale.better(scores[0]))
    drawn = [*map(scale.better, scores), best]
    low, high = min(drawn), max(drawn)
    near = {name: baselines[name] for name, y in heights.items() if low - y <= 0.4 * (high - low) or y == best}
    return near, [name for name in baselines if name not in near]


def accuracy_notes(plot: Scatter) -> list[str]:
    group, spots = plot.group, [*plot.spots, *plot.free]
    notes = [seeds_note({spot.row.name: spot.score for spot in spots})]
    if group.test_size:
        half = max(group.test_noise(spot.score.mean) for spot in spots)
        notes[0] += f" Scored on {group.scored_on}: sampling noise ± {100 * half:.1f} points (binomial)."
    drawn = {spot.row.name for spot in spots}
    if missing := [f"{row.name} ({row.status})" for row in group.rows if row.name not in drawn]:
        notes.append(f"Not drawn (no score, or no value on the other axis): {', '.join(missing)}.")
    if plot.against is SPEED and (unweighed := [spot.row.name for spot in spots if not spot.memory]):
        notes.append(f"Hollow: memory not measured ({', '.join(unweighed)}).")
    if any(spot.score.solved is not None for spot in spots):
        notes.append("Rings: each seed, where some solved the task and others are far off; the mark is their mean.")
    if far := near_baselines(group.baselines, plot.scores, group.scale)[1]:
        notes.append(f"Far below the axis, not drawn: {', '.join(far)}.")
    if sweeps_of([spot.row for spot in spots]):
        notes.append("Joined points: one option at several values, written beside them; the last has the name.")
    if len(plot.front) > 1:
        drawn_out = any(not group.is_fair(spot.row, plot.against.quantity) for spot in spots)
        notes.append(f"Thin line: Pareto front, controls {'and disturbed runs ' * drawn_out}left out.")
    if group.basis.note:
        notes.append(group.basis.note)
        if group.baselines:
            notes.append("Trivial predictors are scored on the test set.")
    return notes + flag_notes([spot.row for spot in spots], group)


@cache
def marker_shape(marker: str) -> tuple[float, float]:
    """The factor on a marker's size that gives its shape a circle's area, and its reach in units of that size."""
    style = MarkerStyle(marker)
    (outline,) = style.get_path().transformed(style.get_transform()).to_polygons()
    x, y = np.array(outline).T
    area = abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2
    return math.pi / 4 / area, float(np.abs(outline).max())


def draw_size_legend(axes: Axes, memories: Sequence[float], largest: float, words: str) -> None:
    """Draws sample markers with their memory below the axes. words: name that memory."""
    if not memories:
        return
    heaviest, lightest = max(memories), min(memories)
    samples = {2.0 ** round(math.log2(value)) for value in (heaviest, math.sqrt(heaviest * lightest), lightest)}
    samples = samples if len(samples) > 1 else samples | {value / 4 for value in samples}
    handles = [
        axes.scatter([], [], s=largest * value / heaviest, color=FAINT, alpha=0.75, label=size(value))
        for value in sorted(samples)
    ]
    box = axes.get_position()
    figure_of(axes).legend(
        handles=[axes.scatter([], [], s=0, label=f"marker area, {words}:"), *handles],
        loc="upper left",
        bbox_to_anchor=(box.x0 - 0.03, box.y0 - 48 / figure_of(axes).bbox.height),
        ncols=1 + len(handles),
        frameon=False,
        fontsize=SMALL,
        handletextpad=0.7,
        columnspacing=1.6,
    )


def describe_accuracy(group: Group, against: Against) -> str:
    """A chart of accuracy in words: how many variants, and the ends of both axes."""
    rows = [row for row in group.rows if row.scores and row.over_seeds(against.quantity)]
    if not rows:
        return ""
    quantity, unit = against.quantity, " tokens/s" if against.quantity is quantities.SPEED else ""
    return (
        f"{count(len(rows), 'variant')}. {sentence(group.basis.words(group.metric))}: "
        f"{span([(row, score.mean) for row in rows if (score := group.score(row))], group.scale.show)}. "
        f"{against.words.capitalize()}: {span(means(rows, quantity), lambda value: quantity.show(value) + unit)}."
    )
