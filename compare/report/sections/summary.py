"""The results of a group in plain words, no stronger than its seeds and its test size allow."""

from collections.abc import Callable
from functools import partial

from compare.quantities import SPEED, STATE, TOKEN
from compare.report.facts.groups import Differences, Group, Measured, Row, measured, scores_of
from compare.report.facts.memory import memory_of
from compare.report.facts.stats import ENOUGH_SEEDS, Estimate, judge, paired_noise
from compare.report.sections.flags import in_words
from compare.report.sections.wording import listing, no_ranking, short
from compare.units import plain, sentence


def summarise(group: Group) -> list[str]:
    """Sentences on accuracy, speed, memory, the trivial baselines and the control."""
    if not any(row.finished for row in group.rows):
        return [f"No run finished: {', '.join(f'{row.name} {row.status}' for row in group.rows)}."]
    scores, memory, scale = scores_of(group), memory_of(group.rows), group.scale
    best = f"Lowest {group.basis.words(group.metric)}" if scale.lower_is_better else None
    highest = best or f"Highest {group.basis.words('score')}"
    first = "Most accurate" if group.basis.split == "test" and not best else highest
    more = not scale.lower_is_better
    sentences = [
        leader(group, scores, (first, highest), scale.show, group.score_differences, more_is_better=more),
        *(
            leader(
                group,
                measured(group, quantity),
                words,
                speed if quantity is SPEED else quantity.show,
                partial(group.differences, quantity=quantity),
                more_is_better=quantity.better == "high",
            )
            for quantity, words in (
                (SPEED, ("Fastest", "Highest training speed")),
                (memory, ("Lightest", f"Lowest {memory.told}")),
                (TOKEN, ("Fastest", "Shortest time per token")),
                (STATE, ("Smallest state", "Smallest state")),
            )
        ),
        against_baseline(group, scores),
        against_control(group, scores),
    ]
    return [sentence for sentence in sentences if sentence]


def speed(value: float) -> str:
    return f"{plain(value)} tokens/s"


def leader(
    group: Group,
    values: Measured,
    words: tuple[str, str],
    show: Callable[[float], str],
    against: Callable[[Row], Differences],
    *,
    more_is_better: bool,
) -> str:
    """One sentence on the leading row: a claim where its lead is beyond noise, else its value and why it is no claim.

    Args:
        group: the group of the rows.
        values: the rows and their values.
        words: the beginning of the claim, and the beginning of the sentence without a claim.
        show: writes a value with its unit.
        against: takes a row and returns the differences of all others to it.
        more_is_better: whether the largest value leads.
    """
    if not values:
        return ""
    ranked = sorted(values, key=lambda item: item[1].mean, reverse=more_is_better)
    (best, top), rest = ranked[0], ranked[1:]
    claim, number = words

    def say(estimate: Estimate) -> str:
        return show(estimate.mean) if estimate.solved is None else group.scale.number(estimate)

    name = f"{in_words(best, group)}, {say(top)}"
    if not rest:
        return f"{number}: {name}, the only variant measured {no_ranking(top.n)}."
    differences = against(best)
    second, runner = rest[0]
    shared = differences[second.name].n if second.name in differences else 0
    if shared < ENOUGH_SEEDS:
        return f"{number}: {name}, next {second.name}, {say(runner)} {no_ranking(shared)}."
    tied = [row.name for row, _ in rest if not (row.name in differences and differences[row.name].beyond)]
    if tied:
        return f"{number}: {name}, but within noise of {short(tied)}: no ranking among these."
    return f"{claim}: {name}, ahead of {second.name}, {say(runner)}, beyond noise."


def baseline_differences(group: Group, scores: Measured) -> tuple[str, Differences]:
    """The best trivial predictor in words, and name -> the row's score minus that predictor's."""
    name, value = list(group.baselines.items())[-1]
    families = {
        row.name: (
            [score - value for score in group.fair_scores(row).values()],
            paired_noise((estimate.mean, value), group.test_size),
        )
        for row, estimate in scores
    }
    return f"{name}, {group.scale.show(value)}", judge(families)


def against_baseline(group: Group, scores: Measured) -> str:
    """The variants above, below and within noise of the best trivial predictor."""
    if not group.baselines or not scores:
        return ""
    words, differences = baseline_differences(group, scores)
    return f"Best trivial baseline: {words}. {standing(scores, differences, group)}"


def against_control(group: Group, scores: Measured) -> str:
    """The variants above, below and within noise of the control."""
    control = group.control
    if control is None or (alone := group.fair_score(control)) is None or not scores:
        return ""
    scale = group.scale
    words = f"Control without attention: {scale.show(alone.mean) if alone.solved is None else scale.number(alone)}. "
    return words + standing(scores, group.score_differences(control), group)


def standing(scores: Measured, differences: Differences, group: Group) -> str:
    """The variants above, below and within noise of a baseline; "better" and "worse" where lower scores are better."""
    ahead, behind, leading = "above", "below", "higher"
    if group.scale.lower_is_better:
        ahead, behind, leading = "better than", "worse than", "better"
    names = {row.name: row.name + ("" if of.solved is None else f" ({group.scale.number(of)})") for row, of in scores}
    known = {name: differences[own] for own, name in names.items() if own in differences}
    few = [name for name in names.values() if name not in known or known[name].n < ENOUGH_SEEDS]
    if len(few) == len(scores):
        higher = [name for name, difference in known.items() if group.scale.better(difference.mean) > 0]
        most = max((difference.n for difference in known.values()), default=0)
        return f"{sentence(leading)}: {listing(higher)} {no_ranking(most)}."
    apart = {name: group.scale.better(difference.mean) for name, difference in known.items() if difference.beyond}
    above = [name for name, gain in apart.items() if gain > 0]
    below = [name for name, gain in apart.items() if gain < 0]
    level = [name for name, difference in known.items() if not difference.beyond and name not in few]
    sides = ((sentence(ahead), above), (sentence(behind), below), ("Within noise of", level))
    text = " ".join(f"{words} it: {listing(names)}." for words, names in sides)
    return text + (f" Too few seeds for a ranking: {listing(few)}." if few else "")
