"""The runs of a page: an anchor for each, and the details of all as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compare.report.facts.groups import Group, Row
from compare.report.facts.values import Record, as_mapping, as_pairs, status_of
from compare.spec import read_spec
from compare.units import MISSING, slug

# Fields that the page shows elsewhere than under "Measured".
SHOWN_ELSEWHERE = frozenset(
    {"schema", "variant", "label", "family", "task", "seq_len", "seed", "kernel", "command", "task_summary", "remark"}
)


@dataclass(frozen=True)
class Run:
    """One record on the page. row_id: of its row in a table of results. number: its index among all runs."""

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
    """Every record under an anchor of its own, even where folders reported together hold the same run twice."""
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


def details_of(runs: Sequence[Run]) -> str:
    """The details of all runs as JSON, with each environment, data set and common setting once."""
    specs = [read_spec(run.record) for run in runs]
    specs = [spec | {name: dict(as_pairs(spec.get(name))) for name in ("options", "task_options")} for spec in specs]
    shared = {
        key: value for key, value in (specs[0] if specs else {}).items() if all(s.get(key, ...) == value for s in specs)
    }
    environments: dict[str, int] = {}
    data: dict[str, int] = {}
    details = []
    for run, spec in zip(runs, specs, strict=True):
        kernel = str(run.record.get("kernel") or MISSING)
        details.append(
            {
                "command": str(run.record.get("command") or MISSING),
                "kernel": kernel + (" (a fallback)" if run.record.get("kernel_fallback") else ""),
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
        "runs": details,
    }
    return as_json(whole).replace("<", "\\u003c")


def measured(record: Record) -> dict[str, Any]:
    """The numbers and texts of a record that the page shows nowhere else."""
    return {
        key: value
        for key, value in record.items()
        if key not in SHOWN_ELSEWHERE and isinstance(value, int | float | str) and value != ""
    }


def as_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
