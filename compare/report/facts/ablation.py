"""What each tip changes: ratios of memory and speed to the baseline's, and differences of scores, on shared seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from compare.quantities import Quantity
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group, Row
from compare.report.facts.stats import Difference, Estimate, estimate
from compare.tips import BASELINE, TEACHER, TIPS, Tip

Tipped = Mapping[str, Sequence[Group]]
"""Tip -> the groups of the runs with it."""


@dataclass(frozen=True)
class Effect:
    """One tip on one variant.

    Attributes:
        tip: its name.
        row: the runs with it.
        memory, speed: logarithms of the ratio to the baseline; None where either side has no value.
        score: the difference to the baseline; None where either side has no score.
    """

    tip: str
    row: Row
    memory: Estimate | None
    speed: Estimate | None
    score: Difference | None


@dataclass(frozen=True)
class Ablation:
    """The tips on the variants of one group. effects: name of the variant -> one effect for each tip."""

    group: Group
    effects: Mapping[str, Sequence[Effect]]


def split_tips(source: Source) -> tuple[Source, dict[str, Source]]:
    """The runs without a tip, and tip -> the runs with it."""
    by_tip: dict[str, list[dict[str, object]]] = {}
    for record in source.records:
        by_tip.setdefault(str(record.get("tip") or BASELINE), []).append(dict(record))
    plain = replace(source, records=by_tip.pop(BASELINE, []))
    by_tip.pop(TEACHER, None)
    return plain, {tip: replace(source, records=records) for tip, records in by_tip.items()}


def group_tips(sources: Iterable[dict[str, Source]]) -> dict[str, list[Group]]:
    """Groups of the runs with each tip, named after it."""
    by_tip: dict[str, list[Source]] = {}
    for source in sources:
        for tip, own in source.items():
            by_tip.setdefault(tip, []).append(own)
    return {
        tip: [replace(group, conditions=join(group.conditions, tip)) for group in group_records(own)]
        for tip, own in by_tip.items()
    }


def join(conditions: str, tip: str) -> str:
    return f"{conditions}, {tip}" if conditions else tip


def ablations(groups: Sequence[Group], tipped: Tipped) -> list[Ablation]:
    """One for each group whose task, length and machine have runs with tips."""
    found = []
    for group in groups:
        rows = {tip: rows_like(group, others) for tip, others in tipped.items()}
        effects = {
            row.name: effects_on(group, row, {tip: own[row.name] for tip, own in rows.items() if row.name in own})
            for row in group.rows
        }
        if any(effects.values()):
            found.append(Ablation(group, {name: own for name, own in effects.items() if own}))
    return found


def rows_like(group: Group, others: Sequence[Group]) -> dict[str, Row]:
    """Name -> row, of the groups on the same task with the same options, length and machine."""
    return {
        row.name: row
        for other in others
        if (other.machine, other.task, other.seq_len) == (group.machine, group.task, group.seq_len)
        and (other.task_options, other.causal) == (group.task_options, group.causal)
        for row in other.rows
    }


def effects_on(group: Group, baseline: Row, tips: Mapping[str, Row]) -> list[Effect]:
    """The effects of all tips on one variant; their scores are tested together."""
    rows = {tip: replace(row, label=tip, suffix="") for tip, row in tips.items()}
    compared = replace(group, rows=(baseline, *rows.values()))
    scores = compared.score_differences(baseline)
    return [effect_of(tip, row, baseline, scores.get(tip)) for tip, row in rows.items()]


def effect_of(name: str, row: Row, baseline: Row, score: Difference | None) -> Effect:
    tip = tip_of(name)
    memory, speed = tip.before or (tip.memory, tip.speed)
    other = row if tip.before else baseline
    return Effect(
        name, row, ratio(row, tip.memory, other, memory), ratio(row, tip.speed, other, speed, faster=True), score
    )


def tip_of(name: str) -> Tip:
    """The tip that says which memory and which speed count: of several, the last. Records of a tip that this version
    lacks count as those of any tip."""
    known = [TIPS[part] for part in name.split("+") if part in TIPS]
    return known[-1] if known else Tip(summary="", changes={})


def ratio(row: Row, quantity: Quantity, other: Row, before: Quantity, *, faster: bool = False) -> Estimate | None:
    """The mean logarithm of a quantity over another one, over the seeds that have both.

    faster: of seconds, how many times as fast.
    """
    mine, theirs = row.fair(quantity).by_seed(quantity), other.fair(before).by_seed(before)
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    ratios = [math.log(own / its) for own, its in pairs if own > 0 and its > 0]
    return estimate([-ratio for ratio in ratios] if faster and quantity.better == "low" else ratios)
