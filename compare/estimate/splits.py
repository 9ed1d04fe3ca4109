"""How many samples a run evaluates: of generated tasks by their definition, of others by the records."""

from __future__ import annotations

import math
from collections.abc import Iterable

import tasks
from compare.estimate.points import Done
from compare.estimate.run_time import Splits
from compare.report.facts.values import as_number
from compare.spec import RunSpec
from tasks.generated import Generated


def split_sizes(runs: Iterable[Done]) -> Splits:
    """Spec, split, length -> its number of samples; beyond the task's longest length, those of the same tokens."""
    recorded: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        data, length = run.record.get("data") or {}, run.spec.seq_len
        sizes = recorded.setdefault(run.spec.task, {}).setdefault(length, {})
        for split in ("validation", "test"):
            samples, tokens = (as_number(data.get(f"{split}_{what}")) for what in ("samples", "tokens"))
            if samples or tokens:
                sizes[split] = samples or max(1.0, (tokens or 0.0) / length)

    def size(spec: RunSpec, split: str, length: int) -> float | None:
        if spec.task in tasks.available() and issubclass(kind := tasks.get(spec.task), Generated):
            there = min(length, kind.max_len)
            task = kind(there, kind.config_type(**dict(spec.task_options)))
            return max(1.0, task.count(split) * there / length)  # type: ignore[arg-type]
        own = {known: sizes[split] for known, sizes in recorded.get(spec.task, {}).items() if split in sizes}
        nearest = min(own, key=lambda known: abs(math.log(known / length)), default=None)
        return None if nearest is None else own[nearest]

    return size
