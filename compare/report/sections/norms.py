"""Norms of the gradients over the training: where they grow, training is about to diverge."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from compare.report.facts.groups import Group, Row
from compare.report.facts.learning import line_of
from compare.report.render.axes import log_ticks, nice_ticks
from compare.report.render.canvas import (
    WIDTH,
    MarginLabel,
    Sheet,
    Style,
    draw_margin,
    folded,
    margin_height,
    margin_width,
)
from compare.report.sections.section import Chart, Section
from compare.report.sections.wording import shown_name, span
from compare.units import plain

Line = tuple[list[float], list[float]]


def part(group: Group) -> Section:
    lines = {row.name: line for row in group.rows if (line := mean_line(row))}
    if not lines:
        return Section()
    ends = [(row, lines[row.name][1][-1]) for row in group.rows if row.name in lines]
    alt = f"Gradient norm against training steps: {group.title}. At the end: {span(ends, lambda norm: f'{norm:.2g}')}."
    return Section(charts=[Chart(f"gradient_norm_{group.slug}", alt, partial(draw, group, lines))])


def mean_line(row: Row) -> Line | None:
    """Steps and norms, the geometric mean of the seeds over the range that all of them cover; None without norms."""
    lines = [line for record in row.records if (line := line_of(record, "step", "grad_norm"))]
    lines = [(x, y) for x, y in lines if min(y) > 0]
    if not lines:
        return None
    start, stop = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if start >= stop:
        return max(lines, key=lambda line: line[0][-1])
    grid = np.linspace(start, stop, 60)
    logs = np.mean([np.interp(grid, x, np.log(y)) for x, y in lines], axis=0)
    return [float(x) for x in grid], [float(y) for y in np.exp(logs)]


def draw(group: Group, lines: Mapping[str, Line], styles: Mapping[str, Style]) -> Figure:
    rows = [row for row in group.rows if row.name in lines]
    texts = {row.name: folded(shown_name(row)) for row in rows}
    plot = max(300.0, 1.15 * margin_height(list(texts.values())))
    notes = ["Norm of all gradients before clipping; the geometric mean of the seeds over the steps that all reached."]
    sheet = Sheet(f"Gradient norm against training steps: {group.title}", group.machine, notes, rows, body=plot + 92)
    axes = sheet.axes(78, 62, WIDTH - 78 - margin_width(list(texts.values())), plot)
    values = [norm for _, norms in lines.values() for norm in norms]
    low, high = min(values) / 1.2, max(values) * 1.2
    axes.set_ylim(low, high)
    log_ticks(axes, "y", nice_ticks(low, high), lambda norm: f"{norm:.3g}")
    axes.set_xlim(0, max(x[-1] for x, _ in lines.values()))
    axes.set_xlabel("training steps")
    axes.set_ylabel("gradient norm (logarithmic)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}" if value < 1000 else plain(value))
    labels = []
    for row in reversed(rows):
        (x, y), style = lines[row.name], styles[row.name]
        axes.plot(x, y, color=style.colour, linestyle=style.dash, linewidth=style.width)
        labels.append(MarginLabel(x[-1], y[-1], texts[row.name], style))
    draw_margin(axes, labels)
    return sheet.figure
