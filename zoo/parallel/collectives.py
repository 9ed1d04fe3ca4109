"""Communication between the pieces of one sequence, with gradients.

Rank r of a mesh of W ranks holds positions r · n to (r + 1) · n - 1. The loss that is differentiated is the sum of the
losses of all ranks. Backward communicates too: all ranks must make the same calls, and use every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from zoo.functional import once


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        pieces = x.new_empty(mesh.size(), *x.shape)
        dist.all_gather(list(pieces), x.contiguous(), group=mesh.get_group())
        return pieces

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty(grad.shape[1:])
        dist.reduce_scatter(own, list(grad.contiguous()), group=ctx.mesh.get_group())
        return own, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, received: Sequence[int], sent: Sequence[int], mesh: DeviceMesh) -> Tensor:
        ctx.received, ctx.sent, ctx.mesh = received, sent, mesh
        return _exchanged(x, received, sent, mesh)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grad, ctx.sent, ctx.received, ctx.mesh), None, None, None


def _exchanged(x: Tensor, received: Sequence[int], sent: Sequence[int], mesh: DeviceMesh) -> Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), list(received), list(sent), group=mesh.get_group())
    return out


def check_mesh(mesh: DeviceMesh) -> None:
    """Raise ValueError unless the mesh has one dimension."""
    if mesh.ndim != 1:
        raise ValueError(f"expected a mesh of one dimension, got {mesh.ndim}: take one by its name, as mesh['data']")


def gather(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """What each rank holds, x (…), on all ranks: (W, …)."""
    pieces: Tensor = _Gather.apply(x, mesh)  # type: ignore[no-untyped-call]
    return pieces


def widen(x: Tensor, reach: tuple[int, int], mesh: DeviceMesh, dim: int) -> Tensor:
    """The own piece with the ``reach[0]`` positions before it and the ``reach[1]`` after it, as far as there are any.

    Positions come from as many neighbours as hold them. dim: that of the positions.
    """
    rank, n = mesh.get_local_rank(), x.shape[dim]

    def overlap(asking: int, holding: int) -> tuple[int, int]:
        """First and last (exclusive) position that ``asking`` needs of ``holding``, counted from its piece's start."""
        start = (asking - holding) * n
        first, last = max(0, start - reach[0]), min(n, start + n + reach[1])
        return first, max(first, last)

    x = x.movedim(dim, 0)
    sent = [overlap(other, rank) for other in range(mesh.size())]
    received = [last - first for first, last in (overlap(rank, other) for other in range(mesh.size()))]
    pieces = torch.cat([x[first:last] for first, last in sent])
    wide: Tensor = _Exchange.apply(pieces, received, [last - first for first, last in sent], mesh)  # type: ignore[no-untyped-call]
    return wide.movedim(0, dim)


def before(keeps: Tensor, writes: Tensor, mesh: DeviceMesh, *, reverse: bool = False) -> Tensor:
    """The state before the own piece, if a piece turns a state S into ``keeps @ S + writes``, and the first S is 0.

    keeps: (…, M, M), or (…, 1, 1) for factors; writes and the result: (…, M, D). reverse: from the last rank on.
    """
    state, states = torch.zeros_like(writes), []
    pieces = list(zip(gather(keeps, mesh), gather(writes, mesh), strict=True))
    for kept, written in reversed(pieces) if reverse else pieces:
        states.append(state)
        state = (kept @ state if kept.shape[-1] > 1 else kept * state) + written
    if reverse:
        states.reverse()
    return torch.stack([*states, state])[mesh.get_local_rank()]  # of all: gather's backward must run on every rank
