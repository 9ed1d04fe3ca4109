"""Attention between blocks: the core that sparse backends share.

A backend says which blocks of keys each block of queries sees; this file computes it. A ``Part`` cuts the sequence into
blocks and lists who sees whom; several parts (a window and some global keys, rounds of hashing, dilations) are joined
by their log-sum-exp, so that the result is one softmax over all the pairs of all parts.

``out_i = Σ_p Σ_j exp(s_ij) v_j / Σ_p Σ_j exp(s_ij)`` over the keys j that part p shows to i, ``s_ij = scale q_i·k_j``.

Work goes in tiles of a few blocks that stay in cache: neighbouring blocks are read where they lie, others are gathered;
then one fused kernel, and a write. Nothing of a tile is kept: backward reads again, and since it has the log-sum-exp of
the whole result, ``exp(s_ij - lse_i)`` is a pair's weight whichever part it comes from, so the fused backward kernel
needs no second forward. No N × N tensor is ever made, masked or not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import or_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.cache import append
from zoo.contract import Kernel, Tensors
from zoo.functional import accumulator, once, pad_to_multiple, softmax_attention, traced
from zoo.kernels import INTERPRETED, runs

KERNELS = ("auto", "torch", "triton")  # Triton's on a GPU that has it, torch's elsewhere
HIDDEN = -1e30  # added to a logit that nothing may see; finite, so that a row that sees nothing has no NaN
TILE_ELEMENTS = {"cpu": 2**19}  # gathered queries, keys and values at a time: what a core's cache holds
TILE_ELEMENTS_ELSEWHERE = 2**27


@dataclass(frozen=True, kw_only=True)
class Group:
    """Query blocks that see equally many key blocks, under one bias. Block b of head h has the number h · blocks + b.

    rows: (R,) query blocks.
    columns: (R, W): the key blocks that each row sees.
    bias: (S, W · S) float32, added to the logits of every row; None = nothing is hidden.
    """

    rows: Tensor
    columns: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """Neighbouring query blocks that each see neighbouring key blocks, under one bias, in every head.

    Row r of ``first`` … ``last − 1`` sees the key blocks r + offset … r + offset + width − 1.
    bias: (S, width · S of the keys) float32, added to the logits of every row; None = nothing is hidden.
    """

    first: int
    last: int
    offset: int = 0
    width: int = 1
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Blocks of positions, and which of them see which.

    groups: every query block stands in one of them at most; one that stands in none sees nothing in this part.
    size: positions in a block, S.
    positions: (blocks, S), (H, blocks, S) or (B, H, blocks, S): the position in each slot, −1 = empty, each position at
        most once. None: consecutive blocks.
    keys: (key blocks, S of the keys): the positions of the keys, where they are not cut as the queries are.
    causal: a key later than the query is hidden, by comparing positions.
    labels: (B, H, blocks): blocks of different labels do not see each other.
    """

    groups: Sequence[Group | Span]
    size: int
    positions: Tensor | None = None
    keys: Tensor | None = None
    causal: bool = False
    labels: Tensor | None = None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Sequence[Part],
    *,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Softmax attention over the pairs that the parts show; 0 where a query sees nothing.

    q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding; scale: 1/√D by default;
    kernel: one of ``KERNELS``.

    Raises:
        NotImplementedError: ``triton`` where it cannot run.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = k.to(q.dtype), v.to(q.dtype)
    on_triton = runs_on_triton(q, kernel)
    with torch.autocast(q.device.type, enabled=False):
        if traced():
            return _attend_whole(q, k, v, key_padding_mask, scale, parts)
        out: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
            q, k, v, key_padding_mask, scale, parts, on_triton
        )
    return out


def runs_on_triton(q: Tensor, kernel: str) -> bool:
    """Whether Triton's kernels compute attention for inputs like ``q`` (see ``zoo.kernels.runs``)."""

    def refusal() -> str:
        from zoo.kernels import block_attention

        return block_attention.refusal(q)

    return runs("triton", kernel, q, refusal)


def attend_window(
    q: Tensor, k: Tensor, v: Tensor, size: int, reach: tuple[int, int], *, key_padding_mask: Tensor | None
) -> Tensor:
    """``attend`` over ``window_spans`` of ``reach``, in operations that do not depend on how many blocks there are.

    For a compiler, which can then leave the length open: the number of blocks is a dimension of its own throughout,
    since torch cannot prove of every length how it splits or joins another. Each key is copied for each block that
    sees it.
    """
    B, H, N, D = q.shape
    before, after = (-(-abs(end) // size) * size for end in reach)
    missing = (-(-N // size) + 1) * size - N  # a block to spare: a compiler takes a dimension of 1 for a fixed one
    seen = before + size + after
    ends = (0, missing), (before, after + missing), (before, after + missing)
    queries, keys, values = (
        F.pad(x, (0, 0, *end)).unfold(2, width, size).permute(2, 0, 1, 4, 3).flatten(1, 2).contiguous()
        for x, end, width in zip((q, k, v), ends, (size, seen, seen), strict=True)
    )  # (n, B H, S, D), (n, B H, seen, D)
    real = torch.ones(B, N, dtype=torch.bool, device=q.device) if key_padding_mask is None else ~key_padding_mask
    real = F.pad(real, (before, after + missing)).unfold(1, seen, size).transpose(0, 1)  # (n, B, seen)
    lag = torch.arange(-before, size + after, device=q.device) - torch.arange(size, device=q.device)[:, None]
    mask = real.repeat_interleave(H, 1)[:, :, None] & ((lag >= reach[0]) & (lag <= reach[1]))
    out = softmax_attention(queries, keys, values, mask)
    out = out.unflatten(1, (B, H)).permute(1, 2, 0, 3, 4)  # type: ignore[no-untyped-call]
    place = torch.arange(N, device=q.device)
    leading: Tensor = out[:, :, place // size, place % size]
    return leading


def attend_layout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    size: int,
    *,
    causal: bool,
    key_padding_mask: Tensor | None,
    kernel: str = "auto",
) -> Tensor:
    """``attend`` between consecutive blocks of ``size`` positions.

    layout: (blocks, blocks) bool for all heads, or (H, blocks, blocks), for this length at least; True = the row sees
        the column. When causal it must have no column after its row.
    """
    version = 0 if traced() or layout.is_inference() else layout._version  # an inference tensor has none
    parts = kept(_layout_parts, layout, version, -(-q.shape[2] // size), q.shape[1], size, causal, like=q)
    return attend(q, k, v, parts, key_padding_mask=key_padding_mask, kernel=kernel)


def _layout_parts(layout: Tensor, _version: int, blocks: int, n_heads: int, size: int, causal: bool) -> list[Part]:
    biases = causal_bias(size, layout.device) if causal else {}
    return [Part(groups=layout_groups(layout[..., :blocks, :blocks], n_heads, size, biases), size=size)]


def kept(build: Callable[..., list[Part]], *given: Hashable, like: Tensor) -> list[Part]:
    """``build(*given)``: on a GPU made once and kept, since it would take longer than attention does.

    Not while torch traces: what is made then stands for itself nowhere else.
    """
    traced = torch.compiler.is_compiling() or type(like) not in (Tensor, nn.Parameter)
    if traced or (like.device.type == "cpu" and not INTERPRETED):
        return build(*given)
    with torch.inference_mode(False):
        return _kept(build, *given)


@lru_cache(maxsize=64)
def _kept(build: Callable[..., list[Part]], *given: Hashable) -> list[Part]:
    return build(*given)


def attend_next(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Part], tensors: Tensors, position: int, max_len: int
) -> tuple[Tensor, Tensors]:
    """The last row of a causal ``attend``, and all keys and values so far: a step form.

    q, k, v and the result: (B, H, 1, D), of ``position``; parts: of all positions up to that, of the queries those at
        ``position`` suffice; tensors: keys and values of those before it (see ``zoo.cache``).
    """
    keys, values = append(tensors, (k, v), position, max_len)
    places, visible = seen_last(parts, q.shape[1], position + 1, q.device)
    return attend_rows(q, keys, values, places[None], hide(visible)[None]), (keys, values)


def attend_layout_next(
    q: Tensor, k: Tensor, v: Tensor, layout: Tensor, size: int, tensors: Tensors, position: int, max_len: int
) -> tuple[Tensor, Tensors]:
    """The step form of a causal ``attend_layout``."""
    keys, values = append(tensors, (k, v), position, max_len)
    row = position // size
    seen = layout[..., row, : row + 1].repeat_interleave(size, dim=-1)[..., : position + 1]
    places, bias = seen_rows(seen.expand(1, q.shape[1], -1).float())
    return attend_rows(q, keys, values, places, bias), (keys, values)


def seen_rows(times: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are seen, and the logarithm of how often, ``HIDDEN`` where not at all: (…, W) both.

    times: (…, rows) floats.
    """
    seen = (times > 0).sum(-1)
    times, rows = times.topk(int(seen.max()) if len(seen) else 0)
    return rows, times.log().clamp(min=HIDDEN)


def attend_rows(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of one query a head over some rows of its keys and values; 0 where it sees none.

    q and the result: (B, H, 1, D); keys, values: (B, H, rows, D); places: (B or 1, H, W), which rows; bias: likewise,
        added to their logits; scale: 1/√D by default.
    """
    if places.shape[-1] == 0:
        return torch.zeros_like(q)
    B, H, rows, D = keys.shape
    index = (places + rows * torch.arange(B * H, device=q.device).view(B, H, 1)).flatten()
    keys, values = (x.flatten(0, 2).index_select(0, index).view(B, H, places.shape[-1], D) for x in (keys, values))
    mask = None if bias is None else bias[:, :, None]
    out, lse = _forward_kernel(q, keys, values, mask, D**-0.5 if scale is None else scale)
    return out.masked_fill((lse < HIDDEN / 2)[..., None], 0)


def seen_last(parts: Sequence[Part], n_heads: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions that the last of ``length`` sees in any head, and in which heads it does: (H, W) both.

    For parts of spans, without labels, whose biases hide or are 0, and in which a position has one slot in all samples
    and in all heads that show it.
    """
    last = length - 1
    places = [torch.zeros(n_heads, 0, dtype=torch.long, device=device)]
    visible = [torch.zeros(n_heads, 0, dtype=torch.bool, device=device)]
    for part in parts:
        row, at = divmod(last, part.size)
        heads = torch.ones(n_heads, 1, dtype=torch.bool, device=device)
        if part.positions is not None:
            found = part.positions == last
            slots = found.nonzero()
            if len(slots) == 0:
                continue
            row, at = slots[0, -2:].tolist()
            heads = found.flatten(-2).any(-1, keepdim=True)  # (H, 1), or (1,) for all
        keys = part.positions if part.keys is None else part.keys
        for span in part.groups:
            assert isinstance(span, Span)
            if not span.first <= row < span.last:
                continue
            first = row + span.offset
            if keys is None:
                place = torch.arange(first * part.size, (first + span.width) * part.size, device=device)
            else:
                place = keys[..., first : first + span.width, :].flatten(-2)  # (H, W), or (W,) for all
            shown = heads & (place >= 0) & (place < length)
            if span.bias is not None:
                shown = shown & (span.bias[at] > HIDDEN / 2)
            places.append(place.expand(n_heads, -1))
            visible.append(shown.expand(n_heads, -1))
    shown = torch.cat(visible, dim=1)
    some = shown.any(0)
    return torch.cat(places, dim=1)[:, some].clamp(0, last), shown[:, some]


def kernel_name(x: Tensor, kernel: str = "auto") -> Kernel:
    """What ``attend`` runs for inputs like ``x`` (B, H, N, D)."""
    if runs_on_triton(x, kernel):
        return Kernel("Triton block attention")
    return Kernel("gathered blocks on torch SDPA flash (cpu)" if x.device.type == "cpu" else "gathered blocks, matmul")


def layout_groups(layout: Tensor, n_heads: int, size: int, biases: Mapping[int, Tensor]) -> list[Group]:
    """Groups for a layout of consecutive blocks.

    Args:
        layout: (blocks, blocks) bool for all heads, or (H, blocks, blocks); True = the row sees the column.
        size: S.
        biases: column − row -> (S, S) float32, added to the logits of such a block.
    """
    layouts = layout[None] if layout.dim() == 2 else layout
    heads, blocks = layouts.shape[:2]
    seen: dict[tuple[int, int], tuple[list[int], list[int]]] = {}  # (head, row) -> columns without a bias, offsets with
    for head, row, column in layouts.nonzero().tolist():
        free, offsets = seen.setdefault((head, row), ([], []))
        if column - row in biases:
            offsets.append(column - row)
        else:
            free.append(column)
    found: dict[tuple[int, tuple[int, ...]], list[list[int]]] = {}  # (W, offsets) -> [row, *columns]
    for (head, row), (free, offsets) in seen.items():
        number = [row, *free, *(row + offset for offset in offsets)]
        key = (len(number) - 1, tuple(offsets))
        found.setdefault(key, []).append([head * blocks + block for block in number])
    groups = []
    for (width, biased), numbers in found.items():
        bias = None
        if biased:
            unbiased = biases[biased[0]].new_zeros(size, (width - len(biased)) * size)
            bias = torch.cat([unbiased, *(biases[offset] for offset in biased)], dim=1)
        table = torch.tensor(numbers, device=layout.device)
        if heads == 1:
            table = for_all_heads(table, n_heads, blocks)
        groups.append(Group(rows=table[:, 0], columns=table[:, 1:], bias=bias))
    return groups


def random_layout(blocks: int, window: int, n_global: int, n_random: int, causal: bool) -> Tensor:
    """Window, leading global blocks, and random blocks from the CPU's global generator. (blocks, blocks) bool.

    Random blocks of row i are drawn below 2 (i + 1), so that the layout keeps at least half of them at shorter lengths.
    """
    row = torch.arange(blocks, device="cpu")
    layout = (row[:, None] - row).abs() <= window // 2
    layout[:n_global] = True
    layout[:, :n_global] = True
    for i in range(blocks):
        reach = i + 1 if causal else min(blocks, 2 * (i + 1))
        free = (~layout[i, :reach]).nonzero()[:, 0]
        layout[i, free[torch.randperm(len(free), device="cpu")[:n_random]]] = True
    return layout.tril() if causal else layout


def row_width(window: int, n_global: int, n_random: int, causal: bool) -> int:
    """Blocks that a row of ``random_layout`` sees at most, the global rows apart."""
    return (window // 2 + 1 if causal else window) + n_global + n_random


def for_all_heads(numbers: Tensor, n_heads: int, blocks: int) -> Tensor:
    """Block numbers (R, …) of one head  ->  (H · R, …) of all heads."""
    base = blocks * torch.arange(n_heads, device=numbers.device)
    return (numbers + base.view(-1, *(1,) * numbers.dim())).flatten(0, 1)


def window_spans(
    blocks: int, size: int, reach: tuple[int, int], *, first: int = 0, skip: int = 0, device: torch.device | None = None
) -> list[Span]:
    """A sliding window over consecutive blocks: query i sees key j where ``reach[0] <= j − i <= reach[1]``.

    Args:
        blocks, size: how many blocks, of S positions each.
        first: of these, the first one whose queries are in question.
        skip: the first ``skip`` keys are hidden (they are seen in another part).
    """
    low, high = (int(math.copysign(-(-abs(end) // size), end)) for end in reach)
    at = torch.arange(size, device=device)[:, None]
    found: dict[tuple[int, int, int], list[int]] = {}  # (offset, width, row if it is like no other) -> rows
    for row in range(first, blocks):
        start, last = max(0, row + low), min(blocks - 1, row + high)
        alone = row if start * size < skip else -1
        found.setdefault((start - row, last - start + 1, alone), []).append(row)
    spans = []
    for (offset, width, alone), rows in found.items():
        key = offset * size + torch.arange(width * size, device=device)  # relative to the first query of the row
        visible = (key - at >= reach[0]) & (key - at <= reach[1])
        if alone >= 0:
            visible &= key + alone * size >= skip
        lags = offset * size - (size - 1), (offset + width) * size - 1  # of all pairs
        free = reach[0] <= lags[0] and lags[1] <= reach[1] and alone < 0
        bias = None if free else hide(visible)
        spans.append(Span(first=rows[0], last=rows[-1] + 1, offset=offset, width=width, bias=bias))
    return spans


def window_block(window: int) -> int:
    """Block size for a sliding window: large blocks multiply faster, small ones compute fewer hidden pairs."""
    return min(128, max(16, 1 << (window - 1).bit_length()))


def hide(visible: Tensor) -> Tensor:
    """(…) bool, True = may be seen  ->  (…) float32 to add to logits."""
    return torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, HIDDEN)


def causal_bias(size: int, device: torch.device | None = None) -> dict[int, Tensor]:
    """The bias of a causal layout: in the block on the diagonal a query sees keys up to itself."""
    return {0: hide(torch.ones(size, size, dtype=torch.bool, device=device).tril())}


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> Tensor:
    """``attend`` in operations whose gradients torch knows: they keep the weights of the pairs that the parts show."""
    out, lse = _empty(q)
    for number, part in enumerate(parts):
        blocks = _Blocks(part, q.shape, padding, q.device)
        (qs,), (ks, vs) = blocks.take_queries(q), blocks.take_keys(k, v)
        more, more_lse = out.new_zeros(qs.shape), out.new_full((*qs.shape[:-1], 1), HIDDEN)
        for group in part.groups:
            tile = _Neighbours(blocks, group) if isinstance(group, Span) else _Gathered(blocks, group)
            found, its_lse = _plain_forward(tile.rows(qs), tile.columns(ks), tile.columns(vs), tile.bias(), scale)
            more, more_lse = tile.written(more, found), tile.written(more_lse, its_lse[..., None])
        more, more_lse = blocks.queries.back(more, 0), blocks.queries.back(more_lse, HIDDEN)[..., 0]
        if number == 0:
            out, lse = more, more_lse
            continue
        out = out.lerp(more, (more_lse - lse).sigmoid()[..., None])
        lse = torch.logaddexp(lse, more_lse)
    return out.masked_fill((lse < HIDDEN / 2)[..., None], 0).to(q.dtype)


class _BlockAttention(torch.autograd.Function):
    """Keeps q, k, v, the result and one log-sum-exp a query; and the positions of the parts."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        scale: float,
        parts: Sequence[Part],
        on_triton: bool,
    ) -> Tensor:
        run = _on_triton if on_triton else _on_torch
        out, lse = run(q, k, v, padding, scale, parts)
        ctx.scale, ctx.on_triton = scale, on_triton
        ctx.parts = [replace(part, positions=None, labels=None) for part in parts]
        content = [x for part in parts for x in (part.positions, part.labels)]
        ctx.save_for_backward(q, k, v, padding, out, lse, *content)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, padding, out, lse, *content = ctx.saved_tensors
        given = zip(ctx.parts, content[::2], content[1::2], strict=True)
        parts = [replace(part, positions=positions, labels=labels) for part, positions, labels in given]
        if ctx.on_triton:
            from zoo.kernels import block_attention

            return *block_attention.backward(grad, q, k, v, padding, out, lse, ctx.scale, parts), *[None] * 4
        grad = grad.masked_fill((lse < HIDDEN / 2)[..., None], 0)
        grads = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v)]
        for number, part in enumerate(parts):
            blocks = _Blocks(part, q.shape, padding, q.device)
            _backward_part(blocks, grad, q, k, v, out, lse, ctx.scale, grads, first=number == 0)
        dq, dk, dv = (g.to(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))
        return dq, dk, dv, *[None] * 4


def _on_torch(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """The result, in the dtype of ``q``, and its log-sum-exp."""
    out, lse = _empty(q)
    for number, part in enumerate(parts):
        blocks = _Blocks(part, q.shape, padding, q.device)
        if number == 0:
            _forward_part(blocks, q, k, v, scale, out, lse)
            continue
        more, more_lse = _empty(q)
        _forward_part(blocks, q, k, v, scale, more, more_lse)
        # Their shares sum to 1 whatever the size of the logits: a logarithm of 1e5 has two digits behind the point.
        out.lerp_(more, (more_lse - lse).sigmoid_()[..., None])
        lse = torch.logaddexp(lse, more_lse)
    out = out.masked_fill_((lse < HIDDEN / 2)[..., None], 0).to(q.dtype)
    return out, lse


def _on_triton(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    from zoo.kernels import block_attention

    return block_attention.forward(q, k, v, padding, scale, parts)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    """The result and its log-sum-exp before any part: (B, H, N, D) and (B, H, N), in at least float32.

    The heads of a position are neighbours in memory, as the shell joins them.
    """
    B, H, N, D = q.shape
    out = torch.zeros(B, N, H, D, dtype=accumulator(q), device=q.device).transpose(1, 2)
    return out, out.new_full((B, H, N), HIDDEN)


def _forward_part(blocks: _Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Write one part's result and log-sum-exp into ``out`` and ``lse``, at the queries that the part has."""
    (qs,), (ks, vs) = blocks.take_queries(q), blocks.take_keys(k, v)
    part_out, part_lse = blocks.queries.view(out, blocks.gathers), blocks.queries.view(lse[..., None], blocks.gathers)
    direct = part_out is not None and part_lse is not None
    if part_out is None or part_lse is None:
        part_out = torch.zeros(qs.shape, dtype=out.dtype, device=q.device)
        part_lse = out.new_full((*qs.shape[:-1], 1), HIDDEN)
    for tile in blocks.tiles():
        tile_out, tile_lse = _forward_kernel(tile.rows(qs), tile.columns(ks), tile.columns(vs), tile.bias(), scale)
        tile.write(part_out, tile_out)
        tile.write(part_lse, tile_lse[..., None])
    if not direct:
        blocks.queries.put(part_out, out, 0)
        blocks.queries.put(part_lse, lse[..., None], HIDDEN)


def _backward_part(
    blocks: _Blocks,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    grads: list[Tensor],
    *,
    first: bool,
) -> None:
    """Add the gradients through one part to ``grads``: of q, k and v. They are 0 before the ``first`` one."""
    qs, gs, os, ls = blocks.take_queries(q, grad, out, lse[..., None])
    ls = ls[..., 0]
    ks, vs = blocks.take_keys(k, v)
    views = [blocks.queries.view(grads[0], blocks.gathers) if first else None]
    views += [blocks.keys.view(x, blocks.gathers) for x in grads[1:]]
    dq, dk, dv = (
        torch.zeros(x.shape, dtype=lse.dtype, device=q.device) if view is None else view
        for x, view in zip((qs, ks, vs), views, strict=True)
    )
    for tile in blocks.tiles():
        tile_dq, tile_dk, tile_dv = _backward_kernel(
            tile.rows(gs), tile.rows(qs), tile.columns(ks), tile.columns(vs), tile.rows(os), tile.rows(ls),
            tile.bias(), scale,
        )  # fmt: skip
        tile.write(dq, tile_dq)
        tile.add(dk, tile_dk)
        tile.add(dv, tile_dv)
    for cut, x, view, target in zip(
        (blocks.queries, blocks.keys, blocks.keys), (dq, dk, dv), views, grads, strict=True
    ):
        if view is None:
            cut.add(x, target)


class _Cut:
    """Moves tensors between positions (B, H, N, ·) and blocks (G, blocks, S, ·), G = B · H."""

    def __init__(self, positions: Tensor | None, size: int, shape: torch.Size, device: torch.device) -> None:
        self.B, self.H, self.N = shape[:3]
        self.size, self.positions, self.device = size, positions, device
        if positions is None:
            self.blocks = -(-self.N // size)
            return
        self.blocks, self.size = positions.shape[-2:]
        slots = self.blocks * self.size
        # (B, H, blocks · S): broadcast over what does not depend on sample or head
        self.index = positions.to(device).flatten(-2).expand(self.B, self.H, slots)
        empty = self.index < 0
        self.empty = empty.reshape(-1, 1) if traced() or bool(empty.any()) else None
        base = torch.arange(self.B * self.H, device=device).view(self.B, self.H, 1)
        self.source = (self.index.clamp(min=0) + base * self.N).flatten()
        # the slot of each position; empty slots write to a column that is cut off
        slot = self.index.new_full((self.B, self.H, self.N + 1), -1)
        number = torch.arange(slots, device=device).expand_as(self.index)
        slot.scatter_(-1, self.index.where(self.index >= 0, self.N), number)
        slot = slot[..., : self.N]
        self.absent = slot < 0
        self.slot = (slot.clamp(min=0) + base * slots).flatten()

    def take(self, x: Tensor, *, contiguous: bool = False) -> Tensor:
        """(B, H, N, ·) -> (G, blocks, S, ·), a view where that is possible; empty slots hold 0."""
        if self.positions is None:
            x = pad_to_multiple(x, self.size, -2)
        else:
            x = x.reshape(-1, x.shape[-1]).index_select(0, self.source)
            if self.empty is not None:
                x.masked_fill_(self.empty, 0)
        x = x.reshape(self.B * self.H, self.blocks, self.size, x.shape[-1])
        return x.contiguous() if contiguous else x

    def view(self, x: Tensor, contiguous: bool) -> Tensor | None:
        """``x`` (B, H, N, ·) itself as blocks (G, blocks, S, ·), to write into; None where it does not lie so."""
        if (
            self.positions is not None
            or self.N % self.size
            or not (x.is_contiguous() or (self.B == 1 and not contiguous))
        ):
            return None
        return x.view(self.B * self.H, self.blocks, self.size, x.shape[-1])

    def hidden(self, padding: Tensor | None) -> Tensor | None:
        """(G, blocks, S) bool: slots that hold padding or nothing; None where there are none."""
        if self.positions is None:
            if padding is None and self.N % self.size == 0:
                return None
            here = (
                torch.zeros(self.B, 1, self.N, dtype=torch.bool, device=self.device)
                if padding is None
                else padding[:, None]
            )
            here = pad_to_multiple(here[..., None], self.size, -2, value=True)[..., 0]
            here = here.expand(self.B, self.H, -1)
        else:
            if padding is None and self.empty is None:
                return None
            here = self.index < 0
            if padding is not None:
                here = here | padding[:, None].expand(-1, self.H, -1).gather(-1, self.index.clamp(min=0))
        return here.reshape(self.B * self.H, self.blocks, self.size)

    def places(self) -> Tensor:
        """(G, blocks, S): the position in each slot."""
        if self.positions is None:
            here = torch.arange(self.blocks * self.size, device=self.device).expand(self.B * self.H, -1)
        else:
            here = self.index
        return here.reshape(self.B * self.H, self.blocks, self.size)

    def _restore(self, x: Tensor) -> Tensor:
        """(G, blocks, S, ·) -> (B, H, N, ·)."""
        if self.positions is None:
            return x.reshape(self.B, self.H, self.blocks * self.size, x.shape[-1])[:, :, : self.N]
        return x.reshape(-1, x.shape[-1]).index_select(0, self.slot).view(self.B, self.H, self.N, x.shape[-1])

    def back(self, x: Tensor, absent: float) -> Tensor:
        """Blocks (G, blocks, S, ·) as positions (B, H, N, ·); those without a slot get ``absent``."""
        x = self._restore(x)
        return x if self.positions is None else x.masked_fill(self.absent[..., None], absent)

    def put(self, x: Tensor, target: Tensor, absent: float) -> None:
        """Write blocks (G, blocks, S, ·) to ``target`` (B, H, N, ·); positions without a slot get ``absent``."""
        target.copy_(self._restore(x))
        if self.positions is not None:
            target.masked_fill_(self.absent[..., None], absent)

    def add(self, x: Tensor, target: Tensor) -> None:
        """Add blocks (G, blocks, S, ·) to ``target`` (B, H, N, ·)."""
        x = self._restore(x)
        target.add_(x if self.positions is None else x.masked_fill_(self.absent[..., None], 0))


class _Blocks:
    """One part, ready for inputs of one shape."""

    def __init__(self, part: Part, shape: torch.Size, padding: Tensor | None, device: torch.device) -> None:
        self.part, self.shape, self.device = part, shape, device
        self.queries = _Cut(part.positions, part.size, shape, device)
        self.keys = self.queries if part.keys is None else _Cut(part.keys, part.keys.shape[-1], shape, device)
        self.hidden = self.keys.hidden(padding)
        self.gathers = any(isinstance(group, Group) for group in part.groups)
        self.causal = (self.queries.places(), self.keys.places()) if part.causal else None
        # the label of each query slot and key slot: (G, blocks, S)
        self.labels = None if part.labels is None else part.labels.flatten(0, 1)[..., None].expand(-1, -1, part.size)

    def take_queries(self, *tensors: Tensor) -> list[Tensor]:
        """(B, H, N, ·) -> (G, blocks, S, ·) each, laid out so that tiles are cut without a copy of the whole."""
        return [self.queries.take(x, contiguous=self.gathers) for x in tensors]

    def take_keys(self, *tensors: Tensor) -> list[Tensor]:
        """(B, H, N, ·) -> (G, key blocks, S, ·) each, likewise."""
        return [self.keys.take(x, contiguous=self.gathers) for x in tensors]

    def tiles(self) -> Iterator[_Tile]:
        """The work, a few rows at a time."""
        B, H, _, D = self.shape
        budget = TILE_ELEMENTS.get(self.device.type, TILE_ELEMENTS_ELSEWHERE)
        for group in self.part.groups:
            width = group.width if isinstance(group, Span) else group.columns.shape[-1]
            row = max(1, B) * D * (self.queries.size + 2 * width * self.keys.size)
            step = max(1, budget // (row * H if isinstance(group, Span) else row))
            if isinstance(group, Span):
                for start in range(group.first, group.last, step):
                    yield _Neighbours(self, replace(group, first=start, last=min(start + step, group.last)))
                continue
            for start in range(0, len(group.rows), step):
                part = slice(start, start + step)
                yield _Gathered(self, replace(group, rows=group.rows[part], columns=group.columns[part]))


class _Tile(ABC):
    """Some query blocks and the key blocks they see: (T, R) problems of S × L."""

    def __init__(self, blocks: _Blocks, given_bias: Tensor | None) -> None:
        self.blocks, self.given_bias = blocks, given_bias

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """(G, blocks, S, …) -> (T, R, S, …)."""

    @abstractmethod
    def columns(self, x: Tensor) -> Tensor:
        """(G, key blocks, S, …) -> (T, R, L, …)."""

    @abstractmethod
    def write(self, x: Tensor, value: Tensor) -> None:
        """Write (T, R, S, …) into ``x`` (G, blocks, S, …)."""

    @abstractmethod
    def written(self, x: Tensor, value: Tensor) -> Tensor:
        """What ``write`` makes of ``x``, as a new tensor."""

    @abstractmethod
    def add(self, x: Tensor, value: Tensor) -> None:
        """Add (T, R, L, …) to ``x`` (G, key blocks, S, …)."""

    def bias(self) -> Tensor | None:
        """What to add to the logits; broadcasts to (T, R, S, L)."""
        bias, blocks = self.given_bias, self.blocks
        masks: list[Tensor] = []  # that broadcast likewise; True = hidden
        if blocks.hidden is not None:
            keys = self.columns(blocks.hidden)
            if traced() or bool(keys.any()):
                masks.append(keys[:, :, None])
        if blocks.causal is not None:
            at, seen = self.rows(blocks.causal[0]), self.columns(blocks.causal[1])
            masks.append(seen[:, :, None] > at[..., None])
        if blocks.labels is not None:
            masks.append(self.columns(blocks.labels)[:, :, None] != self.rows(blocks.labels)[..., None])
        if not masks:
            return bias
        hidden = reduce(or_, masks)
        return hide(~hidden) if bias is None else bias.expand(1, 1, *bias.shape).masked_fill(hidden, HIDDEN)


class _Neighbours(_Tile):
    """A span: T = G, R rows; nothing is copied."""

    def __init__(self, blocks: _Blocks, span: Span) -> None:
        super().__init__(blocks, span.bias)
        self.span = span

    def rows(self, x: Tensor) -> Tensor:
        return x[:, self.span.first : self.span.last]

    def columns(self, x: Tensor) -> Tensor:
        size = x.shape[2]
        windows = x.flatten(1, 2).unfold(1, self.span.width * size, size)  # (G, key blocks − W + 1, …, L)
        windows = windows[:, self.span.first + self.span.offset : self.span.last + self.span.offset]
        return windows if x.dim() == 3 else windows.transpose(-1, -2)

    def write(self, x: Tensor, value: Tensor) -> None:
        self.rows(x).copy_(value)

    def written(self, x: Tensor, value: Tensor) -> Tensor:
        return x.slice_scatter(value.to(x.dtype), 1, self.span.first, self.span.last)

    def add(self, x: Tensor, value: Tensor) -> None:
        size = x.shape[2]
        for number in range(self.span.width):
            start = self.span.offset + number
            x[:, self.span.first + start : self.span.last + start] += value[:, :, number * size : (number + 1) * size]


class _Gathered(_Tile):
    """A group: T = B · rows of the group, R = 1; each key block is copied for each row that sees it."""

    def __init__(self, blocks: _Blocks, group: Group) -> None:
        super().__init__(blocks, group.bias)
        B, H = blocks.shape[:2]
        sample = torch.arange(B, device=group.rows.device)[:, None]
        self.width = group.columns.shape[-1]
        self.row = (group.rows + sample * (H * blocks.queries.blocks)).flatten()
        self.column = (group.columns.flatten() + sample * (H * blocks.keys.blocks)).flatten()

    def rows(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.row)[:, None]

    def columns(self, x: Tensor) -> Tensor:
        picked = x.flatten(0, 1).index_select(0, self.column)
        return picked.view(len(self.row), 1, self.width * x.shape[2], *x.shape[3:])

    def write(self, x: Tensor, value: Tensor) -> None:
        x.view(-1, *x.shape[2:]).index_copy_(0, self.row, value[:, 0].to(x.dtype))

    def written(self, x: Tensor, value: Tensor) -> Tensor:
        return x.flatten(0, 1).index_copy(0, self.row, value[:, 0].to(x.dtype)).view_as(x)

    def add(self, x: Tensor, value: Tensor) -> None:
        value = value.reshape(-1, *x.shape[2:])
        x.view(-1, *x.shape[2:]).index_add_(0, self.column, value.to(x.dtype))


def _forward_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """q: (T, 1, S, D); k, v: (T, 1, L, D). The result as q, and its log-sum-exp (T, 1, S) in at least float32."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=_as_mask(bias, q), scale=scale
        )
        return out, lse
    return _plain_forward(q, k, v, bias, scale)


def _plain_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The same from matrix products, for devices without that kernel."""
    logits = _logits(q, k, bias, scale)
    return logits.softmax(-1).to(v.dtype) @ v, logits.logsumexp(-1)


def _backward_kernel(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v; ``out`` and ``lse`` are those of the whole softmax, of which these keys may be a part."""
    if q.device.type == "cpu":
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, attn_mask=_as_mask(bias, q), scale=scale
        )
        return dq, dk, dv
    return _plain_backward(grad, q, k, v, out, lse, bias, scale)


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from matrix products, for devices without that kernel."""
    weights = (_logits(q, k, bias, scale) - lse[..., None]).exp_()
    wide = grad.float() if grad.dtype == torch.float16 else grad  # likewise for gradients and values
    delta = (wide * out).to(lse.dtype).sum(-1, keepdim=True)
    slope = (weights * ((wide @ v.to(wide.dtype).mT).to(lse.dtype) - delta)).mul_(scale).to(q.dtype)
    return slope @ k, slope.mT @ q, weights.to(v.dtype).mT @ grad


def _logits(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    if q.dtype == torch.float16:  # a product of two large activations does not fit
        q, k = q.float(), k.float()
    logits = (q @ k.mT).to(accumulator(q)).mul_(scale)
    return logits if bias is None else logits.add_(bias)


def _as_mask(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """The fused kernel reads a mask in float32, or in float64 beside float64 inputs; 2 or 4 dimensions."""
    if bias is None:
        return None
    bias = bias.to(accumulator(q))
    return bias.expand(*(1,) * (4 - bias.dim()), *bias.shape)
