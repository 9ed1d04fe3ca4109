"""Charts in words, with their main numbers, for those who cannot see them."""

from collections.abc import Callable, Sequence

from compare.quantities import SPEED, STATE, TOKEN, Quantity
from compare.units import sentence

from .accuracy import Against
from .aggregate import Group, Row, learning_curve
from .lengths import Cost
from .scaling import crossover_text, find_crossovers, rows_by_length

Means = list[tuple[Row, float]]


def describe_accuracy(group: Group, against: Against) -> str:
    """What stands on a chart of accuracy: how many, and the ends of both axes."""
    rows = [row for row in group.rows if row.scores and row.over_seeds(against.quantity)]
    if not rows:
        return ""
    quantity, unit = against.quantity, " tokens/s" if against.quantity is SPEED else ""
    return (
        f"{count(len(rows), 'variant')}. {sentence(group.basis.words(group.metric))}: "
        f"{span([(row, found.mean) for row in rows if (found := group.score(row))], group.scale.show)}. "
        f"{against.words.capitalize()}: {span(means(rows, quantity), lambda value: quantity.show(value) + unit)}."
    )


def describe_curves(group: Group, axis: str) -> str:
    """Where the learning curves end."""
    ends = []
    for row in group.rows:
        curves = [curve for record in row.finished if (curve := learning_curve(record, axis))]
        if curves:
            ends.append((row, sum(curve.score[-1] for curve in curves) / len(curves)))
    if not ends:
        return ""
    return f"{count(len(ends), 'variant')}. Last {group.metric}, mean over seeds: {span(ends, group.scale.show)}."


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


def describe_decoding(group: Group) -> str:
    """The ends of both axes of time per token against state."""
    parts = [(quantity, means(group.rows, quantity)) for quantity in (TOKEN, STATE)]
    return " ".join(f"{sentence(q.told)}: {span(found, q.show)}." for q, found in parts if found)


def means(rows: Sequence[Row], quantity: Quantity) -> Means:
    return [(row, found.mean) for row in rows if (found := row.over_seeds(quantity))]


def span(found: Means, show: Callable[[float], str]) -> str:
    """The ends and the reference: "from 1.6 % (none) to 99.9 % (full)"."""
    (low, least), (high, most) = min(found, key=lambda item: item[1]), max(found, key=lambda item: item[1])
    text = f"from {show(least)} ({low.name}) to {show(most)} ({high.name})" if low is not high else show(least)
    reference = [show(value) for row, value in found if row.is_reference and row not in (low, high)]
    return text + "".join(f", full {value}" for value in reference)


def count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
