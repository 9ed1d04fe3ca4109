"""What limits each variant: its matrix products, or the bytes that it moves; beside the rates of the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from matplotlib.figure import Figure

from compare.quantities import FLOPS, FORWARD_BACKWARD, MOVED
from compare.report.facts.groups import Group, Row
from compare.report.facts.overview import Overview
from compare.report.facts.scaling import copy_share, longest_groups, matrix_share
from compare.report.facts.values import numbers
from compare.report.render.axes import log_ticks, nice_ticks
from compare.report.render.canvas import (
    INK,
    SOFT,
    TRIVIAL,
    WIDTH,
    Name,
    Sheet,
    Style,
    boxes_along,
    draw_names,
    folded,
)
from compare.report.sections.section import Chart, Section, Table
from compare.report.sections.wording import fallback_notes, shown_name, span
from compare.units import SPACE, count, percent, seconds, significant, size

HIGHEST = 1.4  # share at the upper edge of the chart
RATES = ("matrix_rate_flops", "copy_rate_bytes")
NOTES = (
    "FLOPs: of matrix products and Fourier transforms, in forward and backward of one batch. Bytes moved: an estimate, "
    "as if each operation read its inputs from memory and wrote its results there; where a cache holds them the share "
    "of the copy rate can exceed 100 %.",
    "Shares: FLOPs and bytes a second, beside those of a large matrix product and of a large copy in the same process. "
    "Where both are small, neither limits the variant: calls of many small operations do, or work that is neither, "
    "such as exponentials and sorting.",
)


@dataclass(frozen=True)
class Point:
    """A row beside the rates of its machine. intensity: FLOPs for each byte moved. ridge: matrix rate / copy rate."""

    row: Row
    intensity: float
    ridge: float
    of_products: float
    of_copies: float


def sections(overview: Overview) -> list[Section]:
    groups = longest_groups([group for group in overview.once if not group.decodes])
    parts = [part(group, points) for group in groups if (points := points_of(group.rows))]
    return [Section("What limits a step", "roofline", parts=parts, notes=NOTES, folded=True)] if parts else []


def points_of(rows: Sequence[Row]) -> list[Point]:
    """The rows with all that was measured, those nearest to a limit first."""
    found = []
    for row in rows:
        flops, moved, products, copies = (numbers(row.finished, name) for name in (FLOPS.field, MOVED.field, *RATES))
        shares = matrix_share(row), copy_share(row)
        if flops and moved and products and copies and None not in shares:
            of_products, of_copies = (share or 0.0 for share in shares)
            ridge = median(products) / median(copies)
            found.append(Point(row, median(flops) / median(moved), ridge, of_products, of_copies))
    return sorted(found, key=lambda point: -max(point.of_products, point.of_copies))


def part(group: Group, points: Sequence[Point]) -> Section:
    title = f"What limits forward + backward: {group.title}"
    header = ["variant", "forward + backward", "FLOPs", "bytes moved", "FLOPs a byte"]
    header += ["share of matrix rate", "share of copy rate"]
    body = []
    for point in points:
        time, flops, moved = (point.row.over_seeds(quantity) for quantity in (FORWARD_BACKWARD, FLOPS, MOVED))
        assert time is not None
        assert flops is not None
        assert moved is not None
        line = [
            shown_name(point.row),
            seconds(time.mean),
            count(flops.mean),
            size(moved.mean),
            significant(point.intensity),
        ]
        body.append([*line, percent(point.of_products), percent(point.of_copies)])
    charts = [Chart(f"roofline_{group.slug}", f"{title}. {described(points)}", partial(draw, group, points))]
    return Section(title, sentences=[rates(points)], tables=[Table(title, header, body, title=title)], charts=charts)


def rates(points: Sequence[Point]) -> str:
    """The rates of the machine, as the middle process measured them."""
    products, copies = (median(numbers((r for p in points for r in p.row.finished), name)) for name in RATES)
    return (
        f"A large matrix product makes {count(products)}FLOP a second, a large copy moves {size(copies)} a second: "
        f"below {significant(products / copies)} FLOPs a byte the copies take longer than the products."
    )


def described(points: Sequence[Point]) -> str:
    """The chart in words."""
    return f"Share of the matrix rate: {span([(p.row, p.of_products) for p in points], percent)}."


def draw(group: Group, points: Sequence[Point], styles: Mapping[str, Style]) -> Figure:
    """The share of the matrix rate against FLOPs a byte, under the roof that the two rates make."""
    ridge = median(point.ridge for point in points)
    sheet = Sheet(
        f"What limits forward + backward: {group.title}",
        group.machine,
        [
            "Roof: what the machine's rates of matrix products and of copies allow. Bytes moved are an estimate; above "
            "the slope a cache holds much of what an operation reads.",
            *fallback_notes([point.row for point in points if point.row.fell_back or point.row.disturbed]),
        ],
        [point.row for point in points],
        body=476,
    )
    axes = sheet.axes(96, 62, WIDTH - 96 - 24, 390)
    low, high = min(*(p.intensity for p in points), ridge) / 1.6, max(*(p.intensity for p in points), ridge) * 1.6
    bottom = min(*(p.of_products for p in points), low / ridge) / 1.6
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, HIGHEST)
    log_ticks(axes, "x", nice_ticks(low, high), significant)
    log_ticks(axes, "y", nice_ticks(bottom, HIGHEST), lambda share: f"{100 * share:.3g}{SPACE}%")
    axes.set_xlabel("FLOPs for each byte moved (logarithmic)")
    axes.set_ylabel("share of the machine's matrix rate (logarithmic)")
    roof = [(low, low / ridge), (ridge, 1.0), (high, 1.0)]
    axes.plot(*zip(*roof, strict=True), color=INK, linewidth=1.2)
    axes.axvline(ridge, color=SOFT, linewidth=0.8, linestyle=TRIVIAL)
    names = []
    for point in points:
        style = styles[point.row.name]
        x, y = point.intensity, point.of_products
        axes.plot([x], [y], color=style.colour, marker=style.marker, markersize=6, linestyle="none")
        names.append(Name(folded(shown_name(point.row)), x, y, 5, style.colour, style.weight))
    draw_names(axes, names, [], boxes_along(axes, roof))
    return sheet.figure
