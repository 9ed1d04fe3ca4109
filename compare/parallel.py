"""How several processes share one run: the words of ``--parallel``, and the runs that cannot be shared."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compare.spec import RunSpec

KINDS = ("data", "shard", "pipeline", "context", "tensor")
"""``data``: each process holds the whole model and trains on its rows of every batch. ``shard``: also, each stores its
part of weights, gradients and optimizer state alone. ``pipeline``: each holds its part of the layers, through which
micro-batches pass. ``context``: each holds its piece of every sequence. ``tensor``: each computes its heads and its
features of the feed-forward of every layer."""
SPLITS = ("pipeline", "context", "tensor")
"""Kinds whose processes take the same samples; the result of each is that of the whole group."""


def sizes_of(parallel: str) -> dict[str, int]:
    """Kind -> number of processes. "data=2" -> {"data": 2}.

    Raises:
        ValueError: the text names no kind, an unknown kind or one twice, kinds that exclude one another, or a number
            below 2; in one line.
    """
    sizes: dict[str, int] = {}
    for part in parallel.split(","):
        kind, equals, number = (word.strip() for word in part.partition("="))
        if not equals or kind not in KINDS or kind in sizes:
            words = ", ".join(f"{kind}=N" for kind in KINDS)
            raise ValueError(f"expected {words}, each at most once, got {parallel!r}")
        if not number.isdecimal() or int(number) < 2:
            raise ValueError(f"expected a number of processes of at least 2 after {kind}=, got {number!r}")
        sizes[kind] = int(number)
    if "shard" in sizes and len(sizes) > 1:
        raise ValueError(f"expected shard=N alone, got {parallel!r}: use data=N beside other kinds")
    if "pipeline" in sizes and "context" in sizes:
        raise ValueError(f"expected pipeline=N without context=N, got {parallel!r}: stages exchange whole sequences")
    return {kind: sizes[kind] for kind in KINDS if kind in sizes}


def read_parallel(text: str) -> str:
    """A valid value of ``RunSpec.parallel``, without spaces, its kinds in the order of ``KINDS``. For argparse."""
    try:
        return ",".join(f"{kind}={size}" for kind, size in sizes_of(text).items())
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def processes_of(parallel: str | None) -> int:
    """The number of processes of a run."""
    return 1 if parallel is None else math.prod(sizes_of(parallel).values())


def split_sizes(parallel: str | None) -> dict[str, int]:
    """Kind -> number of processes, of the kinds whose processes take the same samples."""
    return {} if parallel is None else {kind: n for kind, n in sizes_of(parallel).items() if kind in SPLITS}


def takers(parallel: str | None) -> int:
    """The number of processes that need samples of their own in each batch: those alike in data, and the stages."""
    sizes = {} if parallel is None else sizes_of(parallel)
    return math.prod(n for kind, n in sizes.items() if kind not in ("context", "tensor"))


def is_sharded(parallel: str | None) -> bool:
    return parallel is not None and "shard" in sizes_of(parallel)


def is_staged(parallel: str | None) -> bool:
    return "pipeline" in split_sizes(parallel)


def unable(spec: RunSpec) -> str:
    """Why several processes cannot share a run, in one line; "" where they can, or where it has one process."""
    if spec.parallel is None:
        return ""
    splits, sharded = split_sizes(spec.parallel), is_sharded(spec.parallel)
    tensor, context, stages = (splits.get(kind, 1) for kind in ("tensor", "context", "pipeline"))
    size = processes_of(spec.parallel) // math.prod(splits.values())
    batches = [batch for _, _, batch in spec.phases()]
    smallest, odd = min(batches), next((batch for batch in batches if batch % (size * stages)), None)
    lengths = dict.fromkeys([length for _, length, _ in spec.phases()] + [spec.seq_len, *spec.test_lens])
    uneven = next((length for length in lengths if length % context), None)
    reasons = (
        (spec.decode, "--decode: a step of one token is not shared"),
        (spec.compile, "--compile: what is compiled is the step of one process"),
        (spec.quantize is not None, "--quantize: the quantised copy is of one process"),
        (spec.tune is not None, "--tune, which adds weights while the model trains"),
        (spec.distill != "answers", f"--distill {spec.distill}: its loss is no mean over targets"),
        (
            (sharded or tensor > 1 or stages > 1) and spec.dtype == "float16",
            "--dtype float16: loss scaling sees a part; use bfloat16",
        ),
        (sharded and spec.reversible, "--reversible: backward needs weights that other processes store"),
        (stages > 1 and spec.reversible, "--reversible: its two streams end in one encoder"),
        (stages > 1 and spec.pretrain, "--pretrain: all stages would have to hide the same tokens"),
        (stages > 1 and spec.teacher is not None, "--teacher, which answers whole batches: the last stage has parts"),
        (smallest < size, f"batches of {smallest}: expected a sample for each of {size} processes; raise --batch-size"),
        (
            stages > 1 and odd is not None,
            f"batches of {odd}: expected samples that {size * stages} divides, a micro-batch for each process at least",
        ),
        (spec.n_layers % stages, f"--n-layers {spec.n_layers}: expected layers that {stages} processes divide"),
        (spec.n_heads % tensor, f"--n-heads {spec.n_heads}: expected heads that {tensor} processes divide"),
        (uneven is not None, f"samples of {uneven} tokens: expected a length that {context} processes divide"),
        (context > 1 and spec.pretrain, "--pretrain: all processes of a sequence would have to hide the same tokens"),
    )
    why = next((words for holds, words in reasons if holds), "")
    return why and f"--parallel {spec.parallel} cannot be combined with {why}"
