"""One scan for every backend that keeps a state: chunks of positions run one after another and pass on a state.

A backend defines what one chunk computes, ``chunk(first, state, *sequences, *constants) -> (out, state)``, in plain
torch operations; ``scan`` walks the chunks in either direction. It keeps the inputs and the states before some chunks
for backward, which computes each chunk again. So memory is O(N), whatever a chunk makes in between. The step form is a
chunk of a single position. ``zoo/cores/recurrences.py`` has the chunks of two recurrences.

A CPU is fastest with short chunks, which fit into its cache; a GPU with few large operations. So chunks on a GPU are
long, and a backend may ``fold`` them into blocks that run as one batch.
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

from zoo.contract import Tensors
from zoo.functional import accumulator, once, side_by_side, traced

Chunk = Callable[..., tuple[Tensor, Tensors]]
NextState = Callable[..., Tensors]
CHUNK = 64  # the least positions of a chunk; work within a chunk is quadratic
CACHED = 2**18  # weights of one chunk of the whole batch that fit into a core's cache
AT_ONCE = 2**23  # the same on other devices, where many small calls cost more than memory
KEPT = 1 / 4  # states kept for backward have at most this fraction of the numbers of the inputs


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
    """Run ``chunk`` over the positions. Returns its outputs, (B, H, N, D), in the dtype of the first sequence.

    Args:
        chunk: takes the index of its first position, the state, its slices of the sequences (float32 at least; flipped
            with ``reverse``) and the constants. Returns (B, H, n, D) and the next state.
        sequences: (B, H, N, …) each, positions in dimension 2; bool sequences stay bool.
        state: the state before the first position. It gets no gradient.
        constants: tensors without positions, as learned weights; the chunk gets them in float32 at least.
        reverse: walk from the last position to the first.
        size: positions in a chunk; by default what suits the device.
        next_state: takes the arguments of ``chunk`` and returns only the next state, if that costs much less. Backward
            uses it.
        folds: whether the chunk's memory is linear in its positions, for any number of them.
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

    The chunk gets both directions as one batch of twice the size, so no sequence may have a batch of 1 that broadcasts.
    The index of its first position is that of ``forth``.
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
    walk = _Walk(chunk, lambda *arguments: chunk(*arguments)[1], (False,), size, len(sequences), len(constants))
    (out,), _, after = walk.run(sequences, constants, state)
    return out, tuple(x.clone() for x in after)  # copies: views would keep the last chunk alive


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
    """One result for each direction."""
    size = size or chunk_size(sequences, folds)
    next_state = next_state or (lambda *arguments: chunk(*arguments)[1])
    walk = _Walk(chunk, next_state, reverse, size, len(sequences[0]), len(constants))
    if traced():
        return _scan_traced(walk, sequences, constants, state)
    out: Tensors = _Scan.apply(walk, *(x for each in sequences for x in each), *constants, *state)  # type: ignore[no-untyped-call]
    return out


def scan_step(
    chunk: Chunk, position: int, sequences: Tensors, state: Tensors, constants: Tensors = ()
) -> tuple[Tensor, Tensors]:
    """``scan`` of one more position: its output, (B, H, 1, D), and the next state."""
    with torch.autocast(sequences[0].device.type, enabled=False):
        pieces = [_wide(x) for x in (*sequences, *constants)]
        out, state = chunk(position, state, *pieces)
    return out.to(sequences[0].dtype), state


def chunk_size(sequences: Sequence[Tensors], folds: bool) -> int:
    """Positions in a chunk: on a CPU as many as keep its weights in cache, elsewhere many, and more if it folds."""
    rows = [x.shape[0] * x.shape[1] for x in sequences[0]]
    x = sequences[0][rows.index(max(rows))]
    if folds and x.device.type != "cpu":
        return CHUNK * together(x, CHUNK, len(sequences))
    size, numbers = CHUNK, CACHED if x.device.type == "cpu" else AT_ONCE
    while len(sequences) * max(1, x.shape[0]) * x.shape[1] * (2 * size) ** 2 <= numbers:
        size *= 2
    return size


def together(x: Tensor, size: int, directions: int = 1) -> int:
    """How many blocks of ``size`` positions of x (B, H, N, …) run at once: one on a CPU."""
    return 1 if x.device.type == "cpu" else max(1, AT_ONCE // (directions * max(1, x.shape[0]) * x.shape[1] * size**2))


def is_long(x: Tensor, size: int) -> bool:
    """Whether to fold a chunk x (B, H, n, …) into blocks of ``size``. On a CPU, no chunk of ``scan`` is that long."""
    B, H, n = x.shape[:3]
    return n > size and B * H * n**2 > CACHED


def fold(x: Tensor, size: int = CHUNK) -> Tensor:
    """(B, H, n, …) -> (B, H, blocks, size, …), with zeros at the end of the last block."""
    padded = F.pad(x, (*(0, 0) * (x.dim() - 3), 0, -x.shape[2] % size))
    return padded.view(*x.shape[:2], padded.shape[2] // size, size, *x.shape[3:])


@dataclass(frozen=True)
class _Walk:
    """A walk through the positions, in one direction, or in both at once as one batch."""

    chunk: Chunk
    next_state: NextState
    reverse: tuple[bool, ...]  # one for each direction
    size: int
    sequences: int  # sequences of one direction
    constants: int

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """Split into the sequences of all directions, the constants, and the states."""
        first = len(self.reverse) * self.sequences
        second = first + self.constants
        return tensors[:first], tensors[first:second], tensors[second:]

    def slices(self, length: int) -> list[slice]:
        return [slice(first, min(first + self.size, length)) for first in range(0, length, self.size)]

    def places(self, at: slice, length: int) -> list[slice]:
        """The positions of the slice ``at`` of the walk, in each direction."""
        return [slice(length - at.stop, length - at.start) if back else at for back in self.reverse]

    def gather(self, wholes: Sequence[Tensor], at: slice) -> Tensor:
        """The slice ``at`` of tensors (B, H, N, …), one for each direction, in walking order, in float32 at least."""
        places = self.places(at, wholes[0].shape[2])
        pieces = [_wide(x[:, :, place]) for x, place in zip(wholes, places, strict=True)]
        turned = [x.flip(2) if back else x for x, back in zip(pieces, self.reverse, strict=True)]
        return turned[0] if len(turned) == 1 else torch.cat(turned)

    def pieces(self, sequences: Tensors, at: slice) -> list[Tensor]:
        return [self.gather(sequences[i :: self.sequences], at) for i in range(self.sequences)]

    def scatter(self, piece: Tensor, wholes: Sequence[Tensor | None], at: slice) -> None:
        """The reverse of ``gather``: write ``piece`` to the slice ``at``. Skips tensors that are None."""
        places = self.places(at, next(x.shape[2] for x in wholes if x is not None))
        pieces = piece.chunk(len(wholes))
        for whole, part, place, back in zip(wholes, pieces, places, self.reverse, strict=True):
            if whole is not None:
                whole[:, :, place] = part.flip(2) if back else part

    def first(self, at: slice, length: int) -> int:
        start: int = self.places(at, length)[0].start
        return start

    def run(
        self, sequences: Tensors, constants: Tensors, state: Tensors, every: int = sys.maxsize
    ) -> tuple[list[Tensor], list[Tensors], Tensors]:
        """The results, the states before every ``every``-th chunk from the first on, and the last state."""
        like, length = sequences[0], sequences[0].shape[2]
        wide = [_wide(x) for x in constants]
        outs: list[Tensor] = []
        states: list[Tensors] = []
        with torch.autocast(like.device.type, enabled=False):
            for number, at in enumerate(self.slices(length)):
                if number % every == 0:
                    states.append(state)
                pieces = self.pieces(sequences, at)
                piece, state = self.chunk(self.first(at, length), state, *pieces, *wide)
                if not outs:  # the heads of a position are neighbours in memory
                    (_, H, _, D), B = piece.shape, len(piece) // len(self.reverse)
                    outs = [like.new_empty(B, length, H, D).transpose(1, 2) for _ in self.reverse]
                self.scatter(piece, outs, at)
        return outs, states, state


def _scan_traced(walk: _Walk, sequences: Sequence[Tensors], constants: Tensors, state: Tensors) -> Tensors:
    """The walk in operations that autograd differentiates; autograd keeps what each chunk makes."""
    flat, wide = tuple(x for each in sequences for x in each), [_wide(x) for x in constants]
    like, length = flat[0], flat[0].shape[2]
    pieces = []
    with torch.autocast(like.device.type, enabled=False):
        for at in walk.slices(length):
            piece, state = walk.chunk(walk.first(at, length), state, *walk.pieces(flat, at), *wide)
            pieces.append(piece)
    outs = torch.cat(pieces, dim=2).to(like.dtype).chunk(len(walk.reverse))
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
        slices = walk.slices(length)
        with torch.autocast(grads[0].device.type, enabled=False):
            for first in reversed(range(0, len(slices), ctx.every)):
                group = slices[first : first + ctx.every]
                kept = first // ctx.every * n_state
                befores = [states[kept : kept + n_state]]
                for at in group[:-1]:
                    inputs = (*walk.pieces(sequences, at), *wide)
                    befores.append(walk.next_state(walk.first(at, length), befores[-1], *inputs))
                for at, before in zip(reversed(group), reversed(befores), strict=True):
                    d_state = _pull(walk, at, sequences, wide, before, grads, d_sequences, d_constants, d_state)
        sums = [None if d is None else d.to(x.dtype) for d, x in zip(d_constants, constants, strict=True)]
        return (None, *d_sequences, *sums, *[None] * n_state)


def _pull(
    walk: _Walk,
    at: slice,
    sequences: Tensors,
    constants: Tensors,
    before: Tensors,
    grads: Tensors,
    d_sequences: list[Tensor | None],
    d_constants: list[Tensor | None],
    d_after: list[Tensor | None],
) -> list[Tensor | None]:
    """Run one chunk again for gradients: fill ``d_sequences``, add to ``d_constants``, return those of the state."""
    pieces = [x.detach() for x in walk.pieces(sequences, at)]
    fixed, state = [x.detach() for x in constants], [x.detach() for x in before]
    wholes = [d_sequences[i :: walk.sequences] for i in range(walk.sequences)]
    needed = [any(d is not None for d in each) for each in wholes]
    needed += [d is not None for d in d_constants] + [True] * len(state)
    leaves = [x.requires_grad_() for x, need in zip([*pieces, *fixed, *state], needed, strict=True) if need]
    with torch.enable_grad():
        # Views: hooks, as those that count FLOPs, raise on a leaf.
        start, inputs = tuple(x.view_as(x) for x in state), [x.view_as(x) for x in (*pieces, *fixed)]
        out, after = walk.chunk(walk.first(at, sequences[0].shape[2]), start, *inputs)
    ends = [(out, walk.gather(grads, at))]
    ends += [(x, d) for x, d in zip(after, d_after, strict=True) if d is not None and x.requires_grad]
    gradients = torch.autograd.grad([x for x, _ in ends], leaves, [d for _, d in ends], allow_unused=True)
    rest = iter(gradients)
    for whole, piece in zip(wholes, pieces, strict=True):
        if any(d is not None for d in whole):
            grad = next(rest)
            walk.scatter(torch.zeros_like(piece) if grad is None else grad, whole, at)
    for total in d_constants:
        if total is not None and (grad := next(rest)) is not None:
            total += grad
    return list(rest)


def _interval(sequences: Tensors, state: Tensors, size: int) -> int:
    """The number of chunks for which one state is kept."""
    inputs = sum(x.numel() / x.shape[2] for x in sequences) * size
    return max(1, math.ceil(sum(x.numel() for x in state) / (KEPT * inputs))) if inputs else 1


def _wide(x: Tensor) -> Tensor:
    """Floats in float32 at least; other dtypes unchanged."""
    return x.to(accumulator(x)) if x.is_floating_point() else x


def _gradients(sequences: Tensors, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """Empty tensors like the sequences; those with the shape of the first are side by side in memory."""
    first = sequences[0]
    alike = [first.dim() == 4 and (x.shape, x.dtype) == (first.shape, first.dtype) for x in sequences]
    beside = iter(side_by_side(*(x for x, same in zip(sequences, alike, strict=True) if same)) if any(alike) else ())
    grads = [next(beside) if same else torch.empty_like(x) for x, same in zip(sequences, alike, strict=True)]
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]
