"""One scan for every backend that keeps a state: chunks of positions one after another, a state between them.

A backend says what one chunk computes, ``chunk(first, state, *sequences, *constants) -> (out, state)``, in plain torch
operations; ``scan`` walks the chunks in either direction. Kept for backward are the inputs and the states before some
chunks; backward computes each chunk again. So memory is O(N), whatever a chunk makes in between. A single position is a
chunk too: that is the step form.

Two recurrences with one decay a_t for each head, from 0 to 1, are here: ``decayed`` adds ``k_tᵀ v_t`` to its state
(RetNet, arXiv:2307.08621, equation 7; Mamba-2, arXiv:2405.21060, section 6); ``delta`` replaces what the key k_t has
stored (DeltaNet, arXiv:2406.06484, section 3; Gated DeltaNet, arXiv:2412.06464, equation 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.contract import Tensors
from zoo.functional import accumulator, side_by_side

Chunk = Callable[..., tuple[Tensor, Tensors]]
Onward = Callable[..., Tensors]
CHUNK = 64  # positions: quadratic within, so that the weights of a batch stay in the cache of a core
LONG_CHUNK = 512  # elsewhere, where many small operations cost more than the squares do
KEPT = 1 / 4  # at most, of the size of the inputs, in states kept for backward


def scan(
    chunk: Chunk,
    sequences: Tensors,
    state: Tensors,
    constants: Tensors = (),
    *,
    reverse: bool = False,
    size: int | None = None,
    onward: Onward | None = None,
) -> Tensor:
    """Run ``chunk`` over the positions, and return its outputs, (B, H, N, D), in the dtype of the first sequence.

    Args:
        chunk: called with the number of its first position, the state, the parts of the sequences (float32 at least;
            flipped where ``reverse``) and the constants. Returns (B, H, n, D) and the next state.
        sequences: (B, H, N, …) each, positions in dimension 2; those of bool pass as they are.
        state: the one before the first position. It receives no gradient.
        constants: tensors without positions, as learned weights; float32 at least in the chunk.
        reverse: from the last position to the first.
        size: positions of a chunk; by default what suits the device.
        onward: the next state alone, called as ``chunk``, where that costs much less. Backward has use for it.
    """
    if size is None:
        size = CHUNK if sequences[0].device.type == "cpu" else LONG_CHUNK
    counts = len(sequences), len(constants), len(state)
    onward = onward or (lambda *given: chunk(*given)[1])
    out: Tensor = _Scan.apply((chunk, onward), reverse, size, counts, *sequences, *constants, *state)  # type: ignore[no-untyped-call]
    return out


def scan_step(
    chunk: Chunk, position: int, sequences: Tensors, state: Tensors, constants: Tensors = ()
) -> tuple[Tensor, Tensors]:
    """``scan`` one position further: its output, (B, H, 1, D), and the next state."""
    with torch.autocast(sequences[0].device.type, enabled=False):
        pieces = [_wide(x) for x in (*sequences, *constants)]
        out, state = chunk(position, state, *pieces)
    return out.to(sequences[0].dtype), state


def decayed(_first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensors]:
    """A chunk of ``S_t = a_t S_{t-1} + k_tᵀ v_t, y_t = q_t S_t``. State: (S,), (B, H, M, D).

    q, k: (B, H, n, M); v: (B, H, n, D); log_decay: (B, H, n), at most 0; -inf forgets all. Heads of size 1 are shared.
    """
    (before,) = state
    since, between = decays(log_decay)
    out = (q @ k.mT * between) @ v + (q * since) @ before
    return out, (before * since[..., -1:, :] + (k * between[..., -1, :, None]).mT @ v,)


def delta(
    _first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensors]:
    """A chunk of ``S_t = a_t (I - β_t k_tᵀ k_t) S_{t-1} + β_t k_tᵀ v_t, y_t = q_t S_t``. State: (S,), (B, H, M, D).

    What position t writes is ``k_tᵀ u_t``, with ``u_t = β_t (v_t - a_t k_t S_{t-1})``: the value, less what its key
    already reads. So the u of a chunk solve a triangular system, and the rest is as in ``decayed``.

    q, k: (B, H, n, M), |k| at most 1; v: (B, H, n, D); beta, in [0, 1], and log_decay, at most 0: (B, H, n).
    """
    (before,) = state
    since, between = decays(log_decay)
    strong = beta[..., None] * k
    wanted = beta[..., None] * v - since * (strong @ before)
    written = torch.linalg.solve_triangular(strong @ k.mT * between, wanted, upper=False, unitriangular=True)
    out = (q @ k.mT * between) @ written + (q * since) @ before
    return out, (before * since[..., -1:, :] + (k * between[..., -1, :, None]).mT @ written,)


def decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """(…, n) -> what is left at each position of what was before the chunk, (…, n, 1), and of j at i, (…, n, n).

    The latter is 0 for j > i. It adds up logarithms from j to i: a difference of sums from the start of the chunk would
    lose small decays beside large ones, and be no number beside -inf.
    """
    n = log_decay.shape[-1]
    later = log_decay[..., None].expand(*log_decay.shape, n).tril(-1)  # of position i, for each j before it
    return log_decay.cumsum(-1).exp()[..., None], later.cumsum_(-2).exp_().tril()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        walk: tuple[Chunk, Onward],
        reverse: bool,
        size: int,
        counts: tuple[int, int, int],
        *tensors: Tensor,
    ) -> Tensor:
        chunk, ctx.onward = walk
        sequences, constants, state = _split(tensors, counts)
        parts = _parts(sequences[0].shape[2], size, reverse)
        every = _interval(sequences, state, size)
        wide = [_wide(x) for x in constants]
        out, states = None, []
        with torch.autocast(sequences[0].device.type, enabled=False):
            for number, part in enumerate(parts):
                if number % every == 0:
                    states.append(state)
                pieces = [_take(x, part, reverse) for x in sequences]
                piece, state = chunk(part.start, state, *pieces, *wide)
                if out is None:
                    B, H, _, D = piece.shape
                    whole = sequences[0].new_empty(B, sequences[0].shape[2], H, D)
                    out = whole.transpose(1, 2)  # the heads of a position are neighbours
                out[:, :, part] = piece.flip(2) if reverse else piece
        assert out is not None
        ctx.save_for_backward(*sequences, *constants, *(x for before in states for x in before))
        ctx.chunk, ctx.reverse, ctx.parts, ctx.every, ctx.counts = chunk, reverse, parts, every, counts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        n_sequences, n_constants, n_state = ctx.counts
        sequences, constants, states = _split(ctx.saved_tensors, (n_sequences, n_constants, 0))
        needed = ctx.needs_input_grad[4:]
        d_sequences = _gradients(sequences, needed[:n_sequences])
        wide = tuple(_wide(x) for x in constants)
        d_constants = [
            torch.zeros_like(x) if need else None for x, need in zip(wide, needed[n_sequences:], strict=False)
        ]
        d_state: list[Tensor | None] = [None] * n_state
        with torch.autocast(grad.device.type, enabled=False):
            for first in reversed(range(0, len(ctx.parts), ctx.every)):
                group = ctx.parts[first : first + ctx.every]
                kept = first // ctx.every * n_state
                befores = [states[kept : kept + n_state]]
                for part in group[:-1]:
                    pieces = [_take(x, part, ctx.reverse) for x in sequences]
                    befores.append(ctx.onward(part.start, befores[-1], *pieces, *wide))
                for part, before in zip(reversed(group), reversed(befores), strict=True):
                    d_state = _pull(ctx, part, sequences, wide, before, grad, d_sequences, d_constants, d_state)
        sums = [None if d is None else d.to(x.dtype) for d, x in zip(d_constants, constants, strict=True)]
        return (None, None, None, None, *d_sequences, *sums, *[None] * n_state)


def _pull(
    ctx: Any,
    part: slice,
    sequences: Tensors,
    constants: Tensors,
    before: Tensors,
    grad: Tensor,
    d_sequences: list[Tensor | None],
    d_constants: list[Tensor | None],
    d_after: list[Tensor | None],
) -> list[Tensor | None]:
    """One chunk again, and its gradients: fills ``d_sequences``, adds to ``d_constants``, returns that of the state."""
    pieces = [_take(x, part, ctx.reverse).detach() for x in sequences]
    fixed, state = [x.detach() for x in constants], [x.detach() for x in before]
    needed = [d is not None for d in (*d_sequences, *d_constants)] + [True] * len(state)
    leaves = [x.requires_grad_() for x, need in zip([*pieces, *fixed, *state], needed, strict=True) if need]
    with torch.enable_grad():
        out, after = ctx.chunk(part.start, tuple(state), *pieces, *fixed)
    ends = [(out, _take(grad, part, ctx.reverse))]
    ends += [(x, d) for x, d in zip(after, d_after, strict=True) if d is not None and x.requires_grad]
    found = torch.autograd.grad([x for x, _ in ends], leaves, [d for _, d in ends], allow_unused=True)
    given = iter(found)
    for whole in d_sequences:
        if whole is not None:
            piece = next(given)
            whole[:, :, part] = 0 if piece is None else piece.flip(2) if ctx.reverse else piece
    for total in d_constants:
        if total is not None and (piece := next(given)) is not None:
            total += piece
    return list(given)


def _interval(sequences: Tensors, state: Tensors, size: int) -> int:
    """Of how many chunks the state before one is kept."""
    inputs = sum(x.numel() / x.shape[2] for x in sequences) * size
    return max(1, math.ceil(sum(x.numel() for x in state) / (KEPT * inputs)))


def _split(tensors: Tensors, counts: tuple[int, int, int]) -> tuple[Tensors, Tensors, Tensors]:
    first, second = counts[0], counts[0] + counts[1]
    return tensors[:first], tensors[first:second], tensors[second:]


def _parts(length: int, size: int, reverse: bool) -> list[slice]:
    if reverse:
        return [slice(max(0, stop - size), stop) for stop in range(length, 0, -size)]
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def _take(x: Tensor, part: slice, reverse: bool) -> Tensor:
    """The positions ``part`` of ``x`` (B, H, N, …), in the order in which they are walked, in float32 at least."""
    x = _wide(x[:, :, part])
    return x.flip(2) if reverse else x


def _wide(x: Tensor) -> Tensor:
    """Floats in float32 at least, anything else as it is."""
    return x.to(accumulator(x)) if x.is_floating_point() else x


def _gradients(sequences: Tensors, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """Tensors to fill, like the sequences; those shaped as the first lie side by side in memory."""
    first = sequences[0]
    alike = [first.dim() == 4 and (x.shape, x.dtype) == (first.shape, first.dtype) for x in sequences]
    beside = iter(side_by_side(*(x for x, same in zip(sequences, alike, strict=True) if same)) if any(alike) else ())
    grads = [next(beside) if same else torch.empty_like(x) for x, same in zip(sequences, alike, strict=True)]
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]
