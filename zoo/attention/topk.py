"""Exact top-k attention: each query attends to the keys of its k largest logits.

Memory-efficient Transformers via Top-k Attention, arXiv:2106.06899, section 2:
``out_i = Σ_{j ∈ S_i} softmax_j(q_i k_jᵀ / √D) v_j``, S_i the k keys with the largest q_i k_jᵀ.
Cost: O(N² D) time in forward, O(N k D) in backward; O(N k) memory.

Finding the largest logits takes all N² of them. So forward is slower than fused full attention: the search costs more
than it saves in the product with the values. Backward touches only the chosen keys, so a training step can still be
faster on long inputs. Time still grows as N²; only the memory of the attention weights grows more slowly.

The logits of one chunk of queries exist at a time. Forward gathers the chosen values: a product with a dense (chunk, N)
matrix of weights would take N / k times the operations. Backward does not scatter k rows for each query, which would be
slow. It sorts the choices by key, and each key sums over the queries that chose it: a gather again, in a fixed order.
Forward keeps q, k, v and the indices, as int32, for backward.

On mqar at 64 tokens ``topk`` recalls 100.0, 100.0 and 100.0 % with k = 8 after 1,000 optimizer steps of 64 samples
(learning rate 3e-3, the best of three; three seeds, ``results/cpu-2core/mqar_64``).

Departures from the paper:
- The logits are float32 at least: in half precision they overflow, and rounding makes different keys tie.
- Of equal logits at the k-th place, torch.topk chooses any. Equal tokens have equal keys and equal values, and then the
  choice does not change the output.
- Backward uses the k chosen columns only; the paper's autograd runs the forward of each chunk again.
A query that sees k keys or fewer attends to all of them. Where N <= k the method is full attention, and runs as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.contract import Dims, Kernel, Tensors, Traits, at_least
from zoo.cores.blocks import attend_rows
from zoo.cores.cache import CachedAttention, append
from zoo.functional import accumulator, full_attention, once, sdpa_kernel_name, traced
from zoo.registry import register

BUDGET = 2**22  # numbers in the largest temporary
ROWS = 256  # queries in a chunk of forward


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """k: how many keys a query attends to."""

    k: int = 64

    def __post_init__(self) -> None:
        at_least(1, **{"topk.k": self.k})


@register("topk", config=TopKConfig)
class TopKAttention(CachedAttention):
    """Each query attends to the keys of its k largest logits."""

    traits = Traits(
        family="content sparse",
        source="Gupta et al., arXiv:2106.06899",
        year=2021,
        time="O(N²)",
        memory="O(N·k)",
        causal=True,
        capacity="k",
    )

    def __init__(self, dims: Dims, config: TopKConfig) -> None:
        super().__init__(dims)
        self.config = config

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if q.shape[-2] <= self.config.k:
            return full_attention(q, k, v, key_padding_mask=key_padding_mask, causal=self.causal)
        if traced():
            return self._whole(q, k, v, key_padding_mask)
        out: Tensor = _TopK.apply(q, k, v, key_padding_mask, self.config.k, self.causal)  # type: ignore[no-untyped-call]
        return out

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
        """All N² logits and weights at once, in operations that autograd differentiates."""
        wide = accumulator(q)
        with torch.autocast(q.device.type, enabled=False):
            logits = q.shape[-1] ** -0.5 * q.to(wide) @ k.to(wide).mT
            floor = torch.finfo(wide).min
            if hidden is not None:
                logits = logits.masked_fill(hidden[:, None, None], floor)
            if self.causal:
                place = torch.arange(q.shape[2], device=q.device)
                logits = logits.masked_fill(place > place[:, None], floor)
            values, chosen = largest(logits, self.config.k)
            weights = values.softmax(-1).masked_fill(values == floor, 0)
            dense = torch.zeros_like(logits).scatter(-1, chosen, weights)
            return (dense @ v.to(wide)).to(q.dtype)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        keys, values = append(tensors, (k, v), position, self.max_len)
        seen, wide = position + 1, accumulator(q)
        logits = (q.to(wide) @ keys[:, :, :seen].to(wide).mT)[:, :, 0]  # (B, H, seen)
        _, chosen = largest(logits, min(self.config.k, seen))
        return attend_rows(q, keys, values, chosen), (keys, values)

    def state_size(self, length: int) -> int:
        """The chosen keys and their values, not the keys that the search reads."""
        return 2 * min(self.config.k, length) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        if x.shape[-2] <= self.config.k:
            return sdpa_kernel_name(x, key_padding_mask, causal=self.causal)
        return Kernel("torch.topk on chunks, gathered rows")


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, n_kept: int, causal: bool) -> Tensor:
        B, H, N, D = q.shape
        rows = [_rows(x) for x in (q, k, v)]  # each (B · H · N, D)
        queries, keys = (x.view(B * H, N, D) for x in rows[:2])
        chosen = torch.empty(B * H, N, n_kept, dtype=torch.int32, device=q.device)
        out = torch.empty(B * H, N, D, dtype=rows[2].dtype, device=q.device)
        place = torch.arange(N, device=q.device)
        with torch.autocast(q.device.type, enabled=False):
            for heads, span in _chunks(B * H, N):
                seen = max(span.stop, n_kept) if causal else N
                logits = D**-0.5 * queries[heads, span] @ keys[heads, :seen].mT  # (heads, chunk, seen)
                floor = torch.finfo(logits.dtype).min
                if hidden is not None:
                    sample = torch.arange(heads.start, heads.stop, device=q.device) // H
                    logits.masked_fill_(hidden[sample, None, :seen], floor)
                if causal:
                    logits.masked_fill_(place[:seen] > place[span, None], floor)
                values, index = largest(logits, n_kept)
                unseen = values == floor
                weights = values.softmax(-1).masked_fill_(unseen, 0)
                index += N * torch.arange(heads.start, heads.stop, device=q.device)[:, None, None]
                bags = F.embedding_bag(
                    index.flatten(0, 1), rows[2], per_sample_weights=weights.flatten(0, 1), mode="sum"
                )
                out[heads, span] = bags.view(*index.shape[:2], D)
                chosen[heads, span] = index.masked_fill_(unseen, -1).int()
        ctx.save_for_backward(q, k, v, chosen)
        return out.view(B, H, N, D).to(q.dtype)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, chosen = ctx.saved_tensors
        B, H, N, D = q.shape
        n_kept = chosen.shape[-1]
        chosen = chosen.flatten(0, 1)  # (B · H · N, k)
        queries, grads = _rows(q), _rows(grad)
        dq, dk, dv = (torch.empty_like(queries) for _ in range(3))
        together = N * max(1, BUDGET // (4 * N * n_kept))
        step = max(1, BUDGET // (4 * D * n_kept))
        with torch.autocast(grad.device.type, enabled=False):
            pairs = torch.cat([_rows(k), _rows(v)], dim=-1)  # one gather for a key and its value
            for first in range(0, len(queries), together):
                heads = slice(first, first + together)
                index = chosen[heads]
                weights, ds = (torch.empty(index.shape, dtype=dq.dtype, device=q.device) for _ in range(2))
                for start in range(0, len(index), step):
                    rows = slice(start, start + step)
                    all_rows = slice(first + start, first + min(start + step, len(index)))
                    near = pairs.index_select(0, index[rows].clamp(min=0).flatten())
                    near = near.view(-1, n_kept, 2 * D)
                    keys, values = near[..., :D], near[..., D:]  # (chunk, k, D)
                    unseen = index[rows] < 0
                    logits = D**-0.5 * (queries[all_rows, None] @ keys.mT)[:, 0]
                    logits.masked_fill_(unseen, torch.finfo(logits.dtype).min)
                    weights[rows] = w = logits.softmax(-1).masked_fill_(unseen, 0)
                    dw = (grads[all_rows, None] @ values.mT)[:, 0]
                    ds[rows] = d = D**-0.5 * w * (dw - (w * dw).sum(-1, keepdim=True))
                    dq[all_rows] = (d[:, None] @ keys)[:, 0]
                # Sorted by key, so that each key sums over the queries that chose it.
                by_key, order = (index.clamp(min=first) - first).flatten().sort()
                offsets = torch.searchsorted(by_key, torch.arange(len(index), dtype=by_key.dtype, device=q.device))
                chooser = order // n_kept
                for d, source, factor in ((dk, queries, ds), (dv, grads, weights)):
                    d[heads] = F.embedding_bag(
                        chooser, source[heads], offsets, per_sample_weights=factor.flatten()[order], mode="sum"
                    )
        return *(d.view_as(grad).to(grad.dtype) for d in (dq, dk, dv)), None, None, None


def _rows(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B · H · N, D), contiguous, in float32 at least."""
    return x.to(accumulator(x)).reshape(-1, x.shape[-1]).contiguous()


def _chunks(heads: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of queries, such that the logits of each pair stay within the budget."""
    rows = max(1, min(ROWS, length, BUDGET // length))
    together = max(1, BUDGET // (rows * length))
    for first in range(0, heads, together):
        for start in range(0, length, rows):
            yield slice(first, min(first + together, heads)), slice(start, min(start + rows, length))


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values along the last axis, in any order, and their indices. (…, n) -> two of (…, k).

    torch.topk is slow on long rows. So the first search finds the k groups with the largest maxima: they hold k numbers
    that no number in another group exceeds. The second search finds the k largest in those groups. A group has √(n/k)
    columns, so that both searches are equally short: √(n k).
    """
    n = x.shape[-1]
    width = math.isqrt(n // k)
    if width < 3:
        values, index = x.topk(k, sorted=False)
        return values, index
    groups = n // width
    columns = torch.arange(n, device=x.device)
    # Group j is columns j, j + groups, …: its maximum is taken across rows of memory.
    best = rearrange(x[..., : width * groups], "... (w g) -> ... w g", w=width).amax(-2).topk(k, sorted=False).indices
    index = (best[..., None, :] + groups * columns[:width, None]).flatten(-2)
    index = torch.cat([index, columns[width * groups :].expand(*index.shape[:-1], -1)], dim=-1)
    values, chosen = x.gather(-1, index).topk(k, sorted=False)
    return values, index.gather(-1, chosen)
