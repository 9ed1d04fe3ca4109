"""Runs of several processes: the command of each rank starts its own, and all end when one fails.

The command of rank 0 plans, prepares, shows and writes, as a command alone does. Those of the other ranks follow: they
print nothing, and start a fresh process for each job that rank 0 posts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch.distributed as dist

from compare.errors import UsageError
from compare.launch import Launch
from compare.record import Record
from compare.runs import supervisor
from compare.runs.environ import one_gpu
from compare.runs.meeting import Meeting, meet
from compare.runs.options import RunOptions
from compare.runs.outcome import lost_peer
from compare.runs.supervisor import OnEvent, Place
from compare.spec import RunSpec


def run_one(
    spec: RunSpec,
    on_event: OnEvent,
    run_options: RunOptions | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Record:
    """Run one spec, in a fresh process of each rank that shares it, and return its record, whatever the outcome."""
    if spec.parallel is None:
        return supervisor.run_one(spec, on_event, run_options, warn)
    meeting, run_options = meet(), run_options or RunOptions()
    assert meeting is not None, "arguments are checked against the launch"
    try:
        number = meeting.post(f"{spec.to_json()}\n{run_options.to_json()}")
        record = take_part(meeting, number, spec, on_event, run_options, warn)
        if record["status"] == "ok":
            return record
        return record | cause(record, meeting.outcomes(number), meeting.launch.size)
    except dist.DistError as error:
        what = " ".join(str(error).split())
        raise UsageError(f"the launcher ended, and its store with it ({what}); finished runs are kept") from error


def cause(record: Record, outcomes: dict[int, Record], size: int) -> Record:
    """Status and reason of a failed run: those of the first rank that did not fail only because another did.

    Args:
        record: of rank 0. outcomes: of the ranks that reported. size: how many ranks there are.
    """
    if not lost_peer(record):
        return {}
    failed = {rank: each for rank, each in outcomes.items() if each["status"] != "ok" and not lost_peer(each)}
    for rank, each in failed.items():
        return {"status": each["status"], "reason": f"rank {rank}: {each['reason']}"}
    silent = [rank for rank in range(size) if rank not in outcomes]
    return {"reason": f"rank {silent[0]}: its process no longer answers"} if silent else {}


def take_part(
    meeting: Meeting,
    number: int,
    spec: RunSpec,
    on_event: OnEvent,
    run_options: RunOptions,
    warn: Callable[[str], None] = lambda _: None,
) -> Record:
    """Run this command's process of a job, report how it ended, and return its record."""
    own_gpu = one_gpu(meeting.launch.local_rank) if spec.device == "cuda" else {}
    place = Place(meeting.seat(number), own_gpu, partial(meeting.watch, number))
    record = supervisor.run_one(spec, on_event, run_options, warn, place)
    meeting.report(number, record)
    return record


@contextmanager
def leading() -> Iterator[None]:
    """The context of everything that rank 0 does: afterwards the other ranks go, whatever happened."""
    meeting = meet()
    try:
        yield
    finally:
        if meeting is not None:
            meeting.end()


def follow(launch: Launch) -> int:
    """Take part in the jobs of rank 0 until it ends the comparison; return the exit code."""
    try:
        meeting = Meeting(launch)
        number = 0
        while (message := meeting.next(number)) is not None:
            first, second = message.splitlines()
            spec, run_options = RunSpec.from_json(first), RunOptions.from_json(second)
            take_part(meeting, number, spec, lambda _: None, replace(run_options, timeout=None))  # rank 0's clock rules
            number += 1
        meeting.leave()
    except KeyboardInterrupt:
        return 130
    except dist.DistError as error:
        print(f"error: rank {launch.rank} lost the launcher: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if meeting.lost():
        print(f"error: rank {launch.rank} no longer hears rank 0, and ends", file=sys.stderr)
        return 1
    return 0
