"""Cost against length: time, memory and state, on logarithmic axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare import quantities
from compare.quantities import Quantity
from compare.report.facts.groups import Group, Row
from compare.report.facts.memory import memory_of
from compare.report.facts.scaling import (
    Crossover,
    Fit,
    Series,
    batch_of,
    find_crossovers,
    fit_exponents,
    one_batch,
    rows_by_length,
)
from compare.report.facts.values import status_of
from compare.report.render.axes import log_ticks, memory_ticks, nice_ticks
from compare.report.render.canvas import (
    FAINT,
    INK,
    SMALL,
    WIDTH,
    MarginLabel,
    Name,
    Sheet,
    Style,
    boxes_along,
    boxes_at,
    draw_margin,
    draw_names,
    folded,
    margin_height,
    margin_width,
    text_size,
    write,
)
from compare.report.render.labels import Box
from compare.report.sections.growth import NOISE, crossover_text, disturbed_note, length_text
from compare.report.sections.section import Chart
from compare.report.sections.wording import fallback_notes, means, span
from compare.units import sentence, size


@dataclass(frozen=True)
class Cost:
    """What a chart of costs shows.

    stem: begins its file names. what: the subject of "… faster than full". note: how the cost was measured.
    """

    quantity: Quantity
    stem: str
    title: str
    axis: str
    what: str = ""
    note: str = ""


TIME = Cost(
    quantities.FORWARD_BACKWARD,
    "cost_time",
    "Time of forward + backward against length",
    "forward + backward of one batch",
    what="forward + backward is",
)
TOKEN = Cost(
    quantities.TOKEN,
    "decode_time",
    "Time per token against length, decoding",
    "time of a step, a token for each sample",
    what="decoding is",
    note="Last steps of the causal encoder up to this length, after steps from an empty state.",
)
STATE = Cost(
    quantities.STATE,
    "decode_state",
    "State against length, decoding",
    "kept of one sample, by all layers",
    note="All that the causal encoder keeps of earlier positions for its next step.",
)


RECOMPUTED = Cost(
    quantities.RECOMPUTED,
    "decode_recompute",
    "Time per token against length, recomputing",
    "time of a forward over all positions",
    what="recomputing is",
    note="What a token costs without a state: a forward of the causal encoder over all positions up to it.",
)


def memory_cost(series: Sequence[Group]) -> Cost:
    """The memory cost: of all training where the records have it, else of a step."""
    memory = memory_of([row for group in series for row in group.rows])
    note = f"{sentence(memory.told)}: {memory.holds}."
    return Cost(memory, "cost_memory", f"{sentence(memory.told)} against length", memory.told, note=note)


class Lines:
    """The content of a chart of one cost against length: a line for each label."""

    def __init__(self, series: Sequence[Group], cost: Cost) -> None:
        self.series, self.cost, self.cells = series, cost, rows_by_length(series)
        self.lengths = sorted({group.seq_len for group in series})
        self.points = {
            label: [
                (n, estimate.mean)
                for n, row in rows.items()
                if (estimate := row.over_seeds(cost.quantity)) and estimate.mean > 0
            ]
            for label, rows in self.cells.items()
        }
        self.rows = {label: next(iter(rows.values())) for label, rows in self.cells.items()}

    @property
    def all_rows(self) -> list[Row]:
        return [row for rows in self.cells.values() for row in rows.values()]

    @property
    def batches(self) -> dict[int, str]:
        return {n: batch_of(group) for group in self.series if (n := group.seq_len)}

    @cached_property
    def failed(self) -> dict[tuple[int, str], list[str]]:
        """(Length, status) -> the rows that failed there but were measured at another length."""
        failures: dict[tuple[int, str], list[str]] = {}
        for label, rows in self.cells.items():
            for n, row in rows.items():
                if not row.finished and self.points[label]:
                    failures.setdefault((n, status_of(row.records[-1])), []).append(row.name)
        return failures

    @cached_property
    def fell_back(self) -> list[Row]:
        return [row for row in self.all_rows if row.fell_back]

    @cached_property
    def fits(self) -> dict[str, Fit]:
        return fit_exponents(self.cells, self.cost.quantity) if one_batch(self.series) else {}

    @cached_property
    def texts(self) -> dict[str, str]:
        """Label -> the row's name with its marks and its power."""
        busy = {row.label for row in self.all_rows if row.disturbed} if self.cost.quantity.timed else set()
        starred = {row.label for row in self.fell_back}
        return {
            label: folded(
                row.name
                + ("*" if label in starred else "")
                + ("‖" if label in busy else "")
                + (f" N^{self.fits[label].words}" if label in self.fits else "")
            )
            for label, row in self.rows.items()
        }

    @cached_property
    def at_edge(self) -> list[str]:
        """The labels whose lines reach the longest length."""
        return [label for label, line in self.points.items() if line and line[-1][0] == self.lengths[-1]]

    @cached_property
    def span(self) -> tuple[float, float]:
        """The ends of the cost axis, with room above all lines for the marks of failures."""
        values = [value for line in self.points.values() for _, value in line]
        low, high = min(values) / 1.3, max(values) * 1.3
        return low, high * (max(high / low, 3) ** 0.18 if self.failed else 1)


def cost_against_length(series: Series, cost: Cost) -> Chart | None:
    """None where nothing was measured."""
    lines = Lines(series.groups, cost)
    if not any(lines.points.values()):
        return None
    alt = f"{cost.title}: {series.groups[0].task}. {describe_cost(series.groups, cost)}".strip()
    return Chart(f"{cost.stem}_{series.slug}", alt, partial(draw_lines, lines))


def draw_lines(lines: Lines, styles: Mapping[str, Style]) -> Figure:
    first, cost = lines.series[0], lines.cost
    column = [lines.texts[label] for label in lines.at_edge]
    plot = max(390.0, 1.15 * margin_height(column))
    varied = len(set(lines.batches.values())) > 1
    sheet = Sheet(
        f"{cost.title}: {first.task}" + (f" ({first.where})" if first.where else ""),
        first.machine,
        notes_of(lines),
        list(lines.rows.values()),
        body=plot + 86 + 16 * varied,
    )
    axes = sheet.axes(96, 62 + 16 * varied, WIDTH - 96 - margin_width(column), plot)
    set_axes(axes, lines, with_batches=varied)
    marks: list[Box] = []
    soft: list[Box] = []
    names: list[Name] = []
    margin: list[MarginLabel] = []
    for label, line in lines.points.items():
        if not line:
            continue
        draw_line(axes, lines, label, styles[label])
        marks += boxes_at(axes, line, 5)
        soft += boxes_along(axes, line)
        if label in lines.at_edge:
            margin.append(MarginLabel(*line[-1], lines.texts[label], styles[label]))
        else:
            names.append(Name(lines.texts[label], *line[-1], 5, styles[label].colour, styles[label].weight))
    names += draw_failures(axes, lines)
    draw_margin(axes, margin)
    draw_names(axes, names, marks, soft)
    return sheet.figure


def set_axes(axes: Axes, lines: Lines, *, with_batches: bool) -> None:
    lengths, quantity, batches = lines.lengths, lines.cost.quantity, lines.batches
    low, high = lines.span
    axes.set_xlim(lengths[0] / 1.12, lengths[-1] * 1.04)
    log_ticks(axes, "x", lengths, lambda n: f"{n:,.0f}" + (f"\nbatch {batches[int(n)]}" if with_batches else ""))
    axes.set_ylim(low, high)
    ticks = memory_ticks if quantity.show is size else nice_ticks
    log_ticks(axes, "y", ticks(low, high), quantity.show)
    axes.set_xlabel("sequence length, tokens (logarithmic)")
    axes.set_ylabel(f"{lines.cost.axis} (logarithmic)")


def draw_line(axes: Axes, lines: Lines, label: str, style: Style) -> None:
    """Draws one line and its quartiles."""
    axes.plot(
        *zip(*lines.points[label], strict=True),
        color=style.colour,
        linestyle=style.dash,
        linewidth=style.width,
        marker=style.marker,
        markersize=5,
        zorder=4 if label not in lines.at_edge else 3 if style.weight == "bold" else 2,
    )
    for n, row in lines.cells[label].items():
        if quartiles := row.spread(lines.cost.quantity):
            axes.plot([n, n], quartiles, color=style.colour, linewidth=1)


def draw_failures(axes: Axes, lines: Lines) -> list[Name]:
    """Draws crosses above all lines, and returns the names to write beside them."""
    low, high = lines.span
    names = []
    for rank, ((n, status), who) in enumerate(sorted(lines.failed.items())):
        y = high / (high / low) ** (0.03 + 0.04 * (rank % 3))
        axes.plot([n], [y], marker="x", markersize=8, markeredgewidth=2, color=INK, clip_on=False)
        names.append(Name(folded(f"{status}: {', '.join(who)}"), n, y, 9, INK))
    return names


def notes_of(lines: Lines) -> list[str]:
    quantity = lines.cost.quantity
    empty = [row for label, row in lines.rows.items() if not lines.points[label]]
    absent = [f"{row.name} ({row.status})" for row in empty if not row.over_seeds(quantity)]
    nothing = [row.name for row in empty if row.over_seeds(quantity)]
    notes = ["Mean over seeds."]
    if any(row.spread(quantity) for row in lines.all_rows):
        notes[0] += " Bars: quartiles of the repetitions."
    if lines.failed:
        notes[0] += " ×: no measurement at this length, for the reason beside it; its height has no meaning."
    if lines.cost.note:
        notes[0] = f"{lines.cost.note} {notes[0]}"
    if absent:
        notes.append(f"Nothing measured at any length: {', '.join(absent)}.")
    if nothing:
        notes.append(f"0 at every length: {', '.join(nothing)}.")
    notes += fallback_notes(lines.fell_back)
    if quantity.timed:
        notes += [f"‖ {note}" for note in disturbed_note(lines.cells)]
    if lines.fits:
        notes.append("N^: the power of the length N with which the cost grows, fitted over the longest lengths.")
    return notes


def crossover_chart(series: Series, cost: Cost) -> Chart | None:
    """None where no variant was measured at two lengths of full."""
    crossovers = find_crossovers(rows_by_length(series.groups), cost.quantity)
    if not crossovers:
        return None
    stem, words = ("decode_crossover", "decodes") if series.decodes else ("crossover", "is")
    alt = f"Length from which a variant {words} faster than full: {series.groups[0].task}. "
    alt += describe_crossovers(crossovers)
    return Chart(f"{stem}_{series.slug}", alt.strip(), partial(draw_crossovers, series.groups, cost, crossovers))


def draw_crossovers(
    series: Sequence[Group], cost: Cost, crossovers: Mapping[str, Crossover], styles: Mapping[str, Style]
) -> Figure:
    """Draws, for each variant, the length from which it is faster than full, with its interval; earliest on top."""
    cells = rows_by_length(series)
    ranks = {label: (c.within_noise, c.length, c.high, label) for label, c in crossovers.items()}
    order = sorted(crossovers, key=lambda label: ranks[label])
    texts = {label: NOISE if c.within_noise else length_text(c.length, c) for label, c in crossovers.items()}
    rows = {label: next(iter(cells[label].values())) for label in order}
    shortest, longest = min(c.measured[0] for c in crossovers.values()), max(c.measured[1] for c in crossovers.values())
    sheet = Sheet(
        f"Length from which {cost.what} faster than full: {series[0].task}"
        + (f" ({series[0].where})" if series[0].where else ""),
        series[0].machine,
        [
            "Lines: 95 % intervals. Left of the measured lengths: faster at all of them. Right of them: not faster at "
            "the longest. Within noise: no difference beyond noise at any measured length.",
            *disturbed_note(cells),
        ],
        list(rows.values()),
        body=20.0 * len(order) + 58,
    )
    left = 26 + max(text_size(row.name, SMALL)[0] for row in rows.values())
    right = 26 + max(text_size(text, SMALL)[0] for text in texts.values())
    axes = sheet.axes(left, 48, WIDTH - left - right, 20.0 * len(order))
    outside = (longest / shortest) ** 0.06  # how far beyond the measured lengths the marks for "below" and "above" are
    low, high = shortest / outside, longest * outside
    axes.set_xlim(low / outside, high * outside)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    log_ticks(axes, "x", sorted({group.seq_len for group in series}), lambda n: f"{n:,.0f}")
    axes.set_xlabel("sequence length, tokens (logarithmic)")
    for edge in (shortest, longest):
        axes.axvline(edge, color=FAINT, linewidth=0.8)
    box = axes.get_window_extent()
    for place, label in enumerate(order):
        style, crossover = styles[label], crossovers[label]
        ends = [min(max(end, low), high) for end in (crossover.low, crossover.length, crossover.high)]
        axes.plot([ends[0], ends[2]], [place, place], color=style.colour, linewidth=1.5)
        if not crossover.within_noise:
            axes.plot(ends[1], place, color=style.colour, marker=style.marker, markersize=6)
        height = float(axes.transData.transform((1, place))[1])
        write(sheet.figure, rows[label].name, box.x0 - 8, height, ha="right")
        write(sheet.figure, texts[label], box.x1 + 8, height, ha="left")
    return sheet.figure


def describe_cost(series: Sequence[Group], cost: Cost) -> str:
    """The chart in words: costs at the shortest and at the longest length."""
    ends = [(group, means(group.rows, cost.quantity)) for group in (series[0], series[-1])]
    return " ".join(
        f"At length {group.seq_len:,}: {span(costs, cost.quantity.show)}." for group, costs in ends if costs
    )


def describe_crossovers(crossovers: Mapping[str, Crossover]) -> str:
    """The chart in words: the length from which each variant is faster than full."""
    return "; ".join(f"{label} {crossover_text(crossover)}" for label, crossover in crossovers.items()) + "."
