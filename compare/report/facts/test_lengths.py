"""Train short, test long: scores at test lengths that differ from the training length."""

import math
from collections.abc import Sequence

from compare.report.facts.groups import Group, Row
from compare.report.facts.stats import Difference, Estimate, binomial_half, estimate, judge
from compare.report.facts.values import Record, as_mapping, as_number


def tested_at(record: Record, length: int) -> Record:
    """The result of a test at a length: status, score, size and baselines."""
    if length == as_number(record.get("seq_len")):
        own = {"score": "test_score", "size": "test_size", "baselines": "baselines"}
        return {"status": "ok"} | {name: record.get(field) for name, field in own.items()}
    return as_mapping(as_mapping(record.get("test_lens")).get(str(length)))


def test_lengths(group: Group) -> list[int]:
    """Every length at which a run of the group was tested, with the training length; empty if it is the only one."""
    lengths = {int(length) for record in group.records for length in as_mapping(record.get("test_lens"))}
    return sorted({*lengths, group.seq_len}) if lengths - {group.seq_len} else []


def seeds_at(row: Row, length: int) -> dict[str, float]:
    """Seed -> the score at a length."""
    scores = {str(record.get("seed")): as_number(tested_at(record, length).get("score")) for record in row.finished}
    return {seed: score for seed, score in scores.items() if score is not None}


def size_at(group: Group, length: int) -> float | None:
    """The number of scored predictions at a length, of the run with the fewest."""
    sizes = (as_number(tested_at(record, length).get("size")) for record in group.records)
    return min((size for size in sizes if size), default=None)


def baseline_at(group: Group, length: int) -> float | None:
    """The best trivial predictor's score at a length."""
    scores = (as_mapping(tested_at(record, length).get("baselines")).values() for record in group.records)
    known = [value for of_run in scores for score in of_run if (value := as_number(score)) is not None]
    return max(known, key=group.scale.better, default=None)


def courses(group: Group) -> dict[str, dict[int, Estimate]]:
    """Row name -> length -> score, for each row with a score."""
    by_name = {
        row.name: {n: mean for n in test_lengths(group) if (mean := estimate(list(seeds_at(row, n).values())))}
        for row in group.rows
    }
    return {name: scores for name, scores in by_name.items() if scores}


def changes(group: Group, rows: Sequence[Row], longest: int) -> dict[str, Difference]:
    """Row name -> the score at the longest length minus that at the training length, paired over seeds."""
    families = {}
    sizes = [size_at(group, n) if group.scale.is_share else None for n in (group.seq_len, longest)]
    for row in rows:
        own, there = seeds_at(row, group.seq_len), seeds_at(row, longest)
        shared = [seed for seed in own if seed in there]
        means = [sum(of[seed] for seed in shared) / len(shared) for of in (own, there)] if shared else []
        halves = [binomial_half(mean, size) for mean, size in zip(means, sizes, strict=False) if size]
        families[row.name] = ([there[seed] - own[seed] for seed in shared], math.hypot(*halves) / 1.96)
    return judge(families)
