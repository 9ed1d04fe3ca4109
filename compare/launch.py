"""The launcher that started this process: torchrun, also below ``accelerate launch``. Nothing here imports torch.

Only torchrun's own mark, ``TORCHELASTIC_RUN_ID``, makes a launch: a ``WORLD_SIZE`` alone may be left from a cluster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from compare.errors import UsageError
from compare.parallel import processes_of

MARK, AGENT_STORE, RESTARTS = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those of its launch.

    Attributes:
        rank, size: its number, from 0, and how many there are. local_rank, local_size: the same on its machine.
        address, port: of the store in which they meet.
        hosts: whether this process opens that store; mostly the launcher does.
        restarts: how often the launcher started all processes anew.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    hosts: bool
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of one worker in one run of several processes; it travels as JSON.

    Attributes:
        rank, size: as in ``Launch``.
        address, port: of the store. prefix: of the run's own keys there.
    """

    rank: int
    size: int
    address: str
    port: int
    prefix: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Seat:
        return cls(**json.loads(text))


def find_launch(variables: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that started this process; None where none did, or where it has one process.

    Raises:
        UsageError: a launcher's mark without the rest of its environment.
    """
    if MARK not in variables:
        return None
    missing = [name for name in (*NUMBERS, "MASTER_ADDR") if not variables.get(name, "").strip()]
    bad = [name for name in NUMBERS if name not in missing and not variables[name].isdecimal()]
    if missing or bad:
        what = f"{missing[0]} is missing" if missing else f"{bad[0]} is {variables[bad[0]]!r}"
        raise UsageError(
            f"{MARK} is set, as by torchrun, but {what}: start with {' '.join(program(2))}, or unset {MARK}"
        )
    rank, local_rank, size, local_size, port = (int(variables[name]) for name in NUMBERS)
    if size == 1:
        return None
    return Launch(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        address=variables["MASTER_ADDR"],
        port=port,
        hosts=rank == 0 and variables.get(AGENT_STORE) != "True",
        restarts=int(variables.get(RESTARTS, "0")),
    )


def program(processes: int) -> list[str]:
    """The words that start a command in so many processes."""
    launcher = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "compare"]


def choose_parallel(typed: str | None, launch: Launch | None) -> str | None:
    """How the runs of this command are shared: as typed, else by data among all processes of the launch.

    Raises:
        UsageError: the typed number of processes is not that of the launch.
    """
    size = 1 if launch is None else launch.size
    if typed is None:
        return None if size == 1 else f"data={size}"
    if (wanted := processes_of(typed)) != size:
        words = f"this command has {size}" if size > 1 else "this command has one process"
        raise UsageError(f"--parallel {typed}: {words}; start it with {' '.join(program(wanted))} …")
    return typed
