"""One measurement in a process of its own: a Job as JSON on stdin, events as JSON lines on stdout.

Events: ``{"phase": …}`` during the work, ``{"row": {…}}`` at the end.
"""

from __future__ import annotations

import importlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from compare.runs.child import limit_memory, settle_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.peers import Pair

Row = dict[str, Any]
MODES = ("train", "forward", "inference")
"""What is timed: forward and backward; the forward of a training, which saves for the backward; evaluation."""
LEAST_ROUNDS, LEAST_ROUNDS_FULL, MOST_ROUNDS = 6, 3, 50
SECONDS = 3.0  # of timing of a mode, beyond the least number of rounds


class Shape(NamedTuple):
    """Of the input of a layer, with its number of heads."""

    batch: int
    length: int
    d_model: int
    n_heads: int

    def __str__(self) -> str:
        return f"{self.batch} × {self.length:,} × {self.d_model}, {self.n_heads} heads"


@dataclass(frozen=True)
class Job:
    """The work of one process.

    Attributes:
        what: ``time`` (compare, then time a pair), ``memory`` (peak of one side), ``full`` (time against full).
        subject: the adapter's module; for ``full`` the backend's name.
        shape: a `Shape`, or the list that JSON makes of one.
        dtype: ``float32``, or the autocast type ``bfloat16``.
        index: the index among the adapter's pairs.
        side: ``ours`` or ``theirs``, for ``memory``.
        rounds: number of timed rounds; None = as many as fit the time.
    """

    what: str
    subject: str
    shape: Sequence[int]
    dtype: str = "float32"
    index: int = 0
    side: str = ""
    rounds: int | None = None


def main() -> None:
    events = settle_in()
    logging.disable(logging.WARNING)
    job = Job(**json.loads(sys.stdin.read()))
    limit_memory()
    from compare.runs.outcome import explain  # imports torch, so only after the limit is set

    row: Row = {"status": "ok", "reason": "", "side": ""}
    work = {"time": compare_and_time, "memory": peak, "full": time_against_full}[job.what]
    try:
        work(job, row, lambda phase: events.send({"phase": phase}))
    except Exception as error:
        row["status"], row["reason"] = explain(error)
        if "cuda" in row["reason"].lower():
            row["status"] = "unsupported"
    events.send({"row": row})


def build(job: Job) -> list[Pair]:
    import torch

    torch.manual_seed(0)
    shape = Shape(*job.shape)
    adapter = importlib.import_module(job.subject)
    pairs: list[Pair] = adapter.pair(d_model=shape.d_model, n_heads=shape.n_heads, length=shape.length)
    return pairs


def compare_and_time(job: Job, row: Row, say: Callable[[str], None]) -> None:
    """Compare the two layers of a pair, then time them if they agree."""
    from compare.runs.measure import saved_bytes

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
    results, sides = [], (("ours", pair.ours), ("theirs", pair.theirs))
    for side, layer in sides:
        with blame(row, side):
            results.append(output_and_gradient(layer, job))
            with autocast(job):
                row[f"{side}_saved_bytes"] = saved_bytes(partial(layer, example(job)), layer)
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
    times = {}
    for mode in MODES:
        steps = []
        for side, layer in sides:
            with blame(row, side):
                steps.append(step_of(layer, job, mode))
                steps[-1]()
        times[mode] = time_in_turn(*steps, LEAST_ROUNDS, job.rounds, lambda phase, mode=mode: say(f"{mode}, {phase}"))
    row["times"] = times


def time_against_full(job: Job, row: Row, say: Callable[[str], None]) -> None:
    from zoo import MultiHeadAttention

    say("loading")
    shape, steps = Shape(*job.shape), []
    for side, attention in (("ours", job.subject), ("theirs", "full")):
        with blame(row, side):
            layer = MultiHeadAttention(attention, d_model=shape.d_model, n_heads=shape.n_heads, max_len=shape.length)
            steps.append(step_of(layer, job, "train"))
            steps[-1]()
    row["times"] = {"train": time_in_turn(*steps, LEAST_ROUNDS_FULL, job.rounds, say)}


def peak(job: Job, row: Row, say: Callable[[str], None]) -> None:
    """The peak memory of a step of one side: the median of up to three steps."""
    import torch

    from compare.runs.measure import peak_memory

    say("loading")
    layer = getattr(build(job)[job.index], job.side)
    say(f"memory of {job.side}")
    with blame(row, job.side):
        step = step_of(layer, job, "train")
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
    """Time two warm steps in turn: ours, theirs, theirs, ours … A round is one of each."""
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


def example(job: Job) -> Tensor:
    import torch

    shape = Shape(*job.shape)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape.batch, shape.length, shape.d_model, generator=generator).requires_grad_()


def autocast(job: Job) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", getattr(torch, job.dtype), enabled=job.dtype != "float32")


def step_of(layer: nn.Module, job: Job, mode: str) -> Callable[[], None]:
    """One of `MODES` of the whole layer; each training step makes new gradients."""
    import torch

    x = example(job)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def train() -> None:
        with autocast(job):
            y = layer(x)
        y.backward(grad.to(y.dtype))
        x.grad = None
        layer.zero_grad()

    def forward() -> None:
        layer.train(mode == "forward")
        with autocast(job):
            layer(x)

    return {"train": train, "forward": forward, "inference": torch.no_grad()(forward)}[mode]


def output_and_gradient(layer: nn.Module, job: Job) -> tuple[Tensor, Tensor]:
    """In float32, whatever is timed: rounding would move a token to another bucket."""
    import torch

    x = example(job)
    y = layer(x)
    y.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    assert x.grad is not None
    return y.detach(), x.grad


def relative_difference(x: Tensor, reference: Tensor) -> float | None:
    """The relative difference in the L2 norm; None if it is not finite."""
    error = ((x - reference).double().norm() / reference.double().norm()).item()
    return error if error < float("inf") else None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def blame(row: Row, side: str) -> Iterator[None]:
    """Store in the row which side failed."""
    try:
        yield
    except Exception:
        row["side"] = side
        raise
