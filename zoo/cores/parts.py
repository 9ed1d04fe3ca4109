"""Sparse patterns: which blocks of positions see which, for the attention of ``zoo/cores/blocks.py``.

A ``Part`` cuts the sequence into blocks and lists which key blocks each query block sees: neighbouring blocks as a
``Span``, all other sets as a ``Group``. This file makes the parts of sliding windows and of layouts, and finds the
positions that the last position sees in any part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from zoo.kernels import INTERPRETED

HIDDEN = -1e30  # added to the logit of a hidden key; finite, so that a row that sees no key has no NaN


@dataclass(frozen=True, kw_only=True)
class Group:
    """Query blocks that see equally many key blocks, under one bias. Block b of head h has the index h · blocks + b.

    rows: (R,) query blocks.
    columns: (R, W): the key blocks that each row sees.
    bias: (S, W · S) float32, added to the logits of every row; None = nothing is hidden.
    """

    rows: Tensor
    columns: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """Neighbouring query blocks that each see neighbouring key blocks, under one bias, in every head.

    Row r of ``first`` … ``last − 1`` sees the key blocks r + offset … r + offset + width − 1.
    bias: (S, width · S of the keys) float32, added to the logits of every row; None = nothing is hidden.
    """

    first: int
    last: int
    offset: int = 0
    width: int = 1
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Blocks of positions, and which blocks see which.

    groups: a query block is in at most one of them; a block in none of them sees nothing in this part.
    size: positions in a block, S.
    positions: (blocks, S), (H, blocks, S) or (B, H, blocks, S): the position in each slot, −1 = empty; a position fills
        at most one slot. None: consecutive blocks.
    keys: (key blocks, S of the keys): the positions of the keys, if their blocks differ from those of the queries.
    causal: hides keys later than the query, by comparing positions.
    labels: (B, H, blocks): blocks of different labels do not see each other.
    """

    groups: Sequence[Group | Span]
    size: int
    positions: Tensor | None = None
    keys: Tensor | None = None
    causal: bool = False
    labels: Tensor | None = None


def made_once(build: Callable[..., list[Part]], *arguments: Hashable, like: Tensor) -> list[Part]:
    """``build(*arguments)``. On a GPU the result is cached, since building takes longer than attention.

    Not while torch traces: tensors made in one trace are invalid outside it.
    """
    traced = torch.compiler.is_compiling() or type(like) not in (Tensor, nn.Parameter)
    if traced or (like.device.type == "cpu" and not INTERPRETED):
        return build(*arguments)
    with torch.inference_mode(False):
        return _made_once(build, *arguments)


@lru_cache(maxsize=64)
def _made_once(build: Callable[..., list[Part]], *arguments: Hashable) -> list[Part]:
    return build(*arguments)


def layout_groups(layout: Tensor, n_heads: int, size: int, biases: Mapping[int, Tensor]) -> list[Group]:
    """Groups for a layout of consecutive blocks.

    Args:
        layout: (blocks, blocks) bool for all heads, or (H, blocks, blocks); True = the row sees the column.
        size: S.
        biases: column − row -> (S, S) float32, added to the logits of blocks at this offset.
    """
    layouts = layout[None] if layout.dim() == 2 else layout
    heads, blocks = layouts.shape[:2]
    seen: dict[tuple[int, int], tuple[list[int], list[int]]] = {}  # (head, row) -> columns without bias, offsets with
    for head, row, column in layouts.nonzero().tolist():
        free, offsets = seen.setdefault((head, row), ([], []))
        if column - row in biases:
            offsets.append(column - row)
        else:
            free.append(column)
    rows_of: dict[tuple[int, tuple[int, ...]], list[list[int]]] = {}  # (W, offsets) -> [row, *columns]
    for (head, row), (free, offsets) in seen.items():
        number = [row, *free, *(row + offset for offset in offsets)]
        key = (len(number) - 1, tuple(offsets))
        rows_of.setdefault(key, []).append([head * blocks + block for block in number])
    groups = []
    for (width, biased), numbers in rows_of.items():
        bias = None
        if biased:
            unbiased = biases[biased[0]].new_zeros(size, (width - len(biased)) * size)
            bias = torch.cat([unbiased, *(biases[offset] for offset in biased)], dim=1)
        table = torch.tensor(numbers, device=layout.device)
        if heads == 1:
            table = for_all_heads(table, n_heads, blocks)
        groups.append(Group(rows=table[:, 0], columns=table[:, 1:], bias=bias))
    return groups


def random_layout(blocks: int, window: int, n_global: int, n_random: int, causal: bool) -> Tensor:
    """Window, leading global blocks, and random blocks from the CPU's global generator. (blocks, blocks) bool.

    Random blocks of row i are drawn below 2 (i + 1), so that the layout keeps at least half of them at shorter lengths.
    """
    row = torch.arange(blocks, device="cpu")
    layout = (row[:, None] - row).abs() <= window // 2
    layout[:n_global] = True
    layout[:, :n_global] = True
    for i in range(blocks):
        reach = i + 1 if causal else min(blocks, 2 * (i + 1))
        free = (~layout[i, :reach]).nonzero()[:, 0]
        layout[i, free[torch.randperm(len(free), device="cpu")[:n_random]]] = True
    return layout.tril() if causal else layout


def row_width(window: int, n_global: int, n_random: int, causal: bool) -> int:
    """The most blocks that a row of ``random_layout`` sees, except for global rows."""
    return (window // 2 + 1 if causal else window) + n_global + n_random


def for_all_heads(numbers: Tensor, n_heads: int, blocks: int) -> Tensor:
    """Block indices (R, …) of one head  ->  (H · R, …) of all heads."""
    base = blocks * torch.arange(n_heads, device=numbers.device)
    return (numbers + base.view(-1, *(1,) * numbers.dim())).flatten(0, 1)


def window_spans(
    blocks: int, size: int, reach: tuple[int, int], *, first: int = 0, skip: int = 0, device: torch.device | None = None
) -> list[Span]:
    """A sliding window over consecutive blocks: query i sees key j where ``reach[0] <= j − i <= reach[1]``.

    Args:
        blocks, size: the number of blocks, and positions in a block, S.
        first: the first block whose queries are needed.
        skip: the first ``skip`` keys are hidden (another part shows them).
    """
    low, high = (int(math.copysign(-(-abs(end) // size), end)) for end in reach)
    at = torch.arange(size, device=device)[:, None]
    rows_of: dict[tuple[int, int, int], list[int]] = {}  # (offset, width, row if only this row is so, else -1) -> rows
    for row in range(first, blocks):
        start, last = max(0, row + low), min(blocks - 1, row + high)
        alone = row if start * size < skip else -1
        rows_of.setdefault((start - row, last - start + 1, alone), []).append(row)
    spans = []
    for (offset, width, alone), rows in rows_of.items():
        key = offset * size + torch.arange(width * size, device=device)  # relative to the first query of the row
        visible = (key - at >= reach[0]) & (key - at <= reach[1])
        if alone >= 0:
            visible &= key + alone * size >= skip
        lags = offset * size - (size - 1), (offset + width) * size - 1  # the least and the largest lag of all pairs
        free = reach[0] <= lags[0] and lags[1] <= reach[1] and alone < 0
        bias = None if free else hide(visible)
        spans.append(Span(first=rows[0], last=rows[-1] + 1, offset=offset, width=width, bias=bias))
    return spans


def window_block(window: int) -> int:
    """Block size for a sliding window: large blocks multiply faster, small ones compute fewer hidden pairs."""
    return min(128, max(16, 1 << (window - 1).bit_length()))


def hide(visible: Tensor) -> Tensor:
    """(…) bool, True = visible  ->  (…) float32 to add to logits."""
    return torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, HIDDEN)


def causal_bias(size: int, device: torch.device | None = None) -> dict[int, Tensor]:
    """The bias of a causal layout: in the block on the diagonal a query sees keys up to itself."""
    return {0: hide(torch.ones(size, size, dtype=torch.bool, device=device).tril())}


def seen_rows(times: Tensor) -> tuple[Tensor, Tensor]:
    """The visible rows, and the logarithm of how often each is seen (``HIDDEN`` for 0 times): (…, W) both.

    times: (…, rows) floats, how often each row is seen.
    """
    seen = (times > 0).sum(-1)
    times, rows = times.topk(int(seen.max()) if len(seen) else 0)
    return rows, times.log().clamp(min=HIDDEN)


def seen_last(parts: Sequence[Part], n_heads: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions that the last of ``length`` sees in any head, and whether it does in each head: (H, W) both.

    For parts made of spans, without labels, whose biases are 0 or hide, and in which a position has the same slot in
    all samples and in all heads that show it.
    """
    last = length - 1
    places = [torch.zeros(n_heads, 0, dtype=torch.long, device=device)]
    visible = [torch.zeros(n_heads, 0, dtype=torch.bool, device=device)]
    for part in parts:
        row, at = divmod(last, part.size)
        heads = torch.ones(n_heads, 1, dtype=torch.bool, device=device)
        if part.positions is not None:
            is_last = part.positions == last
            slots = is_last.nonzero()
            if len(slots) == 0:
                continue
            row, at = slots[0, -2:].tolist()
            heads = is_last.flatten(-2).any(-1, keepdim=True)  # (H, 1), or (1,) for all
        keys = part.positions if part.keys is None else part.keys
        for span in part.groups:
            assert isinstance(span, Span)
            if not span.first <= row < span.last:
                continue
            first = row + span.offset
            if keys is None:
                place = torch.arange(first * part.size, (first + span.width) * part.size, device=device)
            else:
                place = keys[..., first : first + span.width, :].flatten(-2)  # (H, W), or (W,) for all
            shown = heads & (place >= 0) & (place < length)
            if span.bias is not None:
                shown = shown & (span.bias[at] > HIDDEN / 2)
            places.append(place.expand(n_heads, -1))
            visible.append(shown.expand(n_heads, -1))
    shown = torch.cat(visible, dim=1)
    some = shown.any(0)
    return torch.cat(places, dim=1)[:, some].clamp(0, last), shown[:, some]
