"""How the cost of a training step grows with length."""

import json
from collections.abc import Mapping, Sequence

from compare.quantities import FORWARD_BACKWARD, STEP, STEP_MEMORY
from compare.report.facts.groups import Group, Row
from compare.report.facts.overview import Overview
from compare.report.facts.scaling import (
    RowsByLength,
    Series,
    find_crossovers,
    fit_exponents,
    longest_of,
    matrix_share,
    one_batch,
    reference_of,
    rows_by_length,
)
from compare.report.facts.values import Record, as_number, status_of
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
from compare.report.sections.lengths import TIME, cost_against_length, crossover_chart, memory_cost
from compare.report.sections.section import Chart, Section, Table
from compare.units import MISSING, plain, seconds, size


def longest_that_fits(rows: Mapping[int, Row], probes: Sequence[Record]) -> str:
    """The longest length that finished and the shortest longer one that did not: "23,552 (24,576: oom)"."""
    statuses = {n: status_of(row.records[-1]) for n, row in rows.items()}
    statuses |= {int(as_number(probe.get("seq_len")) or 0): status_of(probe) for probe in probes}
    fitting = max((n for n, status in statuses.items() if status == "ok"), default=0)
    failed = min((n for n in statuses if n > fitting), default=None)
    ending = "no longer length tried" if failed is None else f"{plain(failed)}: {statuses[failed]}"
    return f"{plain(fitting)} ({ending})" if fitting else f"none ({ending})"


def sections(overview: Overview) -> list[Section]:
    trained = [series for series in overview.series if not series.decodes]
    charts = [chart for series in trained for chart in charts_of(series)]
    if not charts:
        return []
    return [
        Section(
            *("Cost against length", "cost"),
            tables=[training_table(series.groups, series.note) for series in trained],
            charts=charts,
            links=number_links(overview, [group for series in trained for group in series.groups]),
            charts_first=True,
        )
    ]


def charts_of(series: Series) -> list[Chart]:
    costs = [cost_against_length(series, cost) for cost in (TIME, memory_cost(series.groups))]
    return [chart for chart in (*costs, crossover_chart(series, TIME)) if chart]


def training_table(series: Sequence[Group], told_apart: str) -> Table:
    """Exponents, cost at the reference's longest length, crossovers, and the share of the machine's matrix rate."""
    cells = rows_by_length(series)
    reference = reference_of(cells)
    longest = longest_of(series, reference)
    exponents = [fit_exponents(cells, quantity) for quantity in (FORWARD_BACKWARD, STEP_MEMORY)]
    header = [
        "variant",
        "family",
        "power of N, time",
        "power of N, memory of a step",
        f"forward + backward at {plain(longest)}",
    ]
    header += ["ratio to full", "cheaper than full from N", "whole step cheaper from N", "share of matrix rate"]
    limit = as_number(json.loads(series[0].cost_conditions).get("memory_limit"))
    probes = series[0].probes
    header += [f"longest N in {size(limit)}"] if limit and probes else []
    crossovers = [find_crossovers(cells, quantity) for quantity in (FORWARD_BACKWARD, STEP)]
    body = []
    for label, rows in cells.items():
        there = rows.get(longest)
        time = there.over_seeds(FORWARD_BACKWARD) if there else None
        full = reference[longest].over_seeds(FORWARD_BACKWARD) if reference and longest in reference else None
        line = [next(iter(rows.values())).name, next(iter(rows.values())).family]
        line += [exponent_text(fits.get(label)) if one_batch(series) else MISSING for fits in exponents]
        line.append(seconds(time.mean) if time else there.status if there else MISSING)
        line.append(f"{time.mean / full.mean:.2f}" if time and full else MISSING)
        line += [crossover_text(by_label[label]) if label in by_label else MISSING for by_label in crossovers]
        share = matrix_share(there) if there else None
        line.append(MISSING if share is None else f"{share:.2f}")
        if limit and probes:
            line.append(longest_that_fits(rows, [probe for probe in probes if probe.get("label") == label]))
        body.append(line)
    shown = [i for i in range(len(header)) if any(line[i] != MISSING for line in body)]
    return cost_table(
        table_title(series, told_apart),
        [header[i] for i in shown],
        [[line[i] for i in shown] for line in body],
        table_notes(series, cells),
    )


def table_notes(series: Sequence[Group], cells: RowsByLength) -> list[str]:
    """How to read the table of a series."""
    lines = [powers_note(series)]
    if reference_of(cells) is not None:
        lines.append(crossover_note("Cheaper", cells, FORWARD_BACKWARD))
    lines += disturbed_note(cells)
    if any(matrix_share(row) for rows in cells.values() for row in rows.values()):
        lines.append(
            "Share of matrix rate: FLOPs of forward + backward (matrix products only) divided by their time, as a "
            "share of the rate of a large square matrix product in the same process, dtype and threads."
        )
    return lines
