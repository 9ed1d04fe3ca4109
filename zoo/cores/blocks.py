"""Attention between blocks: the core that sparse backends share.

A backend lists in a ``Part`` (``zoo/cores/parts.py``) which blocks of keys each block of queries sees; this file
computes the attention. Log-sum-exps join several parts (a window and some global keys, rounds of hashing, dilations),
so that the result is one softmax over all the pairs of all parts.

``out_i = Σ_p Σ_j exp(s_ij) v_j / Σ_p Σ_j exp(s_ij)`` over the keys j that part p shows to i, ``s_ij = scale q_i·k_j``.

The work is cut into tiles of a few blocks that fit into cache (``zoo/cores/tiles.py``): a read, one fused kernel, and a
write. Nothing of a tile is kept: backward reads the inputs again. Backward has the log-sum-exp of the whole result, so
``exp(s_ij - lse_i)`` is the weight of a pair in any part, and the fused backward kernel needs no second forward. No
N × N tensor is ever made, masked or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Kernel, Tensors
from zoo.cores.cache import append
from zoo.cores.parts import HIDDEN, Part, Span, causal_bias, hide, layout_groups, made_once, seen_last, seen_rows
from zoo.cores.tiles import Blocks, Gathered, Neighbours
from zoo.functional import accumulator, once, softmax_attention, traced
from zoo.kernels import runs

KERNELS = ("auto", "torch", "triton")  # auto: Triton on GPUs with Triton, else torch


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
    """Softmax attention over the pairs that the parts show; 0 for a query that sees no key.

    q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding; scale: 1/√D by default;
    kernel: one of ``KERNELS``.

    Raises:
        NotImplementedError: ``triton`` cannot run.
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
    """``attend`` over ``window_spans`` of ``reach``, in operations that do not depend on the number of blocks.

    For compilers, so that the length can stay dynamic: the number of blocks is a separate dimension throughout, since
    torch cannot prove for all lengths how other dimensions split or join. Each key is copied for each block that sees
    it.
    """
    B, H, N, D = q.shape
    before, after = (-(-abs(end) // size) * size for end in reach)
    missing = (-(-N // size) + 1) * size - N  # one block too many: a compiler treats a dimension of 1 as static
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

    layout: (blocks, blocks) bool for all heads, or (H, blocks, blocks), for at least this length; True = the row sees
        the column. A causal layout must have no column after its row.
    """
    version = 0 if traced() or layout.is_inference() else layout._version  # inference tensors have no version
    parts = made_once(_layout_parts, layout, version, -(-q.shape[2] // size), q.shape[1], size, causal, like=q)
    return attend(q, k, v, parts, key_padding_mask=key_padding_mask, kernel=kernel)


def _layout_parts(layout: Tensor, _version: int, blocks: int, n_heads: int, size: int, causal: bool) -> list[Part]:
    biases = causal_bias(size, layout.device) if causal else {}
    return [Part(groups=layout_groups(layout[..., :blocks, :blocks], n_heads, size, biases), size=size)]


def attend_next(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Part], tensors: Tensors, position: int, max_len: int
) -> tuple[Tensor, Tensors]:
    """The last row of a causal ``attend``, and all keys and values so far: a step form.

    q, k, v and the result: (B, H, 1, D), at ``position``; parts: of all positions up to ``position``, at least for the
        query at ``position``; tensors: keys and values of earlier positions (see ``zoo.cores.cache``).
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


def attend_rows(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of one query a head over some rows of the keys and values; 0 for a query that sees no row.

    q and the result: (B, H, 1, D); keys, values: (B, H, rows, D); places: (B or 1, H, W), indices of the rows; bias:
        (B or 1, H, W), added to their logits; scale: 1/√D by default.
    """
    if places.shape[-1] == 0:
        return torch.zeros_like(q)
    B, H, rows, D = keys.shape
    index = (places + rows * torch.arange(B * H, device=q.device).view(B, H, 1)).flatten()
    keys, values = (x.flatten(0, 2).index_select(0, index).view(B, H, places.shape[-1], D) for x in (keys, values))
    mask = None if bias is None else bias[:, :, None]
    out, lse = _forward_kernel(q, keys, values, mask, D**-0.5 if scale is None else scale)
    return out.masked_fill((lse < HIDDEN / 2)[..., None], 0)


def kernel_name(x: Tensor, kernel: str = "auto") -> Kernel:
    """The kernel that ``attend`` runs for inputs like ``x`` (B, H, N, D)."""
    if runs_on_triton(x, kernel):
        return Kernel("Triton block attention")
    return Kernel("gathered blocks on torch SDPA flash (cpu)" if x.device.type == "cpu" else "gathered blocks, matmul")


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> Tensor:
    """``attend`` in operations that autograd differentiates: they keep the weights of all visible pairs."""
    out, lse = _empty(q)
    for number, part in enumerate(parts):
        blocks = Blocks(part, q.shape, padding, q.device)
        (qs,), (ks, vs) = blocks.take_queries(q), blocks.take_keys(k, v)
        more, more_lse = out.new_zeros(qs.shape), out.new_full((*qs.shape[:-1], 1), HIDDEN)
        for group in part.groups:
            tile = Neighbours(blocks, group) if isinstance(group, Span) else Gathered(blocks, group)
            tile_out, tile_lse = _plain_forward(tile.rows(qs), tile.columns(ks), tile.columns(vs), tile.bias(), scale)
            more, more_lse = tile.written(more, tile_out), tile.written(more_lse, tile_lse[..., None])
        more, more_lse = blocks.queries.back(more, 0), blocks.queries.back(more_lse, HIDDEN)[..., 0]
        if number == 0:
            out, lse = more, more_lse
            continue
        out = out.lerp(more, (more_lse - lse).sigmoid()[..., None])
        lse = torch.logaddexp(lse, more_lse)
    return out.masked_fill((lse < HIDDEN / 2)[..., None], 0).to(q.dtype)


class _BlockAttention(torch.autograd.Function):
    """Keeps q, k, v, the result, one log-sum-exp a query, and the positions of the parts."""

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
        saved_parts = zip(ctx.parts, content[::2], content[1::2], strict=True)
        parts = [replace(part, positions=positions, labels=labels) for part, positions, labels in saved_parts]
        if ctx.on_triton:
            from zoo.kernels import block_attention

            return *block_attention.backward(grad, q, k, v, padding, out, lse, ctx.scale, parts), *[None] * 4
        grad = grad.masked_fill((lse < HIDDEN / 2)[..., None], 0)
        grads = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v)]
        for number, part in enumerate(parts):
            blocks = Blocks(part, q.shape, padding, q.device)
            _backward_part(blocks, grad, q, k, v, out, lse, ctx.scale, grads, first=number == 0)
        dq, dk, dv = (g.to(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))
        return dq, dk, dv, *[None] * 4


def _on_torch(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """The result, in the dtype of ``q``, and its log-sum-exp."""
    out, lse = _empty(q)
    for number, part in enumerate(parts):
        blocks = Blocks(part, q.shape, padding, q.device)
        if number == 0:
            _forward_part(blocks, q, k, v, scale, out, lse)
            continue
        more, more_lse = _empty(q)
        _forward_part(blocks, q, k, v, scale, more, more_lse)
        # A lerp, so that the shares sum to 1: a log-sum-exp near 1e5 has only two decimals in float32.
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

    The heads of a position are neighbours in memory, so that the shell joins them without a copy.
    """
    B, H, N, D = q.shape
    out = torch.zeros(B, N, H, D, dtype=accumulator(q), device=q.device).transpose(1, 2)
    return out, out.new_full((B, H, N), HIDDEN)


def _forward_part(blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Write one part's result and log-sum-exp into ``out`` and ``lse``, for the queries in the part."""
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
    blocks: Blocks,
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
    """Add one part's gradients of q, k and v to ``grads``, which are 0 before the ``first`` part."""
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


def _forward_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """q and the result: (T, 1, S, D); k, v: (T, 1, L, D); the log-sum-exp: (T, 1, S), in at least float32."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=_as_mask(bias, q), scale=scale
        )
        return out, lse
    return _plain_forward(q, k, v, bias, scale)


def _plain_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The same by matrix products, for devices without the fused kernel."""
    logits = _logits(q, k, bias, scale)
    return logits.softmax(-1).to(v.dtype) @ v, logits.logsumexp(-1)


def _backward_kernel(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v. ``out`` and ``lse``: of the whole softmax, of which these keys may be only a part."""
    if q.device.type == "cpu":
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, attn_mask=_as_mask(bias, q), scale=scale
        )
        return dq, dk, dv
    return _plain_backward(grad, q, k, v, out, lse, bias, scale)


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by matrix products, for devices without the fused kernel."""
    weights = (_logits(q, k, bias, scale) - lse[..., None]).exp_()
    wide = grad.float() if grad.dtype == torch.float16 else grad  # products of gradients and values can overflow too
    delta = (wide * out).to(lse.dtype).sum(-1, keepdim=True)
    slope = (weights * ((wide @ v.to(wide.dtype).mT).to(lse.dtype) - delta)).mul_(scale).to(q.dtype)
    return slope @ k, slope.mT @ q, weights.to(v.dtype).mT @ grad


def _logits(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    if q.dtype == torch.float16:  # a product of two large activations can overflow
        q, k = q.float(), k.float()
    logits = (q @ k.mT).to(accumulator(q)).mul_(scale)
    return logits if bias is None else logits.add_(bias)


def _as_mask(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask as the fused kernel reads it: float32 (float64 with float64 inputs), 2 or 4 dimensions."""
    if bias is None:
        return None
    bias = bias.to(accumulator(q))
    return bias.expand(*(1,) * (4 - bias.dim()), *bias.shape)
