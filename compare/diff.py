"""What changed between two folders of results, beyond noise.

Where the sides share two seeds or more, scores, times and memory are paired by seed; else Welch's method compares them.
Few seeds estimate their own noise poorly: each variance is moderated by those of all other variants (Smyth 2004,
doi:10.2202/1544-6115.1027), as far as these agree. Holm's method holds all of these tests together to 5 %: two folders
of equal truth show a change at most one time in twenty. A side with one run allows no test: the quartiles of its times
must not overlap those of the other side, and a change counts from twice the floor. Counts are compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compare.errors import UsageError
from compare.folder import check_records
from compare.moderation import Evidence, Tested, holm, moderate
from compare.quantities import QUANTITIES, TEST_SCORE, Quantity
from compare.record import is_result, read_records
from compare.report import read_environment
from compare.report.facts.grouping import PER_ROW, Source, data_hashes, group_records, machine_line, machine_name
from compare.report.facts.groups import Group, Row
from compare.report.facts.values import Record, as_key, as_mapping, as_number, tell_apart
from compare.report.render.markdown import markdown, markdown_table
from compare.spec import read_spec
from compare.units import percent

COLOURS = {"worse": "red", "better": "green"}
WIDE = 160  # columns, where no terminal sets a width
HEADER = ("task", "variant", "what", "before", "after", "change", "verdict")


@dataclass(frozen=True)
class Measure:
    """A quantity with noise, as `diff` shows it.

    worse: 1 where a higher value is worse, -1 where a lower one is.
    """

    quantity: Quantity
    title: str
    show: Callable[[float], str]
    worse: int

    @property
    def is_score(self) -> bool:
        return self.quantity is TEST_SCORE

    @property
    def in_points(self) -> bool:
        """Whether the values are fractions, which are compared as they are; all else is compared as logarithms."""
        return self.show is percent

    def limit(self, times: int) -> float:
        """``times`` the floor, on the scale of the comparison: fractions as they are, logarithms of all else."""
        floor = times * (self.quantity.floor or 0.0)
        return floor if self.in_points else math.log1p(floor)

    def by_seed(self, row: Row) -> dict[str, float]:
        """Seed -> value on that scale, of finished runs; of timed quantities, only of runs that nothing disturbed."""
        values = row.fair(self.quantity).by_seed(self.quantity)
        return values if self.in_points else {seed: math.log(value) for seed, value in values.items() if value > 0}

    def words(self, change: float, half: float | None) -> str:
        """A change and its interval: "−5.1 ± 1.2 points", "+20 % (+17 to +23)"."""
        if self.in_points:
            text = f"{100 * change:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}") + " points"
        else:
            ends = [] if half is None else [change - half, change + half]
            mean, *interval = (f"{100 * math.expm1(value):+.3g}" for value in [change, *ends])
            text = f"{mean} %" + (f" ({' to '.join(interval)})" if interval else "")
        return text.replace("-", "−")


LOWER = Measure(TEST_SCORE, f"{TEST_SCORE.title} (lower is better)", lambda score: f"{score:.3f}", 1)
MEASURES = tuple(
    Measure(quantity, quantity.title, quantity.show, -1 if quantity.better == "high" else 1)
    for quantity in QUANTITIES
    if quantity.floor
)
COUNTS = tuple(quantity for quantity in QUANTITIES if quantity.floor == 0)


def title_of(count: Quantity) -> str:
    """The title of a count. Counts are shown as bare numbers, so the title says which are bytes."""
    return f"{count.title}, bytes" if count.unit == "B" else count.column or count.title


class Pair(NamedTuple):
    """One variant on one task, before and after."""

    where: str
    before: Row
    after: Row
    lower_is_better: bool


class Change(NamedTuple):
    """One line of the table, with the columns of `HEADER`."""

    where: str
    variant: str
    what: str
    before: str
    after: str
    change: str
    verdict: str


@dataclass(frozen=True)
class MeasuredPair:
    """One measure of one pair: its values by seed."""

    pair: Pair
    measure: Measure
    before: Mapping[str, float]
    after: Mapping[str, float]

    def evidence(self) -> Evidence | None:
        """The mean change and its variance; None where a side has fewer than two seeds."""
        before, after = self.before, self.after
        shared = [after[seed] - before[seed] for seed in before if seed in after]
        if len(shared) > 1:
            variance = float(np.var(shared, ddof=1))
            return Evidence(float(np.mean(shared)), variance, len(shared) - 1, 1 / len(shared))
        if min(len(before), len(after)) < 2:
            return None
        sides = [np.array(list(side.values())) for side in (before, after)]
        errors = [float(np.var(side, ddof=1)) / len(side) for side in sides]
        share = sum(1 / len(side) for side in sides) / 2  # scales variances to those of differences, as for pairs
        parts = sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
        degrees = sum(errors) ** 2 / parts if parts else sum(map(len, sides)) - 2
        return Evidence(float(np.mean(sides[1]) - np.mean(sides[0])), sum(errors) / share, degrees, share)

    def single(self) -> float | None:
        """The change where a side has one run, if it is large and no quartiles overlap; None for scores."""
        before, after = mean_of(self.before), mean_of(self.after)
        if self.measure.is_score or abs(after - before) <= self.measure.limit(2):
            return None
        quartiles = [
            row.fair(self.measure.quantity).spread(self.measure.quantity) for row in (self.pair.before, self.pair.after)
        ]
        if quartiles[0] and quartiles[1] and max(q[0] for q in quartiles if q) <= min(q[1] for q in quartiles if q):
            return None
        return after - before

    def line(self, change: float, half: float | None, *, elsewhere: bool) -> Change:
        """The line of the table. elsewhere: the machines differ, so a time is neither better nor worse."""
        pair, measure = self.pair, self.measure
        verdict = "worse" if change * measure.worse > 0 else "better"
        if measure.quantity.timed and elsewhere:
            verdict = "other machine"
        rows = (row.fair(measure.quantity) for row in (pair.before, pair.after))
        was, now = (mean_of(row.by_seed(measure.quantity)) for row in rows)
        words = measure.words(change, half)
        return Change(pair.where, pair.before.name, measure.title, measure.show(was), measure.show(now), words, verdict)


@dataclass(frozen=True)
class Diff:
    """The result. remarks: differences of machine, conditions and data, which are shown first."""

    remarks: Sequence[str]
    changes: Sequence[Change]
    compared: int
    unjudged: int
    new: Sequence[str]
    vanished: Sequence[str]

    @property
    def regressed(self) -> bool:
        return any(change.verdict == "worse" for change in self.changes)

    @property
    def summary(self) -> list[str]:
        count = f"Changed beyond noise: {len(self.changes)} of" if self.changes else "Nothing changed beyond noise in"
        lines = [
            f"{count} {self.compared} comparisons. All tests over seeds together err in at most 5 % of cases (Holm). "
            "Times count from a change of 10 %, memory from 5 %; where a side has one run, from twice that."
        ]
        if self.unjudged:
            lines.append(f"Test scores not judged, because a side has fewer than two seeds: {self.unjudged}.")
        named = (("New", self.new), ("Vanished", self.vanished))
        return lines + [f"{word}: {', '.join(rows)}." for word, rows in named if rows]

    def markdown(self) -> str:
        """The result as Markdown, for a pull request."""
        parts = [f"> **{markdown(remark)}**" for remark in self.remarks]
        if self.changes:
            marked = [(*change[:-1], f"**{change.verdict}**") for change in self.changes]
            parts.append(markdown_table(HEADER, marked))
        return "\n\n".join([*parts, *map(markdown, self.summary)])


def diff_folders(before: Path, after: Path) -> Diff:
    """Compare two folders of results.

    Raises:
        UsageError: one folder has no result, or the folders have no variant in common.
    """
    (old, warnings), (new, more_warnings) = read_folder(before), read_folder(after)
    result = diff(old, new)
    return replace(result, remarks=[*warnings, *more_warnings, *result.remarks])


def read_folder(folder: Path) -> tuple[Source, list[str]]:
    """The results and machine of a folder, and warnings about unreadable parts."""
    check_records([folder])
    path = folder / "records.jsonl"
    records, damaged = read_records(path)
    results = [record for record in records if is_result(record)]
    if not results:
        raise UsageError(f"{path} has no readable result")
    environment, complaints = read_environment(folder / "environment.json")
    return Source(results, environment), damaged + complaints


def diff(before: Source, after: Source) -> Diff:
    """Compare the variants that both sides have.

    Raises:
        UsageError: the sides have no variant in common.
    """
    pairs, remarks, vanished, new = pair_up(before.records, after.records)
    if not pairs:
        raise UsageError("expected a variant that ran on the same task at the same length in both folders, found none")
    stamps = [[source.environment_of(record) for record in source.records] for source in (before, after)]
    elsewhere = len({machine_name(stamp) for side in stamps for stamp in side}) > 1
    machines = [" and ".join(dict.fromkeys(map(machine_line, side))) for side in stamps]
    if elsewhere or machines[0] != machines[1]:
        remarks.insert(0, f"Machines differ: {' → '.join(machines)}." + " Times are shown, not judged." * elsewhere)

    comparisons = [comparison for pair in pairs for comparison in comparisons_of(pair)]
    tested = run_tests(comparisons)
    limit = holm([test.chance for test in tested if test])
    changes = [change for pair in pairs for change in exact_changes(pair)]
    for comparison, test in zip(comparisons, tested, strict=True):
        if test is None:
            if (change := comparison.single()) is not None:
                changes.append(comparison.line(change, None, elsewhere=elsewhere))
        elif test.chance <= limit and abs(test.change) > comparison.measure.limit(1):
            changes.append(comparison.line(test.change, test.half, elsewhere=elsewhere))
    if busy := [f"{row.name} ({pair.where})" for pair in pairs for row in (pair.before, pair.after) if row.disturbed]:
        remarks.append(
            f"Disturbed (e.g. by other processes) and excluded from times: {', '.join(dict.fromkeys(busy))}."
        )
    order = {(pair.where, pair.before.name): rank for rank, pair in enumerate(pairs)}
    changes.sort(key=lambda change: order[change.where, change.variant])
    unjudged = sum(
        comparison.measure.is_score and not test for comparison, test in zip(comparisons, tested, strict=True)
    )
    counted = sum(all(row.by_seed(count) for row in (pair.before, pair.after)) for pair in pairs for count in COUNTS)
    return Diff(remarks, changes, len(comparisons) + counted + len(pairs) - unjudged, unjudged, new, vanished)


def show(result: Diff) -> None:
    """Print the result to the terminal: one table for each task."""
    console = Console(highlight=False)
    if not console.file.isatty():
        console.width = WIDE
    for remark in result.remarks:
        console.print(Text(remark, style="bold"))
    for where in dict.fromkeys(change.where for change in result.changes):
        table = Table(box=None, title=Text(where, style="bold"), title_justify="left", pad_edge=False)
        for title in HEADER[1:]:
            table.add_column(title, overflow="fold")
        for change in result.changes:
            if change.where == where:
                table.add_row(*map(Text, change[1:-1]), Text(change.verdict, style=COLOURS.get(change.verdict, "")))
        console.print(table)
    for line in result.summary:
        console.print(Text(line))


def pair_up(before: Sequence[Record], after: Sequence[Record]) -> tuple[list[Pair], list[str], list[str], list[str]]:
    """Pair the rows; return the pairs, remarks on conditions and data that differ, vanished rows, and new rows.

    On one task at one length, equal conditions are paired. Where one set of conditions remains on each side, these two
    are paired as well, with a remark on their difference.
    """
    pairs: list[Pair] = []
    remarks, vanished, new = [], [], []
    old, fresh = (by_conditions(records) for records in (before, after))
    for place in dict.fromkeys([*old, *fresh]):
        was, now = old.get(place, {}), fresh.get(place, {})
        matched = {key: key for key in was if key in now}
        left, right = [key for key in was if key not in now], [key for key in now if key not in was]
        if len(left) == len(right) == 1:
            words = f"{tell_apart(left[0], right)} → {tell_apart(right[0], left)}"
            remarks.append(f"{place}: conditions differ: {words}.")
            matched[left.pop()] = right.pop()
        vanished += [f"all of {was[key].title} ({len(was[key].rows)})" for key in left]
        new += [f"all of {now[key].title} ({len(now[key].rows)})" for key in right]
        for key, other in matched.items():
            title = place if len(matched) == 1 else was[key].title
            mine, theirs = ({row.name: row for row in group.rows} for group in (was[key], now[other]))
            lower = was[key].scale.lower_is_better
            pairs += [Pair(title, mine[name], theirs[name], lower) for name in mine if name in theirs]
            for listed, names in ((vanished, mine.keys() - theirs.keys()), (new, theirs.keys() - mine.keys())):
                listed += [f"{', '.join(sorted(names))} ({title})"] if names else []
            if not share_data(was[key], now[other]):
                remarks.append(f"{title}: the data differ, which may change scores.")
    return pairs, remarks, vanished, new


def by_conditions(records: Sequence[Record]) -> dict[str, dict[str, Group]]:
    """Task and length in words -> conditions -> group."""
    groups: dict[str, dict[str, Group]] = {}
    anywhere = [record | {"machine": None} for record in records]
    for group in group_records([Source(anywhere, {})], short=False):  # a variant has the same name in both folders
        spec = read_spec(group.records[0])
        conditions = {key: value for key, value in spec.items() if key not in PER_ROW}
        for key, value in conditions.items():
            if isinstance(value, float) and value.is_integer():  # a budget of 25 equals one of 25.0
                conditions[key] = int(value)
        causal = " (causal)" if group.causal else ""
        groups.setdefault(f"{group.task}, length {group.seq_len:,}{causal}", {})[as_key(conditions)] = group
    return groups


def share_data(before: Group, after: Group) -> bool:
    """Whether every hash that both sides record is equal."""
    was, now = data_hashes(before.records), data_hashes(after.records)
    return all(set(was[key]) == set(now[key]) for key in was.keys() & now.keys())


def mean_of(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def exact_changes(pair: Pair) -> list[Change]:
    """Changes of quantities without noise: status, learning rate, kernel and counts."""
    rows = pair.before, pair.after
    was, now = (len(row.finished) / len(row.records) for row in rows)
    status = "worse" if now < was else "better" if now > was else "changed"
    facts = [
        ("status", [row.status for row in rows], "", status),
        ("learning rate", [rates_of(row) for row in rows], "", "changed"),
        ("kernel", [row.kernels for row in rows], "", "changed"),
    ]
    for count in COUNTS:
        sides = [row.by_seed(count) for row in rows]
        if all(sides):
            shared = sides[0].keys() & sides[1].keys()
            means = [mean_of({seed: side[seed] for seed in shared or side}) for side in sides]
            share = f"{100 * (means[1] / means[0] - 1):+.3g} %" if means[0] else ""
            facts.append(
                (
                    title_of(count),
                    [f"{mean:,.1f}".removesuffix(".0") for mean in means],
                    share.replace("-", "−"),
                    "changed",
                )
            )
    return [
        Change(pair.where, pair.before.name, what, before, after, change, verdict)
        for what, (before, after), change, verdict in facts
        if before and after and before != after
    ]


def rates_of(row: Row) -> str:
    specs = [as_mapping(record.get("spec")) for record in row.records]
    return ", ".join(sorted({f"{rate:g}" for spec in specs if (rate := as_number(spec.get("lr"))) is not None}))


def comparisons_of(pair: Pair) -> list[MeasuredPair]:
    """The comparisons of a pair: one for each measure that both sides have."""
    measures = [LOWER if measure.is_score and pair.lower_is_better else measure for measure in MEASURES]
    sides = [(measure, measure.by_seed(pair.before), measure.by_seed(pair.after)) for measure in measures]
    return [MeasuredPair(pair, measure, before, after) for measure, before, after in sides if before and after]


def run_tests(comparisons: Sequence[MeasuredPair]) -> list[Tested | None]:
    """Test each comparison; those of one measure share their estimate of noise. None where there are too few seeds."""
    evidence = [comparison.evidence() for comparison in comparisons]
    tested: list[Tested | None] = [None] * len(evidence)
    for measure in (*MEASURES, LOWER):
        own = {i: each for i, each in enumerate(evidence) if each and comparisons[i].measure is measure}
        for i, each in zip(own, moderate(list(own.values())), strict=True):
            tested[i] = each
    return tested
