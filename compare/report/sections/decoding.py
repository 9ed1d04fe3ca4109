"""Decoding, token by token: time per token and state, in charts, tables and words."""

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from compare.quantities import PREFILL, RECOMPUTED, RECOMPUTED_MEMORY, STATE, TOKEN
from compare.report.facts.groups import Group, Row
from compare.report.facts.overview import Overview
from compare.report.facts.scaling import (
    Series,
    batch_of,
    find_crossovers,
    fit_exponents,
    longest_decoded,
    longest_of,
    one_batch,
    positive,
    reference_of,
    rows_by_length,
)
from compare.report.facts.stats import Estimate
from compare.report.render.axes import log_ticks, memory_ticks, nice_ticks
from compare.report.render.canvas import WIDTH, Name, Sheet, Style, draw_names, folded
from compare.report.sections import lengths
from compare.report.sections.growth import (
    cost_table,
    crossover_note,
    crossover_text,
    disturbed_note,
    exponent_text,
    number_links,
    powers_note,
    table_title,
)
from compare.report.sections.lengths import cost_against_length, crossover_chart
from compare.report.sections.section import Chart, Section, Table
from compare.report.sections.wording import fallback_notes, means, short, shown_name, span
from compare.units import MISSING, plain, seconds, sentence, significant, size

PLACE = 64.0  # area of a mark, in square points


def sections(overview: Overview) -> list[Section]:
    decoded = [series for series in overview.series if series.decodes]
    charts = [chart for series in decoded for chart in charts_of(series)]
    charts += [chart for group in longest_decoded(overview.once) if (chart := time_against_state(group))]
    if not charts:
        return []
    return [
        Section(
            *("Decoding, token by token", "decoding"),
            tables=[table for series in decoded for table in decode_tables(series.groups, series.note)],
            charts=charts,
            links=number_links(overview, [group for group in overview.groups if group.decodes]),
            charts_first=True,
        )
    ]


def charts_of(series: Series) -> list[Chart]:
    kinds = (lengths.TOKEN, lengths.STATE, lengths.RECOMPUTED)
    costs = [cost_against_length(series, cost) for cost in kinds]
    return [chart for chart in (*costs, crossover_chart(series, lengths.TOKEN)) if chart]


def time_against_state(group: Group) -> Chart | None:
    """None where no row has both a state above 0 and a time."""
    if not any(state.mean > 0 for _, state, _ in measured(group)):
        return None
    alt = f"Time per token against state: {group.title}. {describe_decoding(group)}".strip()
    return Chart(f"decode_{group.slug}", alt, partial(draw_decoding, group))


def draw_decoding(group: Group, styles: Mapping[str, Style]) -> Figure:
    """Draws the time per token of each variant against its state."""
    costs = {row.name: (state.mean, time.mean) for row, state, time in measured(group)}
    spots = [(row, *costs[row.name]) for row, *_ in measured(group) if costs[row.name][0] > 0]
    notes = ["Mean over seeds; further left and lower is cheaper. State: all that the encoder keeps of one sample."]
    if nothing := [name for name, (state, _) in costs.items() if state <= 0]:
        notes.append(f"Not drawn (no state): {', '.join(nothing)}.")
    if absent := [f"{row.name} ({row.status})" for row in group.rows if row.name not in costs]:
        notes.append(f"Nothing measured: {', '.join(absent)}.")
    rows = [row for row, _, _ in spots]
    plot = max(360.0, 16.0 * len(rows))
    notes += fallback_notes(rows)
    sheet = Sheet(f"Time per token against state: {group.title}", group.machine, notes, rows, body=plot + 86)
    axes = sheet.axes(96, 62, WIDTH - 96 - 30, plot)
    for which, values in (("x", [state for _, state, _ in spots]), ("y", [time for _, _, time in spots])):
        pad = max((max(values) / min(values)) ** 0.08, 1.25)
        low, high = min(values) / pad, max(values) * pad
        axes.set(**{f"{which}lim": (low, high)})
        ticks, show = (memory_ticks, size) if which == "x" else (nice_ticks, seconds)
        log_ticks(axes, which, ticks(low, high), show)
    axes.set_xlabel("state of one sample, all layers (logarithmic)")
    axes.set_ylabel("time per token (logarithmic)")
    names = []
    for row, state, time in spots:
        style = styles[row.name]
        axes.scatter([state], [time], PLACE, marker=style.marker, color=style.colour, edgecolor="white", zorder=3)
        names.append(Name(folded(shown_name(row)), state, time, 6, style.colour, style.weight))
    draw_names(axes, names, [], [])
    return sheet.figure


def measured(group: Group) -> list[tuple[Row, Estimate, Estimate]]:
    """Rows with their state and their time per token."""
    return [
        (row, state, time)
        for row in group.rows
        if (state := row.over_seeds(STATE)) is not None and (time := row.over_seeds(TOKEN)) is not None
    ]


def decode_tables(series: Sequence[Group], told_apart: str) -> list[Table]:
    """A table of growth and ratios to full, and one with the costs at each length."""
    title = table_title(series, told_apart)
    return [growth_table(series, title), lengths_table(series, title), *caching_table(series, title)]


def growth_table(series: Sequence[Group], title: str) -> Table:
    """Exponents, crossovers, and time per token and state at the reference's longest length."""
    cells = rows_by_length(series)
    reference = reference_of(cells)
    longest = longest_of(series, reference)
    full = reference.get(longest) if reference else None
    exponents = {quantity: fit_exponents(cells, quantity) for quantity in (TOKEN, STATE)}
    crossovers = find_crossovers(cells, TOKEN)
    header = ["variant", "family", "power of N, time", "power of N, state", f"time per token at {plain(longest)}"]
    header += ["ratio to full", "faster than full from N", f"state at {plain(longest)}", "share of full's state"]
    body = []
    for label, rows in cells.items():
        there, first = rows.get(longest), next(iter(rows.values()))
        line = [first.name, first.family]
        for quantity, fits in exponents.items():
            grows = one_batch(series) and any(positive(row, quantity) for row in rows.values())
            line.append(exponent_text(fits.get(label)) if grows else MISSING)
        for quantity in (TOKEN, STATE):
            own, theirs = (row.over_seeds(quantity) if row else None for row in (there, full))
            line.append(quantity.show(own.mean) if own else there.status if there else MISSING)
            line.append(significant(own.mean / theirs.mean) if own and theirs and theirs.mean else MISSING)
            if quantity is TOKEN:
                line.append(crossover_text(crossovers[label]) if label in crossovers else MISSING)
        body.append(line)
    notes = [powers_note(series)]
    if reference is not None:
        notes.append(crossover_note("Faster", cells, TOKEN))
    notes += disturbed_note(cells)
    return cost_table(f"Growth: {title}", header, body, notes)


def lengths_table(series: Sequence[Group], title: str) -> Table:
    """Time per token and state of each variant at each length."""
    cells = rows_by_length(series)
    measured_at = sorted({group.seq_len for group in series})
    body = [
        [next(iter(rows.values())).name, *(cost_of(rows[n]) if n in rows else MISSING for n in measured_at)]
        for rows in cells.values()
    ]
    batches = sorted({batch_of(group) for group in series})
    notes = [
        "Time per token: one step of the causal encoder, after steps from an empty state up to this length; the "
        "median over windows of the last steps, at most an eighth of the length in all. A step makes one token for "
        f"each sample of the batch ({', '.join(batches)}).",
        "State: bytes that all layers and the convolution before them keep of one sample after this length.",
    ]
    return cost_table(f"At each length: {title}", ["variant", *map(plain, measured_at)], body, notes)


def caching_table(series: Sequence[Group], title: str) -> list[Table]:
    """A token by a step and by recomputing, at the longest length; none where no record has the second."""
    longest = max(series, key=lambda group: group.seq_len)
    body = []
    for row in longest.rows:
        step, again, memory, prefill = (
            row.over_seeds(quantity) for quantity in (TOKEN, RECOMPUTED, RECOMPUTED_MEMORY, PREFILL)
        )
        if step and again and prefill:
            all_steps = step.mean * longest.seq_len
            line = [row.name, f"{1 / step.mean:,.0f}", f"{1 / again.mean:,.3g}", significant(again.mean / step.mean)]
            state = row.over_seeds(STATE)
            line += [size(state.mean) if state else MISSING, size(memory.mean) if memory else MISSING]
            body.append([*line, seconds(prefill.mean), significant(all_steps / prefill.mean)])
    if not body:
        return []
    header = ["variant", "tokens/s by steps", "tokens/s by recomputing", "times as fast", "state of a sample"]
    header += ["memory of recomputing", "prefill", "N last steps, in prefills"]
    notes = [
        "Recomputing: a forward over all positions for each token. Prefill: all positions at once, with their state.",
        "N last steps: N times the time of the last step, which is the most that all steps take.",
    ]
    return [cost_table(f"With and without a state, at {plain(longest.seq_len)}: {title}", header, body, notes)]


def cost_of(row: Row) -> str:
    time, state = row.over_seeds(TOKEN), row.over_seeds(STATE)
    return f"{seconds(time.mean)}, {size(state.mean)}" if time and state else row.status


def kept(group: Group) -> str:
    """The state of one sample in full and in the other variants, the smallest first."""
    states = sorted(
        (state.mean, row.name) for row, state, _ in measured(group) if row.attends and row is not group.reference
    )
    full = group.reference.over_seeds(STATE) if group.reference else None
    others = short([f"{name} {size(state)}" for state, name in states])
    words = ([f"full {size(full.mean)}"] if full else []) + ([others] if others else [])
    return f"State of one sample: {'; '.join(words)}." if words else ""


def describe_decoding(group: Group) -> str:
    """The chart of time per token against state in words: the ends of both axes."""
    parts = [(quantity, means(group.rows, quantity)) for quantity in (TOKEN, STATE)]
    return " ".join(f"{sentence(q.told)}: {span(values, q.show)}." for q, values in parts if values)
