"""How a run is executed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from compare.record import Record
from compare.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is executed. Nothing here changes its results.

    Attributes:
        out: the folder of the results, for checkpoints and trackers; None = neither.
        checkpoint_every: seconds of training between checkpoints, at least.
        timeout: seconds after which the run is stopped; None = never.
        track: names of trackers, such as ``tensorboard``.
        save: keep each trained model in the folder of the results.
        keep: the ``run_id`` of runs whose models are kept in any case, because others need them.
        machine: the result of ``describe_machine``; empty = unknown.
    """

    out: str | None = None
    checkpoint_every: float = 30.0
    timeout: float | None = None
    track: tuple[str, ...] = ()
    save: bool = False
    keep: tuple[str, ...] = ()
    machine: Record = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunOptions:
        fields = json.loads(text)
        return cls(**fields | {name: tuple(fields[name]) for name in ("track", "keep")})

    def keeps(self, spec: RunSpec) -> bool:
        """Whether the trained model of a run is kept."""
        return self.out is not None and (self.save or spec.run_id in self.keep)

    def checkpoint_of(self, spec: RunSpec) -> Path | None:
        """The file of the run's checkpoint, in whatever number of processes; None without a folder of results."""
        name = replace(spec, parallel=None).run_id
        return None if self.out is None else Path(self.out) / "checkpoints" / f"{name}.pt"
