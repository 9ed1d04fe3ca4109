"""How a run is executed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
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
        machine: the result of ``describe_machine``; empty = unknown.
    """

    out: str | None = None
    checkpoint_every: float = 30.0
    timeout: float | None = None
    track: tuple[str, ...] = ()
    save: bool = False
    machine: Record = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunOptions:
        fields = json.loads(text)
        return cls(**fields | {"track": tuple(fields["track"])})

    def checkpoint_of(self, spec: RunSpec) -> Path | None:
        """The file of the run's checkpoint; None without a folder of results."""
        return None if self.out is None else Path(self.out) / "checkpoints" / f"{spec.run_id}.pt"
