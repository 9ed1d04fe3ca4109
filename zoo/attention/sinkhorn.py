"""Sinkhorn attention: each bucket attends to itself and to the bucket that a learned sort moves next to it.

Sparse Sinkhorn Attention, arXiv:2002.11296, sections 3.1 to 3.3. Positions are cut into buckets of S. A sorting network
scores every bucket u against every bucket v. Sinkhorn normalisation, rows and columns in turn, makes the scores a
(nearly) doubly stochastic R. A query of bucket u attends to the keys of its own bucket and to the sorted keys:
``out_u = softmax(q_u [R_u K; K_u]ᵀ / √D) [R_u V; V_u]`` with ``R_u K = Σ_v R_uv K_v``, offset by offset in a bucket.
With ``sort="top"`` R_u is a softmax over v, of which only the largest entry is kept, with its weight.
Cost: O(N S D) time for attention. The soft sort mixes whole buckets, O(N² D / S): quadratic with a small factor, as
much as the attention itself at N = 2 S², 8,192 for S = 64. The top sort moves each bucket once. Memory: O(N D), and
(N / S)² for R, whose iterations backward computes again.

Departures from the paper:
- The sorting network is the scaled product of the mean query of u and the mean key of v, as in the public package.
  The paper learns a map from a bucket's sum to bucket numbers, which ties the map to one length.
- The scores are ``log(relu(score) + 1e-6) / temperature``, as in that package. There is no Gumbel noise: evaluation
  and training are deterministic.
- Only real positions enter the means and the mixtures; buckets of padding alone take no part in the sort.
Causal form (section 3.3): the descriptor of a query bucket is the mean over all queries up to its first position, only
earlier buckets may be sorted in, and columns are normalised by the sum over the rows so far. So nothing from later
buckets reaches R_u. The first bucket sees itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.contract import Attention, Dims, Kernel, Tensors, Traits, at_least, one_of
from zoo.cores.cache import append, empty, fill, room
from zoo.cores.parts import HIDDEN
from zoo.functional import accumulator, once, pad_to_multiple, recompute, sdpa_kernel_name, softmax_attention, traced
from zoo.registry import register

FLOOR = 1e-6  # added to a score before its logarithm


@dataclass(frozen=True, kw_only=True)
class SinkhornConfig:
    """bucket_size: S, positions in a bucket.
    sort: ``soft`` (every bucket receives a mixture of buckets, as in the paper) or ``top`` (only the best one).
    iterations: rounds of row and column normalisation of the soft sort.
    temperature: divides the scores; the lower, the closer R is to a permutation.
    """

    bucket_size: int = 64
    sort: str = "soft"
    iterations: int = 7
    temperature: float = 0.75

    def __post_init__(self) -> None:
        at_least(1, **{"sinkhorn.bucket_size": self.bucket_size, "sinkhorn.iterations": self.iterations})
        one_of("sinkhorn.sort", self.sort, ("soft", "top"))
        if not self.temperature > 0:
            raise ValueError(f"sinkhorn.temperature must be above 0, got {self.temperature!r}")


@register("sinkhorn", config=SinkhornConfig)
class SinkhornAttention(Attention):
    """Each bucket of positions attends to itself and to what a learned sort moves beside it."""

    traits = Traits(
        family="content sparse",
        source="Tay et al., arXiv:2002.11296",
        year=2020,
        time="O(N·S), soft sort O(N²/S)",
        memory="O(N)",
        causal=True,
        capacity="bucket_size",
        subquadratic=True,
        reads_queries=True,
    )

    def __init__(self, dims: Dims, config: SinkhornConfig) -> None:
        super().__init__(dims)
        self.config = config
        self.size = min(config.bucket_size, dims.max_len)
        self.buckets = -(-dims.max_len // self.size)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return self._forward(q, k, v, key_padding_mask)[0]

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result (B, H, N, D), and the keys and values that each bucket sees, as ``_attend`` returns them."""
        N = q.shape[2]
        size = min(self.config.bucket_size, N)
        real = None if key_padding_mask is None else ~key_padding_mask
        if N % size and real is None:
            real = torch.ones(q.shape[0], N, dtype=torch.bool, device=q.device)
        if real is not None:
            real = rearrange(pad_to_multiple(real[..., None], size, -2), "b (n s) 1 -> b n s", s=size)
        with torch.autocast(q.device.type, enabled=False):
            return self._attend(q, k.to(q.dtype), v, real, size)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v and the result: (b, h, N, D); real: (b, n, S) bool, None = all.

        Also returns keys and values, (b h, n, 2 S, D): for each bucket those sorted to it, then its own.
        """
        b, h, N, D = q.shape
        q, k, v = (pad_to_multiple(x, size, -2).reshape(b, h, -(-N // size), size, D) for x in (q, k, v))
        if real is not None:
            q, k, v = (x.masked_fill(~real[:, None, ..., None], 0) for x in (q, k, v))
        allowed = self._allowed(real, q.shape[2], q.device)
        scores = self._scores(q, k, real)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (b h, n, S, D)
        if self.config.sort == "soft":
            weights = recompute(lambda scores: self._balance(scores, allowed), scores).flatten(0, 1)
            keys, values = (beside_mixture(x, weights) for x in (k, v))
            seen = self._mixture_seen(allowed, real)
        else:
            weight, best, seen = self._pick(scores, allowed, real)
            weight, best = weight.flatten(0, 1), best.flatten(0, 1)
            keys, values = (beside_pick(x, weight, best) for x in (k, v))
        out = softmax_attention(q, keys, values, self._mask(seen, real, (b, h), q))
        return out.reshape(b, h, -(-N // size) * size, D)[:, :, :N], keys, values

    def _allowed(self, real: Tensor | None, n: int, device: torch.device) -> Tensor | None:
        """Which buckets may be sorted to which: (b or 1, 1, n, n) bool, None = all to all."""
        allowed = None
        if real is not None:
            filled = real.any(-1)
            allowed = (filled[:, :, None] & filled[:, None, :])[:, None]
        if self.causal:
            past = torch.ones(n, n, dtype=torch.bool, device=device).tril(-1)
            allowed = past[None, None] if allowed is None else allowed & past
        return allowed

    def _scores(self, q: Tensor, k: Tensor, real: Tensor | None) -> Tensor:
        """The sorting network: (b, h, n, S, D) twice -> (b, h, n, n), in at least float32."""
        *_, n, size, D = q.shape
        wide = accumulator(q)
        queries, keys = q.sum(3, dtype=wide), k.sum(3, dtype=wide)
        counts = torch.full((1, n), size, device=q.device) if real is None else real.sum(2)
        reached = counts
        if self.causal:  # queries of all earlier buckets and the first position of this one
            first = torch.ones_like(counts) if real is None else real[:, :, 0].long()
            queries = queries.cumsum(2) - queries + q[:, :, :, 0]
            reached = counts.cumsum(1) - counts + first
        queries = queries / reached.clamp(min=1)[:, None, :, None]
        keys = keys / counts.clamp(min=1)[:, None, :, None]
        scores: Tensor = queries @ keys.mT * D**-0.5
        return scores

    def _balance(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """R of the soft sort, (b, h, n, n)."""

        def hide(x: Tensor) -> Tensor:
            return x if allowed is None else x.masked_fill(~allowed, HIDDEN)

        log = hide((scores.relu() + FLOOR).log() / self.config.temperature)
        for _ in range(self.config.iterations):
            log = hide(log - log.logsumexp(-1, keepdim=True))
            log = hide(log - (log_sums(log) if self.causal else log.logsumexp(-2, keepdim=True)))
        return log.exp()

    def _mixture_seen(self, allowed: Tensor | None, real: Tensor | None) -> Tensor | None:
        """The offsets of a mixture to which a real position contributes: broadcasts to (b, h, n, S), None = all."""
        if allowed is None:
            return None
        if real is None:
            return allowed.any(-1, keepdim=True)
        return (allowed.float() @ real[:, None].float()) > 0

    def _pick(
        self, scores: Tensor, allowed: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weight and index of the best bucket, (b, h, n), and its visible offsets, as for a mixture."""
        scores = scores / self.config.temperature
        if allowed is not None:
            scores = scores.masked_fill(~allowed, HIDDEN)
        weight, best = scores.softmax(-1).max(-1)
        if allowed is None:
            return weight, best, None
        seen = allowed.any(-1, keepdim=True)
        if real is not None:
            index = best[..., None].expand(-1, -1, -1, real.shape[-1])
            seen = seen & real[:, None].expand(-1, best.shape[1], -1, -1).gather(2, index)
        return weight, best, seen

    def _mask(self, seen: Tensor | None, real: Tensor | None, heads: tuple[int, int], q: Tensor) -> Tensor | None:
        """The keys of [moved; own] that the queries of a bucket see: (b h or 1, n, S or 1, 2S) bool, None = all."""
        if seen is None:
            return None
        n, size = q.shape[1:3]
        b = heads if real is not None else (1, 1)
        own = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool, device=q.device) if real is None else real[:, None, :, None]
        rows = 1
        if self.causal:
            rows = size
            own = own & torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
        mask = torch.cat([x.expand(*b, n, rows, size) for x in (seen[..., None, :], own)], -1)
        return mask.flatten(0, 1)

    def begin(self, x: Tensor) -> Tensors:
        """Keys and values; those sorted to the current bucket; descriptors of its and earlier queries; their sum."""
        moved = x.new_zeros(*x.shape[:2], self.size, x.shape[-1])
        wide = x.to(accumulator(x))
        return *empty(x), moved, moved.clone(), *empty(wide, 1), torch.zeros_like(wide)[:, :, None]

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        keys, values, moved_keys, moved_values, queries, total = tensors
        bucket, place = divmod(position, self.size)
        total += q
        if place == 0:  # the first query completes the bucket's descriptor
            (queries,) = append((queries,), (total / (position + 1),), bucket, self.buckets)
            if bucket:
                moved_keys, moved_values = self._sorted(keys, values, queries[:, :, : bucket + 1])
        keys, values = append((keys, values), (k, v), position, self.max_len)
        own_keys, own_values = (x[:, :, position - place : position + 1] for x in (keys, values))
        if bucket:
            own_keys = torch.cat([moved_keys, own_keys], dim=2)
            own_values = torch.cat([moved_values, own_values], dim=2)
        out = F.scaled_dot_product_attention(q, own_keys, own_values)
        return out, (keys, values, moved_keys, moved_values, queries, total)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        out, *seen = self._forward(q, k, v)
        sums = pad_to_multiple(q, self.size, -2).unfold(2, self.size, self.size).sum(-1, dtype=accumulator(q))
        total = sums.cumsum(2)
        first = q[:, :, :: self.size]
        counts = torch.arange(1, q.shape[2] + 1, self.size, device=q.device)[:, None]
        *own, moved_keys, moved_values, descriptors, _ = self.begin(v[:, :, 0])
        if sums.shape[2] > 1:
            moved_keys, moved_values = (x[:, -1, : self.size].reshape(moved_keys.shape) for x in seen)
        (descriptors,) = fill((descriptors,), ((total - sums + first) / counts,), self.buckets)
        keys, values = fill(tuple(own), (k, v), self.max_len)
        return out, (keys, values, moved_keys, moved_values, descriptors, total[:, :, -1:].clone())

    def _sorted(self, keys: Tensor, values: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values sorted to the last bucket, (B, H, S, D) each.

        keys, values: (B, H, room, D), of at least the n buckets before it; queries: (B, H, n + 1, D), descriptors.
        """
        n = queries.shape[2] - 1
        keys, values = (rearrange(x[:, :, : n * self.size], "b h (n s) d -> b h n s d", n=n) for x in (keys, values))
        scores = queries @ keys.mean(3, dtype=queries.dtype).mT * queries.shape[-1] ** -0.5  # (B, H, n + 1, n)
        allowed = torch.ones_like(scores[0, 0], dtype=torch.bool).tril(-1)
        if self.config.sort == "soft":
            weights = self._balance(scores, allowed)[:, :, -1:].to(keys.dtype)
        else:
            weight, best, _ = self._pick(scores[:, :, -1:], allowed[-1:], None)  # (B, H, 1)
            weights = (F.one_hot(best, n) * weight[..., None]).to(keys.dtype)
        moved_keys, moved_values = ((weights @ x.flatten(3)).view(x[:, :, 0].shape) for x in (keys, values))
        return moved_keys, moved_values

    def state_size(self, length: int) -> int:
        """The query's bucket and the sorted one; a mixture counts as one bucket."""
        return 2 * min(2 * self.config.bucket_size, length) * self.d_model

    def cache_size(self, length: int) -> int:
        rows = 2 * room(length, self.max_len) + 2 * self.size + room(-(-length // self.size), self.buckets) + 1
        return rows * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel(f"sorted buckets on {sdpa_kernel_name(x).name}")


def log_sums(x: Tensor) -> Tensor:
    """``x.logcumsumexp(-2)`` that raises on second derivatives, where torch's are NaN."""
    if traced() or not x.requires_grad:
        return x.logcumsumexp(-2)
    sums: Tensor = _LogSums.apply(x)  # type: ignore[no-untyped-call]
    return sums


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.logcumsumexp(-2)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gradients: tuple[Tensor, ...] = torch.autograd.grad(leaf.logcumsumexp(-2), leaf, grad)
        return gradients


def beside_pick(x: Tensor, weight: Tensor, best: Tensor) -> Tensor:
    """See ``_BesidePick``."""
    if traced():
        picked = x.gather(1, best[..., None, None].expand(-1, -1, *x.shape[2:]))
        return torch.cat([(weight[..., None, None] * picked).to(x.dtype), x], dim=2)
    out: Tensor = _BesidePick.apply(x, weight, best)  # type: ignore[no-untyped-call]
    return out


def beside_mixture(x: Tensor, weights: Tensor) -> Tensor:
    """See ``_BesideMixture``."""
    if traced():
        return torch.cat([(weights @ x.flatten(2).to(weights)).to(x.dtype).view_as(x), x], dim=2)
    out: Tensor = _BesideMixture.apply(x, weights)  # type: ignore[no-untyped-call]
    return out


class _BesidePick(torch.autograd.Function):
    """[weight · x_best; x] for each bucket, written once.

    x: (G, n, S, D); weight, in at least float32, and best: (G, n); result: (G, n, 2S, D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, best: Tensor) -> Tensor:
        G, n, size, D = x.shape
        rows = (best + n * torch.arange(G, device=x.device)[:, None]).flatten()
        flat = x.reshape(G * n, size * D)
        out = x.new_empty(G * n, 2, size * D)
        torch.mul(flat.index_select(0, rows), weight.reshape(-1, 1).to(x.dtype), out=out[:, 0])
        out[:, 1] = flat
        out = out.view(G, n, 2 * size, D)
        ctx.save_for_backward(out, weight, rows)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        out, weight, rows = ctx.saved_tensors
        G, n, both, D = grad.shape
        moved, own = grad.reshape(G * n, 2, both // 2 * D).unbind(1)
        # From ``own``, not the stored product divided by the weight, which may be 0.
        picked = out.view(G * n, 2, both // 2 * D)[:, 1].index_select(0, rows)
        slope = (moved[:, None].to(weight) @ picked[..., None].to(weight))[:, 0]
        factor = weight.reshape(-1, 1).to(moved)
        dx = own.clone(memory_format=torch.contiguous_format).index_add_(0, rows, moved * factor)
        return dx.view(G, n, both // 2, D), slope.view_as(weight), None


class _BesideMixture(torch.autograd.Function):
    """[Σ_v R_uv x_v; x_u] for each bucket u.

    x: (G, n, S, D); R, in at least float32: (G, n, n); result: (G, n, 2S, D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        G, n, size, D = x.shape
        out = x.new_empty(G, n, 2, size * D)
        out[:, :, 1] = x.reshape(G, n, size * D)
        out[:, :, 0] = weights.to(x.dtype) @ out[:, :, 1]
        out = out.view(G, n, 2 * size, D)
        ctx.save_for_backward(out, weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        out, weights = ctx.saved_tensors
        G, n, both, D = grad.shape
        moved, own = grad.reshape(G, n, 2, both // 2 * D).unbind(2)
        dx = torch.baddbmm(own, weights.mT.to(moved), moved)
        slopes = moved.to(weights) @ out.view(G, n, 2, both // 2 * D)[:, :, 1].mT.to(weights)
        return dx.view(G, n, both // 2, D), slopes
