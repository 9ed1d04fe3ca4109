"""How several processes share one run: the words of ``--parallel``, and the runs that cannot be shared."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compare.spec import RunSpec

KINDS = ("data", "shard")
"""``data``: each process holds the whole model and trains on its rows of every batch. ``shard``: also, each stores only
its part of weights, gradients and optimizer state."""


def sizes_of(parallel: str) -> dict[str, int]:
    """Kind -> number of processes. "data=2" -> {"data": 2}.

    Raises:
        ValueError: the text names no kind, an unknown kind or one twice, or a number below 2; in one line.
    """
    sizes: dict[str, int] = {}
    for part in parallel.split(","):
        kind, equals, number = (word.strip() for word in part.partition("="))
        if not equals or kind not in KINDS or kind in sizes:
            raise ValueError(f"expected one of {', '.join(f'{kind}=N' for kind in KINDS)}, got {parallel!r}")
        if not number.isdecimal() or int(number) < 2:
            raise ValueError(f"expected a number of processes of at least 2 after {kind}=, got {number!r}")
        sizes[kind] = int(number)
    if len(sizes) > 1:
        raise ValueError(f"expected one kind ({' or '.join(KINDS)}), got {parallel!r}")
    return sizes


def read_parallel(text: str) -> str:
    """A valid value of ``RunSpec.parallel``, without spaces. For argparse."""
    try:
        return ",".join(f"{kind}={size}" for kind, size in sizes_of(text).items())
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def processes_of(parallel: str | None) -> int:
    """The number of processes of a run."""
    return 1 if parallel is None else math.prod(sizes_of(parallel).values())


def is_sharded(parallel: str | None) -> bool:
    return parallel is not None and "shard" in sizes_of(parallel)


def unable(spec: RunSpec) -> str:
    """Why several processes cannot share a run, in one line; "" where they can, or where it has one process."""
    if spec.parallel is None:
        return ""
    size, smallest = processes_of(spec.parallel), min(batch for _, _, batch in spec.phases())
    sharded = is_sharded(spec.parallel)
    reasons = (
        (spec.decode, "--decode: a step of one token is not shared"),
        (spec.compile, "--compile: what is compiled is the step of one process"),
        (spec.quantize is not None, "--quantize: the quantised copy is of one process"),
        (spec.tune is not None, "--tune, which adds weights while the model trains"),
        (spec.distill != "answers", f"--distill {spec.distill}: its loss is no mean over targets"),
        (sharded and spec.dtype == "float16", "--dtype float16: loss scaling sees a part; use bfloat16"),
        (sharded and spec.reversible, "--reversible: backward needs weights that other processes store"),
        (smallest < size, f"batches of {smallest}: expected a sample for each of {size} processes; raise --batch-size"),
    )
    why = next((words for holds, words in reasons if holds), "")
    return why and f"--parallel {spec.parallel} cannot be combined with {why}"
