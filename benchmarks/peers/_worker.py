"""One measurement in a process of its own: a Job as JSON on stdin, events as JSON lines on stdout.

Events: ``{"phase": …}`` while it works, at the end ``{"row": {…}}``.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from compare.worker import PR_SET_PDEATHSIG, Events, explain, limit_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.peers import Pair

Row = dict[str, Any]
D_MODEL, N_HEADS = 256, 4
LEAST_ROUNDS, LEAST_ROUNDS_FULL, MOST_ROUNDS = 6, 3, 50
SECONDS = 5.0  # of timing, once the least number of rounds is done
TIMEOUT = 300.0


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        what: ``time`` (compare, then time a pair), ``memory`` (peak of one side of it), ``full`` (time against full).
        subject: the adapter's module; for ``full`` the backend's name.
        index: which of the adapter's pairs.
        side: ``ours`` or ``theirs``, for ``memory``.
        rounds: how many to time; None to let the time decide.
    """

    what: str
    subject: str
    length: int
    index: int = 0
    side: str = ""
    rounds: int | None = None


def main() -> None:
    events = Events(os.fdopen(os.dup(1), "w"))  # only events go to the parent's pipe
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    job = Job(**json.loads(sys.stdin.read()))
    limit_memory()
    row: Row = {"status": "ok", "reason": "", "side": ""}
    work = {"time": compare_and_time, "memory": peak, "full": time_against_full}[job.what]
    try:
        work(job, row, lambda phase: events.send({"phase": phase}))
    except Exception as error:
        row["status"], row["reason"] = explain(error)
        if "cuda" in row["reason"].lower():
            row["status"] = "unsupported"
    events.send({"row": row})


class Worker:
    """A fresh Python that does a job; leaving the context ends it."""

    def __init__(self, job: Job) -> None:
        self.stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed on exit)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends the worker
        )
        self.too_long = threading.Timer(TIMEOUT, self.process.kill)
        self.too_long.start()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; its exit says why
            self.process.stdin.write(json.dumps(asdict(job)))
            self.process.stdin.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.too_long.cancel()
        self.process.kill()
        self.process.wait()
        self.stderr.close()

    def row(self, on_phase: Callable[[str], None] | None = None) -> Row:
        """Wait for the end; a row comes back whatever becomes of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if "row" in event:
                return dict(event["row"])
            if on_phase is not None:
                on_phase(event["phase"])
        code = self.process.wait()
        if not self.too_long.is_alive():
            return {"status": "timeout", "reason": f"took longer than {TIMEOUT:.0f} s", "side": ""}
        if code == -signal.SIGKILL:
            return {"status": "oom", "reason": "killed by the system, most likely out of memory", "side": ""}
        self.stderr.seek(0)
        last = next((line.strip() for line in reversed(self.stderr.readlines()) if line.strip()), "no output")
        return {"status": "error", "reason": f"exit {code}: {last}", "side": ""}


def build(job: Job) -> list[Pair]:
    import torch

    torch.manual_seed(0)
    pairs: list[Pair] = importlib.import_module(job.subject).pair(d_model=D_MODEL, n_heads=N_HEADS, length=job.length)
    return pairs


def compare_and_time(job: Job, row: Row, say: Callable[[str], None]) -> None:
    """Only layers that agree are timed."""
    from compare.measure import saved_bytes

    say("loading")
    pairs = build(job)
    pair = pairs[job.index]
    row |= {
        "pairs": len(pairs),
        "package": pair.package,
        "version": version(pair.package),
        "setting": pair.setting,
        "tolerance": pair.tolerance,
        "why": pair.why,
    }
    say("comparing")
    results, steps = [], []
    for side, layer in (("ours", pair.ours), ("theirs", pair.theirs)):
        with blame(row, side):
            results.append(output_and_gradient(layer, job.length))
            row[f"{side}_saved_bytes"] = saved_bytes(partial(layer, example(job.length)), layer)
            steps.append(step_of(layer, job.length))
    errors = {
        name: relative_difference(*both)
        for name, both in zip(("output", "gradient"), zip(*results, strict=True), strict=True)
    }
    row |= {f"{name}_difference": error for name, error in errors.items()}
    far = {name: error for name, error in errors.items() if error is None or error > pair.tolerance}
    if far:
        row["status"] = "differs"
        told = (f"{name} by {'NaN' if error is None else f'{error:.2g}'}" for name, error in far.items())
        row["reason"] = f"{' and '.join(told)}, tolerance {pair.tolerance:.2g}"
        return
    results.clear()
    ours, theirs = steps
    row |= time_in_turn(ours, theirs, LEAST_ROUNDS, job.rounds, say)


def time_against_full(job: Job, row: Row, say: Callable[[str], None]) -> None:
    from zoo import MultiHeadAttention

    say("loading")
    steps = []
    for side, attention in (("ours", job.subject), ("theirs", "full")):
        with blame(row, side):
            layer = MultiHeadAttention(attention, d_model=D_MODEL, n_heads=N_HEADS, max_len=job.length)
            steps.append(step_of(layer, job.length))
            steps[-1]()
    ours, full = steps
    row |= time_in_turn(ours, full, LEAST_ROUNDS_FULL, job.rounds, say)


def peak(job: Job, row: Row, say: Callable[[str], None]) -> None:
    """Peak of one step of one side: the median of up to three."""
    import torch

    from compare.measure import peak_memory

    say("loading")
    layer = getattr(build(job)[job.index], job.side)
    say(f"memory of {job.side}")
    with blame(row, job.side):
        step = step_of(layer, job.length)
        step()
        peaks: list[int] = []
        start = time.perf_counter()
        while len(peaks) < 3 and (not peaks or time.perf_counter() - start < 2):
            taken = peak_memory(step, torch.device("cpu"))
            if taken is None:
                return
            peaks.append(taken)
    row[f"{job.side}_peak_bytes"] = int(statistics.median(peaks))


def time_in_turn(
    ours: Callable[[], None], theirs: Callable[[], None], least: int, rounds: int | None, say: Callable[[str], None]
) -> Row:
    """Time two steps that have run before in turn: ours, theirs, theirs, ours … A round is one of each."""
    import torch

    took: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(took) < (rounds or least) or (
        rounds is None and len(took) < MOST_ROUNDS and time.perf_counter() - start < SECONDS
    ):
        say(f"timing, round {len(took) + 1}")
        if len(took) % 2:
            second, first = clock(theirs), clock(ours)
        else:
            first, second = clock(ours), clock(theirs)
        took.append((first, second))
    return {
        "rounds": len(took),
        "threads": torch.get_num_threads(),
        "ours_ms": spread([1e3 * a for a, _ in took]),
        "theirs_ms": spread([1e3 * b for _, b in took]),
        "time_ratio": spread([a / b for a, b in took]),
    }


def clock(fn: Callable[[], None]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def example(length: int) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, length, D_MODEL, generator=generator).requires_grad_()


def step_of(layer: nn.Module, length: int) -> Callable[[], None]:
    """Forward and backward of the whole layer; the gradients are made anew in each step."""
    import torch

    x = example(length)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def step() -> None:
        layer(x).backward(grad)
        x.grad = None
        layer.zero_grad()

    return step


def output_and_gradient(layer: nn.Module, length: int) -> tuple[Tensor, Tensor]:
    import torch

    x = example(length)
    y = layer(x)
    y.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    assert x.grad is not None
    return y.detach(), x.grad


def relative_difference(x: Tensor, reference: Tensor) -> float | None:
    """In the L2 norm; None where it is no number."""
    error = ((x - reference).double().norm() / reference.double().norm()).item()
    return error if error < float("inf") else None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def blame(row: Row, side: str) -> Iterator[None]:
    """Let the row say which side failed."""
    try:
        yield
    except Exception:
        row["side"] = side
        raise


if __name__ == "__main__":
    main()
