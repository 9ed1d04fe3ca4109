"""From records to groups: which runs may be compared, and the names of groups and rows.

A group holds all runs on one machine, on one task, at one length, under one set of conditions (steps or budget, width,
depth, batch, dtype …). A row of a group is one variant with all its seeds. The records of a group say what its scores
are, and which way is better (`Group.scale`). Runs that searched for a learning rate are in no row.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compare.quantities import TEST_SCORE
from compare.report.facts.groups import CONTROL, CONTROL_FAMILY, REFERENCE, UNKNOWN_FAMILY, Group, Row
from compare.report.facts.values import (
    Record,
    as_key,
    as_mapping,
    as_number,
    as_pairs,
    conditions_in_words,
    distinct_slugs,
    natural,
    tell_apart,
)
from compare.spec import read_spec
from compare.units import plural

# Spec fields that may differ between the rows of one group. All other fields are conditions: they separate groups.
PER_ROW = frozenset({"variant", "options", "lr", "weight_decay", "seed", "task", "seq_len", "probe"})
# Conditions that do not change the cost of one forward and backward pass, or that follow the length.
NOT_COST = frozenset(
    {
        *("steps", "budget", "batch_size", "accumulate", "weight_decay", "clip_norm", "early_stopping"),
        *("init", "label_smoothing", "pretrain", "start", "teacher", "distill", "quantize"),
        *("lr_schedule", "warmup", "length_schedule"),
    }
)


@dataclass(frozen=True)
class Source:
    """One folder of results. environment: its newest stamp; the key "earlier" holds the older ones."""

    records: Sequence[Record]
    environment: Mapping[str, Any]

    def environment_of(self, record: Record) -> Mapping[str, Any]:
        """The environment of a record: its own, or, in an old record, the folder's last stamp before its start."""
        if own := as_mapping(record.get("machine")):
            return own
        earlier = self.environment.get("earlier")
        stamps = [as_mapping(stamp) for stamp in earlier] if isinstance(earlier, list) else []
        stamps.append({key: value for key, value in self.environment.items() if key != "earlier"})
        begun = [stamp for stamp in stamps if str(stamp.get("started")) <= str(record.get("started"))]
        return begun[-1] if begun else stamps[0]


def group_records(sources: Sequence[Source], *, short: bool = True) -> list[Group]:
    """Sort records into groups and rows. Of two runs with the same settings and seed, the later counts.

    Args:
        sources: the folders, as read.
        short: names have options only where these distinguish variants of the sources; else all options that were set.
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
            if conditions["accumulate"] != 1:  # a step counts, in whatever micro-batches
                parts = as_number(conditions["accumulate"]), as_number(conditions.get("batch_size"))
                if None not in parts:
                    conditions |= {"accumulate": 1, "batch_size": math.prod(filter(None, parts))}
            if spec["probe"] is not None:
                probes.setdefault((machine, str(record.get("task")), cost_key(conditions)), []).append(record)
                continue
            settings = {key: value for key, value in spec.items() if key in {"options", "lr", "weight_decay"}}
            cell = cells.setdefault(
                (machine, str(record.get("task")), int(as_number(record.get("seq_len")) or 0), as_key(conditions)), {}
            )
            label = label_of(record)
            row = cell.setdefault((shorter.get(label, label), as_key(settings)), {})
            row[str(record.get("seed"))] = record

    where = tell_machines_apart(machines)
    families = families_of(record for source in sources for record in source.records)
    groups = []
    for machine, task, seq_len, setting in sorted(cells, key=lambda key: (*key[:3], natural(key[3]))):
        cell = cells[machine, task, seq_len, setting]
        rivals = [key[3] for key in cells if key[:3] == (machine, task, seq_len)]
        conditions_text = conditions_in_words(setting, rivals)
        cost = cost_key(json.loads(setting))
        rows, tried = make_rows(cell, families), tuple(probes.get((machine, task, cost), ()))
        place = machine, where[machine], machines[machine]
        groups.append(Group(task, seq_len, conditions_text, cost, *place, rows, probes=tried, setting=setting))
    slugs = distinct_slugs([(g.task, str(g.seq_len), g.where, g.conditions) for g in groups])
    return [replace(group, slug=slug) for group, slug in zip(groups, slugs, strict=True)]


def short_labels(records: Iterable[Record]) -> dict[str, str]:
    """Label -> the variant alone, for each variant that occurs with one set of options only.

    The reference keeps its options: every reader must see what the variants are compared with.
    """
    labels: dict[str, set[str]] = {}
    for record in records:
        labels.setdefault(str(record.get("variant")), set()).add(label_of(record))
    alone = {next(iter(own)): variant for variant, own in labels.items() if len(own) == 1}
    return {label: variant for label, variant in alone.items() if variant != REFERENCE}


def label_of(record: Record) -> str:
    return str(record.get("label") or record.get("variant"))


def cost_key(conditions: Mapping[str, Any]) -> str:
    """The conditions that change the cost of a step, as a key."""
    return as_key({key: value for key, value in conditions.items() if key not in NOT_COST})


def families_of(records: Iterable[Record]) -> dict[str, str]:
    """The family of each variant. One record that names it is enough, since old records do not."""
    families = {CONTROL: CONTROL_FAMILY}
    for record in records:
        if isinstance(family := record.get("family"), str) and family.strip():
            families.setdefault(str(record.get("variant")), " ".join(family.split()))
    return families


def make_rows(cell: Mapping[tuple[str, str], Mapping[str, Record]], families: Mapping[str, str]) -> tuple[Row, ...]:
    """Rows, the reference first and the control last; a suffix distinguishes rows with the same label."""
    rows = []
    for (label, own), seeds in cell.items():
        suffix = tell_apart(own, [key[1] for key in cell if key[0] == label])
        variant = str(next(iter(seeds.values())).get("variant") or label)
        family = families.get(variant, UNKNOWN_FAMILY)
        row = Row(label, suffix, variant, family, tuple(seeds[seed] for seed in sorted(seeds)), {})
        rows.append(replace(row, scores=row.by_seed(TEST_SCORE)))
    return tuple(sorted(rows, key=lambda row: (row.is_control, row.variant != REFERENCE, natural(row.name))))


def machine_name(environment: Mapping[str, Any]) -> str:
    """The GPU, or the CPU and its number of cores."""
    gpu = environment.get("gpu")
    if gpu and environment.get("device") != "cpu":
        return str(gpu)
    cpu = re.sub(r"\((R|TM)\)|\bCPU\b", "", str(environment.get("cpu") or "unknown machine"))
    cores, of = environment.get("cores"), environment.get("of_cores")
    part = f"{cores} of {of}" if of else str(cores)
    return " ".join(cpu.split()) + (f", {part} {plural(of or cores, 'core')}" if cores else "")


def machine_line(environment: Mapping[str, Any]) -> str:
    """The machine and the software that a time depends on."""
    parts = [machine_name(environment)]
    if threads := environment.get("threads"):
        parts.append(f"{threads} {plural(threads, 'thread')}")
    if memory := as_number(environment.get("memory_bytes")):
        parts.append(f"{memory / 2**30:.0f} GiB memory")
    parts += [f"{name} {environment[name]}" for name in ("torch", "python") if environment.get(name)]
    return " · ".join(parts)


def tell_machines_apart(machines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Machine -> its name in titles and file names: "" for a single machine."""
    names = {line: machine_name(environment) for line, environment in machines.items()}
    if len(names) == 1:
        return dict.fromkeys(names, "")
    shared = [name for name in names.values() if list(names.values()).count(name) > 1]
    return {line: line if name in shared else name for line, name in names.items()}


def data_hashes(records: Iterable[Record]) -> dict[str, list[str]]:
    """Name of a recorded hash -> the different hashes of the data that the runs used."""
    hashes: dict[str, list[str]] = {}
    for record in records:
        for key, value in as_mapping(record.get("data")).items():
            if key.endswith("sha256") and str(value) not in hashes.setdefault(key, []):
                hashes[key].append(str(value))
    return hashes
