"""Normalised kernel attention in linear time, for backends that map queries and keys to features φ.

``out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) Σ_j φ(k_j)ᵀ)`` over the real keys j, only those with j <= i when causal
(Transformers are RNNs, arXiv:2006.16236, equations 5 and 9). With a column of ones behind the values, numerator and
denominator come from one state, ``Σ_j φ(k_j)ᵀ [v_j, 1]`` (B, H, M, D + 1).

Features can be much wider than queries, so they are not kept: they are made for a chunk of positions at a time, in
forward and again in backward. Kept for backward are q, k, v, the output, one number a row, and at most one state.
(The exception is a map of each number alone, which takes no more room than what it is made from.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.contract import Dims
from zoo.functional import accumulator, side_by_side

CAUSAL_CHUNK = 128  # positions: quadratic within, a running state between
CACHED = 2**20  # numbers in the features of one chunk: more pass through memory, fewer make many small steps
RESIDENT = 2**24  # the same elsewhere, where many small steps cost more than memory does


@dataclass(frozen=True)
class FeatureMap:
    """Two functions (B, H, n, D) -> (B, H, n, ``size``) of the positions ``first``, ``first + 1``, …

    Features are at least 0. Both functions return a new tensor in the dtype they are given.

    Attributes:
        queries, keys: called as ``queries(q, first)``, ``keys(k, first)``.
        size: M, features a position.
        logarithmic: they return logarithms of features, which then never vanish or overflow as a whole: key features
            are divided by a reference for each sample, head and feature, that of the queries is multiplied by it, and
            each query is divided by its largest feature. All three cancel in the quotient, so no epsilon is needed.
            The reference is the maximum over the real keys; when causal, over those before the chunk, or the chunk's
            first where there is none: so every row has a denominator of at least 1, and none knows of the future.
        slope: where queries and keys go through one function of each number alone, its derivative, given its result.
            It lets the bidirectional form keep features in place of queries and keys.
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

    Everything between input and output is float32 at least. A row whose denominator is 0, because it sees no key or
    none of its features meets one of a key, gives 0 and receives no gradient.
    """
    hidden = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    attend = _Causal if causal else _Bidirectional if features.slope is None else _Elementwise
    out: Tensor = attend.apply(q, k, v, hidden, features)  # type: ignore[no-untyped-call]
    return out


def kernel_state_size(dims: Dims, features: int) -> int:
    """Numbers in the state of one sample: Σ_j φ(k_j)ᵀ [v_j, 1], (H, M, D + 1)."""
    return dims.n_heads * features * (dims.d_head + 1)


class _Bidirectional(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
        out, inverse = _empty_result(v)
        with torch.autocast(q.device.type, enabled=False):
            for step in _walk(k, v, hidden, features, causal=False):
                state, reference = step.state_after, step.reference_after
            for part in _parts(q, features, causal=False):
                (queries,) = _query_features(_wide(q, part), part, features, reference)
                out[:, :, part], inverse[:, :, part] = _divide(queries @ state)
        ctx.save_for_backward(q, k, v, hidden, out, inverse, state, reference)
        ctx.features = features
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, hidden, out, inverse, state, reference = ctx.saved_tensors
        features = ctx.features
        dq, dk, dv = side_by_side(q, k, v)
        d_state = torch.zeros_like(state)
        with torch.autocast(q.device.type, enabled=False):
            for part in _parts(q, features, causal=False):
                (queries,), pull = _tracked(_query_features, q, part, features, reference)
                d_total = _divide_backward(grad, out, inverse, part)
                d_state += queries.mT @ d_total
                dq[:, :, part] = pull(d_total @ state.mT)
            for part in _parts(k, features, causal=False):
                (keys, _), pull = _tracked(_key_features, k, part, features, hidden, None, reference)
                dv[:, :, part] = keys @ d_state[..., :-1]
                dk[:, :, part] = pull(_values(v, part) @ d_state.mT)
        return dq, dk, dv, None, None


class _Elementwise(torch.autograd.Function):
    """The bidirectional form for features that have a slope: they are no wider than queries and keys, and are kept in
    their place, since gradients need nothing else of these."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
        whole = slice(0, q.shape[2])
        out, inverse = _empty_result(v)
        with torch.autocast(q.device.type, enabled=False):
            queries = features.queries(_wide(q, whole), 0)
            keys, values = _raw_keys(_wide(k, whole), whole, features, hidden), _values(v, whole)
            state = keys.mT @ values
            out[:], inverse[:] = _divide(queries @ state)
        ctx.save_for_backward(queries, keys, values, state, out, inverse)
        ctx.slope = features.slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, state, out, inverse = ctx.saved_tensors
        dq, dk, dv = side_by_side(out, out, out)
        with torch.autocast(grad.device.type, enabled=False):
            d_total = _divide_backward(grad, out, inverse, slice(0, grad.shape[2]))
            d_state = queries.mT @ d_total
            torch.mul(d_total @ state.mT, ctx.slope(queries), out=dq)
            torch.mul(values @ d_state.mT, ctx.slope(keys), out=dk)
            dv.copy_(keys @ d_state[..., :-1])
        return dq, dk, dv, None, None


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap) -> Tensor:
        out, inverse = _empty_result(v)
        with torch.autocast(q.device.type, enabled=False):
            for step in _walk(k, v, hidden, features, causal=True):
                part = step.part
                (queries,) = _query_features(_wide(q, part), part, features, step.reference)
                weights = (queries @ step.keys.mT).tril_()
                out[:, :, part], inverse[:, :, part] = _divide(weights @ step.values + queries @ step.state)
        ctx.save_for_backward(q, k, v, hidden, out, inverse)
        ctx.features = features
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, hidden, out, inverse = ctx.saved_tensors
        features = ctx.features
        dq, dk, dv = side_by_side(q, k, v)
        with torch.autocast(q.device.type, enabled=False):
            steps = _walk(k, v, hidden, features, causal=True)
            kept = [(s.part, s.state, s.reference, s.reference_after, s.scale) for s in steps]
            d_state = torch.zeros_like(kept[0][1])
            for part, state, reference, reference_after, scale in reversed(kept):
                (queries,), pull_queries = _tracked(_query_features, q, part, features, reference)
                (keys, carried), pull_keys = _tracked(
                    _key_features, k, part, features, hidden, reference, reference_after
                )
                values, d_total = _values(v, part), _divide_backward(grad, out, inverse, part)
                d_weights = (d_total @ values.mT).tril_()
                weights = (queries @ keys.mT).tril_()
                d_queries = d_weights @ keys + d_total @ state.mT
                d_keys = d_weights.mT @ queries, values @ d_state.mT
                dv[:, :, part] = weights.mT @ d_total[..., :-1] + carried @ d_state[..., :-1]
                d_state = (d_state if scale is None else d_state * scale) + queries.mT @ d_total
                dq[:, :, part] = pull_queries(d_queries)
                dk[:, :, part] = pull_keys(*d_keys)
        return dq, dk, dv, None, None


class _Step(NamedTuple):
    """One chunk of keys. References and scale are None where features are not logarithmic."""

    part: slice
    keys: Tensor  # features (B, H, n, M) over the reference
    values: Tensor  # (B, H, n, D + 1)
    state: Tensor  # (B, H, M, D + 1), of the keys before the chunk, over the reference
    state_after: Tensor  # those of the chunk included, over the reference after it
    reference: Tensor | None  # (B, H, 1, M), of the chunk's rows when causal
    reference_after: Tensor | None
    scale: Tensor | None  # (B, H, M, 1): what multiplies the state at the change of reference


def _walk(k: Tensor, v: Tensor, hidden: Tensor | None, features: FeatureMap, *, causal: bool) -> Iterator[_Step]:
    B, H, _, D = k.shape
    dtype = accumulator(k)
    state = torch.zeros(B, H, features.size, D + 1, dtype=dtype, device=k.device)
    top = torch.full((B, H, 1, features.size), -math.inf, dtype=dtype, device=k.device)  # over the real keys so far
    reference = after = scale = None
    for part in _parts(k, features, causal=causal):
        keys = carried = _raw_keys(_wide(k, part), part, features, hidden)
        if features.logarithmic:
            new_top = torch.maximum(top, keys.amax(-2, keepdim=True))
            after = _finite(new_top)
            scale = (_finite(top) - after).clamp_(max=0).exp_().mT
            if causal:
                reference = _finite(torch.where(top > -math.inf, top, _first_real(keys, hidden, part)))
            keys, carried = _exponentials(keys, reference, after)
            top = new_top
        values = _values(v, part)
        state_after = (state if scale is None else state * scale) + carried.mT @ values
        yield _Step(part, keys, values, state, state_after, reference, after, scale)
        state = state_after


def _finite(top: Tensor) -> Tensor:
    """0 where there is no real key so far."""
    return top.masked_fill(top == -math.inf, 0)


def _first_real(logs: Tensor, hidden: Tensor | None, part: slice) -> Tensor:
    """The row of ``logs`` (B, H, n, M) of the first real key, -inf where there is none. (B, H, 1, M)."""
    if hidden is None:
        return logs[:, :, :1]
    real = ~hidden[:, :, part]
    first = real & (real.cumsum(2) == 1)
    return logs.masked_fill(~first, -math.inf).amax(-2, keepdim=True)


def _raw_keys(k: Tensor, part: slice, features: FeatureMap, hidden: Tensor | None) -> Tensor:
    keys = features.keys(k, part.start)
    if hidden is None:
        return keys
    return keys.masked_fill(hidden[:, :, part], -math.inf if features.logarithmic else 0)


def _key_features(
    k: Tensor,
    part: slice,
    features: FeatureMap,
    hidden: Tensor | None,
    reference: Tensor | None,
    reference_after: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Features (B, H, n, M), 0 where hidden: for the rows of the chunk itself, and for the state after it."""
    keys = _raw_keys(k, part, features, hidden)
    return (keys, keys) if reference_after is None else _exponentials(keys, reference, reference_after)


def _exponentials(logs: Tensor, reference: Tensor | None, after: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk's keys can exceed the reference from before it; where by two thirds of the range, they are cut off.

    The state after the chunk has a reference that they do not exceed.
    """
    carried = (logs - after).exp_()
    if reference is None:
        return carried, carried
    limit = math.log(torch.finfo(logs.dtype).max) * 2 / 3
    return (logs - reference).clamp_(max=limit).exp_(), carried


def _query_features(q: Tensor, part: slice, features: FeatureMap, reference: Tensor | None) -> tuple[Tensor]:
    """Query features (B, H, n, M), multiplied by the reference and divided by the largest where logarithmic."""
    queries = features.queries(q, part.start)
    if reference is None:
        return (queries,)
    queries = queries.add_(reference)
    return (queries.sub_(queries.detach().amax(-1, keepdim=True)).exp_(),)


def _tracked(
    make: Callable[..., tuple[Tensor, ...]], x: Tensor, part: slice, features: FeatureMap, *rest: Any
) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
    """The features of a chunk of ``x``, and what pulls gradients of them, one or all, back to ``x``."""
    with torch.enable_grad():
        leaf = _wide(x, part).detach().requires_grad_()
        graph = make(leaf, part, features, *rest)
    return (
        tuple(feature.detach() for feature in graph),
        lambda *grads: torch.autograd.grad(graph[: len(grads)], leaf, grads)[0],
    )


def _divide(total: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, n, D + 1) -> numerator / denominator (B, H, n, D), 1 / denominator (B, H, n, 1); 0 for a denominator of 0.

    One so small that a gradient over it could overflow counts as 0.
    """
    denominator = total[..., -1:]
    floor = torch.finfo(total.dtype).tiny ** 0.75
    inverse = torch.where(denominator > floor, denominator.reciprocal(), 0)
    return total[..., :-1] * inverse, inverse


def _divide_backward(grad: Tensor, out: Tensor, inverse: Tensor, part: slice) -> Tensor:
    """The gradient of what ``_divide`` was given, (B, H, n, D + 1)."""
    grad, inverse = _wide(grad, part), inverse[:, :, part]
    d_total = grad.new_empty(*grad.shape[:-1], grad.shape[-1] + 1)
    d_total[..., -1:] = (grad * out[:, :, part]).sum(-1, keepdim=True).mul_(inverse).neg_()
    torch.mul(grad, inverse, out=d_total[..., :-1])
    return d_total


def _empty_result(v: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D), laid out so that the heads of a position are neighbours, and (B, H, N, 1) beside it."""
    (out,) = side_by_side(v)
    return out, torch.empty(*v.shape[:-1], 1, dtype=accumulator(v), device=v.device)


def _parts(x: Tensor, features: FeatureMap, *, causal: bool) -> list[slice]:
    """Chunks of the positions of ``x`` (B, H, N, D)."""
    B, H, N, _ = x.shape
    numbers = CACHED if x.device.type == "cpu" else RESIDENT
    size = CAUSAL_CHUNK if causal else max(CAUSAL_CHUNK, numbers // (B * H * features.size))
    return [slice(first, min(first + size, N)) for first in range(0, N, size)]


def _wide(x: Tensor, part: slice) -> Tensor:
    """The positions ``part`` of ``x`` (B, H, N, D), in float32 at least."""
    return x[:, :, part].to(accumulator(x))


def _values(v: Tensor, part: slice) -> Tensor:
    """The same of values, with a column of ones behind. (B, H, n, D + 1)."""
    return F.pad(_wide(v, part), (0, 1), value=1)
