"""What the page knows of each run: a line that leads to it, and all that was recorded, as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compare.report.facts.groups import Group, Row
from compare.report.facts.values import Record, as_mapping, as_pairs, slug, status_of
from compare.spec import read_spec
from compare.units import MISSING

# Fields that the details of a run show elsewhere.
TOLD = frozenset({"schema", "variant", "label", "family", "task", "seq_len", "seed", "kernel", "command"}) | {
    "task_summary",
    "remark",
}


@dataclass(frozen=True)
class Run:
    """One record of the page and what leads to it. number: its place among all runs. row_id: of its line in a table."""

    record: Record
    group: Group
    row: Row
    row_id: str
    anchor: str
    number: int

    @property
    def run_id(self) -> str:
        return str(self.record.get("run_id"))

    @property
    def title(self) -> str:
        reason = f": {self.record['reason']}" if self.record.get("reason") else ""
        return f"{self.row.name} · seed {self.record.get('seed', MISSING)} · {status_of(self.record)}{reason}"


def list_runs(groups: Sequence[Group]) -> list[Run]:
    """Every record, with an anchor of its own: folders reported together may hold the same run twice."""
    runs: list[Run] = []
    used = Counter[str]()
    for number, group in enumerate(groups):
        for index, row in enumerate(group.rows):
            for record in row.records:
                anchor = "run-" + slug(str(record.get("run_id")))
                used[anchor] += 1
                anchor += f"-{used[anchor]}" if used[anchor] > 1 else ""
                runs.append(Run(record, group, row, f"{number}-{index}", anchor, len(runs)))
    return runs


def told_of(runs: Sequence[Run]) -> str:
    """What is known of the runs as JSON, each environment, data set and common setting once."""
    specs = [read_spec(run.record) for run in runs]
    specs = [spec | {name: dict(as_pairs(spec.get(name))) for name in ("options", "task_options")} for spec in specs]
    shared = {
        key: value for key, value in (specs[0] if specs else {}).items() if all(s.get(key, ...) == value for s in specs)
    }
    environments: dict[str, int] = {}
    data: dict[str, int] = {}
    told = []
    for run, spec in zip(runs, specs, strict=True):
        kernel = str(run.record.get("kernel") or MISSING)
        told.append(
            {
                "command": str(run.record.get("command") or MISSING),
                "kernel": kernel + (" (not the one it is named for)" if run.record.get("kernel_fallback") else ""),
                "spec": {key: value for key, value in spec.items() if key not in shared},
                "measured": measured(run.record),
                "data": data.setdefault(as_json(as_mapping(run.record.get("data"))), len(data)),
                "environment": environments.setdefault(as_json(run.group.environment), len(environments)),
            }
        )
    whole = {
        "shared": shared,
        "environments": [json.loads(text) for text in environments],
        "data": [json.loads(text) for text in data],
        "runs": told,
    }
    return as_json(whole).replace("<", "\\u003c")


def measured(record: Record) -> dict[str, Any]:
    """The numbers and words of a record that have no part of the page of their own."""
    return {key: v for key, v in record.items() if key not in TOLD and isinstance(v, int | float | str) and v != ""}


def as_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
