"""The parts of all charts: the sheet, styles by family, labels beside lines and marks.

All lengths are in pixels of a figure 800 wide (100 to the inch); a PNG has twice as many.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from compare.report.facts.groups import Group, Row
from compare.report.render.families import colour_of, in_order
from compare.report.render.labels import GAP, Anchor, Box, place, spread

DPI = 100
WIDTH = 800
INK, FAINT, SOFT = "#222222", "#8a8a8a", "#555555"
SMALL = 9.5  # points, of labels
Dash = str | tuple[float, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (7, 2, 1.5, 2)), (0, (11, 3)), (0, (4, 1.5, 1, 1.5)))
TRIVIAL: Dash = (0, (4, 3))
LEVEL: Dash = (0, (1, 2.5))  # of the line from the end of a curve to the margin
MARKERS = ("o", "s", "^", "D", "v", "P", "h", "<")
CONTROL_MARKER = "X"
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
# Fonts for letters that DejaVu Sans lacks, in order of preference; most machines have one of each line.
FURTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Leelawadee UI", "Arial Unicode MS"),
    *("Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol"),
)


@dataclass(frozen=True)
class Style:
    """The look of a variant: the colour shows its family, marker and dash distinguish it within the family."""

    colour: str
    dash: Dash
    marker: str
    width: float = 1.7
    weight: str = "normal"


@dataclass(frozen=True)
class MarginLabel:
    """A text right of the axes, joined by a thin line to the point (x, y), or to the height y where x is None."""

    x: float | None
    y: float
    text: str
    style: Style


def choose_styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Name -> style, the same on all charts of a report."""
    rows = {name: row for group in groups for row in group.rows for name in (row.name, row.label)}
    styles: dict[str, Style] = {}
    used: Counter[str] = Counter()
    for name in sorted(rows, key=lambda name: (not rows[name].is_reference, name)):
        row = rows[name]
        colour = colour_of(row.family)
        if row.is_control:
            styles[name] = Style(colour, "-", CONTROL_MARKER)
        elif row.is_reference:
            styles[name] = Style("#000000", "-", MARKERS[0], width=2.8, weight="bold")
            used["#000000"] = 1
        else:
            count = used[colour]
            styles[name] = Style(colour, DASHES[count % len(DASHES)], MARKERS[count % len(MARKERS)])
            used[colour] += 1
    return styles


def fonts() -> list[str]:
    """The font of matplotlib, then this machine's fonts with more letters."""
    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in FURTHER_FONTS if name in installed)]


class Legend:
    """The families on a chart with their colours, over as many lines as they need."""

    def __init__(self, rows: Sequence[Row]) -> None:
        names = in_order({row.family for row in rows})
        # A chart of one family needs no legend; the control is named beside its mark.
        shown = names if len({row.family for row in rows if not row.is_control}) > 1 else []
        self.items: list[tuple[float, int, str]] = []  # left edge, line, family
        x, line = 14.0, 0
        for name in shown:
            width = 17 + text_size(name, SMALL)[0]
            if x + width > WIDTH - 14 and x > 14:
                x, line = 14.0, line + 1
            self.items.append((x, line, name))
            x += width + 18
        self.height = 20.0 * (line + 1) + 4 if shown else 0.0

    def draw(self, figure: Figure, top: float) -> None:
        for x, line, name in self.items:
            write_family(figure, name, x, top - 8 - 20 * line)


def write_family(figure: Figure, name: str, x: float, y: float, weight: str = "normal") -> None:
    """Writes a family's name behind a square of its colour."""
    draw_line(figure, [(x + 5, y)], colour_of(name), "none", marker="s", marker_size=7.5)
    write(figure, name, x + 16, y, ha="left", va="center_baseline", weight=weight)


class Sheet:
    """An empty chart: title, machine and families above, notes below, placed so that nothing overlaps.

    Args:
        title: names the axes and the comparison.
        machine: where it was measured.
        notes: what the reader must know; wrapped to the width.
        rows: the rows on the chart, whose families the legend shows.
        body: height for the axes with their labels.
    """

    def __init__(self, title: str, machine: str, notes: Sequence[str], rows: Sequence[Row], *, body: float) -> None:
        titles, lines = wrap_to_page(title, 13, "bold"), wrap_to_page(machine, 9.5)
        small = [line for note in notes for line in wrap_to_page(note, 9)]
        legend = Legend(rows)
        head = 12 + 22 * len(titles) + 17 * len(lines) + 8
        self.foot = 16.0 * len(small) + 14
        self.height = head + legend.height + body + self.foot
        self.figure = Figure(figsize=(WIDTH / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        for text, down, points, style in (
            (titles, 10, 13, {"weight": "bold", "linespacing": 1.2}),
            (lines, 14 + 22 * len(titles), 9.5, {"color": SOFT}),
        ):
            place_at = (14 / WIDTH, 1 - down / self.height)
            self.figure.text(*place_at, "\n".join(text), va="top", size=points, **style)
        self.figure.text(
            *(14 / WIDTH, 8 / self.height, "\n".join(small)), va="bottom", size=9, color="#444444", linespacing=1.25
        )
        legend.draw(self.figure, self.height - head)

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes at a place in pixels, with `bottom` measured from the notes."""
        place_at = (left / WIDTH, (self.foot + bottom) / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(place_at, facecolor="white")
        axes.grid(visible=True, color="#ececec", linewidth=0.8)
        axes.set_axisbelow(True)
        return axes


@cache
def text_size(text: str, points: float, weight: str = "normal") -> tuple[float, float]:
    """Width and height of a text in pixels."""
    figure, canvas = ruler()
    drawn = figure.text(0, 0, text, size=points, weight=weight, linespacing=1.05)
    box = drawn.get_window_extent(canvas.get_renderer())
    drawn.remove()
    return float(box.width), float(box.height)


@cache
def ruler() -> tuple[Figure, FigureCanvasAgg]:
    """An empty figure for the measuring of texts."""
    figure = Figure(figsize=(0.1, 0.1), dpi=DPI)
    return figure, FigureCanvasAgg(figure)


def wrap_to_page(text: str, points: float, weight: str = "normal") -> list[str]:
    """A text in lines that fit the width of the sheet."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_size(longer, points, weight)[0] <= WIDTH - 36:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def folded(name: str, width: int = 24) -> str:
    """A long name over several lines."""
    return "\n".join(wrap(name, width, break_long_words=False)) or name


def bend_width(labels: int) -> float:
    """Length of the leaders from the axes to the labels: the more labels, the longer."""
    return min(24 + 1.6 * labels, 70)


def margin_width(texts: Sequence[str]) -> float:
    """Width of the labels right of the axes, with their leaders."""
    return bend_width(len(texts)) + 24 + max((text_size(text, SMALL, "bold")[0] for text in texts), default=0)


def margin_height(texts: Sequence[str]) -> float:
    return sum(text_size(text, SMALL)[1] + GAP for text in texts)


def draw_margin(axes: Axes, labels: Sequence[MarginLabel]) -> None:
    """Writes labels in a column right of the axes, in the order of their points, without overlaps."""
    figure, box = figure_of(axes), axes.get_window_extent()
    points = [
        (
            box.x1 if label.x is None else axes.transData.transform((label.x, label.y))[0],
            axes.transData.transform((1, label.y))[1],
        )
        for label in labels
    ]
    heights = [text_size(label.text, SMALL)[1] + GAP for label in labels]
    centres = spread([y for _, y in points], heights, box.y0, box.y1)
    reach = bend_width(len(labels))
    for label, (x, y), centre in zip(labels, points, centres, strict=True):
        style, stop = label.style, (box.x1 + reach, centre)
        dash = style.dash if label.x is None else "-"
        if x < box.x1 - 4:
            draw_line(figure, [(x, y), (box.x1, y)], style.colour, LEVEL, width=0.9)
        draw_line(figure, [(box.x1, y), (box.x1 + 4, y), (stop[0] - 8, centre), stop], style.colour, dash)
        if style.marker:
            draw_line(figure, [stop], style.colour, "none", marker=style.marker)
        write(figure, label.text, stop[0] + 8, centre, ha="left", weight=style.weight)


def figure_of(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def draw_line(
    figure: Figure,
    pixels: Sequence[tuple[float, float]],
    colour: str,
    dash: Dash,
    *,
    width: float = 1.0,
    marker: str = "",
    marker_size: float = 5,
) -> None:
    inches = figure.dpi_scale_trans.inverted().transform(pixels)
    line = Line2D(
        *inches.T,
        transform=figure.dpi_scale_trans,
        color=colour,
        linestyle=dash,
        linewidth=width,
        marker=marker,
        markersize=marker_size,
    )
    figure.add_artist(line)


def write(
    figure: Figure,
    text: str,
    x: float,
    y: float,
    *,
    ha: str,
    va: str = "center",
    weight: str = "normal",
    halo: bool = False,
) -> None:
    """Writes a label at a place in pixels. A halo sets it off from lines, but makes the file much larger."""
    x, y = figure.dpi_scale_trans.inverted().transform((x, y))
    figure.text(
        *(x, y, text),
        transform=figure.dpi_scale_trans,
        size=SMALL,
        weight=weight,
        ha=ha,
        va=va,
        linespacing=1.05,
        gid="label",
        path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)] if halo else [],
    )


@dataclass(frozen=True)
class Name:
    """A text to write beside a point in data coordinates.

    radius: pixels to keep free around the point. reach: the text is left out if it cannot be within so many pixels of
    them.
    """

    text: str
    x: float
    y: float
    radius: float
    colour: str
    weight: str = "normal"
    reach: float = math.inf


def draw_names(axes: Axes, names: Sequence[Name], marks: Sequence[Box], lines: Sequence[Box]) -> None:
    """Writes each name beside its point, clear of all points and `marks`, with a thin leader if it is further away."""
    area = axes.get_window_extent()
    anchors = []
    for name in names:
        x, y = axes.transData.transform((name.x, name.y))
        anchors.append(Anchor(float(x), float(y), name.radius, *text_size(name.text, SMALL, name.weight)))
    points = [Box(a.x - a.radius, a.y - a.radius, a.x + a.radius, a.y + a.radius) for a in anchors]
    inside = Box(area.x0 + 3, area.y0 + 3, area.x1 - 3, area.y1 - 1)
    for name, anchor, box in zip(names, anchors, place(anchors, inside, [*points, *marks], lines), strict=True):
        nearest = (min(max(anchor.x, box.left), box.right), min(max(anchor.y, box.bottom), box.top))
        away = math.dist(nearest, (anchor.x, anchor.y)) - anchor.radius
        if away > name.reach:
            continue
        if away > 2 * GAP:
            draw_line(figure_of(axes), [(anchor.x, anchor.y), nearest], name.colour, "-")
        middle = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
        write(figure_of(axes), name.text, *middle, ha="center", weight=name.weight, halo=True)


def boxes_at(axes: Axes, points: Sequence[tuple[float, float]], radius: float) -> list[Box]:
    """Squares around points in data coordinates."""
    pixels = axes.transData.transform(np.array(points, dtype=float).reshape(-1, 2))
    return [Box(x - radius, y - radius, x + radius, y + radius) for x, y in pixels]


def box_along(axes: Axes, start: tuple[float, float], stop: tuple[float, float]) -> Box:
    """The box of a horizontal or vertical line."""
    first, last = boxes_at(axes, [start, stop], 2)
    return Box(
        *(min(first.left, last.left), min(first.bottom, last.bottom)),
        *(max(first.right, last.right), max(first.top, last.top)),
    )


def boxes_along(axes: Axes, points: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes every few pixels along a line through points in data coordinates."""
    corners = axes.transData.transform(np.array(points, dtype=float))
    boxes = []
    for start, end in itertools.pairwise(corners):
        for share in np.linspace(0, 1, 1 + int(math.dist(start, end) / 5)):
            x, y = start + share * (end - start)
            boxes.append(Box(x - 2, y - 2, x + 2, y + 2))
    return boxes


def draw_baselines(axes: Axes, baselines: Mapping[str, float], texts: Mapping[str, str]) -> list[MarginLabel]:
    """Draws dashed lines for the trivial predictors, and returns their labels."""
    labels = []
    for name, value in baselines.items():
        axes.axhline(value, color=SOFT, linewidth=1.0, linestyle=TRIVIAL, zorder=1)
        labels.append(MarginLabel(None, value, texts[name], Style(SOFT, TRIVIAL, "")))
    return labels


def baseline_texts(group: Group) -> dict[str, str]:
    return {name: folded(f"{name} {group.scale.show(value)}", 20) for name, value in group.baselines.items()}
