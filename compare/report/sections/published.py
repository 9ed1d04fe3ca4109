"""The scores of a plan's variants beside published figures."""

import itertools
from collections.abc import Sequence

import numpy as np

from compare.plans import PLANS, Plan
from compare.quantities import TEST_SCORE
from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.facts.scale import in_numbers
from compare.report.facts.stats import ENOUGH_SEEDS, Estimate, estimate, judge
from compare.report.sections.section import Section, Table
from compare.report.sections.wording import short
from compare.units import MISSING, plural, sentence

Scores = dict[str, dict[str, float]]
"""Variant -> seed -> its score."""


def sections(overview: Overview) -> list[Section]:
    tables = published_tables(overview.groups)
    parts = [Section(table.caption, tables=[table]) for table in tables]
    return [Section("Beside published figures", "published", parts=parts)] if parts else []


def published_tables(groups: Sequence[Group]) -> list[Table]:
    """A table for each plan that the records name."""
    tables = []
    for name, plan in PLANS.items():
        settings = settings_of(groups, name)
        if scores := over_settings(list(settings.values())):
            tables.append(table_of(name, plan, scores, list(settings)))
    return tables


def settings_of(groups: Sequence[Group], name: str) -> dict[str, Scores]:
    """The scores of each setting of the plan that was run, under the title of its group."""
    settings = {}
    for group in groups:
        rows = [row for row in group.rows if any(record.get("plan") == name for record in row.records)]
        if rows:
            settings[group.title] = {row.variant: row.by_seed(TEST_SCORE) for row in rows}
    return settings


def over_settings(settings: Sequence[Scores]) -> Scores:
    """For each variant and seed, the mean score over all settings, where each setting has one."""
    scores: Scores = {}
    for variant in dict.fromkeys(variant for setting in settings for variant in setting):
        seeds = [setting.get(variant, {}) for setting in settings]
        whole = [seed for seed in seeds[0] if all(seed in scored for scored in seeds)]
        if whole:
            scores[variant] = {seed: float(np.mean([scored[seed] for scored in seeds])) for seed in whole}
    return scores


def table_of(name: str, plan: Plan, scores: Scores, settings: Sequence[str]) -> Table:
    ours = {variant: mean for variant, by_seed in scores.items() if (mean := estimate(list(by_seed.values())))}
    body = []
    for variant, mean in ours.items():
        figures = [source.get(variant) for source in plan.published.values()]
        cells = [MISSING if figure is None else f"{100 * figure:.1f}" for figure in figures]
        body.append([variant, in_numbers(mean), str(mean.n), *cells])
    header = ["variant", "ours, %", "seeds", *(f"{source}, %" for source in plan.published)]
    own = ", ".join(settings) if len(settings) < 3 else f"{len(settings)} settings, {settings[0]} to {settings[-1]}"
    notes = [
        f"{sentence(plan.summary)}. Ours: {own}.",
        *orderings(plan, scores),
        *apart(plan, ours),
        *plan.departures,
    ]
    return Table(f"{name}, beside published figures", header, body, findings=notes)


def orderings(plan: Plan, scores: Scores) -> list[str]:
    """For each source, which pairs of variants our scores order in the same way."""
    said = []
    for source, figures in plan.published.items():
        pairs = [
            (better, worse)
            for better, worse in itertools.permutations([name for name in figures if name in scores], 2)
            if figures[better] > figures[worse]
        ]
        if not pairs:
            continue
        families = {
            f"{better} above {worse}": (
                [scores[better][s] - scores[worse][s] for s in shared(scores, better, worse)],
                0.0,
            )
            for better, worse in pairs
        }
        differences = judge(families)
        same = [words for words, d in differences.items() if d.beyond and d.mean > 0]
        other = [words for words, d in differences.items() if d.beyond and d.mean < 0]
        open_ = [words for words in families if words not in same + other]
        parts = [f"the same here: {', '.join(same)}"] if same else []
        parts += [f"reversed here: {', '.join(other)}"] if other else []
        parts += [f"inconclusive here (noise, or fewer than {ENOUGH_SEEDS} seeds): {', '.join(open_)}"] if open_ else []
        said.append(f"{source} orders {len(pairs)} {plural(len(pairs), 'pair')}; {'; '.join(parts)}.")
    return said


def shared(scores: Scores, one: str, other: str) -> list[str]:
    return [seed for seed in scores[one] if seed in scores[other]]


def apart(plan: Plan, ours: dict[str, Estimate]) -> list[str]:
    """The variants that differ from every published figure by more than our interval, with known reasons."""
    said, unexplained = [], []
    for variant, mean in ours.items():
        figures = [source[variant] for source in plan.published.values() if variant in source]
        if not figures or mean.half is None or any(abs(figure - mean.mean) <= mean.half for figure in figures):
            continue
        if variant in plan.reasons:
            said.append(
                f"{variant} differs from every published figure by more than our interval: {plan.reasons[variant]}"
            )
        else:
            unexplained.append(variant)
    if unexplained:
        said.append(
            "Different from every published figure by more than our interval, for unknown reasons: "
            f"{short(unexplained)}."
        )
    return said


def in_lines(groups: Sequence[Group]) -> list[str]:
    """The tables as lines for a terminal."""
    return [
        line
        for table in published_tables(groups)
        for line in (
            f"{table.caption}:",
            *(
                "  "
                + " · ".join([first, *(f"{head} {cell}" for head, cell in zip(table.header[1:], rest, strict=True))])
                for first, *rest in table.rows
            ),
            *table.findings,
        )
    ]
