"""Records in, groups out: which runs may be compared, their means over seeds, and what is beyond noise.

A group is everything measured on one machine, on one task, at one length, under one set of conditions
(steps or budget, width, depth, batch, dtype …). Within it a row is one variant, its seeds together.
Its records say what its scores are, and which way is better (`Group.scale`). Runs that searched for a learning rate
count for no row.
"""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from compare.load import disturbance, slowed
from compare.quantities import TEST_SCORE, Quantity
from compare.spec import read_spec
from compare.units import plain

from .families import CONTROL_FAMILY, UNKNOWN_FAMILY
from .scale import FRACTION, OLDER, Scale
from .stats import Difference, Estimate, binomial_half, estimate, fall_apart, judge, paired_noise, sign_test, solved_by

Record = dict[str, Any]
CONTROL = "none"
REFERENCE = "full"
LONGEST_SLUG = 120  # letters; a file name holds 255 bytes

# Spec fields that may differ between the rows of one group. All others are conditions and split it.
PER_ROW = frozenset({"variant", "options", "lr", "weight_decay", "seed", "task", "seq_len", "probe"})
# Conditions that do not change what one forward and backward pass costs, or that follow the length.
NOT_COST = frozenset(
    {
        *("steps", "budget", "batch_size", "accumulate", "weight_decay", "clip_norm"),
        *("lr_schedule", "warmup", "length_schedule"),
    }
)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, by rising x, of the points that no other point beats: both coordinates better when larger."""
    best = -math.inf
    front = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], points[i][1]), reverse=True):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front[::-1]


def as_number(value: object) -> float | None:
    """The value as a finite float; None for anything else, so that old or failed records never crash."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def as_mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_pairs(value: object) -> list[tuple[str, Any]]:
    """Options as they are recorded, a list of [name, value]."""
    return [(str(pair[0]), pair[1]) for pair in value or [] if len(pair) == 2] if isinstance(value, list) else []


def numbers(records: Iterable[Record], field: str) -> list[float]:
    values = (as_number(record.get(field)) for record in records)
    return [value for value in values if value is not None]


def status_of(record: Record) -> str:
    return str(record.get("status") or "error")


def as_key(config: Mapping[str, Any]) -> str:
    """A config as text, the same for equal configs: 25 and 25.0 are one number."""
    whole = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in config.items()}
    return json.dumps(whole, sort_keys=True)


def tell_apart(key: str, rivals: Iterable[str]) -> str:
    """The settings of one config in which it and its rivals (keys from `as_key`) differ, as "key=value" words."""
    own, others = json.loads(key), [json.loads(rival) for rival in rivals]
    names = sorted({name for config in (own, *others) for name in config})
    varying = [name for name in names if any(config.get(name) != own.get(name) for config in others)]
    return ", ".join(f"{name}={as_word(own.get(name))}" for name in varying)


def conditions_in_words(key: str, rivals: Iterable[str]) -> str:
    """What tells a group or a series from its rivals, and "causal" where encoders see the past alone, rivals or not."""

    def rest(config: str) -> str:
        return as_key({name: value for name, value in json.loads(config).items() if name != "causal"})

    causal = "causal" if json.loads(key).get("causal") is True else ""
    return ", ".join(part for part in (causal, tell_apart(rest(key), map(rest, rivals))) if part)


def as_word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class ScoreBasis:
    """Which score of a run counts: on the test set after its own training, or on the validation split where all runs
    of the group had had the same (`at`, in words; the note says what that leaves out)."""

    split: str = "test"
    at: str = ""
    note: str = ""

    def words(self, what: str) -> str:
        """ "test accuracy", "validation score at equal FLOPs (2.1 P)"."""
        return " ".join(word for word in (self.split, what, self.at) if word)


@dataclass(frozen=True)
class Row:
    """One variant in one group: its runs, one a seed, and the score of each seed that counts."""

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
        """Whether it is a competitor: no control of any kind."""
        return self.family != CONTROL_FAMILY

    @property
    def is_reference(self) -> bool:
        """The reference with its usual settings, of which there is one."""
        return self.variant == REFERENCE and self.name == self.label

    @property
    def finished(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if status_of(record) == "ok")

    @cached_property
    def disturbed(self) -> dict[str, str]:
        """The seeds whose runs others disturbed, and by what."""
        return {str(record.get("seed")): words for record in self.finished if (words := disturbance(record))}

    @cached_property
    def slowed(self) -> set[str]:
        """The seeds of these that were disturbed in training."""
        return {str(record.get("seed")) for record in self.finished if slowed(record)}

    @property
    def by_budget(self) -> bool:
        """Whether its runs trained for so many seconds: then a busy machine changes scores too."""
        return any(as_mapping(record.get("spec")).get("budget") is not None for record in self.records)

    def fair(self, quantity: Quantity) -> "Row":
        """What of it a verdict on a quantity may rest on: without disturbed runs where that depends on time."""
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
        found = [status_of(record) for record in self.records]
        kinds = sorted(set(found), key=lambda kind: (kind != "ok", kind))
        return kinds[0] if len(found) == 1 or kinds == ["ok"] else ", ".join(f"{found.count(k)} {k}" for k in kinds)

    def by_seed(self, quantity: Quantity) -> dict[str, float]:
        """The quantity of each seed that finished and has it."""
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
        found: dict[str, list[float]] = {}
        for record in self.finished:
            for name, value in as_mapping(record.get("test_slices")).items():
                if (score := as_number(value)) is not None:
                    found.setdefault(str(name), []).append(score)
        return {name: mean for name, scores in found.items() if (mean := estimate(scores)) is not None}


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
    """Runs that asked which length fits, under these conditions at any length: in no row and in no table of runs."""
    setting: str = "{}"
    """All its conditions, the options of the task among them, as `as_key` writes them."""
    slug: str = ""
    """What its files are called; no two groups of a report share it."""

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
        """Whether its runs went token by token."""
        return json.loads(self.cost_conditions).get("decode") is True

    @property
    def metric(self) -> str:
        return next((str(r["metric"]) for r in self.records if r.get("metric")), "score")

    @property
    def scale(self) -> Scale:
        """How its scores are told and compared."""
        told = next((as_mapping(r["metric_scale"]) for r in self.records if r.get("metric_scale")), None)
        if told is None:
            return OLDER.get(self.metric, FRACTION)
        low, high = told["bounds"]
        return Scale(told["unit"], told["lower_is_better"], (low, high))

    @property
    def causal(self) -> bool:
        """Whether its encoders see the past alone."""
        return json.loads(self.cost_conditions).get("causal") is True

    @property
    def baselines(self) -> dict[str, float]:
        """Trivial predictors and their scores, the worst first: the mean where they were measured once a seed."""
        found: dict[str, list[float]] = {}
        for record in self.records:
            for name, value in as_mapping(record.get("baselines")).items():
                if (score := as_number(value)) is not None:
                    found.setdefault(str(name), []).append(score)
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return dict(sorted(means.items(), key=lambda item: self.scale.better(item[1])))

    @property
    def data_notes(self) -> list[str]:
        """What was left out of the data or cut, each once."""
        lists = (record.get("data_notes") for record in self.records)
        return list(dict.fromkeys(str(note) for notes in lists if isinstance(notes, list) for note in notes))

    @property
    def test_size(self) -> float | None:
        """The smallest number of scored predictions of any run, on the split that counts (old records do not have it
        for validation: then on the test set): the noisiest one counts. None where the score is not a share of them."""
        if not self.scale.is_share:
            return None
        validated = numbers(self.records, "val_size") if self.basis.split == "validation" else []
        return min((value for value in validated or numbers(self.records, "test_size") if value > 0), default=None)

    @property
    def scored_on(self) -> str:
        """That size in words."""
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
        """Half-width of the test set's own sampling noise at this score; 0 where its size is unknown."""
        return binomial_half(score, self.test_size) if self.test_size else 0.0

    def fair_scores(self, row: Row) -> Mapping[str, float]:
        """The scores that a verdict may rest on. Those of slowed runs do not count where all had the same time."""
        timed = row.by_budget and (self.basis == ScoreBasis() or "time" in self.basis.at)
        return {seed: score for seed, score in row.scores.items() if not (timed and seed in row.slowed)}

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Of a score."""
        return self.scale.limits

    @cached_property
    def gain(self) -> tuple[float, float]:
        """Scores of the best trivial predictor, 0 without one, and of the best run."""
        floor = max(self.baselines.values(), default=0.0)
        return floor, max((score for row in self.rows for score in row.scores.values()), default=floor)

    def splits(self, scores: Sequence[float]) -> bool:
        """Whether the scores of one variant's seeds fall into solved and not; never where they are no fractions."""
        return self.scale.is_fraction and fall_apart(scores, *self.gain)

    def estimate_of(self, scores: Mapping[str, float]) -> Estimate | None:
        """The mean of scores of one variant, by seed."""
        values = list(scores.values())
        solved = sum(solved_by(values, *self.gain)) if self.splits(values) else None
        found = estimate(values)
        return found and found._replace(bounds=self.bounds, solved=solved)

    def score(self, row: Row) -> Estimate | None:
        """Of all runs, disturbed or not."""
        return self.estimate_of(row.scores)

    def fair_score(self, row: Row) -> Estimate | None:
        """Of the runs that a verdict may rest on."""
        return self.estimate_of(self.fair_scores(row))

    def score_differences(self, anchor: Row) -> dict[str, Difference]:
        """By name, each other row's score minus the anchor's, paired over the seeds that both have."""
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
        """The same of another quantity."""
        theirs = anchor.fair(quantity).by_seed(quantity)
        families = {
            row.name: ([mine[seed] - theirs[seed] for seed in mine if seed in theirs], 0.0)
            for row in self.rows
            if row is not anchor and (mine := row.fair(quantity).by_seed(quantity))
        }
        return judge(families, self.aside)

    def is_fair(self, row: Row, quantity: Quantity) -> bool:
        """Whether a place by this quantity and the score may be given to a row: no run of it was disturbed, or none of
        what was measured depends on time."""
        return not row.disturbed or (row.fair(quantity) is row and len(self.fair_scores(row)) == len(row.scores))

    @property
    def aside(self) -> set[str]:
        """Names that do not count in a family of tests: no competitors."""
        return {row.name for row in self.rows if not row.attends}

    @cached_property
    def against_full(self) -> dict[str, Difference]:
        """By name, each row's score minus that of full."""
        return self.score_differences(self.reference) if self.reference else {}


def slug(*parts: str) -> str:
    """Words fit for a file name."""
    words = (re.sub(r"[^A-Za-z0-9.=-]+", "-", part).strip("-") for part in parts)
    return "_".join(word for word in words if word)


def distinct_slugs(names: Sequence[tuple[str, ...]]) -> list[str]:
    """A slug for each name. What is too long for a file name, or would be the same file as another, ends in a hash."""
    whole = [slug(*parts) for parts in names]
    met = Counter(word.casefold() for word in whole)  # some file systems know no capitals
    found: list[str] = []
    for word, parts in zip(whole, names, strict=True):
        if met[word.casefold()] > 1 or len(word) > LONGEST_SLUG:
            told = json.dumps([*parts, names[: len(found)].count(parts)])
            word = f"{word[:LONGEST_SLUG]}_{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        found.append(word)
    return found


def machine_name(environment: Mapping[str, Any]) -> str:
    """Short: the processor that did the work and how much of it."""
    gpu = environment.get("gpu")
    if gpu and environment.get("device") != "cpu":
        return str(gpu)
    cpu = re.sub(r"\((R|TM)\)|\bCPU\b", "", str(environment.get("cpu") or "unknown machine"))
    cores = environment.get("cores")
    return " ".join(cpu.split()) + (f", {cores} cores" if cores else "")


def machine_line(environment: Mapping[str, Any]) -> str:
    """The machine and software on which a time means something."""
    parts = [machine_name(environment)]
    if threads := environment.get("threads"):
        parts.append(f"{threads} threads")
    if memory := as_number(environment.get("memory_bytes")):
        parts.append(f"{memory / 2**30:.0f} GiB memory")
    parts += [f"{name} {environment[name]}" for name in ("torch", "python") if environment.get(name)]
    return " · ".join(parts)


class Chart(NamedTuple):
    """A drawn chart: its file name without ending, what it shows in words, and the group it belongs to
    (its slug; "" for a chart across lengths)."""

    stem: str
    alt: str
    group: str


@dataclass(frozen=True)
class Source:
    """One folder of results as read. environment: its newest stamp; "earlier" holds those before."""

    records: Sequence[Record]
    environment: Mapping[str, Any]

    def environment_of(self, record: Record) -> Mapping[str, Any]:
        """What a record was measured on: it bears it, or, where it is old, its time tells by the folder's stamps."""
        if own := as_mapping(record.get("machine")):
            return own
        earlier = self.environment.get("earlier")
        stamps = [as_mapping(stamp) for stamp in earlier] if isinstance(earlier, list) else []
        stamps.append({key: value for key, value in self.environment.items() if key != "earlier"})
        begun = [stamp for stamp in stamps if str(stamp.get("started")) <= str(record.get("started"))]
        return begun[-1] if begun else stamps[0]


def group_records(sources: Sequence[Source], *, short: bool = True) -> list[Group]:
    """Sort records into groups and rows. Of two runs of the same thing with the same seed the later counts.

    Args:
        short: names hold options only where they tell variants of these sources apart; else all that were set.
    """
    machines: dict[str, Mapping[str, Any]] = {}
    cells: dict[tuple[str, str, int, str], dict[tuple[str, str], dict[str, Record]]] = {}
    probes: dict[tuple[str, str, str], list[Record]] = {}
    shorter = short_labels(record for source in sources for record in source.records) if short else {}
    for source in sources:
        for record in source.records:
            environment = source.environment_of(record)
            machine = machine_line(environment)
            machines.setdefault(machine, environment)
            spec = read_spec(record)
            if spec["search"] is True:
                continue
            conditions = {key: value for key, value in spec.items() if key not in PER_ROW}
            conditions |= dict(as_pairs(conditions.pop("task_options", None)))
            if spec["probe"] is not None:
                probes.setdefault((machine, str(record.get("task")), cost_key(conditions)), []).append(record)
                continue
            own = {key: value for key, value in spec.items() if key in {"options", "lr", "weight_decay"}}
            cell = cells.setdefault(
                (machine, str(record.get("task")), int(as_number(record.get("seq_len")) or 0), as_key(conditions)), {}
            )
            label = label_of(record)
            row = cell.setdefault((shorter.get(label, label), as_key(own)), {})
            row[str(record.get("seed"))] = record

    where = tell_machines_apart(machines)
    families = families_of(record for source in sources for record in source.records)
    groups = []
    for machine, task, seq_len, setting in sorted(cells, key=lambda key: (*key[:3], natural(key[3]))):
        cell = cells[machine, task, seq_len, setting]
        rivals = [key[3] for key in cells if key[:3] == (machine, task, seq_len)]
        told_apart = conditions_in_words(setting, rivals)
        cost = cost_key(json.loads(setting))
        rows, tried = make_rows(cell, families), tuple(probes.get((machine, task, cost), ()))
        of = machine, where[machine], machines[machine]
        groups.append(Group(task, seq_len, told_apart, cost, *of, rows, probes=tried, setting=setting))
    slugs = distinct_slugs([(g.task, str(g.seq_len), g.where, g.conditions) for g in groups])
    return [replace(group, slug=slug) for group, slug in zip(groups, slugs, strict=True)]


def short_labels(records: Iterable[Record]) -> dict[str, str]:
    """What to call each label: the variant alone, where no other options of it are in the report.

    The reference keeps its options, so that all can see what was compared with.
    """
    labels: dict[str, set[str]] = {}
    for record in records:
        labels.setdefault(str(record.get("variant")), set()).add(label_of(record))
    alone = {next(iter(found)): variant for variant, found in labels.items() if len(found) == 1}
    return {label: variant for label, variant in alone.items() if variant != REFERENCE}


def label_of(record: Record) -> str:
    return str(record.get("label") or record.get("variant"))


def cost_key(conditions: Mapping[str, Any]) -> str:
    """The conditions that change what a step costs, as text."""
    return as_key({key: value for key, value in conditions.items() if key not in NOT_COST})


def families_of(records: Iterable[Record]) -> dict[str, str]:
    """The family of each variant. One record that names it is enough: old ones do not."""
    found = {CONTROL: CONTROL_FAMILY}
    for record in records:
        if isinstance(family := record.get("family"), str) and family.strip():
            found.setdefault(str(record.get("variant")), " ".join(family.split()))
    return found


def tell_machines_apart(machines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What to call each machine in titles and file names: nothing where there is only one."""
    names = {line: machine_name(environment) for line, environment in machines.items()}
    if len(names) == 1:
        return dict.fromkeys(names, "")
    shared = [name for name in names.values() if list(names.values()).count(name) > 1]
    return {line: line if name in shared else name for line, name in names.items()}


def make_rows(cell: Mapping[tuple[str, str], Mapping[str, Record]], families: Mapping[str, str]) -> tuple[Row, ...]:
    """Rows with the reference first and the control last; two of one label are told apart by their settings."""
    rows = []
    for (label, own), seeds in cell.items():
        suffix = tell_apart(own, [key[1] for key in cell if key[0] == label])
        variant = str(next(iter(seeds.values())).get("variant") or label)
        family = families.get(variant, UNKNOWN_FAMILY)
        row = Row(label, suffix, variant, family, tuple(seeds[seed] for seed in sorted(seeds)), {})
        rows.append(replace(row, scores=row.by_seed(TEST_SCORE)))
    return tuple(sorted(rows, key=lambda row: (row.is_control, row.variant != REFERENCE, natural(row.name))))


def natural(name: str) -> list[str | int]:
    """What to sort names by so that 16 comes before 128."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


class Curve(NamedTuple):
    """A learning curve: where it was read, what was read, and where the training length changed."""

    x: list[float]
    score: list[float]
    changes: list[tuple[float, int]]
    validated: bool


def learning_curve(record: Record, axis: str) -> Curve | None:
    """Validation scores where there are at least two, else training scores, smoothed by a running mean.

    Args:
        record: one run.
        axis: "step" or "seconds".
    """
    raw = record.get("curve")
    points = [
        (x, point)
        for point in (raw if isinstance(raw, list) else [])
        if isinstance(point, dict) and (x := as_number(point.get(axis))) is not None
    ]
    changes = [
        (x, int(now))
        for (_, before), (x, point) in itertools.pairwise(points)
        if (now := as_number(point.get("seq_len"))) is not None
        and (was := as_number(before.get("seq_len"))) is not None
        and now != was
    ]
    for field in ("val_score", "train_score"):
        seen = [(x, score) for x, point in points if (score := as_number(point.get(field))) is not None]
        if len(seen) >= 2:
            validated = field == "val_score"
            scores = [score for _, score in seen]
            return Curve([x for x, _ in seen], scores if validated else smooth(scores), changes, validated)
    return None


def smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a tenth of the points; the window shrinks at the ends."""
    reach = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


def data_hashes(records: Iterable[Record]) -> dict[str, list[str]]:
    """The hashes of the data that runs were made from, each once, under the name that they are recorded by."""
    found: dict[str, list[str]] = {}
    for record in records:
        for key, value in as_mapping(record.get("data")).items():
            if key.endswith("sha256") and str(value) not in found.setdefault(key, []):
                found[key].append(str(value))
    return found


def mixed_data(groups: Sequence[Group]) -> list[str]:
    """A warning for each group whose runs were not made from the same data."""
    return [
        f"{group.title}: the runs do not share one {key} ({', '.join(sorted(value[:8] for value in values))}); "
        "their scores are not comparable."
        for group in groups
        for key, values in data_hashes(group.records).items()
        if len(values) > 1
    ]
