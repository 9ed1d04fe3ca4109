"""Two recurrences for ``scan``, with one decay a_t from 0 to 1 for each head, and the kernels that may run them.

``decayed`` adds ``k_tᵀ v_t`` to its state (RetNet, arXiv:2307.08621, equation 7; Mamba-2, arXiv:2405.21060, section 6);
``delta`` replaces the value that the key k_t has stored (DeltaNet, arXiv:2406.06484, section 3; Gated DeltaNet,
arXiv:2412.06464, equation 10).

On a GPU a long chunk is folded: once the state before each of its blocks is known, the blocks run as one batch. A
parallel prefix finds these states: it composes the updates of 2 neighbouring blocks, then of 4, and so on (Hillis and
Steele, Data Parallel Algorithms, 1986).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Kernel, Tensors
from zoo.cores.scan import CHUNK, fold, is_long
from zoo.functional import once, traced, working_dtype
from zoo.kernels import runs

KERNELS = ("auto", "torch", "triton")  # for ``decayed``; auto: Triton on GPUs, else torch


def decayed(_first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensors]:
    """A chunk of ``S_t = a_t S_{t-1} + k_tᵀ v_t, y_t = q_t S_t``. State: (S,), (B, H, M, D).

    q, k: (B, H, n, M); v: (B, H, n, D); log_decay: (B, H, n), at most 0; -inf forgets all. One head may serve all.
    """
    if log_decay.shape[-1] == 1:  # a step: as few operations as possible
        state = (log_decay.exp()[..., None] * state[0] + k.mT @ v,)
        return q @ state[0], state
    return _many(state[0], q, k, v, log_decay)


def delta(
    _first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensors]:
    """A chunk of ``S_t = a_t (I - β_t k_tᵀ k_t) S_{t-1} + β_t k_tᵀ v_t, y_t = q_t S_t``. State: (S,), (B, H, M, D).

    Position t writes ``k_tᵀ u_t``, with ``u_t = β_t (v_t - a_t k_t S_{t-1})``: the value minus what its key already
    reads. So the u of a chunk solve a triangular system, and the rest is as in ``decayed``.

    q, k: (B, H, n, M), |k| at most 1; v: (B, H, n, D); beta, in [0, 1], and log_decay, at most 0: (B, H, n).
    """
    beta = beta[..., None]
    if log_decay.shape[-1] == 1:
        kept = log_decay.exp()[..., None] * state[0]
        state = (kept + k.mT @ (beta * (v - k @ kept)),)
        return q @ state[0], state
    return _many(state[0], q, k, beta * v, log_decay, beta * k)


def runs_on_triton(x: Tensor, kernel: str, M: int, D: int) -> bool:
    """Whether ``scan_on_triton`` computes for a layer's input x (B, N, C), with states of M × D (see
    ``zoo.kernels.runs``)."""

    def refusal() -> str:
        from zoo.kernels import decayed

        return decayed.refusal(x, M, D)

    return runs("triton", kernel, x, refusal)


def scan_on_triton(
    like: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, reverse: bool = False
) -> Tensor:
    """``scan`` of ``decayed`` from a state of 0, in float32; ``like``: the input of the layer."""
    from zoo.kernels import decayed

    return decayed.scan(q, k, v, log_decay, reverse=reverse, rounds=working_dtype(like) != torch.float32)


def runs_on_fla(x: Tensor, kernel: str) -> bool:
    """Whether ``recur`` computes for a layer's input x (B, N, C) (see ``zoo.kernels.runs``)."""

    def refusal() -> str:
        from zoo.kernels import recurrence

        return recurrence.refusal(x)

    return runs("fla", kernel, x, refusal)


def recur(forth: Tensors, back: Tensors | None = None) -> Tensors:
    """``scan`` of ``delta`` on flash-linear-attention's kernels; with ``back``, whose positions run from the last to
    the first, ``scan_both``."""
    from zoo.kernels import recurrence

    return recurrence.recur(forth, back)


def kernel_name(x: Tensor, kernel: str, M: int, D: int) -> Kernel:
    """The kernel that runs ``decayed`` for a layer's input x (B, N, C), with states of M × D."""
    return Kernel("Triton scan" if runs_on_triton(x, kernel, M, D) else "torch ops")


def _many(
    before: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta_k: Tensor | None = None
) -> tuple[Tensor, Tensors]:
    """A chunk of ``decayed``; with ``beta_k`` (β_t k_t) a chunk of ``delta``, where v is β_t v_t."""
    n = v.shape[2]
    if not is_long(v, CHUNK):
        out, after = _block(before, q, k, v, log_decay, beta_k)
        return out, (after,)
    q, k, v, log_decay = (fold(x) for x in (q, k, v, log_decay))  # (B, H, blocks, CHUNK, …)
    beta_k = None if beta_k is None else fold(beta_k)
    left = F.pad(log_decay[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1).exp()  # from each position to its block's end
    ends, keeps = (k * left[..., None]).mT, log_decay.sum(-1).exp()[..., None, None]
    written = v
    if beta_k is not None:  # u = written - read S, with S the state before the block
        since, between = decays(log_decay)
        written, read = torch.linalg.solve_triangular(
            (beta_k @ k.mT) * between, torch.cat([v, beta_k * since], dim=-1), upper=False, unitriangular=True
        ).split([v.shape[-1], k.shape[-1]], dim=-1)
        keeps = keeps * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - ends @ read
    before, writes = before[:, :, None], ends @ written
    writes = writes.expand(*before.shape[:2], *writes.shape[2:])
    after = _passed(before, keeps, writes) if traced() else _Passed.apply(before, keeps, writes)  # type: ignore[no-untyped-call]
    befores = torch.cat([before, after[:, :, :-1]], dim=2)
    out, _ = _block(befores, q, k, v, log_decay, beta_k)
    return out.flatten(2, 3)[:, :, :n], (after[:, :, -1].clone(),)  # a copy: a view keeps the states of all blocks


class _Passed(torch.autograd.Function):
    """The states after each block, ``S_c = P_c S_{c-1} + R_c``. ``before`` (B, H, 1, M, D) is the first state; P is
    (B, H, blocks, M, M), or (…, 1, 1) for numbers; R is (B, H, blocks, M, D)."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, keeps: Tensor, writes: Tensor) -> Tensor:
        after = _passed(before, keeps, writes)
        ctx.save_for_backward(before, keeps, after)
        return after

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> Tensors:
        before, keeps, after = ctx.saved_tensors
        turned = keeps.mT
        flow = _prefixes(F.pad(turned[:, :, 1:], (0, 0, 0, 0, 0, 1)).flip(2), grad.flip(2)).flip(2)
        befores = torch.cat([before, after[:, :, :-1]], dim=2)
        d_keeps = flow @ befores.mT if keeps.shape[-1] > 1 else (flow * befores).sum((-2, -1), keepdim=True)
        return _times(turned[:, :, :1], flow[:, :, :1]), d_keeps.sum_to_size(keeps.shape), flow


def _passed(before: Tensor, keeps: Tensor, writes: Tensor) -> Tensor:
    return _prefixes(keeps, torch.cat([writes[:, :, :1] + _times(keeps[:, :, :1], before), writes[:, :, 1:]], 2))


def _prefixes(keeps: Tensor, x: Tensor) -> Tensor:
    """``y_c = P_c y_{c-1} + x_c`` along dimension 2, from y = 0."""
    step, blocks = 1, x.shape[2]
    while step < blocks:  # x_c: what the last ``step`` blocks write; P_c: what they keep
        x = torch.cat([x[:, :, :step], x[:, :, step:] + _times(keeps[:, :, step:], x[:, :, :-step])], dim=2)
        keeps = torch.cat([keeps[:, :, :step], _times(keeps[:, :, step:], keeps[:, :, :-step])], dim=2)
        step *= 2
    return x


def _times(keeps: Tensor, state: Tensor) -> Tensor:
    return keeps @ state if keeps.shape[-1] > 1 else keeps * state


class _Decayed(torch.autograd.Function):
    """``decayed``; with ``beta_k`` (β_t k_t) ``delta``, where v is β_t v_t."""

    @staticmethod
    def forward(
        ctx: Any, before: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta_k: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, after, *made = _decayed(before, q, k, v, log_decay, beta_k)
        ctx.save_for_backward(before, q, k, v, log_decay, beta_k, *made)
        return out, after

    @staticmethod
    @once
    def backward(ctx: Any, d_out: Tensor, d_after: Tensor) -> tuple[Tensor | None, ...]:
        before, q, k, v, log_decay, beta_k, since, between, written, system, weights = ctx.saved_tensors
        left, kept = between[..., -1, :, None], since[..., -1:, :]  # of each position and of ``before``, at the end
        d_weights = d_out @ written.mT
        d_since, d_left = d_out @ before.mT, written @ d_after.mT  # gradients of q · since and of k · left
        d_v = weights.mT @ d_out + (k * left) @ d_after
        d_before = torch.addcmul((q * since).mT @ d_out, d_after, kept)
        d_log = d_beta_k = None
        if beta_k is not None:
            d_v = torch.linalg.solve_triangular(system.mT, d_v, upper=True, unitriangular=True)
            d_system, d_reads = d_v @ written.mT, d_v @ before.mT  # d_reads: of beta_k · since; both times -1
        if ctx.needs_input_grad[4]:
            flows, read = d_weights * weights, (q * d_since).sum(-1)
            if beta_k is not None:
                flows, read = flows.addcmul_(d_system, system, value=-1), read - (beta_k * d_reads).sum(-1)
            d_log = _passing(flows, read * since[..., 0], (k * d_left).sum(-1) * left[..., 0])
            d_log += ((before * d_after).sum((-2, -1)) * kept[..., 0, 0])[..., None]
        d_weights *= between
        d_q = torch.addcmul(d_weights @ k, d_since, since)
        d_k = torch.addcmul(d_weights.mT @ q, d_left, left)
        if beta_k is not None:
            d_system.mul_(between).diagonal(dim1=-2, dim2=-1).zero_()
            d_beta_k = torch.addcmul(d_system @ k, d_reads, since).neg_()
            d_k = d_k.sub_(d_system.mT @ beta_k)
            d_before -= (beta_k * since).mT @ d_v
        gradients = (d_before, before), (d_q, q), (d_k, k), (d_v, v), (d_log, log_decay), (d_beta_k, beta_k)
        return tuple(None if d is None else d.sum_to_size(x.shape) for d, x in gradients)


def _block(
    before: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta_k: Tensor | None
) -> tuple[Tensor, Tensor]:
    if traced():
        return _decayed(before, q, k, v, log_decay, beta_k)[:2]
    out, after = _Decayed.apply(before, q, k, v, log_decay, beta_k)  # type: ignore[no-untyped-call]
    return out, after


def _decayed(
    before: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta_k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """The result, the next state, and the tensors that backward needs besides the inputs."""
    since, between = decays(log_decay)
    written, system = v, None
    if beta_k is not None:
        system = (beta_k @ k.mT).mul_(between)
        targets = torch.addcmul(v, beta_k @ before, since, value=-1)
        written = torch.linalg.solve_triangular(system, targets, upper=False, unitriangular=True)
    weights = (q @ k.mT) * between
    out = torch.addcmul(weights @ written, q @ before, since)
    after = torch.addcmul((k * between[..., -1, :, None]).mT @ written, before, since[..., -1:, :])
    return out, after, since, between, written, system, weights


def _passing(flows: Tensor, read: Tensor, left: Tensor) -> Tensor:
    """The gradient of log a_t: all that passes position t, (…, n).

    flows: (…, n, n), what i reads of j, summed for j < t <= i; read: (…, n), what each position reads of the state
    before the chunk, summed over t and later; left: (…, n), what each position leaves to the state after the chunk,
    summed over positions before t. Only what passes t is summed: differences of sums would leave noise where all is
    forgotten.
    """
    passing = flows.cumsum(-1).tril_(-1)[..., :-1].sum(-2) + left.cumsum(-1)[..., :-1]
    return F.pad(passing, (1, 0)) + read.flip(-1).cumsum(-1).flip(-1)


def decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """(…, n) -> what is left at each position of the state before the chunk, (…, n, 1), and of j at i, (…, n, n).

    The second is 0 for j > i. It sums the logarithms from j to i: a difference of two sums from the start of the chunk
    would lose small decays beside large ones, and be NaN beside -inf.
    """
    n = log_decay.shape[-1]
    later = log_decay[..., None].expand(*log_decay.shape, n).tril(-1)  # the log decay of i, for each j before i
    return log_decay.cumsum(-1).exp()[..., None], later.cumsum_(-2).exp_().tril()
