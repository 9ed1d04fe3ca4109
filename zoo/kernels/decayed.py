"""The recurrence ``decayed`` of ``zoo/cores/recurrences.py`` as Triton kernels, in either direction.

``S_t = a_t S_{t-1} + k_tᵀ v_t, y_t = q_t S_t`` takes three launches: what each chunk writes to the state, all chunks at
once; the states before the chunks, one after another; what each chunk reads, all chunks at once (RetNet,
arXiv:2307.08621, equation 7; Mamba-2, arXiv:2405.21060, section 6).

The gradients are the same recurrence with other inputs. With w_ij the decay from j to i, ``y_i = Σ_j w_ij (q_i·k_j)
v_j``, so ``dq_i = Σ_j w_ij (dy_i·v_j) k_j`` is a scan of (dy, v, k); ``dk_j = Σ_i w_ij (v_j·dy_i) q_i`` and ``dv_j =
Σ_i w_ij (k_j·q_i) dy_i`` are scans of (v, dy, q) and (k, q, dy) in the other direction. The gradient of log a_t sums
what passes t: within a chunk ``q·dq - k·dk``, and from chunk to chunk the kept state times its gradient.

Cost: O(N (64 + M) D) time, O(N (M + D)) memory; the states before the chunks, N M D / 64 numbers, are held for a while.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.contract import Tensors
from zoo.functional import once
from zoo.kernels import INTERPRETED

CHUNK = 64  # positions in a chunk
WIDEST = 128  # the most rows of the state, and features of a head
LEAST = -50.0  # the least log decay: smaller ones forget all anyway, and would cost sums of a chunk their digits


def refusal(x: Tensor, M: int, D: int) -> str:
    """Why the kernels cannot run for inputs like ``x`` and states of M × D; empty if they can."""
    if not (x.is_cuda or INTERPRETED):
        return f"Triton has no kernels for {x.device.type}"
    if x.dtype == torch.float64:
        return "the kernels do not support float64"
    if max(M, D) > WIDEST:
        return f"the kernels take states of at most {WIDEST} × {WIDEST}, got {M} × {D}"
    return ""


def scan(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, reverse: bool, rounds: bool) -> Tensor:
    """The recurrence from a state of 0, (B, H, N, D) in float32.

    Args:
        q, k: (B, H, N, M), or one head that all heads share.
        v: (B, H, N, D).
        log_decay: (B, H, N), at most 0.
        reverse: walk from the last position to the first.
        rounds: products in TF32, enough for inputs rounded to 16 bits; else as precise as float32.
    """
    B, H, N, _ = v.shape
    log_decay = log_decay.expand(B, H, N).float().clamp(min=LEAST)
    with torch.autocast(v.device.type, enabled=False):
        out: Tensor = _Scan.apply(q, k, v, log_decay, reverse, rounds)
    return out


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, reverse: bool, rounds: bool) -> Tensor:
        ctx.save_for_backward(q, k, v, log_decay)
        ctx.reverse, ctx.rounds = reverse, rounds
        out: Tensor = decayed_scan(q, k, v, log_decay, reverse, rounds)[0]
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay = ctx.saved_tensors
        reverse, rounds = ctx.reverse, ctx.rounds
        turned = F.pad(log_decay[..., :-1], (1, 0)) if reverse else F.pad(log_decay[..., 1:], (0, 1))
        dq, _ = decayed_scan(grad, v, k, log_decay, reverse, rounds)
        dk, _ = decayed_scan(v, grad, q, turned, not reverse, rounds)
        dv, flows = decayed_scan(k, q, grad, turned, not reverse, rounds)
        d_log = None
        if ctx.needs_input_grad[3]:
            _, states = decayed_scan(q, k, v, log_decay, reverse, rounds)
            within = (q * dq).sum(-1) - (k * dk).sum(-1)
            d_log = _passing(within, states, flows, log_decay, reverse)
        return (
            dq.sum_to_size(q.shape).to(q.dtype),
            dk.sum_to_size(k.shape).to(k.dtype),
            dv.to(v.dtype),
            d_log,
            None,
            None,
        )


def _passing(within: Tensor, states: Tensor, flows: Tensor, log_decay: Tensor, reverse: bool) -> Tensor:
    """The gradient of the logarithms of decays, (B, H, N): for each position, the sum of what passes it.

    within: q·dq − k·dk of each position; states, flows: (B, H, chunks, M, D), the state that enters a chunk, and the
        gradient of the state that leaves it, except for one decay.
    """
    B, H, N = within.shape
    chunks = states.shape[2]
    parts = F.pad(within, (0, chunks * CHUNK - N)).view(B, H, chunks, CHUNK)
    kept = F.pad(log_decay, (0, chunks * CHUNK - N)).view(B, H, chunks, CHUNK)
    if reverse:
        crossing = (states[:, :, :-1] * flows[:, :, 1:]).sum((-2, -1)) * kept[:, :, :-1, -1].exp()
        crossing = F.pad(crossing, (1, 0))  # what enters a chunk from later chunks
        total = parts.cumsum(-1)
    else:
        crossing = (states[:, :, 1:] * flows[:, :, :-1]).sum((-2, -1)) * kept[:, :, 1:, 0].exp()
        crossing = F.pad(crossing, (0, 1))
        total = parts.flip(-1).cumsum(-1).flip(-1)
    return (total + crossing[..., None]).flatten(2)[..., :N]


@triton.jit
def _slots(number, chunks, N, REVERSE: tl.constexpr, CHUNK: tl.constexpr):
    """The ``number``-th chunk of the walk, its positions in walking order, and which of them exist."""
    chunk, slot = number, tl.arange(0, CHUNK)
    if REVERSE:
        chunk, slot = chunks - 1 - number, CHUNK - 1 - slot
    at = chunk * CHUNK + slot
    return chunk, at.to(tl.int64), at < N


@triton.jit
def _write(
    K, V, G, States, Totals, H, N, chunks, k_b, k_h, k_n, v_b, v_h, v_n,
    M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """What a chunk writes to the state, ``Σ_t (decay from t to its end) k_tᵀ v_t``, and the decay over the chunk."""
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // H, pair % H
    chunk, at, ok = _slots(tl.program_id(0), chunks, N, REVERSE, CHUNK)
    m, d = tl.arange(0, ROWS), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    g = tl.load(G + pair * N + at, mask=ok, other=0.0)
    total = tl.sum(g, 0)
    left = tl.exp(total - tl.cumsum(g, 0))
    k = tl.load(K + b * k_b + h * k_h + at[:, None] * k_n + m[None, :], mask=ok[:, None] & (m < M)[None, :], other=0.0)
    v = tl.load(V + b * v_b + h * v_h + at[:, None] * v_n + d[None, :], mask=ok[:, None] & (d < D)[None, :], other=0.0)
    k = k.to(tl.float32) * left[:, None]
    state = tl.dot(tl.trans(k), v.to(tl.float32), input_precision=PRECISION)
    place = States + ((pair * chunks + chunk) * M + m[:, None]) * D + d[None, :]
    tl.store(place, state, mask=(m < M)[:, None] & (d < D)[None, :])
    tl.store(Totals + pair * chunks + chunk, tl.exp(total))


@triton.jit
def _after(kept, written, more_kept, more_written):
    """Compose two stretches of positions: what they keep of a state, and what they write to it."""
    return kept * more_kept, written * more_kept + more_written


@triton.jit
def _pass(States, Totals, Befores, chunks, SIZE, REVERSE: tl.constexpr, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr):
    """The state before each chunk, from what chunks write and keep: ``AT_ONCE`` chunks by a prefix sum, then more."""
    pair = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    state = tl.zeros([WIDTH], tl.float32)
    for first in range(0, chunks, AT_ONCE):
        number = first + tl.arange(0, AT_ONCE)
        chunk = chunks - 1 - number if REVERSE else number
        there = number < chunks
        place = (pair * chunks + chunk)[:, None] * SIZE + x[None, :]
        here = there[:, None] & (x < SIZE)[None, :]
        kept = tl.load(Totals + pair * chunks + chunk, mask=there, other=1.0)
        written = tl.load(States + place, mask=here, other=0.0)
        kept, after = tl.associative_scan((tl.broadcast_to(kept[:, None], [AT_ONCE, WIDTH]), written), 0, _after)
        after += kept * state[None, :]
        next_place = (pair * chunks + (chunks - 2 - number if REVERSE else number + 1))[:, None] * SIZE + x[None, :]
        tl.store(Befores + next_place, after, mask=here & (number + 1 < chunks)[:, None])
        if first == 0:
            start = pair * chunks + (chunks - 1 if REVERSE else 0)
            tl.store(Befores + start * SIZE + x, state, mask=x < SIZE)
        last = tl.arange(0, AT_ONCE) == AT_ONCE - 1
        state = tl.sum(tl.where(last[:, None], after, 0.0), 0)


@triton.jit
def _read(
    Q, K, V, G, Befores, Out, H, N, chunks, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    REVERSE: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """What the positions of a chunk read from the state before it and from one another."""
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // H, pair % H
    chunk, at, ok = _slots(tl.program_id(0), chunks, N, REVERSE, CHUNK)
    m, d = tl.arange(0, ROWS), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    of_m, of_d = ok[:, None] & (m < M)[None, :], ok[:, None] & (d < D)[None, :]
    since = tl.cumsum(tl.load(G + pair * N + at, mask=ok, other=0.0), 0)
    q = tl.load(Q + b * q_b + h * q_h + at[:, None] * q_n + m[None, :], mask=of_m, other=0.0).to(tl.float32)
    k = tl.load(K + b * k_b + h * k_h + at[:, None] * k_n + m[None, :], mask=of_m, other=0.0).to(tl.float32)
    v = tl.load(V + b * v_b + h * v_h + at[:, None] * v_n + d[None, :], mask=of_d, other=0.0).to(tl.float32)
    slot = tl.arange(0, CHUNK)
    decay = tl.where(slot[:, None] >= slot[None, :], since[:, None] - since[None, :], float("-inf"))
    weights = tl.dot(q, tl.trans(k), input_precision=PRECISION) * tl.exp(decay)
    place = Befores + ((pair * chunks + chunk) * M + m[:, None]) * D + d[None, :]
    before = tl.load(place, mask=(m < M)[:, None] & (d < D)[None, :], other=0.0)
    out = tl.dot(q, before, input_precision=PRECISION) * tl.exp(since)[:, None]
    out += tl.dot(weights, v, input_precision=PRECISION)
    tl.store(Out + b * o_b + h * o_h + at[:, None] * o_n + d[None, :], out, mask=of_d)


@torch.library.custom_op("zoo::decayed_scan", mutates_args=())
def decayed_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, reverse: bool, rounds: bool
) -> tuple[Tensor, Tensor]:
    """The result (B, H, N, D), and the states before the chunks (B, H, chunks, M, D), both in float32.

    ``log_decay`` has all heads; q, k and v may have one that all heads share. rounds: products in TF32.
    """
    B, H, N = log_decay.shape
    q, k, v = (x.expand(B, H, -1, -1) if x.stride(-1) == 1 else x.contiguous().expand(B, H, -1, -1) for x in (q, k, v))
    log_decay, M, D = log_decay.contiguous(), q.shape[-1], v.shape[-1]
    chunks = -(-N // CHUNK)
    out = torch.empty(B, N, H, D, device=v.device).transpose(1, 2)
    states, befores = (torch.empty(B, H, chunks, M, D, device=v.device) for _ in range(2))
    totals = torch.empty(B, H, chunks, device=v.device)
    rows, width = (max(16, triton.next_power_of_2(n)) for n in (M, D))
    width = min(64, width)
    constants: dict[str, Any] = {
        "M": M,
        "D": D,
        "ROWS": rows,
        "WIDTH": width,
        "REVERSE": reverse,
        "PRECISION": "tf32" if rounds else "tf32x3",
        "CHUNK": CHUNK,
    }
    grid = (chunks, B * H, triton.cdiv(D, width))
    steps = [x.stride()[:3] for x in (q, k, v, out)]
    _write[grid](k, v, log_decay, states, totals, H, N, chunks, *steps[1], *steps[2], **constants)
    at_once = min(64, triton.next_power_of_2(chunks))
    _pass[B * H, triton.cdiv(M * D, 32)](
        states, totals, befores, chunks, M * D, REVERSE=reverse, WIDTH=32, AT_ONCE=at_once
    )
    every = [n for step in steps for n in step]
    _read[grid](q, k, v, log_decay, befores, out, H, N, chunks, *every, **constants)
    return out, befores


@decayed_scan.register_fake
def _(q: Tensor, _k: Tensor, v: Tensor, log_decay: Tensor, _reverse: bool, _rounds: bool) -> Tensors:
    B, H, N = log_decay.shape
    out = v.new_empty(B, N, H, v.shape[-1], dtype=torch.float32).transpose(1, 2)
    return out, out.new_empty(B, H, -(-N // CHUNK), q.shape[-1], v.shape[-1])


@register_flop_formula(torch.ops.zoo.decayed_scan, get_raw=True)
def _flops(q: Tensor, _k: Tensor, v: Tensor, log_decay: Tensor, *_: Any, **__: Any) -> int:
    """Queries by keys and weights by values within a chunk; writing and reading the state."""
    M, D, seen = q.shape[-1], v.shape[-1], min(CHUNK, log_decay.shape[-1])
    return log_decay.numel() * (2 * seen * (M + D) + 4 * M * D)
