"""Lists that the programs of block attention walk, made on the host once for each part and length, and cached.

A tile of queries has a list of runs: the keys that its block sees. A tile of keys has a list of visits: the queries
that see it. Neighbouring blocks are one run. A tile that sees very many keys is cut into pieces for several programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from zoo.cores.parts import Group, Span

WALKED = 2048  # keys or queries that one program walks: tiles that see all, or that all see, take several programs


@dataclass(frozen=True, eq=False)
class Lists:
    """Which tile of queries walks which keys, and which tile of keys walks which queries: int32 tensors on the device.

    tiles: (T, 7): head, first slot of the block, first and last slot of the tile, first and last run, and the index of
        the piece if several programs share the tile's runs (-1 = one program has all).
    shares: (S, 5), for each tile in pieces: head, first and last slot, first and last piece.
    runs: (R, 4): first and last slot of the keys, start of their bias (-1 = none), length of the bias's rows.
    items: (I, 4): head, first slot of the keys, first and last visit.
    visits: (V, 7): first slot of the block, first and last slot of the tile; then as ``runs``.
    biases: (…) float32.
    heads: how many heads have lists; 1 = all heads share one.
    pairs: number of pairs of query and key in the lists.
    block_m, block_n: queries and keys in a tile.
    count: number of pieces.
    """

    tiles: Tensor
    shares: Tensor
    runs: Tensor
    items: Tensor
    visits: Tensor
    biases: Tensor
    heads: int
    pairs: int
    block_m: int
    block_n: int
    count: int


@lru_cache(maxsize=64)
def make_lists(
    groups: tuple[Group | Span, ...],
    size: int,
    blocks: int,
    key_size: int,
    key_blocks: int,
    heads: int,
    tile: int,
    device: torch.device,
) -> Lists:
    """The lists of a part with ``blocks`` blocks of ``size`` queries and ``key_blocks`` blocks of ``key_size`` keys, in
    tiles of at most ``tile`` queries and keys."""
    heads = heads if any(isinstance(group, Group) for group in groups) else 1
    rows, biases = _runs(groups, size, key_size, key_blocks)  # head · blocks + block, then as Lists.runs
    rows = _joined(rows[(rows[:, 0] * (key_blocks * key_size + 1) + rows[:, 1]).argsort()])
    block, runs = rows[:, 0].contiguous(), rows[:, 1:]
    longest = int((runs[:, 1] - runs[:, 0]).max()) if len(runs) else 1
    block_m, block_n = (min(tile, max(16, triton.next_power_of_2(n))) for n in (size, longest))

    ends = torch.searchsorted(block, torch.arange(heads * blocks + 1))
    each = -(-size // block_m)
    row = torch.arange(heads * blocks).repeat_interleave(each)
    base = row % blocks * size
    start = base + block_m * torch.arange(each).repeat(heads * blocks)
    stop = torch.minimum(start + block_m, base + size)
    tiles = torch.stack([row // blocks, base, start, stop, ends[row], ends[row + 1]], dim=1)
    pieces, shares = _pieces(tiles, runs)

    of_tile, run = _expand(ends[row], ends[row + 1] - ends[row])
    pairs = int(((stop - start)[of_tile] * (runs[run, 1] - runs[run, 0])).sum())
    first = runs[run, 0] // block_n  # the first tile of keys that a run meets
    visit, key = _expand(first, (runs[run, 1] - 1) // block_n + 1 - first)
    of_tile, run = of_tile[visit], run[visit]
    stride = key_blocks * key_size // block_n + 1
    owner = tiles[of_tile, 0] * stride + key
    owner, order = owner.sort(stable=True)
    visits = torch.cat([tiles[of_tile, 1:4], runs[run]], dim=1)[order]
    owner, counts = owner.unique_consecutive(return_counts=True)
    begin = counts.cumsum(0) - counts
    walked = max(1, WALKED // block_m)
    item, piece = _expand(torch.zeros_like(counts), -(-counts // walked))
    begin, end = begin[item] + piece * walked, torch.minimum(begin[item] + (piece + 1) * walked, (begin + counts)[item])
    items = torch.stack([owner[item] // stride, owner[item] % stride * block_n, begin, end], dim=1)
    count = int(shares[-1, 4]) if len(shares) else 0
    pieces, shares, runs, items, visits = (
        x.to(device, torch.int32).contiguous() for x in (pieces, shares, runs, items, visits)
    )
    return Lists(pieces, shares, runs, items, visits, biases.to(device), heads, pairs, block_m, block_n, count)


def _joined(rows: Tensor) -> Tensor:
    """Join adjacent runs without a bias, and cut runs longer than ``WALKED``."""
    if len(rows) == 0:
        return rows
    block, first, last, bias = rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]
    new = (block[1:] != block[:-1]) | (first[1:] != last[:-1]) | (bias[1:] >= 0) | (bias[:-1] >= 0)
    starts = torch.cat([torch.ones(1, dtype=torch.bool), new]).nonzero()[:, 0]
    joined = rows[starts]
    joined[:, 2] = torch.cat([last[starts[1:] - 1], last[-1:]])
    whole = joined[:, 3] >= 0  # a run with a bias is not cut: the bias starts with the run
    number, piece = _expand(
        torch.zeros(len(joined), dtype=torch.long),
        torch.where(whole, 1, -(-(joined[:, 2] - joined[:, 1]) // WALKED)),
    )
    cut = joined[number]
    cut[:, 1] += piece * WALKED
    cut[:, 2] = torch.where(whole[number], cut[:, 2], torch.minimum(cut[:, 2], cut[:, 1] + WALKED))
    return cut


def _pieces(tiles: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:
    """``Lists.tiles`` and ``Lists.shares``. A piece has the runs of a tile that begin within ``WALKED`` keys."""
    tile, run = _expand(tiles[:, 4], tiles[:, 5] - tiles[:, 4])
    lengths = runs[run, 1] - runs[run, 0]
    total = lengths.cumsum(0) - lengths
    first = torch.searchsorted(tile, torch.arange(len(tiles) + 1))
    before = total - F.pad(total, (0, 1))[first[:-1]][tile]  # keys of the tile before each run
    (owner, _), counts = torch.stack([tile, before // WALKED]).unique_consecutive(dim=1, return_counts=True)
    ends = counts.cumsum(0)
    several = torch.bincount(owner, minlength=len(tiles)) > 1
    shared = several[owner]
    number = torch.where(shared, shared.cumsum(0) - 1, -1)
    pieces = torch.cat([tiles[owner, :4], run[ends - counts, None], run[ends - 1, None] + 1, number[:, None]], dim=1)
    without = (tiles[:, 4] == tiles[:, 5]).nonzero()[:, 0]  # tiles that see no key: their results are written too
    pieces = torch.cat([pieces, F.pad(tiles[without], (0, 1), value=-1)])
    which, amounts = owner[shared].unique_consecutive(return_counts=True)
    last = amounts.cumsum(0)[:, None]
    return pieces, torch.cat([tiles[which][:, [0, 2, 3]], last - amounts[:, None], last], dim=1)


def _expand(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """``counts[i]`` entries for each index i: i repeated, and first[i], first[i] + 1, …"""
    number = torch.arange(len(counts)).repeat_interleave(counts)
    return number, torch.arange(len(number)) - (counts.cumsum(0) - counts)[number] + first[number]


def _runs(groups: tuple[Group | Span, ...], size: int, key_size: int, key_blocks: int) -> tuple[Tensor, Tensor]:
    """The runs of each block of queries: (…, 5) head · blocks + block, then as ``Lists.runs``; and the biases."""
    rows, biases, offset = [torch.empty(0, 5, dtype=torch.long)], [torch.zeros(1)], 1
    for group in groups:
        bias = None if group.bias is None else group.bias.detach().float().cpu()
        if isinstance(group, Span):
            row = torch.arange(group.first, group.last)[:, None]
            start = (row + group.offset) * key_size
            length, width = group.width * key_size, 1
        else:
            row, start = group.rows.cpu()[:, None], group.columns.cpu() % key_blocks * key_size  # (R, 1), (R, W)
            length, width = key_size, group.columns.shape[1]
        place = torch.full((width,), -1)
        if bias is not None:
            some = bias.view(size, width, length).ne(0).any(2).any(0)
            place = torch.where(some, offset + length * torch.arange(width), -1)
            biases.append(bias.flatten())
            offset += bias.numel()
        facts = (row, start, start + length, place, torch.tensor(width * length))
        rows.append(torch.stack([x.expand(start.shape) for x in facts], dim=-1).flatten(0, 1))
    return torch.cat(rows), torch.cat(biases)
