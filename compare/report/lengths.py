"""What a variant costs against length: time and memory, on logarithmic axes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from .aggregate import Group, Row, as_mapping, numbers, status_of, tell_apart
from .canvas import (
    INK,
    WIDTH,
    MarginLabel,
    Name,
    Sheet,
    Style,
    boxes_along,
    boxes_at,
    draw_margin,
    draw_names,
    fallback_notes,
    folded,
    log_ticks,
    margin_height,
    margin_width,
    memory_ticks,
    nice_ticks,
)
from .labels import Box
from .units import seconds, size


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
