"""``delta`` of ``zoo/cores/recurrences.py`` on the kernels of fla-org/flash-linear-attention, ``fla.ops``.

The kernels hold a chunk of 64 positions in a multiprocessor; plain torch writes every product to memory. Both
directions run as one batch, the second one flipped. Cost: O(N M D) time, O(N (M + D)) memory.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.contract import Tensors
from zoo.functional import once, working_dtype

CHUNK = 64  # chunk size of the kernels


def refusal(x: Tensor) -> str:
    """Why the kernels cannot run for inputs like ``x`` (B, N, C); empty if they can.

    Not float16: keys projected in float32 can overflow it. Not float32: there the kernels multiply in TF32.
    """
    if not x.is_cuda:
        return f"flash-linear-attention has no kernels for {x.device.type}"
    if working_dtype(x) != torch.bfloat16:
        return f"the kernels run in bfloat16 only, got {working_dtype(x)}"
    return _missing(x.device)


@cache
def _missing(device: torch.device) -> str:
    """What the kernels need and this machine lacks; empty if it has all."""
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed (pip install 'attention-zoo[gpu]')"
    version = tuple(int(part) for part in metadata.version("triton").split(".")[:3])
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    if hopper and (3, 4, 0) <= version < (3, 7, 1) and importlib.util.find_spec("tilelang") is None:
        return "on a Hopper GPU flash-linear-attention needs Triton 3.7.1 or newer, or tilelang"
    return ""


def recur(forth: Tensors, back: Tensors | None = None) -> Tensors:
    """``scan`` of ``delta`` over q, k, v, beta and log_decay, from a state of 0, in bfloat16.

    With ``back``, whose positions run from the last to the first, ``scan_both``. Returns (B, H, N, D) for each
    direction, from the first position to the last.
    """
    directions = [forth] if back is None else [forth, back]
    joined = [torch.cat(each) if back is not None else each[0] for each in zip(*directions, strict=True)]
    with torch.autocast(forth[0].device.type, enabled=False):
        out = _recur(*joined)
    if back is None:
        return (out,)
    first, second = out.chunk(2)
    return first, second.flip(2)


def _recur(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    M, D = q.shape[-1], v.shape[-1]
    q, k, v = (x.to(torch.bfloat16).transpose(1, 2).contiguous() for x in (q, k, v))
    beta, log_decay = (x.float().transpose(1, 2).contiguous() for x in (beta, log_decay))
    out, _ = chunk_gated_delta_rule(q, k, v, log_decay, beta, scale=1.0)
    work = 4 * CHUNK * (M + D) + 2 * CHUNK * (M + CHUNK) + 6 * M * D  # operations for one position
    counted: Tensor = _Counted.apply(out, beta.numel() * work)
    return counted.transpose(1, 2)


@torch.library.custom_op("zoo::operations", mutates_args=())
def operations(like: Tensor, count: int) -> Tensor:  # noqa: ARG001
    """Computes nothing. Tells FLOP counters the operations of a kernel that they cannot see."""
    return like.new_empty(0)


@register_flop_formula(torch.ops.zoo.operations, get_raw=True)
def _count(_like: Tensor, count: int, **_: Any) -> int:
    return count


class _Counted(torch.autograd.Function):
    """Returns ``x`` and counts the operations that made it: about 2.5 times as many in backward, which makes the states
    again.

    It keeps ``x``, so that differentiating the gradients again raises the error of ``once``: without it, torch would
    take the kernels' gradients for constants.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(x)
        operations(x, count)
        return x.view_as(x)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operations(grad, ctx.count * 5 // 2)
        return grad, None
