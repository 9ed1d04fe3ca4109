"""Where the commands of one launch meet: the store of torchrun, which outlives them.

Rank 0 posts jobs and the end. Every command reports how its process of a job ended, and beats a pulse, so that one that
was killed is missed. All keys begin anew after a restart of the launcher.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch.distributed as dist

from compare.errors import UsageError
from compare.launch import MARK, Launch, Seat, find_launch, program
from compare.record import Record
from compare.runs.ranks import ARRIVAL, connect
from compare.runs.supervisor import Worker

ADVICE = f"start all with {' '.join(program(2))} …, or unset {MARK} to run in one process"
LOOK = 0.2  # seconds between looks into the store
BEAT = 5.0  # seconds between beats of a pulse
SILENCE = 120.0  # seconds without a beat after which a command counts as lost
GRACE = 5.0  # seconds in which a process may still say itself why it failed


class Meeting:
    """The place of this command in its launch."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.prefix = f"attention-zoo/{launch.restarts}"
        try:
            self.store = connect(launch.address, launch.port, self.prefix, opens=launch.hosts)
        except dist.DistError as error:
            where = f"{launch.address}:{launch.port}"
            raise UsageError(f"{MARK} is set, but no launcher answers at {where}: {ADVICE}") from error
        self.jobs = 0
        self.heard: dict[int, tuple[bytes, float]] = {}  # rank -> its last beat, and when it was new
        self.is_cut_off = False
        self.is_over = threading.Event()
        self.pulse = threading.Thread(target=self._beat, daemon=True)
        self.pulse.start()

    def post(self, message: str) -> int:
        """Of rank 0: hand a job to all, and return its number. The first waits until all commands have started.

        Raises:
            UsageError: one of them did not.
        """
        late = time.monotonic() + ARRIVAL
        while self.jobs == 0 and (absent := self._absent()):
            if time.monotonic() > late:
                raise UsageError(f"{MARK} is set, but the command of rank {absent[0]} did not start: {ADVICE}")
            time.sleep(LOOK)
        self.store.set(f"job/{self.jobs}", message)
        self.jobs += 1
        return self.jobs - 1

    def _absent(self) -> list[int]:
        return [rank for rank in range(self.launch.size) if not self.store.check([f"pulse/{rank}"])]

    def next(self, number: int) -> str | None:
        """Of the others: wait for the job of this number; None = the comparison has ended, or rank 0 is lost."""
        while not self.store.check([f"job/{number}"]):
            if self.is_off():
                return None
            time.sleep(LOOK)
        return str(self.store.get(f"job/{number}").decode())

    def end(self) -> None:
        """Of rank 0: let the others go. Where the store is its own, wait for them to have heard it."""
        self.is_over.set()
        with suppress(dist.DistError):
            self.store.set("end", "")
            gone = [f"gone/{rank}" for rank in range(1, self.launch.size)]
            late = time.monotonic() + GRACE
            while self.launch.hosts and not self.store.check(gone) and time.monotonic() < late:
                time.sleep(LOOK)

    def leave(self) -> None:
        """Of the others: say that the end was heard."""
        self.is_over.set()
        if not self.is_cut_off:
            self.store.set(f"gone/{self.launch.rank}", "")

    def is_off(self, *keys: str) -> bool:
        """Whether the comparison has ended, a command is lost, or one of these keys is set."""
        try:
            return self.is_cut_off or bool(self.lost()) or any(self.store.check([key]) for key in ("end", *keys))
        except dist.DistError:
            return True

    def seat(self, number: int) -> Seat:
        """The seat of this command's process in a job."""
        here = self.launch
        prefix = f"{self.prefix}/run/{number}"
        return Seat(rank=here.rank, size=here.size, address=here.address, port=here.port, prefix=prefix)

    def report(self, number: int, record: Record) -> None:
        """Say how the own process of a job ended."""
        said = json.dumps({"status": record["status"], "reason": record["reason"]})
        self.store.set(f"outcome/{number}/{self.launch.rank}", said)
        if record["status"] != "ok":
            self.store.set(f"failed/{number}", "")

    def outcomes(self, number: int) -> dict[int, Record]:
        """Rank -> status and reason of its process of a job, after a short wait for those that are missing."""
        keys = {rank: f"outcome/{number}/{rank}" for rank in range(self.launch.size)}
        late = time.monotonic() + 3 * GRACE
        while not self.store.check(list(keys.values())) and time.monotonic() < late:
            time.sleep(LOOK)
        return {rank: json.loads(self.store.get(key)) for rank, key in keys.items() if self.store.check([key])}

    @contextmanager
    def watch(self, number: int, worker: Worker) -> Iterator[None]:
        """A context that calls off the own process of a job soon after one of the others failed."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(LOOK):
                if self.is_off(f"failed/{number}"):
                    if not done.wait(GRACE):
                        worker.call_off()
                    return

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def lost(self) -> list[int]:
        """The ranks whose pulse has stopped: for rank 0 all others count, for these only rank 0."""
        now = time.monotonic()
        return [rank for rank, (_, since) in self.heard.items() if now - since > SILENCE]

    def _beat(self) -> None:
        others = range(1, self.launch.size) if self.launch.rank == 0 else [0]
        beat = 0
        try:
            while not self.is_over.wait(BEAT * bool(beat)):
                self.store.set(f"pulse/{self.launch.rank}", str(beat))
                for rank in others:
                    if self.store.check([f"pulse/{rank}"]):
                        heard = self.store.get(f"pulse/{rank}")
                        if heard != self.heard.get(rank, (b"", 0.0))[0]:
                            self.heard[rank] = heard, time.monotonic()
                beat += 1
        except dist.DistError:  # the launcher is gone, and its store
            self.is_cut_off = True


@cache
def meet() -> Meeting | None:
    """The meeting of this command; None where no launcher started it."""
    launch = find_launch()
    return None if launch is None else Meeting(launch)
