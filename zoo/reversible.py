"""Reversible residual layers: backward recomputes a layer's input from its output, so no activations are kept.

Two streams replace one (Reformer, arXiv:2001.04451, section 3; RevNet, arXiv:1707.04585, section 3):
``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)``, where f is the attention and g the feed-forward, each after its norm. So
``x2 = y2 - g(y1)`` and ``x1 = y1 - f(x2)``: a stack of any depth keeps only the last two streams (and the state of the
random generator, 5 KB a sublayer). The price is one more forward, as with gradient checkpointing.

Both streams begin as the embedding, and the result is their mean: without layers the embedding, and after a norm as
good as the sum. (The Reformer's code concatenates the streams, which needs a wider head.)

Layers are called as in a plain encoder. Each sublayer is an autograd function that keeps nothing: its backward takes
both streams from the sublayer after it, and passes them to the one before (``Streams``). If a hook replaces a layer's
result, backward still needs the original result, so that result is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.functional import Calls, RestoreBuffers, as_function, once

Pair = tuple[Tensor, Tensor]
Replay = Callable[[], AbstractContextManager[None]]


class Streams:
    """The two streams of one forward pass, to which branches add in turn: ``a, b = b, add(a, b, branch)``."""

    def __init__(self) -> None:
        self.count = 0  # number of branches so far
        self.last: tuple[Pair, tuple[int, int]] | None = None  # the streams after the last branch, and their versions
        self.kept: dict[int, Pair] = {}  # the streams after a branch, if the next branch got others
        self.recomputed: tuple[int, Pair] | None = None  # in backward: the streams after that branch

    def add(self, a: Tensor, b: Tensor, branch: Calls) -> Tensor:
        """``a + branch(b)``. (B, N, C) each."""
        if not torch.is_grad_enabled():
            total: Tensor = a + branch(b)
            return total
        self._handed_on(a, b)
        function, learned = as_function(branch)
        replay = _replay(branch, b.device)
        out: Tensor = _Add.apply(self, self.count, function, replay, a, b, *learned)  # type: ignore[no-untyped-call]
        self.count += 1
        self.last = (b.detach(), out.detach()), (b._version, out._version)
        return out

    def mean(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean of both streams, the encoder's result before its norm."""
        if not torch.is_grad_enabled() or not self._handed_on(a, b):
            return (a + b) / 2
        self.last = None
        mean: Tensor = _Mean.apply(self, a, b)  # type: ignore[no-untyped-call]
        return mean

    def _handed_on(self, a: Tensor, b: Tensor) -> bool:
        """Whether a and b are the streams after the last branch. If not, those streams are kept."""
        if self.last is None:
            return False
        after, versions = self.last
        if versions != tuple(x._version for x in after):
            raise ValueError(
                "a hook changed a reversible layer's result in place, but backward needs it: return a new tensor"
            )
        same = all(x.data_ptr() == y.data_ptr() and x.shape == y.shape for x, y in zip(after, (a, b), strict=True))
        if not same:
            self.kept[self.count - 1] = after
        return same

    def after(self, number: int) -> Pair:
        """In backward: the streams after branch ``number``."""
        if number in self.kept:
            return self.kept[number]
        if self.recomputed is None or self.recomputed[0] != number:
            raise RuntimeError(
                "backward through reversible layers begins at the encoder's result, which this loss does not use: "
                "for a loss on the results of layers, build without reversible=True"
            )
        return self.recomputed[1]


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, streams: Streams, number: int, function: Callable[..., Tensor], replay: Replay, a: Tensor, b: Tensor,
        *learned: Tensor,
    ) -> Tensor:  # fmt: skip
        device = b.device.type
        ctx.autocast = partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,  # older torch would give backward the weights cast here, without a graph
        )
        ctx.streams, ctx.number, ctx.function, ctx.replay = streams, number, function, replay
        ctx.save_for_backward(*learned)  # so that autograd reports a change before backward
        with ctx.autocast():
            return a + function(b, *learned)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        b, out = ctx.streams.after(ctx.number)
        learned = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with ctx.replay(), ctx.autocast(), torch.enable_grad():
            leaf = b.detach().requires_grad_()
            # A view: hooks, as those that count FLOPs, raise on a leaf.
            added = ctx.function(leaf.view_as(leaf), *learned)
        if added.requires_grad:
            torch.autograd.backward(added, grad.to(added.dtype))  # not .grad: tensors of hooks get gradients too
        with torch.no_grad():
            ctx.streams.recomputed = (ctx.number - 1, (out - added, b)) if ctx.number else None
        return None, None, None, None, grad, leaf.grad, *(x.grad for x in learned)


class _Mean(torch.autograd.Function):
    """The mean of both streams. It keeps them: backward starts from them."""

    @staticmethod
    def forward(ctx: Any, streams: Streams, a: Tensor, b: Tensor) -> Tensor:
        ctx.streams = streams
        ctx.save_for_backward(a, b)
        return (a + b) / 2

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.streams.recomputed = ctx.streams.count - 1, ctx.saved_tensors
        return None, grad / 2, grad / 2


def _replay(branch: Calls, device: torch.device) -> Replay:
    """A context that replays ``branch`` with today's random states and backends' buffers."""
    devices = [device] if device.type == "cuda" else []
    buffers = RestoreBuffers(branch)
    cpu, others = torch.get_rng_state(), [torch.cuda.get_rng_state(other) for other in devices]

    @contextmanager
    def replay() -> Iterator[None]:
        with torch.random.fork_rng(devices), buffers:
            torch.set_rng_state(cpu)
            for other, before in zip(devices, others, strict=True):
                torch.cuda.set_rng_state(before, other)
            yield

    return replay
