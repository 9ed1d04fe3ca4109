"""Words for exponents and crossovers, shared by training and decoding."""

import math
from collections.abc import Sequence

from compare.quantities import Quantity
from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.facts.scaling import Crossover, Fit, RowsByLength, fitted, lengths_of, noise_of, one_batch
from compare.report.sections.section import Links, Table
from compare.units import SPACE, percent, plain

NOISE = "within noise"


def cost_table(title: str, header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> Table:
    """A table of one series of lengths."""
    return Table(title, header, body, notes, title=title)


def number_links(overview: Overview, groups: Sequence[Group]) -> Links:
    return Links("Results at each length", [(overview.anchor(group), group.title) for group in groups])


def crossover_text(crossover: Crossover) -> str:
    """The crossover and its interval in words: "1,240 (1,050 to 1,400)"."""
    if crossover.within_noise:
        return NOISE
    text = length_text(crossover.length, crossover)
    if crossover.low < crossover.high:
        text += f" ({length_text(crossover.low, crossover)} to {length_text(crossover.high, crossover)})"
    if crossover.low == math.inf and crossover.crossings:
        return f"{text}, though cheaper at some shorter length"
    several = crossover.crossings > 1 and 0 < crossover.length < math.inf
    return f"{text}; the last of {crossover.crossings} crossings" if several else text


def length_text(length: float, crossover: Crossover) -> str:
    shortest, longest = crossover.measured
    if length == 0:
        return f"below{SPACE}{plain(shortest)}"
    return f"above{SPACE}{plain(longest)}" if length == math.inf else plain(float(f"{length:.3g}"))


def table_title(series: Sequence[Group], told_apart: str) -> str:
    extra = "; ".join(part for part in (told_apart, series[0].where) if part)
    return f"{series[0].task} ({extra})" if extra else series[0].task


def exponent_text(fit: Fit | None) -> str:
    return f"{fit.words}{SPACE}±{SPACE}{fit.half:.2f}" if fit else "too few lengths"


def disturbed_note(cells: RowsByLength) -> list[str]:
    """The disturbed runs, whose times no power and no crossover uses."""
    disturbed = {
        n: [row.name for rows in cells.values() if (row := rows.get(n)) and row.disturbed] for n in lengths_of(cells)
    }
    runs = "; ".join(f"at {plain(n)} {', '.join(names)}" for n, names in disturbed.items() if names)
    left_out = "Disturbed (e.g. by other processes) and left out of crossovers and powers of time"
    return [f"{left_out}: {runs}."] if runs else []


def powers_note(series: Sequence[Group]) -> str:
    lengths = fitted({group.seq_len: None for group in series})
    if not one_batch(series):
        return "The batch size differs between lengths: no powers are fitted, and costs are of a whole batch."
    return (
        f"Power of N: slope of log(cost) against log(N) over the longest lengths, here {plain(lengths[0])} "
        f"to {plain(lengths[-1])} (fixed overheads flatten it at shorter ones), ± half of its 95 % interval, from the "
        "residuals."
    )


def crossover_note(word: str, cells: RowsByLength, quantity: Quantity) -> str:
    text = (
        f"{word} than full from N: the length at which smooth lines through the measured times cross for the last "
        "time, with its 95 % interval. No line goes beyond the measured lengths."
    )
    if deviation := noise_of(cells, quantity).deviation:
        repeated = any(len(row.finished) > 1 for rows in cells.values() for row in rows.values())
        source = "processes of one length differ" if repeated else "points lie off smooth curves"
        text += f" The interval assumes times to be uncertain by {percent(deviation)}, by which {source}."
    return text
