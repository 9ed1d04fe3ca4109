"""Reversible residual layers: backward computes a layer's input again from its output, so activations are not kept.

Two streams in place of one (Reformer, arXiv:2001.04451, section 3; RevNet, arXiv:1707.04585, section 3):
``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)``, where f is the attention and g the feed-forward, each after its norm. So
``x2 = y2 - g(y1)`` and ``x1 = y1 - f(x2)``, and of a stack of any depth the last two streams are kept alone (beside the
state of the random generator, 5 KB a sublayer). The price is one more forward, as with gradient checkpointing.

Both streams begin as the embedding, and the result is their mean (the Reformer's code joins them side by side, which
asks for a wider head): without layers it is the embedding, and after a norm it is as good as the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.functional import AsFound, once


@dataclass(frozen=True)
class Branch:
    """What a sublayer adds to one stream, given the other: ``run``, which uses these modules."""

    run: Callable[[Tensor], Tensor]
    modules: tuple[nn.Module, ...]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules for p in module.parameters() if p.requires_grad]


def two_streams(branches: Sequence[Branch], x: Tensor) -> Tensor:
    """``a, b = b, a + run(b)`` for one branch after another, from ``a = b = x`` on; returns the mean of a and b."""
    parameters = [p for branch in branches for p in branch.parameters]
    a, b = _Reversible.apply(branches, x, *parameters)  # type: ignore[no-untyped-call]
    mean: Tensor = (a + b) / 2
    return mean


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branches: Sequence[Branch], x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        device = x.device.type
        ctx.autocast = partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,  # in older torch it hands weights that were cast here, without a graph, to backward
        )
        ctx.branches, ctx.replays = branches, []
        a = b = x
        with ctx.autocast():
            for branch in branches:
                ctx.replays.append(_replay(branch, x.device))
                a, b = b, a + branch.run(b)
        ctx.save_for_backward(a, b, *parameters)  # the parameters, so that a change of them before backward is told
        return a, b

    @staticmethod
    @once
    def backward(ctx: Any, d_a: Tensor, d_b: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *_ = ctx.saved_tensors
        d_parameters: list[Tensor | None] = []
        for branch, replay in zip(reversed(ctx.branches), reversed(ctx.replays), strict=True):
            with replay(), ctx.autocast(), torch.enable_grad():
                leaf = a.detach().requires_grad_()
                added = branch.run(leaf.view_as(leaf))  # a module's hooks, as those that count FLOPs, refuse a leaf
            leaves = [leaf, *branch.parameters]
            d_leaf, *found = torch.autograd.grad(added, leaves, d_b.to(added.dtype), allow_unused=True)
            a, b = b - added, a
            d_a, d_b = d_b, d_a + d_leaf
            d_parameters = [*found, *d_parameters]
        return None, d_a + d_b, *d_parameters


def _replay(branch: Branch, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context in which ``branch`` finds random generators and backends' state as they are now."""
    devices = [device] if device.type == "cuda" else []
    state = AsFound(*branch.modules)
    cpu, others = torch.get_rng_state(), [torch.cuda.get_rng_state(other) for other in devices]

    @contextmanager
    def replay() -> Iterator[None]:
        with torch.random.fork_rng(devices), state:
            torch.set_rng_state(cpu)
            for other, before in zip(devices, others, strict=True):
                torch.cuda.set_rng_state(before, other)
            yield

    return replay
