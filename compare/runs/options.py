"""How a run is carried out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from compare.record import Record
from compare.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out. Nothing here changes what comes out of it.

    Attributes:
        out: the folder of the results, for checkpoints and trackers; None = neither.
        checkpoint_every: seconds of training from one checkpoint to the next, at least.
        timeout: seconds after which the run is ended; None = never.
        track: names of trackers, as ``tensorboard``.
        machine: what it runs on, of ``describe_machine``; empty = nobody asks.
    """

    out: str | None = None
    checkpoint_every: float = 30.0
    timeout: float | None = None
    track: tuple[str, ...] = ()
    machine: Record = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunOptions:
        fields = json.loads(text)
        return cls(**fields | {"track": tuple(fields["track"])})

    def checkpoint_of(self, spec: RunSpec) -> Path | None:
        """The file that the run goes on from."""
        return None if self.out is None else Path(self.out) / "checkpoints" / f"{spec.run_id}.pt"
