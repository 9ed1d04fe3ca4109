"""Softmax attention over a sequence that is split over processes: keys and values go round a ring.

Ring Attention with Blockwise Transformers, arXiv:2310.01889. Every rank keeps its queries. In W steps it sees the keys
and values of all W ranks, each passed on by its neighbour, and joins the results by an online softmax: it carries the
largest logit and the sum of exponentials of each query. Backward sends the keys and values round once more, with their
gradients beside them. So a rank holds two pieces of keys and values at a time. torch's own ring needs the fused
kernels of a GPU and takes no padding mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from zoo.functional import accumulator, once

LOGITS = 2**20  # computed at once on a CPU; more leave the cache
LOGITS_AT_ONCE = 2**26  # the same on other devices


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, mesh: DeviceMesh, *, key_padding_mask: Tensor | None, causal: bool
) -> Tensor:
    """``softmax(q kᵀ / √D) v`` over the whole sequence, of which each rank holds one of equal pieces.

    q, k, v and the result: (B, H, n, D), the own piece; key_padding_mask: (B, n) bool, True = padding. Sums are float32
    at least. A query that sees no key gets 0.
    """
    out: Tensor = _Ring.apply(q, k, v, key_padding_mask, causal, mesh)  # type: ignore[no-untyped-call]
    return out


def _pass_on(x: Tensor, mesh: DeviceMesh) -> Callable[[], Tensor]:
    """Start to send ``x`` to the next rank; the result waits for what the rank before sends."""
    group, rank, ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    if ranks == 1:
        return lambda: x
    x, received = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, x, group=group, group_peer=(rank + 1) % ranks),
            dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % ranks),
        ]
    )

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return received

    return wait


def _rounds(pieces: Tensor, mesh: DeviceMesh) -> Iterator[tuple[int, Tensor]]:
    """The own ``pieces``, then those of the ranks before, each with its rank. The next ones travel meanwhile."""
    rank, ranks = mesh.get_local_rank(), mesh.size()
    for step in range(ranks):
        receive = _pass_on(pieces, mesh) if step + 1 < ranks else None
        yield (rank - step) % ranks, pieces
        if receive is not None:
            pieces = receive()


class _Tiles:
    """The logits of the own queries, a few rows at a time, and the keys of one rank."""

    def __init__(self, q: Tensor, hidden: Tensor | None, causal: bool, mesh: DeviceMesh) -> None:
        self.q, self.causal, self.rank = q, causal, mesh.get_local_rank()
        self.hidden = None if hidden is None else _all_masks(hidden, mesh)[:, :, None, None]
        B, H, n, D = q.shape
        numbers = LOGITS if q.device.type == "cpu" else LOGITS_AT_ONCE
        size = max(1, numbers // max(1, B * H * n))
        self.rows = [slice(first, min(first + size, n)) for first in range(0, n, size)]
        self.scale = D**-0.5

    def of(self, source: int, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of the rows, their queries (scaled) and their logits, (B, H, rows, n); none where all are hidden."""
        if self.causal and source > self.rank:
            return
        place = torch.arange(k.shape[2], device=k.device)
        for at in self.rows:
            q = self.q[:, :, at].to(k.dtype) * self.scale
            logits = q @ k.mT
            if self.hidden is not None:
                logits.masked_fill_(self.hidden[source], -math.inf)
            if self.causal and source == self.rank:
                logits.masked_fill_(place > place[at, None], -math.inf)
            yield at, q, logits


def _all_masks(hidden: Tensor, mesh: DeviceMesh) -> Tensor:
    """The padding masks of all ranks, (W, B, n)."""
    masks = torch.empty(mesh.size(), *hidden.shape, dtype=torch.uint8, device=hidden.device)
    dist.all_gather(list(masks), hidden.to(torch.uint8), group=mesh.get_group())
    return masks.bool()


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, causal: bool, mesh: DeviceMesh
    ) -> Tensor:
        wide = accumulator(q)
        tiles = _Tiles(q, hidden, causal, mesh)
        total = torch.zeros(*v.shape, dtype=wide, device=v.device)
        norm = total.new_zeros(*v.shape[:-1], 1)
        top = torch.full_like(norm, -math.inf)
        with torch.autocast(q.device.type, enabled=False):
            for source, pieces in _rounds(torch.stack([k, v]), mesh):
                key, value = pieces.to(wide)
                for at, _, logits in tiles.of(source, key):
                    before = top[:, :, at].clone()
                    top[:, :, at] = torch.maximum(before, logits.amax(-1, keepdim=True))
                    reference = _finite(top[:, :, at])
                    faded, weights = (before - reference).exp_(), logits.sub_(reference).exp_()
                    norm[:, :, at] = norm[:, :, at] * faded + weights.sum(-1, keepdim=True)
                    total[:, :, at] = total[:, :, at] * faded + weights @ value
            seen = norm > 0
            out = (total / norm.where(seen, 1)).to(v.dtype)
            shift = (_finite(top) + norm.log()).where(seen, 0)  # logarithm of the sum of all exponentials
        ctx.save_for_backward(q, k, v, hidden, out, shift)
        ctx.causal, ctx.mesh = causal, mesh
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, hidden, out, shift = ctx.saved_tensors
        wide, mesh = accumulator(q), ctx.mesh
        tiles = _Tiles(q, hidden, ctx.causal, mesh)
        d_q = torch.zeros_like(q, dtype=wide)
        d_pieces = torch.zeros(2, *k.shape, dtype=wide, device=k.device)  # of the keys and values at hand
        with torch.autocast(q.device.type, enabled=False):
            grad = grad.to(wide)
            own = (grad * out).sum(-1, keepdim=True)
            for source, pieces in _rounds(torch.stack([k, v]), mesh):
                key, value = pieces.to(wide)
                for at, query, logits in tiles.of(source, key):
                    weights = logits.sub_(shift[:, :, at]).exp_()
                    d_pieces[1] += weights.mT @ grad[:, :, at]
                    d_logits = weights.mul_((grad[:, :, at] @ value.mT).sub_(own[:, :, at]))
                    d_q[:, :, at] += d_logits @ key * tiles.scale
                    d_pieces[0] += d_logits.mT @ query
                d_pieces = _pass_on(d_pieces, mesh)()  # after the last round they are home
        return d_q.to(q.dtype), d_pieces[0].to(k.dtype), d_pieces[1].to(v.dtype), None, None, None


def _finite(top: Tensor) -> Tensor:
    """``top``, with 0 for -inf, the largest logit of a query that sees no key."""
    return top.masked_fill(top == -math.inf, 0)
