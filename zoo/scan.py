"""One scan for every backend that keeps a state: chunks of positions one after another, a state between them.

A backend says what one chunk computes, ``chunk(first, state, *sequences, *constants) -> (out, state)``, in plain torch
operations; ``scan`` walks the chunks in either direction. Kept for backward are the inputs and the states before some
chunks; backward computes each chunk again. So memory is O(N), whatever a chunk makes in between. A single position is a
chunk too: that is the step form.

Two recurrences with one decay a_t for each head, from 0 to 1, are here: ``decayed`` adds ``k_tᵀ v_t`` to its state
(RetNet, arXiv:2307.08621, equation 7; Mamba-2, arXiv:2405.21060, section 6); ``delta`` replaces what the key k_t has
stored (DeltaNet, arXiv:2406.06484, section 3; Gated DeltaNet, arXiv:2412.06464, equation 10).

A CPU is fastest with short chunks, which stay in its cache; a GPU with few large operations. So a long chunk is folded:
its blocks are one batch, once the state before each of them is known. What the blocks do to the state is put together
by doubling: first of 2 neighbours, then of 4, and so on (a parallel prefix; Hillis and Steele, Data Parallel
Algorithms, 1986).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Kernel, Tensors
from zoo.functional import accumulator, once, side_by_side, traced, working_dtype
from zoo.kernels import runs

KERNELS = ("auto", "torch", "triton")  # of ``decayed``: Triton's on a GPU, torch's elsewhere
Chunk = Callable[..., tuple[Tensor, Tensors]]
NextState = Callable[..., Tensors]
CHUNK = 64  # positions, at least: quadratic within
CACHED = 2**18  # weights of a chunk, of a whole batch, that stay in the cache of a core
AT_ONCE = 2**23  # the same elsewhere, where many small steps cost more than memory does
KEPT = 1 / 4  # at most, of the size of the inputs, in states kept for backward


def scan(
    chunk: Chunk,
    sequences: Tensors,
    state: Tensors,
    constants: Tensors = (),
    *,
    reverse: bool = False,
    size: int | None = None,
    next_state: NextState | None = None,
    folds: bool = False,
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
        next_state: the next state alone, called as ``chunk``, where that costs much less. Backward has use for it.
        folds: the chunk's memory is linear in its positions, however many they are.
    """
    return _scan(chunk, [sequences], state, constants, (reverse,), size, next_state, folds)[0]


def scan_both(
    chunk: Chunk,
    forth: Tensors,
    back: Tensors,
    state: Tensors,
    constants: Tensors = (),
    *,
    size: int | None = None,
    next_state: NextState | None = None,
    folds: bool = False,
) -> tuple[Tensor, Tensor]:
    """``scan`` of ``forth``, and of ``back`` from the last position to the first, in half as many steps.

    The chunk sees both as one batch of twice the size, so no sequence may have a batch of 1 that others share; the
    number of its first position is that of ``forth``.
    """
    twice = tuple(torch.cat([x, x]) for x in state)
    first, second = _scan(chunk, [forth, back], twice, constants, (False, True), size, next_state, folds)
    return first, second


def scan_to_end(
    chunk: Chunk,
    sequences: Tensors,
    state: Tensors,
    constants: Tensors = (),
    *,
    size: int | None = None,
    folds: bool = False,
) -> tuple[Tensor, Tensors]:
    """``scan`` without gradients, and the state after the last position."""
    size = size or chunk_size([sequences], folds)
    walk = _Walk(chunk, lambda *given: chunk(*given)[1], (False,), size, len(sequences), len(constants))
    (out,), _, after = walk.run(sequences, constants, state)
    return out, tuple(x.clone() for x in after)  # copies, which do not hold the last chunk


def _scan(
    chunk: Chunk,
    sequences: Sequence[Tensors],
    state: Tensors,
    constants: Tensors,
    reverse: tuple[bool, ...],
    size: int | None,
    next_state: NextState | None,
    folds: bool,
) -> Tensors:
    """A result for each direction, of which there are one or two."""
    size = size or chunk_size(sequences, folds)
    next_state = next_state or (lambda *given: chunk(*given)[1])
    walk = _Walk(chunk, next_state, reverse, size, len(sequences[0]), len(constants))
    if traced():
        return _stroll(walk, sequences, constants, state)
    out: Tensors = _Scan.apply(walk, *(x for each in sequences for x in each), *constants, *state)  # type: ignore[no-untyped-call]
    return out


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
    """``scan`` of ``delta`` on flash-linear-attention's kernels; with ``back``, which is given from the
    last position to the first, ``scan_both``."""
    from zoo.kernels import recurrence

    return recurrence.recur(forth, back)


def kernel_name(x: Tensor, kernel: str, M: int, D: int) -> Kernel:
    """What runs ``decayed`` for a layer's input x (B, N, C), with states of M × D."""
    return Kernel("Triton scan" if runs_on_triton(x, kernel, M, D) else "torch ops")


def chunk_size(sequences: Sequence[Tensors], folds: bool) -> int:
    """Positions of a chunk: on a CPU as many as keep its weights cached, elsewhere many, and more where it folds."""
    rows = [x.shape[0] * x.shape[1] for x in sequences[0]]
    x = sequences[0][rows.index(max(rows))]
    if folds and x.device.type != "cpu":
        return CHUNK * together(x, CHUNK, len(sequences))
    size, numbers = CHUNK, CACHED if x.device.type == "cpu" else AT_ONCE
    while len(sequences) * max(1, x.shape[0]) * x.shape[1] * (2 * size) ** 2 <= numbers:
        size *= 2
    return size


def together(x: Tensor, size: int, directions: int = 1) -> int:
    """Blocks of ``size`` positions of x (B, H, N, …) that are worked on at once: one on a CPU."""
    return 1 if x.device.type == "cpu" else max(1, AT_ONCE // (directions * max(1, x.shape[0]) * x.shape[1] * size**2))


def is_long(x: Tensor, size: int) -> bool:
    """Whether a chunk x (B, H, n, …) is to be folded into blocks of ``size``; on a CPU none is that ``scan`` makes."""
    B, H, n = x.shape[:3]
    return n > size and B * H * n**2 > CACHED


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
    if log_decay.shape[-1] == 1:  # a step, where few operations count
        state = (log_decay.exp()[..., None] * state[0] + k.mT @ v,)
        return q @ state[0], state
    return _many(state[0], q, k, v, log_decay)


def delta(
    _first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensors]:
    """A chunk of ``S_t = a_t (I - β_t k_tᵀ k_t) S_{t-1} + β_t k_tᵀ v_t, y_t = q_t S_t``. State: (S,), (B, H, M, D).

    What position t writes is ``k_tᵀ u_t``, with ``u_t = β_t (v_t - a_t k_t S_{t-1})``: the value, less what its key
    already reads. So the u of a chunk solve a triangular system, and the rest is as in ``decayed``.

    q, k: (B, H, n, M), |k| at most 1; v: (B, H, n, D); beta, in [0, 1], and log_decay, at most 0: (B, H, n).
    """
    beta = beta[..., None]
    if log_decay.shape[-1] == 1:
        kept = log_decay.exp()[..., None] * state[0]
        state = (kept + k.mT @ (beta * (v - k @ kept)),)
        return q @ state[0], state
    return _many(state[0], q, k, beta * v, log_decay, beta * k)


def _many(
    before: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta_k: Tensor | None = None
) -> tuple[Tensor, Tensors]:
    """Positions of ``decayed``, or with ``beta_k``, its β_t k_t, of ``delta``, whose v is then β_t v_t."""
    n = v.shape[2]
    if not is_long(v, CHUNK):
        out, after = _block(before, q, k, v, log_decay, beta_k)
        return out, (after,)
    q, k, v, log_decay = (fold(x) for x in (q, k, v, log_decay))  # (B, H, blocks, CHUNK, …)
    beta_k = None if beta_k is None else fold(beta_k)
    left = F.pad(log_decay[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1).exp()  # of each position, after its block
    ends, keeps = (k * left[..., None]).mT, log_decay.sum(-1).exp()[..., None, None]
    written = v
    if beta_k is not None:  # u = written - read S, where S is the state before the block
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
    return out.flatten(2, 3)[:, :, :n], (after[:, :, -1].clone(),)  # a copy, which does not hold those of all blocks


def fold(x: Tensor, size: int = CHUNK) -> Tensor:
    """(B, H, n, …) -> (B, H, blocks, size, …), with zeros at the end of the last block."""
    padded = F.pad(x, (*(0, 0) * (x.dim() - 3), 0, -x.shape[2] % size))
    return padded.view(*x.shape[:2], padded.shape[2] // size, size, *x.shape[3:])


class _Passed(torch.autograd.Function):
    """The states after each block, ``S_c = P_c S_{c-1} + R_c``: ``before`` (B, H, 1, M, D) is the first, P (B, H,
    blocks, M, M), or (…, 1, 1) where it is a number, R (B, H, blocks, M, D)."""

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
    while step < blocks:  # x_c is what the last ``step`` blocks write, and P_c what they keep
        x = torch.cat([x[:, :, :step], x[:, :, step:] + _times(keeps[:, :, step:], x[:, :, :-step])], dim=2)
        keeps = torch.cat([keeps[:, :, :step], _times(keeps[:, :, step:], keeps[:, :, :-step])], dim=2)
        step *= 2
    return x


def _times(keeps: Tensor, state: Tensor) -> Tensor:
    return keeps @ state if keeps.shape[-1] > 1 else keeps * state


class _Decayed(torch.autograd.Function):
    """``decayed``, or ``delta`` where its β_t k_t are given as ``beta_k``, and its β_t v_t as v."""

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
        left, kept = between[..., -1, :, None], since[..., -1:, :]  # of each position, and of ``before``, at the end
        d_weights = d_out @ written.mT
        d_since, d_left = d_out @ before.mT, written @ d_after.mT  # of q · since, and of k · left
        d_v = weights.mT @ d_out + (k * left) @ d_after
        d_before = torch.addcmul((q * since).mT @ d_out, d_after, kept)
        d_log = d_beta_k = None
        if beta_k is not None:
            d_v = torch.linalg.solve_triangular(system.mT, d_v, upper=True, unitriangular=True)
            d_system, d_reads = d_v @ written.mT, d_v @ before.mT  # of beta_k · since; times -1, both
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
        found = (d_before, before), (d_q, q), (d_k, k), (d_v, v), (d_log, log_decay), (d_beta_k, beta_k)
        return tuple(None if d is None else d.sum_to_size(x.shape) for d, x in found)


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
    """The result, the state after it, and what backward reads besides the inputs."""
    since, between = decays(log_decay)
    written, system = v, None
    if beta_k is not None:
        system = (beta_k @ k.mT).mul_(between)
        wanted = torch.addcmul(v, beta_k @ before, since, value=-1)
        written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    weights = (q @ k.mT) * between
    out = torch.addcmul(weights @ written, q @ before, since)
    after = torch.addcmul((k * between[..., -1, :, None]).mT @ written, before, since[..., -1:, :])
    return out, after, since, between, written, system, weights


def _passing(flows: Tensor, read: Tensor, left: Tensor) -> Tensor:
    """What passes each position: of j at i (…, n, n) for j < t <= i, what t and those after it read of the time before
    the chunk (…, n), and what those before t leave to the time after it (…, n).

    Each is a sum of what passes and of nothing else: differences of sums would leave noise where all is forgotten.
    """
    passing = flows.cumsum(-1).tril_(-1)[..., :-1].sum(-2) + left.cumsum(-1)[..., :-1]
    return F.pad(passing, (1, 0)) + read.flip(-1).cumsum(-1).flip(-1)


def decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """(…, n) -> what is left at each position of what was before the chunk, (…, n, 1), and of j at i, (…, n, n).

    The latter is 0 for j > i. It adds up logarithms from j to i: a difference of sums from the start of the chunk would
    lose small decays beside large ones, and be no number beside -inf.
    """
    n = log_decay.shape[-1]
    later = log_decay[..., None].expand(*log_decay.shape, n).tril(-1)  # of position i, for each j before it
    return log_decay.cumsum(-1).exp()[..., None], later.cumsum_(-2).exp_().tril()


@dataclass(frozen=True)
class _Walk:
    """Through the positions, in one direction or in both at once, as one batch."""

    chunk: Chunk
    next_state: NextState
    reverse: tuple[bool, ...]  # of each direction
    size: int
    sequences: int  # of each direction
    constants: int

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """The sequences of all directions, the constants, and the rest, which are states."""
        first = len(self.reverse) * self.sequences
        second = first + self.constants
        return tensors[:first], tensors[first:second], tensors[second:]

    def parts(self, length: int) -> list[slice]:
        return [slice(first, min(first + self.size, length)) for first in range(0, length, self.size)]

    def places(self, part: slice, length: int) -> list[slice]:
        """Where ``part`` of the way lies, in each direction."""
        return [slice(length - part.stop, length - part.start) if back else part for back in self.reverse]

    def gather(self, wholes: Sequence[Tensor], part: slice) -> Tensor:
        """``part`` of the way of tensors (B, H, N, …), one a direction, as it is walked, in float32 at least."""
        places = self.places(part, wholes[0].shape[2])
        pieces = [_wide(x[:, :, place]) for x, place in zip(wholes, places, strict=True)]
        turned = [x.flip(2) if back else x for x, back in zip(pieces, self.reverse, strict=True)]
        return turned[0] if len(turned) == 1 else torch.cat(turned)

    def pieces(self, sequences: Tensors, part: slice) -> list[Tensor]:
        return [self.gather(sequences[i :: self.sequences], part) for i in range(self.sequences)]

    def scatter(self, piece: Tensor, wholes: Sequence[Tensor | None], part: slice) -> None:
        """Write what ``gather`` would read; None: nobody asks."""
        places = self.places(part, next(x.shape[2] for x in wholes if x is not None))
        pieces = piece.chunk(len(wholes))
        for whole, found, place, back in zip(wholes, pieces, places, self.reverse, strict=True):
            if whole is not None:
                whole[:, :, place] = found.flip(2) if back else found

    def first(self, part: slice, length: int) -> int:
        start: int = self.places(part, length)[0].start
        return start

    def run(
        self, sequences: Tensors, constants: Tensors, state: Tensors, every: int = sys.maxsize
    ) -> tuple[list[Tensor], list[Tensors], Tensors]:
        """The results, the states before ``every`` so many chunks, the first among them, and the last state."""
        like, length = sequences[0], sequences[0].shape[2]
        wide = [_wide(x) for x in constants]
        outs: list[Tensor] = []
        states: list[Tensors] = []
        with torch.autocast(like.device.type, enabled=False):
            for number, part in enumerate(self.parts(length)):
                if number % every == 0:
                    states.append(state)
                pieces = self.pieces(sequences, part)
                piece, state = self.chunk(self.first(part, length), state, *pieces, *wide)
                if not outs:  # the heads of a position are neighbours
                    (_, H, _, D), B = piece.shape, len(piece) // len(self.reverse)
                    outs = [like.new_empty(B, length, H, D).transpose(1, 2) for _ in self.reverse]
                self.scatter(piece, outs, part)
        return outs, states, state


def _stroll(walk: _Walk, sequences: Sequence[Tensors], constants: Tensors, state: Tensors) -> Tensors:
    """The walk in operations whose gradients torch knows: it keeps what each chunk makes."""
    flat, wide = tuple(x for each in sequences for x in each), [_wide(x) for x in constants]
    like, length = flat[0], flat[0].shape[2]
    found = []
    with torch.autocast(like.device.type, enabled=False):
        for part in walk.parts(length):
            piece, state = walk.chunk(walk.first(part, length), state, *walk.pieces(flat, part), *wide)
            found.append(piece)
    outs = torch.cat(found, dim=2).to(like.dtype).chunk(len(walk.reverse))
    return tuple(out.flip(2) if back else out for out, back in zip(outs, walk.reverse, strict=True))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, walk: _Walk, *tensors: Tensor) -> Tensors:
        sequences, constants, state = walk.split(tensors)
        every = _interval(sequences, state, walk.size)
        outs, states, _ = walk.run(sequences, constants, state, every)
        ctx.save_for_backward(*sequences, *constants, *(x for before in states for x in before))
        ctx.walk, ctx.every, ctx.n_state = walk, every, len(state)
        return tuple(outs)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        walk, n_state = ctx.walk, ctx.n_state
        sequences, constants, states = walk.split(ctx.saved_tensors)
        length = sequences[0].shape[2]
        needed = ctx.needs_input_grad[1:]
        d_sequences = _gradients(sequences, needed[: len(sequences)])
        wide = tuple(_wide(x) for x in constants)
        of_constants = needed[len(sequences) : len(sequences) + len(wide)]
        d_constants = [torch.zeros_like(x) if need else None for x, need in zip(wide, of_constants, strict=True)]
        d_state: list[Tensor | None] = [None] * n_state
        parts = walk.parts(length)
        with torch.autocast(grads[0].device.type, enabled=False):
            for first in reversed(range(0, len(parts), ctx.every)):
                group = parts[first : first + ctx.every]
                kept = first // ctx.every * n_state
                befores = [states[kept : kept + n_state]]
                for part in group[:-1]:
                    given = (*walk.pieces(sequences, part), *wide)
                    befores.append(walk.next_state(walk.first(part, length), befores[-1], *given))
                for part, before in zip(reversed(group), reversed(befores), strict=True):
                    d_state = _pull(walk, part, sequences, wide, before, grads, d_sequences, d_constants, d_state)
        sums = [None if d is None else d.to(x.dtype) for d, x in zip(d_constants, constants, strict=True)]
        return (None, *d_sequences, *sums, *[None] * n_state)


def _pull(
    walk: _Walk,
    part: slice,
    sequences: Tensors,
    constants: Tensors,
    before: Tensors,
    grads: Tensors,
    d_sequences: list[Tensor | None],
    d_constants: list[Tensor | None],
    d_after: list[Tensor | None],
) -> list[Tensor | None]:
    """One chunk again, and its gradients: fills ``d_sequences``, adds to ``d_constants``, returns that of the state."""
    pieces = [x.detach() for x in walk.pieces(sequences, part)]
    fixed, state = [x.detach() for x in constants], [x.detach() for x in before]
    wholes = [d_sequences[i :: walk.sequences] for i in range(walk.sequences)]
    needed = [any(d is not None for d in each) for each in wholes]
    needed += [d is not None for d in d_constants] + [True] * len(state)
    leaves = [x.requires_grad_() for x, need in zip([*pieces, *fixed, *state], needed, strict=True) if need]
    with torch.enable_grad():
        # Views, since modules' hooks, as those that count FLOPs, refuse a leaf.
        start, inputs = tuple(x.view_as(x) for x in state), [x.view_as(x) for x in (*pieces, *fixed)]
        out, after = walk.chunk(walk.first(part, sequences[0].shape[2]), start, *inputs)
    ends = [(out, walk.gather(grads, part))]
    ends += [(x, d) for x, d in zip(after, d_after, strict=True) if d is not None and x.requires_grad]
    found = torch.autograd.grad([x for x, _ in ends], leaves, [d for _, d in ends], allow_unused=True)
    given = iter(found)
    for whole, piece in zip(wholes, pieces, strict=True):
        if any(d is not None for d in whole):
            grad = next(given)
            walk.scatter(torch.zeros_like(piece) if grad is None else grad, whole, part)
    for total in d_constants:
        if total is not None and (grad := next(given)) is not None:
            total += grad
    return list(given)


def _interval(sequences: Tensors, state: Tensors, size: int) -> int:
    """Of how many chunks the state before one is kept."""
    inputs = sum(x.numel() / x.shape[2] for x in sequences) * size
    return max(1, math.ceil(sum(x.numel() for x in state) / (KEPT * inputs))) if inputs else 1


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
