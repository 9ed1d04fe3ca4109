"""Accuracy against what it costs: speed, memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

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
from compare.report.facts.sweeps import sweeps_of
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
from compare.report.sections.flags import flag_notes, marked
from compare.report.sections.wording import count, means, seeds_note, span
from compare.units import sentence, size

LARGEST_MARKER = 520.0  # square points, where few variants are shown
PLAIN_MARKER = 80.0
VALUE_REACH = 12.0  # pixels from a point to the value of its option, at the most: else it is left out


@dataclass(frozen=True)
class Against:
    """What accuracy is drawn against.

    stem: of its files. axis: its label. pareto: whether the front of those that no other beats is drawn.
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
    """Memory: of training in all, where the records tell it."""
    memory = memory_of(rows)
    axis = f"{memory.told}: {memory.holds} (logarithmic)"
    return Against(memory, "accuracy_memory", axis, pareto=True)


@dataclass(frozen=True)
class Spot:
    """Where one row stands on a chart of accuracy."""

    row: Row
    cost: Estimate
    score: Estimate
    memory: Estimate | None


def accuracy_chart(group: Group, against: Against, styles: Mapping[str, Style]) -> Figure | None:
    memory = memory_of(group.rows)
    spots = [
        Spot(row, cost, score, row.over_seeds(memory) if against is SPEED else None)
        for row in group.rows
        if (score := group.score(row)) and (cost := row.over_seeds(against.quantity))
    ]
    free = [spot for spot in spots if spot.cost.mean <= 0]
    spots = [spot for spot in spots if spot.cost.mean > 0]
    if not spots:
        return None
    sweeps = sweeps_of([spot.row for spot in spots])
    looks = dict(styles) | {row.name: styles[sweep.rows[0].name] for sweep in sweeps for row in sweep.rows}
    named = {sweep.rows[-1].name for sweep in sweeps}
    points = (point for sweep in sweeps for point in sweep.points)
    values = {row.name: f"{value:g}" for value, row in points if row.name not in named}
    scale, sign = group.scale, 1 if against.quantity.better == "high" else -1
    attending = [
        spot for spot in spots if against.pareto and spot.row.attends and group.is_fair(spot.row, against.quantity)
    ]
    front = [attending[i] for i in pareto_front([(sign * s.cost.mean, scale.better(s.score.mean)) for s in attending])]

    baselines = baseline_texts(group)
    levels = {spot.row.name: folded(f"{spot.row.name} {scale.show(spot.score.mean)}, at 0", 20) for spot in free}
    plot = max(390.0, 26.0 * (len(spots) - len(values)), 13.0 * len(spots))
    sheet = Sheet(
        f"{sentence(group.basis.words(group.metric))} against {against.words}: {group.title}",
        group.machine,
        accuracy_notes(group, against, [*spots, *free], front),
        [spot.row for spot in spots],
        body=plot + 86 + 40 * any(spot.memory for spot in spots),
    )
    bottom = 62 + 40 * any(spot.memory for spot in spots)
    axes = sheet.axes(78, bottom, WIDTH - 78 - margin_width([*baselines.values(), *levels.values()]), plot)
    means = [spot.cost.mean for spot in spots]
    edges = [edge for spot in spots for edge in spot.cost.ends]
    low, high = max(min(edges), min(means) / 1.6), min(max(edges), max(means) * 1.6)
    pad = max((high / low) ** 0.12, 1.25)
    low, high = low / pad, high * pad
    axes.set_xlim(low, high)
    log_ticks(axes, "x", against.ticks(low, high), against.quantity.show)
    scores = [edge for spot in [*spots, *free] for edge in reach_of(spot)]
    shown, far = near_baselines(group.baselines, scores, scale)
    score_axis(axes, group.basis.words(group.metric), [*scores, *shown.values()], scale)
    axes.set_xlabel(against.axis)

    names, marks, lines = [], [], []
    largest = LARGEST_MARKER if len(spots) <= 12 else LARGEST_MARKER / 2
    heaviest = max((spot.memory.mean for spot in spots if spot.memory), default=0.0)
    for spot in sorted(spots, key=lambda spot: -(spot.memory.mean if spot.memory else 0)):
        style = looks[spot.row.name]
        x, y = spot.cost.mean, spot.score.mean
        area = largest * spot.memory.mean / heaviest if spot.memory else 30.0 if against is SPEED else PLAIN_MARKER
        shape, reach = marker_shape(style.marker)
        face = "none" if against is SPEED and not spot.memory else style.colour
        axes.scatter(
            *([x], [y], area * shape),
            marker=style.marker,
            facecolor=face,
            edgecolor=style.colour if face == "none" else "white",
            alpha=0.85,
            linewidth=0.8,
            zorder=3,
        )
        low_score, high_score = reach_of(spot)
        if spot.score.solved is not None:
            seeds = list(spot.row.scores.values())
            axes.plot([x] * len(seeds), seeds, color=style.colour, linewidth=0.9, linestyle=":", zorder=2.5)
            axes.scatter([x] * len(seeds), seeds, s=16, facecolor="white", edgecolor=style.colour, zorder=3.5)
            lines.append(box_along(axes, (x, low_score), (x, high_score)))
            marks += boxes_at(axes, [(x, seed) for seed in seeds], 4)
        bars = [spot.score] if spot.score.solved is None else []
        for error, (start, end) in (
            *((error, ((x, low_score), (x, high_score))) for error in bars),
            (spot.cost, ((max(spot.cost.ends[0], low), y), (min(spot.cost.ends[1], high), y))),
        ):
            if error.half:
                axes.plot(*zip(start, end, strict=True), color=style.colour, linewidth=1.2, alpha=0.6, zorder=2.5)
                lines.append(box_along(axes, start, end))
        radius = reach * math.sqrt(area * shape) * DPI / 72 + 1
        value = values.get(spot.row.name)
        solved = "" if spot.score.solved is None else f" {scale.number(spot.score)}"
        text, away = (folded(marked(spot.row, group) + solved), math.inf) if value is None else (value, VALUE_REACH)
        names.append(Name(text, x, y, radius, style.colour, style.weight, away))
    for sweep in sweeps:
        by_name = {spot.row.name: (spot.cost.mean, spot.score.mean) for spot in spots}
        corners, style = [by_name[row.name] for row in sweep.rows], looks[sweep.rows[0].name]
        axes.plot(*zip(*corners, strict=True), color=style.colour, linewidth=1.3, linestyle=style.dash, zorder=2.2)
        lines += boxes_along(axes, corners)
    if len(front) > 1:
        corners = [(spot.cost.mean, spot.score.mean) for spot in front]
        axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.9, alpha=0.6, zorder=2)
        lines += boxes_along(axes, corners)
    below = [MarginLabel(None, axes.get_ylim()[0], baselines[name], Style(SOFT, TRIVIAL, "v")) for name in far]
    beside = draw_baselines(axes, {name: spot.score.mean for name, spot in zip(levels, free, strict=True)}, levels)
    draw_margin(axes, [*draw_baselines(axes, shown, baselines), *beside, *below])
    across = [*shown.values(), *(spot.score.mean for spot in free)]
    marks += [box_along(axes, (low, value), (high, value)) for value in across]
    draw_names(axes, sorted(names, key=lambda name: name.reach < math.inf), marks, lines)
    draw_size_legend(axes, [spot.memory.mean for spot in spots if spot.memory], largest, memory.told)
    return sheet.figure


def near_baselines(
    baselines: Mapping[str, float], scores: Sequence[float], scale: Scale = FRACTION
) -> tuple[dict[str, float], list[str]]:
    """The best trivial predictor and those it is worth to stretch the axis for; the names of those far below."""
    heights = {name: scale.better(value) for name, value in baselines.items()}  # as they stand on the axis
    best = max(heights.values(), default=scale.better(scores[0]))
    drawn = [*map(scale.better, scores), best]
    low, high = min(drawn), max(drawn)
    near = {name: baselines[name] for name, y in heights.items() if low - y <= 0.4 * (high - low) or y == best}
    return near, [name for name in baselines if name not in near]


def accuracy_notes(group: Group, against: Against, spots: Sequence[Spot], front: Sequence[Spot]) -> list[str]:
    notes = [seeds_note({spot.row.name: spot.score for spot in spots})]
    if group.test_size:
        half = max(group.test_noise(spot.score.mean) for spot in spots)
        notes[0] += f" Scored on {group.scored_on}: ± {100 * half:.1f} points by itself (binomial)."
    drawn = {spot.row.name for spot in spots}
    if missing := [f"{row.name} ({row.status})" for row in group.rows if row.name not in drawn]:
        notes.append(f"Not drawn, for lack of a score or a value: {', '.join(missing)}.")
    if against is SPEED and (unweighed := [spot.row.name for spot in spots if not spot.memory]):
        notes.append(f"Hollow: memory not measured ({', '.join(unweighed)}).")
    if any(spot.score.solved is not None for spot in spots):
        notes.append("Rings: each seed, where some solved the task and others are far from it; the mark is their mean.")
    if far := near_baselines(group.baselines, [edge for spot in spots for edge in reach_of(spot)], group.scale)[1]:
        notes.append(f"Far below the axis, hence not drawn: {', '.join(far)}.")
    if sweeps_of([spot.row for spot in spots]):
        notes.append("Joined: one option at several values, written beside the points; the last bears the name.")
    if len(front) > 1:
        drawn_out = any(not group.is_fair(spot.row, against.quantity) for spot in spots)
        notes.append(f"Thin line: Pareto front, controls {'and disturbed runs ' * drawn_out}left out.")
    if group.basis.note:
        notes.append(group.basis.note)
        if group.baselines:
            notes.append("Trivial predictors are scored on the test set.")
    return notes + flag_notes([spot.row for spot in spots], group)


@cache
def marker_shape(marker: str) -> tuple[float, float]:
    """What to scale a marker's size by so that all shapes have a circle's area, and its reach in units of that size."""
    style = MarkerStyle(marker)
    (outline,) = style.get_path().transformed(style.get_transform()).to_polygons()
    x, y = np.array(outline).T
    area = abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2
    return math.pi / 4 / area, float(np.abs(outline).max())


def reach_of(spot: Spot) -> tuple[float, float]:
    """From where to where its scores are drawn: the interval, or the seeds where these fall apart."""
    seeds = spot.row.scores.values()
    return spot.score.ends if spot.score.solved is None else (min(seeds), max(seeds))


def draw_size_legend(axes: Axes, memories: Sequence[float], largest: float, words: str) -> None:
    """Below the axes: sample markers with their memory, which words name."""
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
    """What stands on a chart of accuracy: how many, and the ends of both axes."""
    rows = [row for row in group.rows if row.scores and row.over_seeds(against.quantity)]
    if not rows:
        return ""
    quantity, unit = against.quantity, " tokens/s" if against.quantity is quantities.SPEED else ""
    return (
        f"{count(len(rows), 'variant')}. {sentence(group.basis.words(group.metric))}: "
        f"{span([(row, found.mean) for row in rows if (found := group.score(row))], group.scale.show)}. "
        f"{against.words.capitalize()}: {span(means(rows, quantity), lambda value: quantity.show(value) + unit)}."
    )
