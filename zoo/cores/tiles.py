"""One part of block attention, ready to compute: positions cut into blocks, and blocks into tiles.

Neighbouring blocks are read in place, others are gathered. A tile has a few query blocks and the key blocks that they
see, and fits into cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from zoo.cores.parts import HIDDEN, Group, Part, Span, hide
from zoo.functional import pad_to_multiple, traced

TILE_ELEMENTS = {"cpu": 2**19}  # numbers of a tile's queries, keys and values: what a core's cache holds
TILE_ELEMENTS_ELSEWHERE = 2**27


class Cut:
    """Moves tensors between positions (B, H, N, ·) and blocks (G, blocks, S, ·), G = B · H."""

    def __init__(self, positions: Tensor | None, size: int, shape: torch.Size, device: torch.device) -> None:
        self.B, self.H, self.N = shape[:3]
        self.size, self.positions, self.device = size, positions, device
        if positions is None:
            self.blocks = -(-self.N // size)
            return
        self.blocks, self.size = positions.shape[-2:]
        slots = self.blocks * self.size
        # (B, H, blocks · S): broadcast over samples and heads if positions do not depend on them
        self.index = positions.to(device).flatten(-2).expand(self.B, self.H, slots)
        empty = self.index < 0
        self.empty = empty.reshape(-1, 1) if traced() or bool(empty.any()) else None
        base = torch.arange(self.B * self.H, device=device).view(self.B, self.H, 1)
        self.source = (self.index.clamp(min=0) + base * self.N).flatten()
        # the slot of each position; empty slots write into an extra column, which is dropped
        slot = self.index.new_full((self.B, self.H, self.N + 1), -1)
        number = torch.arange(slots, device=device).expand_as(self.index)
        slot.scatter_(-1, self.index.where(self.index >= 0, self.N), number)
        slot = slot[..., : self.N]
        self.absent = slot < 0
        self.slot = (slot.clamp(min=0) + base * slots).flatten()

    def take(self, x: Tensor, *, contiguous: bool = False) -> Tensor:
        """(B, H, N, ·) -> (G, blocks, S, ·), a view if possible; empty slots hold 0."""
        if self.positions is None:
            x = pad_to_multiple(x, self.size, -2)
        else:
            x = x.reshape(-1, x.shape[-1]).index_select(0, self.source)
            if self.empty is not None:
                x.masked_fill_(self.empty, 0)
        x = x.reshape(self.B * self.H, self.blocks, self.size, x.shape[-1])
        return x.contiguous() if contiguous else x

    def view(self, x: Tensor, contiguous: bool) -> Tensor | None:
        """``x`` (B, H, N, ·) viewed as blocks (G, blocks, S, ·), to write into; None if its memory allows no view."""
        if (
            self.positions is not None
            or self.N % self.size
            or not (x.is_contiguous() or (self.B == 1 and not contiguous))
        ):
            return None
        return x.view(self.B * self.H, self.blocks, self.size, x.shape[-1])

    def hidden(self, padding: Tensor | None) -> Tensor | None:
        """(G, blocks, S) bool: slots that are empty or hold padding; None without such slots."""
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
        """Blocks (G, blocks, S, ·) -> positions (B, H, N, ·); positions without a slot get ``absent``."""
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


class Blocks:
    """One part, ready for inputs of one shape."""

    def __init__(self, part: Part, shape: torch.Size, padding: Tensor | None, device: torch.device) -> None:
        self.part, self.shape, self.device = part, shape, device
        self.queries = Cut(part.positions, part.size, shape, device)
        self.keys = self.queries if part.keys is None else Cut(part.keys, part.keys.shape[-1], shape, device)
        self.hidden = self.keys.hidden(padding)
        self.gathers = any(isinstance(group, Group) for group in part.groups)
        self.causal = (self.queries.places(), self.keys.places()) if part.causal else None
        # the labels of query and key slots: (G, blocks, S)
        self.labels = None if part.labels is None else part.labels.flatten(0, 1)[..., None].expand(-1, -1, part.size)

    def take_queries(self, *tensors: Tensor) -> list[Tensor]:
        """(B, H, N, ·) -> (G, blocks, S, ·) each, in a layout from which tiles need no copy of the whole."""
        return [self.queries.take(x, contiguous=self.gathers) for x in tensors]

    def take_keys(self, *tensors: Tensor) -> list[Tensor]:
        """(B, H, N, ·) -> (G, key blocks, S, ·) each, in the same layout."""
        return [self.keys.take(x, contiguous=self.gathers) for x in tensors]

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles, a few rows each."""
        B, H, _, D = self.shape
        budget = TILE_ELEMENTS.get(self.device.type, TILE_ELEMENTS_ELSEWHERE)
        for group in self.part.groups:
            width = group.width if isinstance(group, Span) else group.columns.shape[-1]
            row = max(1, B) * D * (self.queries.size + 2 * width * self.keys.size)
            step = max(1, budget // (row * H if isinstance(group, Span) else row))
            if isinstance(group, Span):
                for start in range(group.first, group.last, step):
                    yield Neighbours(self, replace(group, first=start, last=min(start + step, group.last)))
                continue
            for start in range(0, len(group.rows), step):
                part = slice(start, start + step)
                yield Gathered(self, replace(group, rows=group.rows[part], columns=group.columns[part]))


class Tile(ABC):
    """Some query blocks and the key blocks they see: (T, R) problems of S queries × L keys."""

    def __init__(self, blocks: Blocks, given_bias: Tensor | None) -> None:
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
        """``write`` into a copy of ``x``."""

    @abstractmethod
    def add(self, x: Tensor, value: Tensor) -> None:
        """Add (T, R, L, …) to ``x`` (G, key blocks, S, …)."""

    def bias(self) -> Tensor | None:
        """The bias of the logits; broadcasts to (T, R, S, L)."""
        bias, blocks = self.given_bias, self.blocks
        masks: list[Tensor] = []  # broadcast to (T, R, S, L); True = hidden
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


class Neighbours(Tile):
    """A span: T = G, R rows; nothing is copied."""

    def __init__(self, blocks: Blocks, span: Span) -> None:
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


class Gathered(Tile):
    """A group: T = B · rows of the group, R = 1; each key block is copied for each row that sees it."""

    def __init__(self, blocks: Blocks, group: Group) -> None:
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
