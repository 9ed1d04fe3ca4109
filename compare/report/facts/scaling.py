"""How cost grows with length: exponents, and the length from which a variant is cheaper than full."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compare.quantities import FLOPS, FORWARD_BACKWARD, MOVED, Quantity
from compare.report.facts.groups import Group, Row
from compare.report.facts.stats import t95
from compare.report.facts.values import as_mapping, as_number, conditions_in_words, distinct_slugs, numbers

FIT_SPAN = 8  # exponents are fitted from an eighth of the longest length on
FEWEST = 3  # lengths that a fit needs
DRAWS = 2000
STEPS_BETWEEN = 10  # places between two lengths at which ratios are interpolated
IQR_OF_NORMAL = 1.349  # in standard deviations
FloatArray = NDArray[np.float64]
RowsByLength = Mapping[str, Mapping[int, Row]]


class Fit(NamedTuple):
    """cost = constant · N^exponent, and half of the exponent's 95 % interval."""

    exponent: float
    half: float

    @property
    def words(self) -> str:
        return f"{round(self.exponent, 2) or 0.0:.2f}".replace("-", "−")


class Noise(NamedTuple):
    """How much costs differ between processes: the standard deviation of their logarithm.

    degrees: of freedom of the estimate; infinite where the deviation is 0 because nothing gives an estimate.
    """

    deviation: float
    degrees: float


class Level(NamedTuple):
    """The logarithm of a cost at one length and its standard error."""

    log: float
    error: float


class Crossover(NamedTuple):
    """The length from which on a variant is cheaper than the reference, up to the longest measured for both.

    Attributes:
        length: 0 if the variant is cheaper at every length, infinite if it is not cheaper at the longest.
        low, high: ends of the 95 % interval.
        measured: the shortest and the longest length measured for both.
        crossings: how often one overtakes the other.
        within_noise: whether no length shows a difference beyond noise, with all lengths tested together.
    """

    length: float
    low: float
    high: float
    measured: tuple[int, int]
    crossings: int
    within_noise: bool


def length_series(groups: Sequence[Group]) -> list[list[Group]]:
    """Lists of groups, of two lengths or more, that differ in length but in no other condition of a step's cost."""
    by_conditions: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        by_conditions.setdefault((group.machine, group.task, group.cost_conditions), []).append(group)
    return [series for series in by_conditions.values() if len({group.seq_len for group in series}) > 1]


def series_note(series: Sequence[Group], groups: Sequence[Group]) -> str:
    """The conditions that distinguish a series from others of its task, and "causal" for causal encoders."""
    first = series[0]
    rivals = [g.cost_conditions for g in groups if (g.machine, g.task) == (first.machine, first.task)]
    return conditions_in_words(first.cost_conditions, rivals)


class Series(NamedTuple):
    """Groups that differ in length only.

    note: the conditions that distinguish them from other series of their task. slug: ends the file names; no two series
    of a report share it.
    """

    groups: list[Group]
    note: str
    slug: str

    @property
    def decodes(self) -> bool:
        return self.groups[0].decodes


def series_of(groups: Sequence[Group]) -> list[Series]:
    all_series = length_series(groups)
    notes = [series_note(series, groups) for series in all_series]
    slugs = distinct_slugs([(each[0].task, each[0].where, note) for each, note in zip(all_series, notes, strict=True)])
    return [Series(*each) for each in zip(all_series, notes, slugs, strict=True)]


def rows_by_length(series: Sequence[Group]) -> dict[str, dict[int, Row]]:
    """Label -> length -> the runs of that variant with any learning rate, which does not change the cost."""
    cells: dict[str, dict[int, Row]] = {}
    for group in series:
        for row in group.rows:
            known = cells.setdefault(row.label, {}).get(group.seq_len)
            records = (known.records if known else ()) + row.records
            cells[row.label][group.seq_len] = replace(row, suffix="", records=records)
    return {label: dict(sorted(rows.items())) for label, rows in cells.items()}


def reference_of(cells: RowsByLength) -> Mapping[int, Row] | None:
    return next((rows for rows in cells.values() if any(row.is_reference for row in rows.values())), None)


def batch_of(group: Group) -> str:
    sizes = numbers((as_mapping(record.get("spec")) for record in group.records), "batch_size")
    return f"{sizes[0]:.0f}" if sizes else "?"


def one_batch(series: Sequence[Group]) -> bool:
    """Whether all lengths have the same batch size; otherwise cost does not grow with N alone."""
    return len({batch_of(group) for group in series}) == 1


def positive(row: Row, quantity: Quantity) -> list[float]:
    """The values above 0, fit for logarithms, of the finished runs; of a time, without disturbed runs."""
    return [value for value in numbers(row.fair(quantity).finished, quantity.field) if value > 0]


def fit_exponents(cells: RowsByLength, quantity: Quantity) -> dict[str, Fit]:
    """Label -> the exponent, for each variant measured at enough lengths."""
    fits = {}
    for label, rows in cells.items():
        if fit := fit_exponent({n: costs for n, row in rows.items() if (costs := positive(row, quantity))}):
            fits[label] = fit
    return fits


def fit_exponent(costs: Mapping[int, Sequence[float]]) -> Fit | None:
    """Least squares of log(cost) on log(N) over the longest lengths, with the t interval of its residuals.

    Args:
        costs: length -> the costs measured there, one for each process, all above 0.
    """
    lengths = fitted(costs)
    if len(lengths) < FEWEST:
        return None
    x = np.log([n for n in lengths for _ in costs[n]])
    y = np.log([cost for n in lengths for cost in costs[n]])
    x -= x.mean()
    exponent = float(x @ y / (x @ x))
    residuals = y - y.mean() - exponent * x
    degrees = len(x) - 2
    return Fit(exponent, t95(degrees) * math.sqrt(float(residuals @ residuals / degrees / (x @ x))))


def fitted(lengths: Mapping[int, object]) -> list[int]:
    """The lengths of a fit: from an eighth of the longest on, but at least the three longest.

    At shorter lengths, overheads that do not grow with N flatten the slope.
    """
    known = sorted(lengths)
    within = [n for n in known if n * FIT_SPAN >= known[-1]]
    return within if len(within) >= FEWEST else known[-FEWEST:]


def noise_of(cells: RowsByLength, quantity: Quantity) -> Noise:
    """The noise between processes, from all variants of a series together.

    If several processes measured one length: how much these differ. Otherwise: how far each variant's points lie off a
    parabola through the logarithms, which fits any cost that grows smoothly.
    """
    logs = [
        {n: np.log(costs) for n, row in rows.items() if (costs := positive(row, quantity))} for rows in cells.values()
    ]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for line in logs for values in line.values())
    degrees = sum(len(values) - 1 for line in logs for values in line.values())
    if not degrees:
        smooth = [(np.log(list(line)), np.concatenate(list(line.values()))) for line in logs if len(line) > 3]
        squares = sum(float(((y - np.polyval(np.polyfit(x, y, 2), x)) ** 2).sum()) for x, y in smooth)
        degrees = sum(len(x) - 3 for x, _ in smooth)
    return Noise(math.sqrt(squares / degrees), degrees) if degrees else Noise(0.0, math.inf)


def levels(rows: Mapping[int, Row], quantity: Quantity, noise: Noise) -> dict[int, Level]:
    """The cost at each measured length. Its error is the larger of two: that between processes, and that between
    repetitions."""
    by_length = {}
    for n, row in rows.items():
        if costs := positive(row, quantity):
            spread = row.fair(quantity).spread(quantity)
            own = math.log(spread[1] / spread[0]) / IQR_OF_NORMAL if spread and spread[0] > 0 else 0.0
            by_length[n] = Level(float(np.log(costs).mean()), max(noise.deviation, own) / math.sqrt(len(costs)))
    return by_length


def find_crossover(
    variant: Mapping[int, Row], reference: Mapping[int, Row], quantity: Quantity, noise: Noise
) -> Crossover | None:
    """The length from which the variant costs less, within the lengths measured for both; None without two of them.

    The interval holds the middle 95 % of the crossovers of costs that are redrawn within their errors.
    """
    mine, theirs = levels(variant, quantity, noise), levels(reference, quantity, noise)
    lengths = [n for n in mine if n in theirs]
    if len(lengths) < 2:
        return None
    ratios = np.array([mine[n].log - theirs[n].log for n in lengths])
    errors = np.array([math.hypot(mine[n].error, theirs[n].error) for n in lengths])
    off = student(noise.degrees, len(lengths))
    length, *others = np.exp(last_crossing(np.log(lengths), np.vstack([ratios, ratios + errors * off])))
    others.sort()
    tail = round(0.025 * DRAWS)
    dearer = ratios > 0
    return Crossover(
        length=float(length),
        low=float(others[tail]),
        high=float(others[-1 - tail]),
        measured=(lengths[0], lengths[-1]),
        crossings=int((dearer[1:] != dearer[:-1]).sum()),
        within_noise=bool((abs(ratios) <= errors * np.quantile(abs(off).max(axis=1), 0.95)).all()),
    )


def find_crossovers(cells: RowsByLength, quantity: Quantity) -> dict[str, Crossover]:
    """Label -> the crossover, for each variant measured at two lengths of the reference."""
    reference, noise = reference_of(cells), noise_of(cells, quantity)
    crossovers = {
        label: find_crossover(rows, reference, quantity, noise)
        for label, rows in cells.items()
        if reference is not None and rows is not reference
    }
    return {label: crossover for label, crossover in crossovers.items() if crossover is not None}


def student(degrees: float, size: int) -> FloatArray:
    """(DRAWS, size) samples of Student's t with one estimated deviation for each draw; the same on every call."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((DRAWS, size))
    if math.isinf(degrees):
        return normal
    return normal / np.sqrt(rng.chisquare(degrees, (DRAWS, 1)) / degrees)


def last_crossing(logs: FloatArray, ratios: FloatArray) -> FloatArray:
    """Where each row of ratios (D, L) over lengths (L,) falls below 0 for the last time.

    -inf if it is always below 0; inf if it is not below 0 at the longest length.
    """
    places, weights = between(logs)
    ratios = ratios @ weights
    above = ratios > 0
    last = len(places) - 1 - above[:, ::-1].argmax(axis=1)  # the longest place that costs more, (D,)
    after, rows = np.minimum(last + 1, len(places) - 1), np.arange(len(ratios))
    high, low = ratios[rows, last], ratios[rows, after]
    crossing = places[last] + (places[after] - places[last]) * high / np.where(high > low, high - low, 1.0)
    crossings: FloatArray = np.select([~above.any(axis=1), above[:, -1]], [-math.inf, math.inf], crossing)
    return crossings


def between(logs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Places (P,) from the first to the last of logs (L,), and the weight of each value at logs in each place, (L, P).

    Interpolates by a cubic through the two points on either side: with straight lines, crossings of bent curves would
    come out too low.
    """
    places, weights = [], []
    for i in range(len(logs) - 1):
        nodes = range(max(0, i - 1), min(len(logs), i + 3))
        for place in np.linspace(logs[i], logs[i + 1], STEPS_BETWEEN, endpoint=i == len(logs) - 2):
            weight = np.zeros(len(logs))
            for node in nodes:
                others = [logs[other] for other in nodes if other != node]
                weight[node] = math.prod((place - other) / (logs[node] - other) for other in others)
            places.append(place)
            weights.append(weight)
    return np.array(places), np.array(weights).T


def matrix_share(row: Row) -> float | None:
    """FLOPs per second of forward + backward, as a share of the rate of a large matrix product in the same process."""
    return share_of_rate(row, FLOPS, "matrix_rate_flops")


def copy_share(row: Row) -> float | None:
    """Bytes per second that forward + backward moves, as a share of the rate of a large copy in the same process."""
    return share_of_rate(row, MOVED, "copy_rate_bytes")


def share_of_rate(row: Row, work: Quantity, rate: str) -> float | None:
    shares = [
        done / time / best
        for record in row.finished
        if (done := as_number(record.get(work.field)))
        and (time := as_number(record.get(FORWARD_BACKWARD.field)))
        and (best := as_number(record.get(rate)))
    ]
    return float(np.mean(shares)) if shares else None


def longest_of(series: Sequence[Group], reference: Mapping[int, Row] | None) -> int:
    """The longest length at which the reference was measured or, without a reference, the longest of all."""
    measured = [n for n, row in (reference or {}).items() if row.finished]
    return max(measured or [group.seq_len for group in series])


def lengths_of(cells: RowsByLength) -> list[int]:
    return sorted({n for rows in cells.values() for n in rows})


def longest_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups with the longest length, one for each machine, task and set of cost conditions."""
    longest: dict[tuple[str, str, str], Group] = {}
    for group in groups:
        kind = group.machine, group.task, group.cost_conditions
        if kind not in longest or group.seq_len > longest[kind].seq_len:
            longest[kind] = group
    return list(longest.values())


def longest_decoded(groups: Sequence[Group]) -> list[Group]:
    """The decoding groups with the longest length, one for each machine, task and set of cost conditions."""
    return longest_groups([group for group in groups if group.decodes])
