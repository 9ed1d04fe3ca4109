"""Words that several sections share."""

from collections.abc import Callable, Mapping, Sequence

from compare.quantities import Quantity
from compare.report.facts.groups import Group, Row
from compare.report.facts.scale import Scale
from compare.report.facts.stats import ENOUGH_SEEDS, Estimate
from compare.report.facts.sweeps import options_in_words
from compare.units import MISSING, plural

NAMED = 6  # variants that a list names before it counts the rest


def no_ranking(n: int) -> str:
    return f"({n} {plural(n, 'seed')}: no ranking)"


def short(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    rest = len(names) - NAMED
    return ", ".join(names) if rest < 2 else f"{', '.join(names[:NAMED])} and {rest} more"


def listing(names: Sequence[str]) -> str:
    return ", ".join(names) or "none of the variants"


def seeds_note(estimates: Mapping[str, Estimate]) -> str:
    counts = {name: estimate.n for name, estimate in estimates.items()}
    few = [name for name, n in counts.items() if n < ENOUGH_SEEDS]
    usual = max(counts.values())
    text = f"Mean of {usual} seeds; bars: 95 % t interval." if usual > 1 else "One seed, so no intervals."
    if odd := [f"{name} {n}" for name, n in counts.items() if n != usual]:
        text += f" Other seed counts: {', '.join(odd)}."
    if few:
        text += f" Fewer than {ENOUGH_SEEDS} seeds ({', '.join(few) if len(few) < len(counts) else 'all'}): no ranking."
    return text


def shown_name(row: Row) -> str:
    return row.name + "*" * row.fell_back + "‖" * bool(row.disturbed)


def fallback_notes(rows: Sequence[Row]) -> list[str]:
    ran = {row.name: row.kernels or "another kernel" for row in rows if row.fell_back}
    notes = [f"* {name} ran {kernel}" for name, kernel in ran.items()]
    if busy := [row.name for row in rows if row.disturbed]:
        notes.append(f"‖ disturbed (e.g. by other processes): {', '.join(busy)}.")
    return notes


Means = list[tuple[Row, float]]


def means(rows: Sequence[Row], quantity: Quantity) -> Means:
    return [(row, estimate.mean) for row in rows if (estimate := row.over_seeds(quantity))]


def span(values: Means, show: Callable[[float], str]) -> str:
    """The lowest and the highest value, and that of full: "from 1.6 % (none) to 99.9 % (full)"."""
    (low, least), (high, most) = min(values, key=lambda item: item[1]), max(values, key=lambda item: item[1])
    text = f"from {show(least)} ({low.name}) to {show(most)} ({high.name})" if low is not high else show(least)
    reference = [show(value) for row, value in values if row.is_reference and row not in (low, high)]
    return text + "".join(f", full {value}" for value in reference)


def count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def score_text(score: Estimate | None, scale: Scale) -> str:
    if score is None:
        return MISSING
    if score.solved is not None:
        return f"{scale.number(score)} (mean {scale.factor * score.mean:.{scale.decimals}f})"
    return f"{scale.number(score)} (n={score.n})"


def options_set(group: Group) -> list[str]:
    """One sentence with the options that are set but not part of a row's name; empty without any."""
    rows = [f"{row.name} {options}" for row in group.rows if (options := options_in_words(row)) not in row.name]
    return [f"Options set: {'; '.join(rows)}."] if rows else []
