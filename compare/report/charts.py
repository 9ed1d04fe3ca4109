"""The charts: accuracy against speed and memory, cost against length, learning curves."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from .aggregate import (
    ENOUGH_SEEDS,
    Chart,
    Estimate,
    Group,
    Row,
    as_mapping,
    numbers,
    pareto_front,
    slug,
    status_of,
    tell_apart,
)
from .canvas import (
    DPI,
    FAINT,
    INK,
    SMALL,
    SOFT,
    STYLE,
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
    choose_styles,
    draw_baselines,
    draw_margin,
    draw_names,
    fallback_notes,
    figure_of,
    folded,
    log_ticks,
    margin_height,
    margin_width,
    nice_ticks,
    score_axis,
    shown_name,
)
from .curves import learning_curves
from .labels import Box
from .units import plain, seconds, size

LARGEST_MARKER = 520.0  # square points, where few variants are shown
PLAIN_MARKER = 80.0


@dataclass(frozen=True)
class Against:
    """What accuracy is drawn against: a field of the records, in words, and how to write its values."""

    field: str
    stem: str
    words: str
    axis: str
    show: Callable[[float], str]
    more_is_better: bool


SPEED = Against(
    *("tokens_per_second", "accuracy_speed", "training speed"),
    "training speed, tokens per second (logarithmic; further right is faster)",
    plain,
    more_is_better=True,
)
WEIGHT = Against(
    *("peak_memory_bytes", "accuracy_memory", "peak memory"),
    "peak memory of a training step (logarithmic; further left is lighter)",
    size,
    more_is_better=False,
)


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
        for against in (SPEED, WEIGHT):
            title = f"Test score against {against.words}: {group.title}"
            chart = Chart(f"{against.stem}_{group.slug}", title, group.slug)
            charts.append((chart, partial(accuracy_chart, group, against, styles)))
        for axis, words in (("step", "steps"), ("seconds", "seconds")):
            chart = Chart(f"curves_{words}_{group.slug}", f"Learning curves by {words}: {group.title}", group.slug)
            charts.append((chart, partial(learning_curves, group, axis, styles)))
    for series in length_series(groups):
        name = slug(series[0].task, series[0].where, series_note(series, groups))
        for stem, cost in (("cost_time", TIME), ("cost_memory", MEMORY)):
            chart = Chart(f"{stem}_{name}", f"{cost.title}: {series[0].task}", "")
            charts.append((chart, partial(cost_against_length, series, cost, styles)))
    return charts


def save(figure: Figure, path: Path) -> None:
    for suffix, dpi, metadata in ((".png", 2 * DPI, {"Software": None}), (".svg", DPI, {"Date": None})):
        temporary = path.with_name(f".{path.name}{suffix}.tmp")
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)
        os.replace(temporary, path.with_name(path.name + suffix))


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
    """Where one row stands on a chart of accuracy."""

    row: Row
    cost: Estimate
    score: Estimate
    memory: Estimate | None


def accuracy_chart(group: Group, against: Against, styles: Mapping[str, Style]) -> Figure | None:
    spots = [
        Spot(row, cost, score, row.over_seeds("peak_memory_bytes") if against is SPEED else None)
        for row in group.rows
        if (score := row.over_seeds("test_score")) and (cost := row.over_seeds(against.field))
    ]
    spots = [spot for spot in spots if spot.cost.mean > 0]
    if not spots:
        return None
    sign = 1 if against.more_is_better else -1
    attending = [spot for spot in spots if not spot.row.is_control]
    front = [attending[i] for i in pareto_front([(sign * s.cost.mean, s.score.mean) for s in attending])]

    baselines = baseline_texts(group)
    plot = max(390.0, 26.0 * len(spots))
    sheet = Sheet(
        f"Test {group.metric} against {against.words}: {group.title}",
        group.machine,
        accuracy_notes(group, against, spots, front),
        [spot.row for spot in spots],
        body=plot + 86 + 40 * any(spot.memory for spot in spots),
    )
    bottom = 62 + 40 * any(spot.memory for spot in spots)
    axes = sheet.axes(78, bottom, WIDTH - 78 - margin_width(list(baselines.values())), plot)
    means = [spot.cost.mean for spot in spots]
    edges = [edge for spot in spots for edge in ends(spot.cost)]
    low, high = max(min(edges), min(means) / 1.6), min(max(edges), max(means) * 1.6)
    pad = max((high / low) ** 0.12, 1.25)
    low, high = low / pad, high * pad
    axes.set_xlim(low, high)
    log_ticks(axes, "x", memory_ticks(low, high) if against is WEIGHT else nice_ticks(low, high), against.show)
    scores = [edge for spot in spots for edge in ends(spot.score)]
    shown, far = near_baselines(group.baselines, scores)
    score_axis(axes, f"test {group.metric}, %", [*scores, *shown.values()])
    axes.set_xlabel(against.axis)

    names, marks, lines = [], [], []
    largest = LARGEST_MARKER if len(spots) <= 12 else LARGEST_MARKER / 2
    heaviest = max((spot.memory.mean for spot in spots if spot.memory), default=0.0)
    for spot in sorted(spots, key=lambda spot: -(spot.memory.mean if spot.memory else 0)):
        style = styles[spot.row.name]
        x, y = spot.cost.mean, spot.score.mean
        area = largest * spot.memory.mean / heaviest if spot.memory else 30.0 if against is SPEED else PLAIN_MARKER
        scale, reach = marker_shape(style.marker)
        face = "none" if against is SPEED and not spot.memory else style.colour
        axes.scatter(
            *([x], [y], area * scale),
            marker=style.marker,
            facecolor=face,
            edgecolor=style.colour if face == "none" else "white",
            alpha=0.85,
            linewidth=0.8,
            zorder=3,
        )
        for error, (start, end) in (
            (spot.score, ((x, y - (spot.score.half or 0)), (x, y + (spot.score.half or 0)))),
            (spot.cost, ((max(ends(spot.cost)[0], low), y), (min(ends(spot.cost)[1], high), y))),
        ):
            if error.half:
                axes.plot(*zip(start, end, strict=True), color=style.colour, linewidth=1.2, alpha=0.6, zorder=2.5)
                lines.append(box_along(axes, start, end))
        radius = reach * math.sqrt(area * scale) * DPI / 72 + 1
        names.append(Name(folded(shown_name(spot.row)), x, y, radius, style.colour, style.weight))
    if len(front) > 1:
        corners = [(spot.cost.mean, spot.score.mean) for spot in front]
        axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.9, alpha=0.6, zorder=2)
        lines += boxes_along(axes, corners)
    below = [MarginLabel(None, axes.get_ylim()[0], baselines[name], Style(SOFT, TRIVIAL, "v")) for name in far]
    draw_margin(axes, [*draw_baselines(axes, shown, baselines), *below])
    marks += [box_along(axes, (low, value), (high, value)) for value in shown.values()]
    draw_names(axes, names, marks, lines)
    draw_size_legend(axes, [spot.memory.mean for spot in spots if spot.memory], largest)
    return sheet.figure


def near_baselines(baselines: Mapping[str, float], scores: Sequence[float]) -> tuple[dict[str, float], list[str]]:
    """The best trivial predictor and those it is worth to stretch the axis for; the names of those far below."""
    best = max(baselines.values(), default=0.0)
    low, high = min([*scores, best]), max([*scores, best])
    near = {name: value for name, value in baselines.items() if low - value <= 0.4 * (high - low) or value == best}
    return near, [name for name in baselines if name not in near]


def accuracy_notes(group: Group, against: Against, spots: Sequence[Spot], front: Sequence[Spot]) -> list[str]:
    notes = [seeds_note({spot.row.name: spot.score for spot in spots})]
    if group.test_size:
        half = max(group.test_noise(spot.score.mean) for spot in spots)
        notes[0] += f" Test set: {plain(group.test_size)} predictions, ± {100 * half:.1f} points by itself (binomial)."
    drawn = {spot.row.name for spot in spots}
    if missing := [f"{row.name} ({row.status})" for row in group.rows if row.name not in drawn]:
        notes.append(f"Not drawn, for lack of a score or a value: {', '.join(missing)}.")
    if against is SPEED and (unweighed := [spot.row.name for spot in spots if not spot.memory]):
        notes.append(f"Hollow: peak memory not measured ({', '.join(unweighed)}).")
    if far := near_baselines(group.baselines, [edge for spot in spots for edge in ends(spot.score)])[1]:
        notes.append(f"Far below the axis, hence not drawn: {', '.join(far)}.")
    if len(front) > 1:
        notes.append("Thin line: Pareto front, the control left out.")
    return notes + fallback_notes([spot.row for spot in spots])


@cache
def marker_shape(marker: str) -> tuple[float, float]:
    """What to scale a marker's size by so that all shapes have a circle's area, and its reach in units of that size."""
    style = MarkerStyle(marker)
    (outline,) = style.get_path().transformed(style.get_transform()).to_polygons()
    x, y = np.array(outline).T
    area = abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2
    return math.pi / 4 / area, float(np.abs(outline).max())


def ends(found: Estimate) -> tuple[float, float]:
    half = found.half or 0.0
    return found.mean - half, found.mean + half


def draw_size_legend(axes: Axes, memories: Sequence[float], largest: float) -> None:
    """Below the axes: sample markers with their memory."""
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
        handles=[axes.scatter([], [], s=0, label="marker area, peak memory:"), *handles],
        loc="upper left",
        bbox_to_anchor=(box.x0 - 0.03, box.y0 - 48 / figure_of(axes).bbox.height),
        ncols=1 + len(handles),
        frameon=False,
        fontsize=SMALL,
        handletextpad=0.7,
        columnspacing=1.6,
    )


def length_series(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one task that differ in length and in nothing a step's cost depends on: two lengths or more."""
    found: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.machine, group.task, group.cost_conditions), []).append(group)
    return [series for series in found.values() if len({group.seq_len for group in series}) > 1]


def series_note(series: Sequence[Group], groups: Sequence[Group]) -> str:
    """What tells a series from others of its task: nothing where there is only one."""
    first = series[0]
    rivals = [g.cost_conditions for g in groups if (g.machine, g.task) == (first.machine, first.task)]
    return tell_apart(first.cost_conditions, rivals)


def cost_against_length(series: Sequence[Group], cost: Cost, styles: Mapping[str, Style]) -> Figure | None:
    cells: dict[str, dict[int, Row]] = {}
    for group in series:
        for row in group.rows:
            known = cells.setdefault(row.label, {}).get(group.seq_len)
            records = (known.records if known else ()) + row.records
            cells[row.label][group.seq_len] = replace(row, suffix="", records=records)
    lines = {
        label: [(n, found.mean) for n, row in sorted(rows.items()) if (found := row.over_seeds(cost.field))]
        for label, rows in cells.items()
    }
    values = [value for line in lines.values() for _, value in line if value > 0]
    if not values:
        return None
    lengths = sorted({group.seq_len for group in series})
    failed: dict[tuple[int, str], list[str]] = {}
    for label, rows in cells.items():
        for n, row in rows.items():
            if not row.finished and lines[label]:
                failed.setdefault((n, status_of(row.records[-1])), []).append(row.name)
    absent = [
        f"{row.name} ({row.status})" for label, rows in cells.items() if not lines[label] for row in [rows[min(rows)]]
    ]

    rows_shown = {label: next(iter(rows.values())) for label, rows in cells.items()}
    fell_back = [row for label in cells for row in cells[label].values() if row.fell_back]
    batches = {n: batch_of(group) for group in series if (n := group.seq_len)}
    notes = ["Mean over seeds."]
    if any(row.spread(cost.field) for rows in cells.values() for row in rows.values()):
        notes[0] += " Bars: quartiles of the repetitions."
    if failed:
        notes[0] += " ×: nothing measured at this length, for the reason named; its height means nothing."
    if absent:
        notes.append(f"Nothing measured at any length: {', '.join(absent)}.")
    notes += fallback_notes(fell_back)
    starred = {row.label for row in fell_back}

    texts = {label: folded(row.name + ("*" if label in starred else "")) for label, row in rows_shown.items()}
    at_edge = [label for label, line in lines.items() if line and line[-1][0] == lengths[-1]]
    column = [texts[label] for label in at_edge]
    plot = max(390.0, 1.15 * margin_height(column))
    varied = len(set(batches.values())) > 1
    sheet = Sheet(
        f"{cost.title}: {series[0].task}" + (f" ({series[0].where})" if series[0].where else ""),
        series[0].machine,
        notes,
        list(rows_shown.values()),
        body=plot + 86 + 16 * varied,
    )
    axes = sheet.axes(96, 62 + 16 * varied, WIDTH - 96 - margin_width(column), plot)
    axes.set_xlim(lengths[0] / 1.12, lengths[-1] * 1.04)
    log_ticks(axes, "x", lengths, lambda n: f"{n:,.0f}" + (f"\nbatch {batches[int(n)]}" if varied else ""))
    low, high = min(values) / 1.3, max(values) * 1.3
    if failed:  # room for their marks above all lines
        high *= max(high / low, 3) ** 0.18
    axes.set_ylim(low, high)
    log_ticks(axes, "y", memory_ticks(low, high) if cost.powers_of_two else nice_ticks(low, high), cost.show)
    axes.set_xlabel("sequence length, tokens (logarithmic)")
    axes.set_ylabel(f"{cost.axis} (logarithmic)")

    marks: list[Box] = []
    soft: list[Box] = []
    names: list[Name] = []
    margin: list[MarginLabel] = []
    for label, line in lines.items():
        if not line:
            continue
        style = styles[label]
        axes.plot(
            *zip(*line, strict=True),
            color=style.colour,
            linestyle=style.dash,
            linewidth=style.width,
            marker=style.marker,
            markersize=5,
            zorder=4 if label not in at_edge else 3 if style.weight == "bold" else 2,
        )
        for n, row in cells[label].items():
            if quartiles := row.spread(cost.field):
                axes.plot([n, n], quartiles, color=style.colour, linewidth=1)
        marks += boxes_at(axes, line, 5)
        soft += boxes_along(axes, line)
        x, y = line[-1]
        if label in at_edge:
            margin.append(MarginLabel(x, y, texts[label], style))
        else:
            names.append(Name(texts[label], x, y, 5, style.colour, style.weight))
    for rank, ((n, status), who) in enumerate(sorted(failed.items())):
        y = high / (high / low) ** (0.03 + 0.04 * (rank % 3))
        axes.plot([n], [y], marker="x", markersize=8, markeredgewidth=2, color=INK)
        names.append(Name(folded(f"{status}: {', '.join(who)}"), n, y, 9, INK))
    draw_margin(axes, margin)
    draw_names(axes, names, marks, soft)
    return sheet.figure


def batch_of(group: Group) -> str:
    found = numbers((as_mapping(record.get("spec")) for record in group.records), "batch_size")
    return f"{found[0]:.0f}" if found else "?"


def memory_ticks(low: float, high: float) -> list[float]:
    """Powers of two, at most eight of them."""
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2.0**power for power in powers[:: max(1, math.ceil(len(powers) / 8))]] or nice_ticks(low, high)
