"""What a variant costs against length: time and memory, on logarithmic axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from compare import quantities
from compare.quantities import Quantity
from compare.report.facts.groups import Group
from compare.report.facts.memory import memory_of
from compare.report.facts.scaling import batch_of, find_crossovers, fit_exponents, one_batch, rows_by_length
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
from compare.report.sections.wording import fallback_notes, means, span
from compare.units import sentence, size


@dataclass(frozen=True)
class Cost:
    """What a chart of costs shows.

    stem: of its files. what: "… faster than full". note: how it was measured.
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
    note="Steps of the causal encoder up to this length, after those before it.",
)
STATE = Cost(
    quantities.STATE,
    "decode_state",
    "State against length, decoding",
    "kept of one sample, by all layers",
    note="All that the causal encoder keeps of the positions before its next step.",
)


def memory_cost(series: Sequence[Group]) -> Cost:
    """Memory of training in all, where the records tell it."""
    memory = memory_of([row for group in series for row in group.rows])
    note = f"{sentence(memory.told)}: {memory.holds}."
    return Cost(memory, "cost_memory", f"{sentence(memory.told)} against length", memory.told, note=note)


def cost_against_length(series: Sequence[Group], cost: Cost, styles: Mapping[str, Style]) -> Figure | None:
    cells = rows_by_length(series)
    lines = {
        label: [
            (n, found.mean) for n, row in rows.items() if (found := row.over_seeds(cost.quantity)) and found.mean > 0
        ]
        for label, rows in cells.items()
    }
    values = [value for line in lines.values() for _, value in line]
    if not values:
        return None
    lengths = sorted({group.seq_len for group in series})
    failed: dict[tuple[int, str], list[str]] = {}
    for label, rows in cells.items():
        for n, row in rows.items():
            if not row.finished and lines[label]:
                failed.setdefault((n, status_of(row.records[-1])), []).append(row.name)
    rows_shown = {label: next(iter(rows.values())) for label, rows in cells.items()}
    empty = [row for label, row in rows_shown.items() if not lines[label]]
    absent = [f"{row.name} ({row.status})" for row in empty if not row.over_seeds(cost.quantity)]
    nothing = [row.name for row in empty if row.over_seeds(cost.quantity)]
    fell_back = [row for label in cells for row in cells[label].values() if row.fell_back]
    batches = {n: batch_of(group) for group in series if (n := group.seq_len)}
    notes = ["Mean over seeds."]
    if any(row.spread(cost.quantity) for rows in cells.values() for row in rows.values()):
        notes[0] += " Bars: quartiles of the repetitions."
    if failed:
        notes[0] += " ×: nothing measured at this length, for the reason named; its height means nothing."
    if cost.note:
        notes[0] = f"{cost.note} {notes[0]}"
    if absent:
        notes.append(f"Nothing measured at any length: {', '.join(absent)}.")
    if nothing:
        notes.append(f"0 at every length: {', '.join(nothing)}.")
    notes += fallback_notes(fell_back)
    if cost.quantity.timed:
        notes += [f"‖ {note}" for note in disturbed_note(cells)]
    disturbed = (row for rows in cells.values() for row in rows.values() if row.disturbed)
    busy = {row.label for row in disturbed} if cost.quantity.timed else set()
    starred = {row.label for row in fell_back}

    fits = fit_exponents(cells, cost.quantity) if one_batch(series) else {}
    if fits:
        notes.append("N^: the power of the length that the cost grows with, fitted over the longest lengths.")
    texts = {
        label: folded(
            row.name
            + ("*" if label in starred else "")
            + ("‖" if label in busy else "")
            + (f" N^{fits[label].words}" if label in fits else "")
        )
        for label, row in rows_shown.items()
    }
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
    log_ticks(
        axes, "y", memory_ticks(low, high) if cost.quantity.show is size else nice_ticks(low, high), cost.quantity.show
    )
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
            if quartiles := row.spread(cost.quantity):
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
        axes.plot([n], [y], marker="x", markersize=8, markeredgewidth=2, color=INK, clip_on=False)
        names.append(Name(folded(f"{status}: {', '.join(who)}"), n, y, 9, INK))
    draw_margin(axes, margin)
    draw_names(axes, names, marks, soft)
    return sheet.figure


def crossover_chart(series: Sequence[Group], cost: Cost, styles: Mapping[str, Style]) -> Figure | None:
    """From which length on each variant is faster than full, with its interval: a line each, the earliest on top."""
    cells = rows_by_length(series)
    found = find_crossovers(cells, cost.quantity)
    if not found:
        return None
    order = sorted(found, key=lambda label: (found[label].within_noise, found[label].length, found[label].high, label))
    told = {label: NOISE if c.within_noise else length_text(c.length, c) for label, c in found.items()}
    rows = {label: next(iter(cells[label].values())) for label in order}
    shortest, longest = min(c.measured[0] for c in found.values()), max(c.measured[1] for c in found.values())
    sheet = Sheet(
        f"Length from which {cost.what} faster than full: {series[0].task}"
        + (f" ({series[0].where})" if series[0].where else ""),
        series[0].machine,
        [
            "Lines: 95 % intervals. Left of the lengths measured: faster at all of them; right: not at the longest. "
            "Within noise: at no length measured beyond noise faster or slower.",
            *disturbed_note(cells),
        ],
        list(rows.values()),
        body=20.0 * len(order) + 58,
    )
    left = 26 + max(text_size(row.name, SMALL)[0] for row in rows.values())
    right = 26 + max(text_size(text, SMALL)[0] for text in told.values())
    axes = sheet.axes(left, 48, WIDTH - left - right, 20.0 * len(order))
    outside = (longest / shortest) ** 0.06  # how far beyond the lengths measured "all" and "none" stand
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
        style, crossover = styles[label], found[label]
        ends = [min(max(end, low), high) for end in (crossover.low, crossover.length, crossover.high)]
        axes.plot([ends[0], ends[2]], [place, place], color=style.colour, linewidth=1.5)
        if not crossover.within_noise:
            axes.plot(ends[1], place, color=style.colour, marker=style.marker, markersize=6)
        height = float(axes.transData.transform((1, place))[1])
        write(sheet.figure, rows[label].name, box.x0 - 8, height, ha="right")
        write(sheet.figure, told[label], box.x1 + 8, height, ha="left")
    return sheet.figure


def describe_cost(series: Sequence[Group], cost: Cost) -> str:
    """What variants cost at the shortest and at the longest length."""
    ends = [(group, means(group.rows, cost.quantity)) for group in (series[0], series[-1])]
    return " ".join(
        f"At length {group.seq_len:,}: {span(found, cost.quantity.show)}." for group, found in ends if found
    )


def describe_crossovers(series: Sequence[Group], cost: Cost) -> str:
    """From which length each variant is faster than full."""
    found = find_crossovers(rows_by_length(series), cost.quantity)
    return "; ".join(f"{label} {crossover_text(crossover)}" for label, crossover in found.items()) + "."
