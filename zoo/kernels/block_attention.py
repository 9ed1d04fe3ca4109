"""Attention between blocks as Triton kernels: the twin of the tiles in ``zoo/cores/blocks.py``, one launch a part.

A program takes a tile of queries and walks the runs of keys that its block sees: FlashAttention-2 (arXiv:2307.08691,
algorithm 1) over a list of runs instead of all keys. It reads queries and keys through the part's positions, so
positions sorted by a hash need no copy. A later part continues from the result and log-sum-exp of the parts before it,
as one online softmax. Backward has two kernels: one walks as forward does and adds to the gradient of the queries; the
other takes a tile of keys, walks the queries that see it, and adds to the gradients of the keys and values.

Cost: 4 D operations a pair of query and key in forward, 14 D in backward. Memory: the result, one log-sum-exp a query,
and gradients in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.contract import Tensors
from zoo.cores.parts import HIDDEN, Part
from zoo.kernels import INTERPRETED
from zoo.kernels import block_programs as programs
from zoo.kernels.block_lists import make_lists

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256  # the largest d_head


def refusal(q: Tensor) -> str:
    """Why the kernels cannot run for inputs like ``q`` (B, H, N, D); empty if they can."""
    if not (q.is_cuda or INTERPRETED):
        return f"Triton has no kernels for {q.device.type}"
    if q.dtype not in DTYPES:
        return f"the kernels take float16, bfloat16 and float32, got {q.dtype}"
    if q.shape[-1] > WIDEST:
        return f"the kernels take heads of at most {WIDEST} features, got {q.shape[-1]}"
    return ""


def forward(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the pairs that the parts show, and its log-sum-exp in float32.

    q, k, v and the result: (B, H, N, D) of one dtype; padding: (B, N) bool; the log-sum-exp: (B, H, N). A query that
    sees no key has the result 0 and the log-sum-exp ``HIDDEN``.
    """
    B, H, N, D = q.shape
    q, k, v = (_rows(x) for x in (q, k, v))
    out = torch.zeros(B, N, H, D, dtype=q.dtype if len(parts) == 1 else torch.float32, device=q.device).transpose(1, 2)
    lse = torch.full((B, H, N), HIDDEN, dtype=torch.float32, device=q.device)
    for number, part in enumerate(parts):
        block_attention(q, k, v, out, lse, *_given(part, q, padding), scale, number == 0)
    return out.to(q.dtype), lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    parts: Sequence[Part],
) -> Tensors:
    """Gradients of q, k and v; ``out`` and ``lse`` are the results of ``forward``."""
    grad, q, k, v = (_rows(x) for x in (grad, q, k, v))
    delta = (grad.float() * out).sum(-1)
    B, H, N, D = q.shape
    dq, dk, dv = (torch.zeros(B, N, H, D, device=q.device).transpose(1, 2) for _ in range(3))
    for number, part in enumerate(parts):
        given = _given(part, q, padding)
        block_attention_backward(grad, q, k, v, lse, delta, dq, dk, dv, *given, scale, number == 0)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _rows(x: Tensor) -> Tensor:
    """``x`` with its features side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _given(part: Part, q: Tensor, padding: Tensor | None) -> tuple[Any, ...]:
    """The arguments of the operators that describe a part."""
    H, N, D = q.shape[1:]
    blocks = -(-N // part.size) if part.positions is None else part.positions.shape[-2]
    key_blocks, key_size = (blocks, part.size) if part.keys is None else part.keys.shape[-2:]
    lists = make_lists(tuple(part.groups), part.size, blocks, key_size, key_blocks, H, 64 if D <= 128 else 32, q.device)
    keys = part.positions if part.keys is None else part.keys
    return (
        None if part.positions is None else part.positions.int(),
        None if keys is None else keys.int(),
        padding,
        None if part.labels is None else part.labels.int(),
        [lists.tiles, lists.shares, lists.runs, lists.items, lists.visits, lists.biases],
        [
            part.size,
            key_size,
            key_blocks * key_size,
            lists.heads,
            lists.pairs,
            lists.block_m,
            lists.block_n,
            lists.count,
        ],
        part.causal,
    )


def _by_head(x: Tensor | None, dims: int, like: Tensor) -> tuple[Tensor, int, int]:
    """``x`` ([[B,] H,] and ``dims`` more dimensions), and its strides along samples and heads, 0 without them."""
    if x is None:
        return like, 0, 0
    x = x.contiguous()
    steps = [0, 0, *(n for n in x.stride()[: x.dim() - dims])]
    return x, steps[-2], steps[-1]


def _launch(
    q: Tensor,
    positions: Tensor | None,
    key_positions: Tensor | None,
    padding: Tensor | None,
    labels: Tensor | None,
    sizes: list[int],
    causal: bool,
) -> tuple[tuple[Tensor, ...], tuple[int, ...], dict[str, Any]]:
    """Arguments that all kernels share: tensors of the part, their strides, and constants."""
    at, p_b, p_h = _by_head(positions, 2, q)
    seen, kp_b, kp_h = _by_head(key_positions, 2, q)
    label, l_b, l_h = _by_head(labels, 1, q)
    hidden = q if padding is None else padding.contiguous().view(torch.uint8)
    constants = {
        "D": q.shape[-1],
        "WIDTH": max(16, triton.next_power_of_2(q.shape[-1])),
        "M": sizes[5],
        "L": sizes[6],
        "SHARED": sizes[3] == 1,
        "MAPPED": positions is not None,
        "KEYS_MAPPED": key_positions is not None,
        "PADDED": padding is not None,
        "CAUSAL": causal,
        "LABELLED": labels is not None,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }
    return (at, seen, hidden, label), (p_b, p_h, kp_b, kp_h, l_b, l_h), constants


def _grid(programs: Tensor, q: Tensor, sizes: list[int]) -> tuple[int, int]:
    B, H = q.shape[:2]
    return len(programs), B * H if sizes[3] == 1 else B


@torch.library.custom_op("zoo::block_attention", mutates_args=("out", "lse"))
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    positions: Tensor | None,
    key_positions: Tensor | None,
    padding: Tensor | None,
    labels: Tensor | None,
    lists: list[Tensor],
    sizes: list[int],
    causal: bool,
    scale: float,
    first: bool,
) -> None:
    """Write one part's result and log-sum-exp; if not the ``first`` part, continue from those of earlier parts."""
    tiles, shares, runs, _, _, biases = lists
    H, N, D = q.shape[1:]
    tensors, steps, constants = _launch(q, positions, key_positions, padding, labels, sizes, causal)
    strides = [n for x in (q, k, v, out) for n in x.stride()[:3]]
    grid, M = _grid(tiles, q, sizes), sizes[5]
    count = sizes[7]
    pieces = torch.empty(grid[1], count, M, D + 1, device=q.device) if count else lse
    programs.forward[grid](
        q, k, v, out, lse, pieces, *tensors, tiles, runs, biases, scale, H, N, *sizes[:2], count, *strides, *steps,
        FIRST=first, **constants,
    )  # fmt: skip
    if count:
        some = {name: constants[name] for name in ("D", "WIDTH", "M", "SHARED", "MAPPED")}
        programs.join[len(shares), grid[1]](
            out, lse, pieces, tensors[0], shares, H, N, count, *strides[-3:], *steps[:2], FIRST=first, **some
        )


@torch.library.custom_op("zoo::block_attention_backward", mutates_args=("dq", "dk", "dv"))
def block_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    positions: Tensor | None,
    key_positions: Tensor | None,
    padding: Tensor | None,
    labels: Tensor | None,
    lists: list[Tensor],
    sizes: list[int],
    causal: bool,
    scale: float,
    first: bool,
) -> None:
    """Add one part's gradients, in float32; they are 0 before the ``first`` part."""
    tiles, _, runs, items, visits, biases = lists
    H, N = q.shape[1:3]
    tensors, steps, constants = _launch(q, positions, key_positions, padding, labels, sizes, causal)
    strides = [n for x in (q, k, v, grad, dq) for n in x.stride()[:3]]
    programs.backward_queries[_grid(tiles, q, sizes)](
        q, k, v, grad, lse, delta, dq, *tensors, tiles, runs, biases, scale, H, N, *sizes[:2], *strides, *steps,
        FIRST=first, **constants,
    )  # fmt: skip
    if len(items):
        programs.backward_keys[_grid(items, q, sizes)](
            q, k, v, grad, lse, delta, dk, dv, *tensors, items, visits, biases, scale, H, N, *sizes[:3], *strides,
            *steps, **constants,
        )  # fmt: skip


@register_flop_formula(torch.ops.zoo.block_attention, get_raw=True)
def _flops(q: Tensor, *given: Any, **_: Any) -> int:
    """Two matrix products over all visible pairs."""
    return 4 * _pairs(q, given[9])


@register_flop_formula(torch.ops.zoo.block_attention_backward, get_raw=True)
def _backward_flops(_grad: Tensor, q: Tensor, *given: Any, **_: Any) -> int:
    """Seven matrix products: logits and their gradients in both kernels, and the three gradients."""
    return 14 * _pairs(q, given[12])


def _pairs(q: Tensor, sizes: list[int]) -> int:
    B, H, _, D = q.shape
    heads, pairs = sizes[3:5]
    return B * D * pairs * (H if heads == 1 else 1)
