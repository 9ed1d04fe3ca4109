"""The largest micro-batch that fits into memory: a search in which running out of memory is an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from compare.record import Record
from compare.spec import RunSpec


def fit_batches(
    specs: Sequence[RunSpec], known: Iterable[RunSpec], run: Callable[[RunSpec], Record], say: Callable[[str], None]
) -> tuple[RunSpec, ...]:
    """The specs, each with the largest micro-batch that fits, and as many accumulated as make its batch.

    So all variants take the same samples in each optimizer step. Micro-batches are those that divide the batch. A
    variant of which not even one sample fits keeps one, and its run says so.

    Args:
        specs: the batch of each is ``batch_size``, without accumulation.
        known: finished runs of an interrupted comparison, which goes on with their micro-batches.
        run: does one optimizer step on samples of full length, in a process of its own, and returns its record.
        say: shows a line.
    """
    sizes = {of_memory(spec): spec.batch_size for spec in known}
    fitted = []
    for spec in specs:
        alike = of_memory(spec)
        if alike not in sizes:
            tried = [size for size in range(spec.batch_size, 0, -1) if spec.batch_size % size == 0]
            probes = {size: replace(alike, batch_size=size, accumulate=spec.batch_size // size) for size in tried}
            fits = (size for size, probe in probes.items() if run(probe)["status"] == "ok")
            sizes[alike] = next(fits, 1)
            parts = spec.batch_size // sizes[alike]
            more = f", {parts} accumulated" if parts > 1 else ""
            say(f"micro-batch of {spec.label} · {spec.task} · N {spec.seq_len}: {sizes[alike]}{more}")
        size = sizes[alike]
        fitted.append(replace(spec, batch_size=size, accumulate=spec.batch_size // size))
    return tuple(fitted)


def of_memory(spec: RunSpec) -> RunSpec:
    """One spec for all that need the same memory with the same micro-batch: a probe on the whole batch."""
    rates: dict[str, Any] = {"seed": 0, "lr": 1.0, "weight_decay": 0.0, "search": False, "probe": spec.seq_len}
    return replace(spec, **rates, batch_size=spec.batch_size * spec.accumulate, accumulate=1)
