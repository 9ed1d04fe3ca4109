"""Caches of step forms: one row for each earlier position, in tensors (B, H, room, ·) that grow.

Tensors grow by blocks of 128 rows: a step writes its row in place, and once in 128 steps all rows are copied. There is
room for at most ``limit`` rows. After that each new row replaces the oldest, which makes a window (a ring buffer); the
first ``pinned`` rows stay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Attention, Dims, Tensors

BLOCK = 128


def room(rows: int, limit: int) -> int:
    """The size of a cache in rows after ``rows`` rows were appended."""
    return min(-(-rows // BLOCK) * BLOCK, limit)


def empty(x: Tensor, count: int = 2) -> Tensors:
    """``count`` tensors without rows, for rows like x (B, H, D)."""
    return tuple(x.new_empty(*x.shape[:-1], 0, x.shape[-1]) for _ in range(count))


def append(tensors: Tensors, rows: Tensors, number: int, limit: int, pinned: int = 0) -> Tensors:
    """Write ``rows``, (B, H, 1, ·) each, in place into ``tensors``, (B, H, room, ·) each, as row ``number``."""
    missing = room(number + 1, limit) - tensors[0].shape[2]
    if missing:
        tensors = tuple(F.pad(x, (0, 0, 0, missing)) for x in tensors)
    slot = number if number < limit else pinned + (number - pinned) % (limit - pinned)
    for x, row in zip(tensors, rows, strict=True):
        x[:, :, slot : slot + 1] = row
    return tensors


def fill(tensors: Tensors, rows: Tensors, limit: int, pinned: int = 0) -> Tensors:
    """Append all ``rows``, (B, H, N, ·) each, at once to ``tensors`` without rows; equals ``append`` row by row."""
    length, kept = rows[0].shape[2], []
    for x, new in zip(tensors, rows, strict=True):
        parts = [new]
        if length > limit:  # the last rows, rotated to their slots in the ring buffer
            window = new[:, :, length - limit + pinned :].roll((length - limit) % (limit - pinned), 2)
            parts = [new[:, :, :pinned], window]
        parts.append(x.new_zeros(*x.shape[:2], room(length, limit) - min(length, limit), x.shape[3]))
        kept.append(torch.cat(parts, dim=2).to(x.dtype))
    return tuple(kept)


class CachedAttention(Attention):
    """An ``Attention`` whose steps keep the keys and values of the last ``kept`` positions, by default of all.

    A step attends to all kept positions, unless ``advance`` is overridden.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.kept = dims.max_len

    def begin(self, x: Tensor) -> Tensors:
        return empty(x)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return cached_attention(q, k, v, tensors, position, self.kept, dropout=self.dropped)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        return self.forward(q, k, v), fill(empty(v[:, :, 0]), (k, v), self.kept)

    def state_size(self, length: int) -> int:
        return 2 * length * self.d_model

    def cache_size(self, length: int) -> int:
        return 2 * room(length, self.kept) * self.d_model


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Tensors,
    position: int,
    limit: int,
    pinned: int = 0,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensors]:
    """Softmax attention over all kept positions and this one. q, k, v and the result: (B, H, 1, D); dropout: share of
    the weights that are dropped."""
    tensors = append(tensors, (k, v), position, limit, pinned)
    keys, values = (x[:, :, : position + 1] for x in tensors)
    return F.scaled_dot_product_attention(q, keys, values, dropout_p=dropout), tensors
