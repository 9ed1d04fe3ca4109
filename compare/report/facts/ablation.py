"""What each tip changes: ratios of memory and speed to the baseline's, and differences of scores, on shared seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from compare.quantities import TEST_SCORE, Quantity
from compare.record import Identity, identity
from compare.report.facts.grouping import Source, group_records, label_of
from compare.report.facts.groups import UNKNOWN_FAMILY, Group, Row
from compare.report.facts.stats import Difference, Estimate, estimate
from compare.report.facts.values import Record, as_mapping
from compare.tips import BASELINE, TEACHER, TIPS, Tip
from compare.units import slug

ByTip = Mapping[str, Sequence[Source]]
"""Tip -> its runs, of each folder."""


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


def split_tips(sources: Iterable[Source]) -> tuple[list[Source], ByTip]:
    """The runs without a tip, and those with each; teachers, which are no variants, are left out."""
    plain: list[Source] = []
    tipped: dict[str, list[Source]] = {}
    for source in sources:
        own: dict[str, list[Record]] = {BASELINE: []}
        for record in source.records:
            own.setdefault(str(record.get("tip") or BASELINE), []).append(record)
        own.pop(TEACHER, None)
        plain.append(replace(source, records=own.pop(BASELINE)))
        for tip, records in own.items():
            tipped.setdefault(tip, []).append(replace(source, records=records))
    return plain, tipped


def tables_of_tips(tipped: ByTip) -> list[Group]:
    """The groups of the runs with each tip, named after it, for tables of all runs.

    Runs that name another run of the comparison are grouped as if they did not: each seed names another.
    """
    return [
        replace(group, conditions=", ".join(filter(None, (group.conditions, tip))), slug=f"{group.slug}_{slug(tip)}")
        for tip, sources in tipped.items()
        for group in group_records([replace(own, records=[unnamed(r) for r in own.records]) for own in sources])
    ]


def unnamed(record: Record) -> Record:
    return record | {"spec": as_mapping(record.get("spec")) | {"start": None, "teacher": None}}


def ablations(groups: Sequence[Group], tipped: ByTip) -> list[Ablation]:
    """One for each group with runs that tips were measured against."""
    by_baseline: dict[Identity, list[tuple[str, Record]]] = {}
    for tip, sources in tipped.items():
        for record in (record for source in sources for record in source.records):
            before = str(record.get("baseline_id")), *identity(record)[1:]  # on the same machine
            by_baseline.setdefault(before, []).append((tip, record))
    found = []
    for group in groups:
        effects = {row.name: effects_on(group, row, by_baseline) for row in group.rows}
        if any(effects.values()):
            found.append(Ablation(group, {name: own for name, own in effects.items() if own}))
    return found


def effects_on(
    group: Group, baseline: Row, by_baseline: Mapping[Identity, Sequence[tuple[str, Record]]]
) -> list[Effect]:
    """The effects of all tips on one variant; their scores are tested together.

    by_baseline: a run without a tip -> the tips that it was repeated with, and their records.
    """
    runs: dict[str, dict[str, Record]] = {}  # tip -> seed -> its run, once where folders overlap
    for own in baseline.records:
        for tip, record in by_baseline.get(identity(own), ()):
            runs.setdefault(tip, {})[str(record.get("seed"))] = record
    # Without the family of a control, which would set each of its rows apart from the family of tests.
    seeds = {tip: tuple(own.values()) for tip, own in runs.items()}
    rows = {tip: Row(tip, "", label_of(own[0]), UNKNOWN_FAMILY, own, {}) for tip, own in seeds.items()}
    rows = {tip: replace(row, scores=row.by_seed(TEST_SCORE)) for tip, row in rows.items()}
    compared = replace(group, rows=(baseline, *rows.values()))
    scores = compared.score_differences(baseline)
    return [effect_of(tip, row, baseline, scores.get(tip)) for tip, row in rows.items()]


def effect_of(name: str, row: Row, baseline: Row, score: Difference | None) -> Effect:
    tip = tip_of(name)
    memory, speed = tip.before or (tip.memory, tip.speed)
    other = row if tip.before else baseline
    lighter = ratio(row, tip.memory, other, memory)
    faster = ratio(row, tip.speed, other, speed, faster=True)
    return Effect(name, row, lighter, faster, score)


def tip_of(name: str) -> Tip:
    """The tip that says which memory and which speed count: of several, the last that names others than those of a
    training. Records of a tip that this version lacks count as those of a training."""
    known = [TIPS[part] for part in name.split("+") if part in TIPS]
    own = [tip for tip in known if not tip.by_training]
    return (own or known or [Tip(summary="", changes={})])[-1]


def ratio(row: Row, quantity: Quantity, other: Row, before: Quantity, *, faster: bool = False) -> Estimate | None:
    """The mean logarithm of a quantity over another one, over the seeds that have both.

    faster: of seconds, how many times as fast.
    """
    mine, theirs = row.fair(quantity).by_seed(quantity), other.fair(before).by_seed(before)
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    ratios = [math.log(own / its) for own, its in pairs if own > 0 and its > 0]
    return estimate([-ratio for ratio in ratios] if faster and quantity.better == "low" else ratios)
