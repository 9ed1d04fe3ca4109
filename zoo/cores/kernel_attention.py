"""Normalised kernel attention in linear time, for backends that map queries and keys to features φ.

``out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) Σ_j φ(k_j)ᵀ)`` over the real keys j, only those with j <= i when causal
(Transformers are RNNs, arXiv:2006.16236, equations 5 and 9). With a column of ones behind the values, numerator and
denominator come from one summary of the keys, ``Σ_j φ(k_j)ᵀ [v_j, 1]`` (B, H, M, D + 1), which the causal form carries
from position to position as its state.

Features can be much wider than queries, so they are not kept: forward makes them for one chunk of positions at a time,
and backward makes them again. Forward keeps q, k, v, the output, one number a row, and at most one summary. (Exception:
features that map each number alone, and so take no more memory than queries and keys, are kept.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Dims, Tensors
from zoo.cores.scan import CHUNK, Chunk, scan, scan_to_end
from zoo.functional import accumulator, leading, once, side_by_side, traced

CACHED = 2**20  # numbers in the features of one chunk: more leave the cache, fewer mean many small calls
RESIDENT = 2**24  # the same on other devices, where many small calls cost more than memory


@dataclass(frozen=True)
class FeatureMap:
    """Two functions (B, H, n, D) -> (B, H, n, ``size``) of the positions ``first``, ``first + 1``, …

    Features are at least 0. Both functions return a new tensor in the dtype they are given.

    Attributes:
        queries, keys: called as ``queries(q, first)``, ``keys(k, first)``.
        size: M, features a position.
        logarithmic: whether both return logarithms of features. Then features cannot all vanish or overflow: key
            features are divided by a reference for each sample, head and feature, query features are multiplied by it,
            and each query is divided by its largest feature. All three cancel in the quotient, so no epsilon is needed.
            The reference is the maximum over the real keys; when causal, over the keys before the chunk, or the chunk's
            first key if there are none. So every row has a denominator of at least 1, and no row depends on the future.
        slope: if both apply one function to each number alone, its derivative, as a function of its result. With it the
            bidirectional form keeps features in place of queries and keys.
    """

    queries: Callable[[Tensor, int], Tensor]
    keys: Callable[[Tensor, int], Tensor]
    size: int
    logarithmic: bool = False
    slope: Callable[[Tensor], Tensor] | None = None


def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, features: FeatureMap, *, key_padding_mask: Tensor | None, causal: bool
) -> Tensor:
    """q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding.

    Everything between input and output is float32 at least. A row whose denominator is 0 (it sees no key, or its
    features have only zero products with those of keys) gives 0 and gets no gradient.
    """
    hidden = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    if causal and traced() and not features.logarithmic:
        return _whole_causal(q, k, v, hidden, features)
    if causal:
        sequences = (q, k, v) if hidden is None else (q, k, v, hidden)
        return scan(kernel_chunk(features), sequences, empty_state(v, features))
    if traced():
        return _whole(q, k, v, hidden, features)
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    attend = _Elementwise if trains and features.slope is not None else _Bidirectional
    out: Tensor = attend.apply(q, k, v, hidden, features)  # type: ignore[no-untyped-call]
    return out


def kernel_absorb(q: Tensor, k: Tensor, v: Tensor, features: FeatureMap) -> tuple[Tensor, Tensors]:
    """The causal form at all positions, and the state after them. q, k, v and the result: (B, H, N, D)."""
    return scan_to_end(kernel_chunk(features), (q, k, v), empty_state(v, features))


def kernel_state_size(dims: Dims, features: int) -> int:
    """Numbers in the state of one sample: Σ_j φ(k_j)ᵀ [v_j, 1], (H, M, D + 1)."""
    return dims.n_heads * features * (dims.d_head + 1)


def _whole(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
    """The bidirectional form, not in chunks, in operations that autograd differentiates."""
    whole, reference = slice(0, q.shape[2]), None
    with torch.autocast(q.device.type, enabled=False):
        keys = _raw_keys(_wide(k, whole), 0, features, *_hidden(hidden, whole))
        if features.logarithmic:
            reference = finite(keys.detach().amax(-2, keepdim=True))
            keys = (keys - reference).exp()
        queries = _query_features(_wide(q, whole), 0, features, reference)
        out, _ = divide(queries @ (keys.mT @ _values(v, whole)))
    return out.to(v.dtype)


def _whole_causal(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
    """The causal form in such operations: blocks as one batch, and the state before each block."""
    N = q.shape[2]
    n = -(-N // CHUNK) + 1  # one block too many: a compiler treats a dimension of 1 as static
    with torch.autocast(q.device.type, enabled=False):
        whole = slice(0, N)
        keys = _raw_keys(_wide(k, whole), 0, features, *_hidden(hidden, whole))
        queries, keys, values = (
            F.pad(x, (0, 0, 0, n * CHUNK - N)).unfold(2, CHUNK, CHUNK).mT  # (B, H, n, CHUNK, ·)
            for x in (features.queries(_wide(q, whole), 0), keys, _values(v, whole))
        )
        writes = keys.mT @ values
        before = writes.cumsum(2) - writes
        out, _ = divide((queries @ keys.mT).tril() @ values + queries @ before)
    return leading(out.flatten(2, 3), N, 2).to(v.dtype)


class _Bidirectional(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
        out, inverse = _empty_result(v)
        with torch.autocast(q.device.type, enabled=False):
            summary, reference = _summarise(k, v, hidden, features)
            for at in _slices(q, features):
                queries = _query_features(_wide(q, at), at.start, features, reference)
                out[:, :, at], inverse[:, :, at] = divide(queries @ summary)
        ctx.save_for_backward(q, k, v, hidden, out, inverse, summary, reference)
        ctx.features = features
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, hidden, out, inverse, summary, reference = ctx.saved_tensors
        features = ctx.features
        dq, dk, dv = side_by_side(q, k, v)
        d_summary = torch.zeros_like(summary)
        with torch.autocast(q.device.type, enabled=False):
            for at in _slices(q, features):
                queries, pull = _tracked(_query_features, q, at, features, reference)
                d_total = _divide_backward(grad, out, inverse, at)
                d_summary += queries.mT @ d_total
                dq[:, :, at] = pull(d_total @ summary.mT)
            for at in _slices(k, features):
                keys, pull = _tracked(_key_features, k, at, features, reference, *_hidden(hidden, at))
                dv[:, :, at] = keys @ d_summary[..., :-1]
                dk[:, :, at] = pull(_values(v, at) @ d_summary.mT)
        return dq, dk, dv, None, None


class _Elementwise(torch.autograd.Function):
    """The bidirectional form for features with a slope. It keeps features, which are no wider, instead of queries and
    keys: the gradients need nothing else."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
        whole = slice(0, q.shape[2])
        out, inverse = _empty_result(v)
        with torch.autocast(q.device.type, enabled=False):
            queries = features.queries(_wide(q, whole), 0)
            keys, values = _raw_keys(_wide(k, whole), 0, features, *_hidden(hidden, whole)), _values(v, whole)
            summary = keys.mT @ values
            for at in _slices(q, features):
                out[:, :, at], inverse[:, :, at] = divide(queries[:, :, at] @ summary)
        ctx.save_for_backward(queries, keys, values, summary, out, inverse)
        ctx.features = features
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, summary, out, inverse = ctx.saved_tensors
        slope, slices = ctx.features.slope, _slices(grad, ctx.features)
        dq, dk, dv = side_by_side(out, out, out)
        d_summary = torch.zeros_like(summary)
        with torch.autocast(grad.device.type, enabled=False):
            for at in slices:
                d_total = _divide_backward(grad, out, inverse, at)
                d_summary += queries[:, :, at].mT @ d_total
                torch.mul(d_total @ summary.mT, slope(queries[:, :, at]), out=dq[:, :, at])
            for at in slices:
                torch.mul(values[:, :, at] @ d_summary.mT, slope(keys[:, :, at]), out=dk[:, :, at])
                dv[:, :, at] = keys[:, :, at] @ d_summary[..., :-1]
        return dq, dk, dv, None, None


def kernel_chunk(features: FeatureMap) -> Chunk:
    """The causal form, for ``scan``: q, k, v (B, H, n, D), and with padding hidden (B, 1, n, 1), True = padding.

    State: as in ``empty_state``. References get no gradient: they cancel.
    """

    def chunk(first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, *hidden: Tensor) -> tuple[Tensor, Tensors]:
        total, *top = state
        keys = carried = _raw_keys(k, first, features, *hidden)
        reference = None
        if features.logarithmic:
            logs, (before,) = keys.detach(), top
            top = [torch.maximum(before, logs.amax(-2, keepdim=True))]
            after = finite(top[0])
            reference = finite(torch.where(before > -math.inf, before, _first_real(logs, *hidden)))
            keys, carried = _exponentials(keys, reference, after)
            scale = (finite(before) - after).clamp_(max=0).exp_().mT
        queries, values = _query_features(q, first, features, reference), F.pad(v, (0, 1), value=1)
        out, _ = divide((queries @ keys.mT).tril_() @ values + queries @ total)
        kept = total * scale if features.logarithmic else total
        return out, (kept + carried.mT @ values, *top)

    return chunk


def kernel_step(
    q: Tensor, k: Tensor, v: Tensor, features: FeatureMap, state: Tensors, position: int
) -> tuple[Tensor, Tensors]:
    """The causal form at one position, in place. q, k, v and the result: (B, H, 1, D)."""
    total, *top = state
    dtype = v.dtype
    q, k, v = (x.to(total.dtype) for x in (q, k, v))
    keys, reference = features.keys(k, position), None
    if features.logarithmic:
        before, top = top[0], [torch.maximum(top[0], keys)]
        reference = finite(top[0])
        total *= (before - reference).exp_().mT
        keys = (keys - reference).exp_()
    total[..., :-1].addcmul_(keys.mT, v)
    total[..., -1:].add_(keys.mT)
    out, _ = divide(_query_features(q, position, features, reference) @ total)
    return out.to(dtype), (total, *top)


def empty_state(v: Tensor, features: FeatureMap) -> Tensors:
    """The state before the first position: Σ_j φ(k_j)ᵀ [v_j, 1], (B, H, M, D + 1), and for logarithmic features their
    maxima so far, (B, H, 1, M). v: (B, H, …, D)."""
    B, H, M, D = *v.shape[:2], features.size, v.shape[-1]
    total = torch.zeros(B, H, M, D + 1, dtype=accumulator(v), device=v.device)
    return (total, total.new_full((B, H, 1, M), -math.inf)) if features.logarithmic else (total,)


def _summarise(k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> tuple[Tensor, Tensor | None]:
    """The summary of all keys (B, H, M, D + 1), and the reference by which it is divided, (B, H, 1, M)."""
    summary, *top = empty_state(v, features)
    for at in _slices(k, features):
        keys = _raw_keys(_wide(k, at), at.start, features, *_hidden(hidden, at))
        if features.logarithmic:
            before, top = top[0], [torch.maximum(top[0], keys.amax(-2, keepdim=True))]
            keys = (keys - finite(top[0])).exp_()
            summary = summary * (finite(before) - finite(top[0])).clamp_(max=0).exp_().mT
        summary = summary + keys.mT @ _values(v, at)
    return summary, finite(top[0]) if top else None


def _hidden(hidden: Tensor | None, at: slice) -> Tensors:
    return () if hidden is None else (hidden[:, :, at],)


def finite(top: Tensor) -> Tensor:
    """``top``, with 0 for -inf, the maximum of no real key."""
    return top.masked_fill(top == -math.inf, 0)


def _first_real(logs: Tensor, *hidden: Tensor) -> Tensor:
    """The row of ``logs`` (B, H, n, M) of the first real key; -inf without one. (B, H, 1, M)."""
    if not hidden:
        return logs[:, :, :1]
    real = ~hidden[0]
    first = real & (real.cumsum(2) == 1)
    return logs.masked_fill(~first, -math.inf).amax(-2, keepdim=True)


def _raw_keys(k: Tensor, first: int, features: FeatureMap, *hidden: Tensor) -> Tensor:
    keys = features.keys(k, first)
    return keys.masked_fill(hidden[0], -math.inf if features.logarithmic else 0) if hidden else keys


def _key_features(k: Tensor, first: int, features: FeatureMap, reference: Tensor | None, *hidden: Tensor) -> Tensor:
    """Features (B, H, n, M), 0 if hidden; logarithmic ones divided by the reference."""
    keys = _raw_keys(k, first, features, *hidden)
    return keys if reference is None else (keys - reference).exp_()


def _exponentials(logs: Tensor, reference: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Features of a chunk: for its own rows, over the reference from before it, and for the state after it.

    Features can exceed the reference from before. They are clamped where they do by two thirds of the logarithmic range
    of the dtype.
    """
    limit = math.log(torch.finfo(logs.dtype).max) * 2 / 3
    return (logs - reference).clamp_(max=limit).exp_(), (logs - after).exp_()


def _query_features(q: Tensor, first: int, features: FeatureMap, reference: Tensor | None) -> Tensor:
    """Query features (B, H, n, M); logarithmic ones multiplied by the reference and divided by their largest."""
    queries = features.queries(q, first)
    if reference is None:
        return queries
    queries = queries.add_(reference)
    return queries.sub_(queries.detach().amax(-1, keepdim=True)).exp_()


def _tracked(
    make: Callable[..., Tensor], x: Tensor, at: slice, *rest: Any
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The features of a chunk of ``x``, and a function from their gradient to that of ``x``."""
    with torch.enable_grad():
        leaf = _wide(x, at).detach().requires_grad_()
        graph = make(leaf, at.start, *rest)
    return graph.detach(), lambda grad: torch.autograd.grad(graph, leaf, grad)[0]


def divide(total: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, n, D + 1) -> numerator / denominator (B, H, n, D), 1 / denominator (B, H, n, 1); 0 for a denominator of 0.

    A denominator so small that a gradient over it could overflow counts as 0.
    """
    denominator = total[..., -1:]
    floor = torch.finfo(total.dtype).tiny ** 0.75
    inverse = denominator.masked_fill(denominator <= floor, math.inf).reciprocal()
    return total[..., :-1] * inverse, inverse


def _divide_backward(grad: Tensor, out: Tensor, inverse: Tensor, at: slice) -> Tensor:
    """The gradient of ``divide``'s input, (B, H, n, D + 1)."""
    grad, inverse = _wide(grad, at), inverse[:, :, at]
    d_total = grad.new_empty(*grad.shape[:-1], grad.shape[-1] + 1)
    d_total[..., -1:] = (grad * out[:, :, at]).sum(-1, keepdim=True).mul_(inverse).neg_()
    torch.mul(grad, inverse, out=d_total[..., :-1])
    return d_total


def _empty_result(v: Tensor) -> tuple[Tensor, Tensor]:
    """Empty output (B, H, N, D), the heads of a position side by side in memory, and denominators (B, H, N, 1)."""
    (out,) = side_by_side(v)
    return out, torch.empty(*v.shape[:-1], 1, dtype=accumulator(v), device=v.device)


def _slices(x: Tensor, features: FeatureMap) -> list[slice]:
    """Chunks of the positions of ``x`` (B, H, N, D)."""
    B, H, N, _ = x.shape
    numbers = CACHED if x.device.type == "cpu" else RESIDENT
    size = max(CHUNK, numbers // (max(1, B) * H * features.size))
    return [slice(first, min(first + size, N)) for first in range(0, N, size)]


def _wide(x: Tensor, at: slice) -> Tensor:
    """The positions ``at`` of ``x`` (B, H, N, D), in float32 at least."""
    return x[:, :, at].to(accumulator(x))


def _values(v: Tensor, at: slice) -> Tensor:
    """The values at ``at``, in float32 at least, with a last column of ones. (B, H, n, D + 1)."""
    return F.pad(_wide(v, at), (0, 1), value=1)
