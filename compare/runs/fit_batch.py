"""The largest micro-batch that fits into memory: a search in which running out of memory is an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from compare.record import Record
from compare.spec import RunSpec


def fit_batches(
    specs: Sequence[RunSpec], run: Callable[[RunSpec], Record], say: Callable[[str], None]
) -> tuple[RunSpec, ...]:
    """The specs, each with the largest micro-batch that fits, and as many accumulated as make its batch.

    So all variants take the same samples in each optimizer step. Micro-batches are those that divide the batch. A
    variant of which not even one sample fits keeps one, and its run says so.

    Args:
        specs: the batch of each is ``batch_size``, without accumulation.
        run: does one optimizer step on samples of full length, in a process of its own, and returns its record.
        say: shows a line.
    """
    sizes: dict[RunSpec, int] = {}
    fitted = []
    for spec in specs:
        alike = replace(spec, seed=0, probe=spec.seq_len)
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
