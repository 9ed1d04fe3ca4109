"""The whole report in a few sentences: which attention to choose, and how certain that is."""

import math
from collections.abc import Sequence

from compare.quantities import FORWARD_BACKWARD, SPEED, STATE, TOKEN, Quantity
from compare.report.facts.equal_terms import scored
from compare.report.facts.groups import Group, Row, ScoreBasis, measured, scores_of
from compare.report.facts.memory import memory_of
from compare.report.facts.overview import Overview
from compare.report.facts.scale import FRACTION, WITHIN, Scale
from compare.report.facts.scaling import find_crossovers, longest_decoded, rows_by_length
from compare.report.facts.stats import ENOUGH_SEEDS, Difference, Estimate
from compare.report.sections.busy import REPEAT
from compare.report.sections.decoding import kept
from compare.report.sections.flags import in_words
from compare.report.sections.growth import disturbed_note, length_text
from compare.report.sections.section import Section
from compare.report.sections.summary import baseline_differences
from compare.report.sections.task_sweeps import held, kept_state
from compare.report.sections.wording import short
from compare.units import plain, plural, sentence, significant

GOOD = f"within {100 * WITHIN:g} {plural(round(100 * WITHIN), 'point')} of full"
DECODED = (("Fastest", TOKEN), ("smallest state", STATE))
EXPLAINED = (
    "full is ordinary softmax attention; every variant is compared with it on the same seeds. "
    f'"{sentence(GOOD)}" means: at 95 % confidence, the score is at most {100 * WITHIN:g} percentage '
    f"{plural(round(100 * WITHIN), 'point')} worse ({100 * WITHIN:g} % worse where scores are not percentages); each "
    'variant is tested alone. "Clearly better" and "clearly worse" mean: the difference is beyond noise; all variants '
    "of a table are tested together."
)


def sections(overview: Overview) -> list[Section]:
    return [Section("In short", "summary", sentences=answer(overview))] if overview.groups else []


def answer(overview: Overview) -> list[str]:
    """Sentences for the top of a report: a line for each task and length, one over all of them, one for each series."""
    lines = [f"{sweep.title}: {held(sweep)} {kept_state(sweep)}".strip() for sweep in overview.sweeps]
    groups = overview.unswept
    judged = [group for group in groups if can_be_judged(group)]
    for group in [*(group for group in groups if not group.decodes), *longest_decoded(groups)]:
        by = f", by {group.basis.words('score')}" if group.basis != ScoreBasis() else ""
        lines.append(f"{group.title}{by}: {' '.join([*sentences(group), *disturbed(group)])}")
    lines += over_tasks(judged)
    lines += [crossovers(series.groups) for series in overview.series]
    return lines + ([EXPLAINED] if judged else [])


def can_be_judged(group: Group) -> bool:
    return any(
        difference.n >= ENOUGH_SEEDS for row in rivals(group) if (difference := group.against_full.get(row.name))
    )


def rivals(group: Group) -> list[Row]:
    """The rows that attend, without the reference."""
    return [row for row in group.rows if row.attends and row is not group.reference]


def sound(group: Group) -> list[Row]:
    """The rivals none of whose scores was disturbed."""
    return [row for row in rivals(group) if len(group.fair_scores(row)) == len(row.scores)]


def good(scale: Scale) -> str:
    """How a sentence calls variants that are as good as full."""
    return GOOD if scale.is_fraction else f"within {100 * WITHIN:g} % of full's {scale.unit}"


def is_within(difference: Difference | None, scale: Scale = FRACTION, full: float = 1.0) -> bool:
    """Whether a variant is, at 95 % confidence, no more than the margin worse than full. full: the score of full."""
    if difference is None or difference.solved is not None or difference.n < ENOUGH_SEEDS or difference.half is None:
        return False
    return scale.better(difference.mean) - difference.half > -scale.margin(full)


def is_as_good(group: Group, name: str) -> bool:
    full = group.fair_score(group.reference) if group.reference else None
    return full is not None and is_within(group.against_full.get(name), group.scale, full.mean)


def sentences(group: Group) -> list[str]:
    if not any(row.finished for row in group.rows):
        return ["No run finished."]
    if not scores_of(group) and any(row.scores and row.attends for row in group.rows):
        return ["Every run was disturbed: no score can be compared."]
    if not scores_of(group) and scored(group):
        return ["Only the control has a score: there is nothing to compare."]
    if not scores_of(group):
        if group.decodes:
            return ["Decoding costs only, no scores.", *cheapest(group, rivals(group), ""), kept(group)]
        return ["Costs only, no scores.", *cheapest(group, rivals(group), "")]
    full = group.fair_score(group.reference) if group.reference else None
    if full is None:
        why = "was not run"
        if group.reference:
            why = "was disturbed" if group.reference.scores else f"has no score ({group.reference.status})"
        return [f"Full {why}, so nothing can be compared with it.", *sobering(group)]
    if not any(group.fair_score(row) for row in rivals(group)):
        alone = "No variant but full has a score" if rivals(group) else "Full is the only variant here that attends"
        return [f"{alone}, so nothing can be compared with it.", *sobering(group)]
    if not any(row.name in group.against_full for row in rivals(group)):
        return ["No variant shares a seed with full, so nothing can be compared with it.", *sobering(group)]
    if not can_be_judged(group):
        n = max(difference.n for difference in group.against_full.values())
        word = "good" if group.scale.lower_is_better else "accurate"
        return [
            f"{n} {plural(n, 'seed')} cannot show which variants are as {word} as full ({score_words(group, full)}): "
            f"at least {ENOUGH_SEEDS} are needed.",
            *sobering(group),
        ]
    return [*as_good(group, full), *clearly(group), *sobering(group)]


def disturbed(group: Group) -> list[str]:
    """The rows with disturbed runs, and how to repeat these runs."""
    rows = [row for row in group.rows if row.disturbed]
    if not rows:
        return []
    names = []
    for row in rows:
        some, n, score = len(row.disturbed), len(row.finished), group.score(row)
        whole = f"; score with them {score_words(group, score)}" if score and row.by_budget and row.slowed else ""
        names.append(f"{row.name} ({some} of {n} {plural(n, 'run')}{whole})")
    scores = rows[0].by_budget and any(row.slowed for row in rows)
    what = "verdicts on time, and on scores under a time budget" if scores else "verdicts on time"
    return [f"Disturbed (e.g. by other processes) and left out of {what}: {', '.join(names)}. {REPEAT}"]


def as_good(group: Group, full: Estimate) -> list[str]:
    """The variants that are as good as full, with the fastest and the lightest of them; else the nearest variant."""
    differences = {name: d for name, d in group.against_full.items() if d.half is not None and d.n >= ENOUGH_SEEDS}
    reached = [row for row in rivals(group) if is_as_good(group, row.name)]
    scale = group.scale
    words, level = good(scale), score_words(group, full)
    if reached:
        names = short([row.name for row in reached])
        return [f"{sentence(words)} ({level}): {names}.", *cheapest(group, reached, " of these")]
    near = {row.name: differences[row.name] for row in rivals(group) if row.name in differences}
    nearest = max(near, key=lambda name: scale.better(near[name].mean) - (near[name].half or 0.0))
    told = scale.change_in_words(near[nearest])
    return [f"No variant is shown to be {words} ({level}); nearest: {nearest} ({told})."]


def cheapest(group: Group, rows: Sequence[Row], among: str) -> list[str]:
    """The fastest row and the row with the least memory or state, each with its ratio to full."""
    said = []
    trained = (("Fastest", SPEED), ("lightest", memory_of(group.rows)))
    for most, quantity in DECODED if group.decodes else trained:
        values = {row.name: (row, value.mean) for row, value in measured(group, quantity) if row in rows}
        if values:
            row, value = (max if quantity.better == "high" else min)(values.values(), key=lambda item: item[1])
            said.append(f"{most}{among}: {in_words(row, group)}{beside_full(group, row, value, quantity)}")
    return [f"{'; '.join(said)}."] if said else []


def beside_full(group: Group, row: Row, value: float, quantity: Quantity) -> str:
    full = group.reference.fair(quantity).over_seeds(quantity) if group.reference else None
    if full is None or group.reference is None or full.mean <= 0:
        return ""
    difference = group.differences(group.reference, quantity).get(row.name)
    unsure = difference is not None and difference.n >= ENOUGH_SEEDS and not difference.beyond
    return f", {significant(value / full.mean)} times full's {quantity.told}" + (
        " (within noise of full)" if unsure else ""
    )


def clearly(group: Group) -> list[str]:
    """The variants that differ from full beyond noise, and those without a verdict, by reason."""
    names = [row.name for row in rivals(group)]
    differences = {name: group.against_full[name] for name in names if name in group.against_full}
    gains = {name: group.scale.better(d.mean) for name, d in differences.items()}
    better = [name for name, d in differences.items() if d.beyond and gains[name] > 0]
    behind = [name for name, d in differences.items() if d.beyond and gains[name] < 0 and not is_as_good(group, name)]
    worse = sorted(behind, key=lambda name: -gains[name])
    unclear = {
        name: d
        for name, d in differences.items()
        if d.n >= ENOUGH_SEEDS and not d.beyond and not is_as_good(group, name)
    }
    partly = {row.name: score for row in rivals(group) if (score := group.fair_score(row)) and score.solved is not None}
    few = [row.name for row in sound(group) if row.name not in differences or differences[row.name].n < ENOUGH_SEEDS]
    said = (
        ("Clearly better than full", better),
        ("Clearly worse", worse),
        ("Solved by some seeds only", [f"{name} ({score.solved} of {score.n})" for name, score in partly.items()]),
        ("Inconclusive (the interval is too wide)", [name for name, d in unclear.items() if not d.solved]),
        (
            "Inconclusive (only some of full's seeds solve the task)",
            [name for name, d in unclear.items() if d.solved and name not in partly],
        ),
        ("No verdict (too few seeds)", few),
    )
    return [f"{words}: {short(names)}." for words, names in said if names]


def score_words(group: Group, score: Estimate) -> str:
    return group.scale.show(score.mean) if score.solved is None else group.scale.number(score)


def sobering(group: Group) -> list[str]:
    """Sentences for a group in which no variant is shown to beat the best trivial predictor, or the control."""
    scores = scores_of(group)
    said = []
    ahead = "better than" if group.scale.lower_is_better else "above"
    if group.baselines:
        words, above = baseline_differences(group, scores)
        if not any(may_be_ahead(group, difference) for difference in above.values()):
            said.append(f"No variant is shown to be {ahead} the best trivial baseline ({words}).")
    if group.control and (alone := group.fair_score(group.control)):
        above = group.score_differences(group.control)
        if not any(may_be_ahead(group, above[row.name]) for row, _ in scores if row.name in above):
            control = f"the control without attention ({group.scale.show(alone.mean)})"
            said.append(f"No variant is shown to be {ahead} {control}: no evidence that attention helps here.")
    return said


def crossovers(series: Sequence[Group]) -> str:
    """From which length each variant is faster than full, the earliest first."""
    cells = rows_by_length(series)
    quantity = TOKEN if series[0].decodes else FORWARD_BACKWARD
    by_label = find_crossovers(cells, quantity)
    shortest, longest = series[0].seq_len, series[-1].seq_len
    always, sometime, never, unclear = [], [], [], []
    for label in sorted(by_label, key=lambda label: (by_label[label].length, label)):
        crossover, row = by_label[label], next(iter(cells[label].values()))
        if not row.attends:
            continue
        last = crossover.measured[1]
        if crossover.within_noise:
            unclear.append(row.name)
        elif crossover.length == 0:
            always.append(row.name if last == longest else f"{row.name} (measured up to {plain(last)})")
        elif crossover.length == math.inf:
            never.append(row.name)
        else:
            sometime.append(f"{row.name} from {length_text(crossover.length, crossover)}")
    said = (
        (f"at every length from {plain(shortest)} on", always),
        ("from some length on", sometime),
        (f"not at the longest length measured (up to {plain(longest)})", never),
        ("inconclusive (within noise)", unclear),
    )
    words = "; ".join(f"{what}: {', '.join(names)}" for what, names in said if names)
    where = f"{series[0].task} (causal)" if series[0].causal else series[0].task
    text = f"{where} against length: "
    text += f"faster than full ({quantity.told}) {words}." if words else "no variant can be compared with full."
    return " ".join([text, *disturbed_note(cells)])


def may_be_ahead(group: Group, difference: Difference) -> bool:
    """Whether the variant is better, either beyond noise or on too few seeds for a verdict."""
    return group.scale.better(difference.mean) > 0 and (difference.beyond or difference.n < ENOUGH_SEEDS)


def over_tasks(groups: Sequence[Group]) -> list[str]:
    """In how many of the comparisons each variant is as good as full."""
    if len(groups) < 2:
        return []
    counts: dict[str, list[bool]] = {}
    for group in groups:
        for row in rivals(group):
            if row.name in group.against_full or row in sound(group):
                counts.setdefault(row.name, []).append(is_as_good(group, row.name))
    ranked = sorted(counts, key=lambda name: -sum(counts[name]))
    some = [f"{name} on {sum(counts[name])} of {len(counts[name])}" for name in ranked if any(counts[name])]
    none = [name for name in ranked if not any(counts[name])]
    of_all = f"{len(groups)} comparisons with enough seeds"
    if any(readings := [group.causal for group in groups]) and not all(readings):
        of_all += f" ({sum(readings)} of them causal)"
    words = " or ".join(dict.fromkeys(good(group.scale) for group in groups))
    return [
        f"Over the {of_all}, {words}: {', '.join(some) or 'no variant on any'}."
        + (f" On none: {short(none)}." if none and some else "")
    ]
