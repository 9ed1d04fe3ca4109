"""What a group of runs shows, in plain words, and no more than its seeds and its test size allow."""

from collections.abc import Callable, Sequence
from math import sqrt

from .aggregate import ENOUGH_SEEDS, Estimate, Group, Row, apart
from .units import percent, plain, size

Measured = list[tuple[Row, Estimate]]


def summarise(group: Group) -> list[str]:
    """Sentences on accuracy, speed, memory, the trivial baselines and the control."""
    rows = [row for row in group.rows if not row.is_control]
    finished = [row for row in group.rows if row.finished]
    if not finished:
        return [f"No run finished: {', '.join(f'{row.name} {row.status}' for row in group.rows)}."]

    scores = measured(rows, "test_score")
    floor = sqrt(2) * max((group.test_noise(found.mean) for _, found in scores), default=0.0)
    sentences = [
        leader(scores, ("Most accurate", "Highest test score"), percent, floor, highest=True),
        leader(measured(rows, "tokens_per_second"), ("Fastest", "Highest training speed"), speed, 0.0, highest=True),
        leader(measured(rows, "peak_memory_bytes"), ("Lightest", "Lowest peak memory"), size, 0.0, highest=False),
        against_baseline(group, scores),
        against_control(group, scores, floor),
    ]
    if failed := [f"{row.name} ({row.status})" for row in group.rows if len(row.finished) < len(row.records)]:
        sentences.append(f"Runs that did not finish: {', '.join(failed)}.")
    return [sentence for sentence in sentences if sentence]


def measured(rows: Sequence[Row], field: str) -> Measured:
    return [(row, found) for row in rows if (found := row.over_seeds(field)) is not None]


def speed(value: float) -> str:
    return f"{plain(value)} tokens/s"


def seeds(*estimates: Estimate) -> str:
    fewest = min(found.n for found in estimates)
    return "1 seed" if fewest == 1 else f"{fewest} seeds"


def leader(
    found: Measured, words: tuple[str, str], show: Callable[[float], str], floor: float, *, highest: bool
) -> str:
    """One sentence on who leads: a claim where it stands, else the number and why it is no claim.

    Args:
        found: the rows and what was measured of them.
        words: how to begin the claim, and how to begin the bare number.
        show: writes a value with its unit.
        floor: differences up to this are noise whatever the seeds say.
        highest: whether more is better.
    """
    if not found:
        return ""
    ranked = sorted(found, key=lambda item: item[1].mean, reverse=highest)
    (best, top), rest = ranked[0], ranked[1:]
    claim, number = words
    if not rest:
        return f"{number}: {best.name}, {show(top.mean)}, the only variant measured ({seeds(top)}: no ranking)."
    second, runner = rest[0]
    if min(top.n, runner.n) < ENOUGH_SEEDS:
        return (
            f"{number}: {best.name}, {show(top.mean)}, next {second.name}, {show(runner.mean)} "
            f"({seeds(top, runner)}: no ranking)."
        )
    tied = [row.name for row, other in rest if not apart(top, other, floor)]
    if tied:
        return (
            f"{number}: {best.name}, {show(top.mean)}, but within noise of {', '.join(tied)}: no ranking among these."
        )
    return f"{claim}: {best.name}, {show(top.mean)}, beyond noise ahead of {second.name}, {show(runner.mean)}."


def against_baseline(group: Group, scores: Measured) -> str:
    """Which variants learned more than the best trivial predictor knows."""
    if not group.baselines or not scores:
        return ""
    name, score = max(group.baselines.items(), key=lambda item: item[1])
    above: list[str] = []
    not_above: list[str] = []
    for row, found in scores:
        noise = max(found.half or 0.0, group.test_noise(found.mean))
        (above if found.mean - noise > score else not_above).append(row.name)
    caution = few_seeds([found for _, found in scores])
    return (
        f"Best trivial baseline: {name}, {percent(score)}. "
        f"Above it: {listing(above)}. Not clearly above it: {listing(not_above)}.{caution}"
    )


def against_control(group: Group, scores: Measured, floor: float) -> str:
    """Which variants gain from attending at all."""
    control = group.control
    found = control.over_seeds("test_score") if control else None
    if found is None or not scores:
        return ""
    text = f"Control without attention: {percent(found.mean)}. "
    if caution := few_seeds([found, *(other for _, other in scores)]):
        higher = [row.name for row, other in scores if other.mean > found.mean]
        return f"{text}Higher: {listing(higher)}.{caution}"
    above = [row.name for row, other in scores if apart(other, found, floor) and other.mean > found.mean]
    below = [row.name for row, other in scores if apart(other, found, floor) and other.mean < found.mean]
    level = [row.name for row, _ in scores if row.name not in above + below]
    return f"{text}Above it: {listing(above)}. Below it: {listing(below)}. Within noise of it: {listing(level)}."


def listing(names: Sequence[str]) -> str:
    return ", ".join(names) or "none of the variants"


def few_seeds(estimates: Sequence[Estimate]) -> str:
    if min(found.n for found in estimates) >= ENOUGH_SEEDS:
        return ""
    return f" ({seeds(*estimates)}: no ranking.)"
