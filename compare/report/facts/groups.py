"""Groups and their rows: runs that may be compared with one another, and their results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from compare.load import disturbance, slowed
from compare.quantities import TEST_SCORE, Quantity
from compare.report.facts.scale import FRACTION, OLDER, Scale
from compare.report.facts.stats import (
    Difference,
    Estimate,
    binomial_half,
    estimate,
    fall_apart,
    judge,
    paired_noise,
    sign_test,
    solved_by,
)
from compare.report.facts.values import Record, as_mapping, as_number, as_pairs, numbers, status_of
from compare.units import plain

CONTROL_FAMILY = "control"
UNKNOWN_FAMILY = "other"  # of a variant whose records name no family
CONTROL = "none"
REFERENCE = "full"


@dataclass(frozen=True)
class ScoreBasis:
    """Which score of a run counts.

    Attributes:
        split: "test", after the run's own training, or "validation", at equal terms.
        at: these terms in words; "" after the run's own training.
        note: what the terms leave out.
    """

    split: str = "test"
    at: str = ""
    note: str = ""

    def words(self, what: str) -> str:
        """ "test accuracy", "validation score at equal FLOPs (2.1 P)"."""
        return " ".join(word for word in (self.split, what, self.at) if word)


@dataclass(frozen=True)
class Row:
    """One variant in one group: its runs, one for each seed, and seed -> the score that counts."""

    label: str
    suffix: str
    variant: str
    family: str
    records: tuple[Record, ...]
    scores: Mapping[str, float]

    @property
    def name(self) -> str:
        shown = self.label.replace(CONTROL, f"{CONTROL} (control)", 1) if self.is_control else self.label
        return f"{shown} {self.suffix}".strip()

    @property
    def is_control(self) -> bool:
        return self.variant == CONTROL

    @property
    def attends(self) -> bool:
        """Whether it is a competitor and not a control."""
        return self.family != CONTROL_FAMILY

    @property
    def is_reference(self) -> bool:
        """Whether it is the reference with its usual settings; a group has at most one such row."""
        return self.variant == REFERENCE and self.name == self.label

    @property
    def finished(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if status_of(record) == "ok")

    @cached_property
    def disturbed(self) -> dict[str, str]:
        """Seed -> what disturbed its run, for each disturbed run."""
        return {str(record.get("seed")): words for record in self.finished if (words := disturbance(record))}

    @cached_property
    def slowed(self) -> set[str]:
        """The seeds whose runs were slowed in training."""
        return {str(record.get("seed")) for record in self.finished if slowed(record)}

    @property
    def by_budget(self) -> bool:
        """Whether its runs trained for a budget in seconds: then a busy machine changes scores too."""
        return any(as_mapping(record.get("spec")).get("budget") is not None for record in self.records)

    def fair(self, quantity: Quantity) -> "Row":
        """The row with the runs that a verdict on a quantity may use: without disturbed ones where time matters."""
        if quantity is TEST_SCORE and self.by_budget and self.slowed:
            return replace(self, records=tuple(record for record in self.records if not slowed(record)))
        if not self.disturbed or not quantity.timed:
            return self
        return replace(self, records=tuple(record for record in self.records if not disturbance(record)))

    @property
    def fell_back(self) -> bool:
        return any(record.get("kernel_fallback") is True for record in self.records)

    @property
    def kernels(self) -> str:
        return ", ".join(sorted({str(r["kernel"]) for r in self.records if r.get("kernel")}))

    @property
    def status(self) -> str:
        """ "ok", or how many runs ended how: "2 ok, 1 oom"."""
        statuses = [status_of(record) for record in self.records]
        kinds = sorted(set(statuses), key=lambda kind: (kind != "ok", kind))
        if len(statuses) == 1 or kinds == ["ok"]:
            return kinds[0]
        return ", ".join(f"{statuses.count(kind)} {kind}" for kind in kinds)

    def by_seed(self, quantity: Quantity) -> dict[str, float]:
        """Seed -> the quantity, for each finished run that has it."""
        values = {str(record.get("seed")): as_number(record.get(quantity.field)) for record in self.finished}
        return {seed: value for seed, value in values.items() if value is not None}

    def over_seeds(self, quantity: Quantity) -> Estimate | None:
        return estimate(numbers(self.finished, quantity.field))

    def spread(self, quantity: Quantity) -> tuple[float, float] | None:
        """Mean over seeds of each run's quartiles, where they were recorded."""
        pairs = [record.get(quantity.spread_field) for record in self.finished]
        ends = [
            (low, high)
            for pair in pairs
            if isinstance(pair, list) and len(pair) == 2
            if (low := as_number(pair[0])) is not None and (high := as_number(pair[1])) is not None
        ]
        if not ends:
            return None
        low, high = np.mean(ends, axis=0)
        return float(low), float(high)

    def slices(self) -> dict[str, Estimate]:
        """Mean score of each slice of the test set, in the order of the records."""
        by_slice: dict[str, list[float]] = {}
        for record in self.finished:
            for name, value in as_mapping(record.get("test_slices")).items():
                if (score := as_number(value)) is not None:
                    by_slice.setdefault(str(name), []).append(score)
        return {name: mean for name, scores in by_slice.items() if (mean := estimate(scores)) is not None}


@dataclass(frozen=True)
class Group:
    """Runs that may be compared with one another."""

    task: str
    seq_len: int
    conditions: str
    cost_conditions: str
    machine: str
    where: str
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    basis: ScoreBasis = ScoreBasis()
    probes: tuple[Record, ...] = ()
    """Runs that searched for the longest length that fits, under these conditions; in no row and in no list of runs."""
    setting: str = "{}"
    """All its conditions, with the options of the task, as `as_key` writes them."""
    slug: str = ""
    """Ends its file names; no two groups of a report share it."""

    @property
    def title(self) -> str:
        extra = "; ".join(part for part in (self.conditions, self.where) if part)
        return f"{self.task}, length {self.seq_len:,}" + (f" ({extra})" if extra else "")

    @property
    def records(self) -> list[Record]:
        return [record for row in self.rows for record in row.records]

    @property
    def task_options(self) -> dict[str, Any]:
        return dict(as_pairs(as_mapping(self.records[0].get("spec")).get("task_options")))

    @property
    def decodes(self) -> bool:
        """Whether its runs decoded token by token."""
        return json.loads(self.cost_conditions).get("decode") is True

    @property
    def metric(self) -> str:
        return next((str(r["metric"]) for r in self.records if r.get("metric")), "score")

    @property
    def scale(self) -> Scale:
        """The scale of its scores: their unit, their bounds, and which way is better."""
        recorded = next((as_mapping(r["metric_scale"]) for r in self.records if r.get("metric_scale")), None)
        if recorded is None:
            return OLDER.get(self.metric, FRACTION)
        low, high = recorded["bounds"]
        return Scale(recorded["unit"], recorded["lower_is_better"], (low, high))

    @property
    def causal(self) -> bool:
        """Whether its encoders are causal."""
        return json.loads(self.cost_conditions).get("causal") is True

    @property
    def baselines(self) -> dict[str, float]:
        """Trivial predictors and their scores, the worst first; the mean where each seed measured its own."""
        by_predictor: dict[str, list[float]] = {}
        for record in self.records:
            for name, value in as_mapping(record.get("baselines")).items():
                if (score := as_number(value)) is not None:
                    by_predictor.setdefault(str(name), []).append(score)
        means = {name: float(np.mean(values)) for name, values in by_predictor.items()}
        return dict(sorted(means.items(), key=lambda item: self.scale.better(item[1])))

    @property
    def data_notes(self) -> list[str]:
        """What a task left out of its data or cut; each note once."""
        lists = (record.get("data_notes") for record in self.records)
        return list(dict.fromkeys(str(note) for notes in lists if isinstance(notes, list) for note in notes))

    @property
    def test_size(self) -> float | None:
        """The number of scored predictions on the split that counts: of the run with the fewest, whose score is the
        noisiest. Old records lack it for validation: then that of the test set. None where the score is not a share of
        the predictions."""
        if not self.scale.is_share:
            return None
        validated = numbers(self.records, "val_size") if self.basis.split == "validation" else []
        return min((value for value in validated or numbers(self.records, "test_size") if value > 0), default=None)

    @property
    def scored_on(self) -> str:
        """The size and the split in words."""
        size = plain(self.test_size or 0)
        if self.basis.split == "validation" and not numbers(self.records, "val_size"):
            return f"a validation split of a size that is not recorded, taken as that of the test set ({size})"
        return f"{size} {self.basis.split} predictions"

    @property
    def reference(self) -> Row | None:
        return next((row for row in self.rows if row.variant == REFERENCE), None)

    @property
    def control(self) -> Row | None:
        return next((row for row in self.rows if row.is_control), None)

    def test_noise(self, score: float) -> float:
        """Half-width of the 95 % interval from the test set's sampling noise at this score; 0 for an unknown size."""
        return binomial_half(score, self.test_size) if self.test_size else 0.0

    def fair_scores(self, row: Row) -> Mapping[str, float]:
        """The scores that a verdict may use: without those of slowed runs where all runs had the same time."""
        timed = row.by_budget and (self.basis == ScoreBasis() or "time" in self.basis.at)
        return {seed: score for seed, score in row.scores.items() if not (timed and seed in row.slowed)}

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The bounds of a score."""
        return self.scale.limits

    @cached_property
    def gain(self) -> tuple[float, float]:
        """The scores of the best trivial predictor (0 without one) and of the best run."""
        floor = max(self.baselines.values(), default=0.0)
        return floor, max((score for row in self.rows for score in row.scores.values()), default=floor)

    def splits(self, scores: Sequence[float]) -> bool:
        """Whether some seeds of a variant solve the task and others are far off; False unless scores are fractions."""
        return self.scale.is_fraction and fall_apart(scores, *self.gain)

    def estimate_of(self, scores: Mapping[str, float]) -> Estimate | None:
        """The estimate from one variant's scores, given by seed."""
        values = list(scores.values())
        solved = sum(solved_by(values, *self.gain)) if self.splits(values) else None
        score = estimate(values)
        return score and score._replace(bounds=self.bounds, solved=solved)

    def score(self, row: Row) -> Estimate | None:
        """The estimate from all runs, disturbed or not."""
        return self.estimate_of(row.scores)

    def fair_score(self, row: Row) -> Estimate | None:
        """The estimate from the runs that a verdict may use."""
        return self.estimate_of(self.fair_scores(row))

    def score_differences(self, anchor: Row) -> dict[str, Difference]:
        """Name -> the row's score minus the anchor's, paired over the seeds that both have, for all other rows."""
        size, theirs = self.test_size, self.fair_scores(anchor)
        families, splits = {}, {}
        for row in self.rows:
            mine = self.fair_scores(row)
            shared = [seed for seed in mine if seed in theirs]
            means = [float(np.mean([of[seed] for seed in shared])) for of in (mine, theirs) if shared]
            values = [mine[seed] - theirs[seed] for seed in shared]
            families[row.name] = (values, paired_noise(means, size))
            sides = [[of[seed] for seed in shared] for of in (mine, theirs)]
            if any(map(self.splits, sides)):
                splits[row.name] = sign_test(*(solved_by(side, *self.gain) for side in sides))
        low, high = self.bounds
        families = {name: family for name, family in families.items() if name != anchor.name}
        return judge(families, self.aside, splits, (low - high, high - low))

    def differences(self, anchor: Row, quantity: Quantity) -> dict[str, Difference]:
        """As `score_differences`, for another quantity."""
        theirs = anchor.fair(quantity).by_seed(quantity)
        families = {
            row.name: ([mine[seed] - theirs[seed] for seed in mine if seed in theirs], 0.0)
            for row in self.rows
            if row is not anchor and (mine := row.fair(quantity).by_seed(quantity))
        }
        return judge(families, self.aside)

    def is_fair(self, row: Row, quantity: Quantity) -> bool:
        """Whether a row may be ranked by this quantity and its score: no run was disturbed, or neither depends on
        time."""
        return not row.disturbed or (row.fair(quantity) is row and len(self.fair_scores(row)) == len(row.scores))

    @property
    def aside(self) -> set[str]:
        """The names of the controls, which are left out of a family of tests."""
        return {row.name for row in self.rows if not row.attends}

    @cached_property
    def against_full(self) -> dict[str, Difference]:
        """Name -> the row's score minus that of full."""
        return self.score_differences(self.reference) if self.reference else {}


Measured = list[tuple[Row, Estimate]]
Differences = Mapping[str, Difference]


def scores_of(group: Group) -> Measured:
    """The rows that attend, with the scores that a verdict may use."""
    return [(row, score) for row in group.rows if row.attends and (score := group.fair_score(row))]


def measured(group: Group, quantity: Quantity) -> Measured:
    return [(row, value) for row in group.rows if row.attends and (value := row.fair(quantity).over_seeds(quantity))]
