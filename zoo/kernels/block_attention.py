"""Attention between blocks as Triton kernels: the twin of the tiles in ``zoo/cores/blocks.py``, one launch a part.

A program takes a tile of queries and walks the runs of keys that its block sees: FlashAttention-2 (arXiv:2307.08691,
algorithm 1) over a list of runs instead of all keys. It reads queries and keys through the part's positions, so nothing
that a hash has sorted is copied. A second part goes on from the result and the log-sum-exp of the parts before it, as
one online softmax. Backward has two kernels: one walks as forward does and adds to the gradient of the queries; the
other takes a tile of keys, walks the queries that see it, and adds to the gradients of the keys and values.

Cost: 4 D operations a pair of query and key in forward, 14 D in backward. Memory: the result, one log-sum-exp a query,
and gradients in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.contract import Tensors
from zoo.cores.parts import HIDDEN, Group, Part, Span
from zoo.kernels import INTERPRETED

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256  # d_head
WALKED = 2048  # keys or queries that one program walks, so that those which see all, or which all see, hold up nothing
VARYING = (
    "H",
    "N",
    "size",
    "key_size",
    "count",
    "slots_of_keys",
    "p_b",
    "p_h",
    "kp_b",
    "kp_h",
    "l_b",
    "l_h",
)  # compiled once
LOG2E = tl.constexpr(1.4426950408889634)  # after a difference: logits of 1e5 have two digits behind the point
LOWEST = tl.constexpr(HIDDEN)
NOTHING = tl.constexpr(HIDDEN / 2)  # below it a logit is hidden, and a log-sum-exp is that of no key


def refusal(q: Tensor) -> str:
    """Why the kernels cannot run for inputs like ``q`` (B, H, N, D); empty where they can."""
    if not (q.is_cuda or INTERPRETED):
        return f"Triton has no kernels for {q.device.type}"
    if q.dtype not in DTYPES:
        return f"the kernels take float16, bfloat16 and float32, got {q.dtype}"
    if q.shape[-1] > WIDEST:
        return f"the kernels take heads of at most {WIDEST} features, got {q.shape[-1]}"
    return ""


@dataclass(frozen=True, eq=False)
class Lists:
    """Which tile of queries walks which keys, and the other way round: int32 tensors on the device.

    tiles: (T, 7): head, first slot of the block, first and last slot of the tile, first and last run, and the number
        of the piece where several programs share the tile's runs (-1 = one program has all).
    shares: (S, 5): of each tile in pieces: head, its first and last slot, its first and last piece.
    runs: (R, 4): first and last slot of the keys, where their bias begins (-1 = none), length of its rows.
    items: (I, 4): head, first slot of the keys, first and last visit.
    visits: (V, 7): first slot of the block, first and last slot of the tile; then as ``runs``.
    biases: (…) float32.
    heads: lists for so many heads; 1 = all heads share one.
    pairs: of queries and keys in those lists.
    block_m, block_n: queries and keys of a tile.
    count: of the pieces.
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
    """Lists of a part with ``blocks`` blocks of ``size`` queries, ``key_blocks`` of ``key_size`` keys, in tiles of at
    most ``tile`` of each."""
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
    first = runs[run, 0] // block_n  # tiles of keys that a run meets
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
    """Runs without a bias that follow one another as one, and none longer than ``WALKED``."""
    if len(rows) == 0:
        return rows
    block, first, last, bias = rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]
    new = (block[1:] != block[:-1]) | (first[1:] != last[:-1]) | (bias[1:] >= 0) | (bias[:-1] >= 0)
    starts = torch.cat([torch.ones(1, dtype=torch.bool), new]).nonzero()[:, 0]
    joined = rows[starts]
    joined[:, 2] = torch.cat([last[starts[1:] - 1], last[-1:]])
    whole = joined[:, 3] >= 0  # a bias begins where its run does
    number, piece = _expand(
        torch.zeros(len(joined), dtype=torch.long),
        torch.where(whole, 1, -(-(joined[:, 2] - joined[:, 1]) // WALKED)),
    )
    cut = joined[number]
    cut[:, 1] += piece * WALKED
    cut[:, 2] = torch.where(whole[number], cut[:, 2], torch.minimum(cut[:, 2], cut[:, 1] + WALKED))
    return cut


def _pieces(tiles: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:
    """``Lists.tiles`` and ``Lists.shares``: a piece has the runs of a tile that begin within ``WALKED`` keys."""
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
    without = (tiles[:, 4] == tiles[:, 5]).nonzero()[:, 0]  # what sees nothing is written as well
    pieces = torch.cat([pieces, F.pad(tiles[without], (0, 1), value=-1)])
    which, amounts = owner[shared].unique_consecutive(return_counts=True)
    last = amounts.cumsum(0)[:, None]
    return pieces, torch.cat([tiles[which][:, [0, 2, 3]], last - amounts[:, None], last], dim=1)


def _expand(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """For number i, ``counts[i]`` entries: i each, and first[i], first[i] + 1, …"""
    number = torch.arange(len(counts)).repeat_interleave(counts)
    return number, torch.arange(len(number)) - (counts.cumsum(0) - counts)[number] + first[number]


def _runs(groups: tuple[Group | Span, ...], size: int, key_size: int, key_blocks: int) -> tuple[Tensor, Tensor]:
    """What each block of queries sees: (…, 5) head · blocks + block, then as ``Lists.runs``; and the biases."""
    found, biases, offset = [torch.empty(0, 5, dtype=torch.long)], [torch.zeros(1)], 1
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
        found.append(torch.stack([x.expand(start.shape) for x in facts], dim=-1).flatten(0, 1))
    return torch.cat(found), torch.cat(biases)


@triton.jit
def _places(positions, slots, valid, N, MAPPED: tl.constexpr):
    """The positions in some slots, and which of them hold one."""
    place = slots
    if MAPPED:
        place = tl.load(positions + slots, mask=valid, other=-1)
    valid = valid & (place >= 0) & (place < N)
    return place.to(tl.int64), valid


@triton.jit
def _hidden(
    s, at, seen, at_ok, seen_ok, place, biases, label, theirs, CAUSAL: tl.constexpr, LABELLED: tl.constexpr
):  # fmt: skip
    """Logits, biased, -inf where hidden. ``s`` is queries × keys or the other way round, as are the
    facts of both, which broadcast. place: of each bias, below 0 = none."""
    visible = seen_ok & at_ok
    if CAUSAL:
        visible = visible & (seen <= at)
    if LABELLED:
        visible = visible & (theirs == label)
    bias = tl.load(biases + place, mask=visible & (place >= 0), other=0.0)
    visible = visible & (bias > NOTHING)
    return tl.where(visible, s + bias, float("-inf"))


@triton.jit(do_not_specialize=VARYING)
def _forward(
    Q, K, V, Out, Lse, Pieces, positions, key_positions, padding, labels, tiles, runs, biases,
    scale, H, N, size, key_size, count, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    p_b, p_h, kp_b, kp_h, l_b, l_h,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, L: tl.constexpr, SHARED: tl.constexpr,
    FIRST: tl.constexpr, MAPPED: tl.constexpr, KEYS_MAPPED: tl.constexpr, PADDED: tl.constexpr,
    CAUSAL: tl.constexpr, LABELLED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tiles + 7 * tl.program_id(0)
    if SHARED:
        b, h = tl.program_id(1) // H, tl.program_id(1) % H
    else:
        b, h = tl.program_id(1), tl.load(tile)
    b, h = b.to(tl.int64), h.to(tl.int64)
    base, start, stop = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    slots = start + tl.arange(0, M)
    at, at_ok = _places(positions + b * p_b + h * p_h, slots, slots < stop, N, MAPPED)
    piece = tl.load(tile + 6)
    label = 0
    if LABELLED:
        label = tl.load(labels + b * l_b + h * l_h + base // size)
    d = tl.arange(0, WIDTH)
    inside = d[None, :] < D
    q = tl.load(Q + b * q_b + h * q_h + at[:, None] * q_n + d[None, :], mask=at_ok[:, None] & inside, other=0.0)
    o = Out + b * o_b + h * o_h + at[:, None] * o_n + d[None, :]
    lse = Lse + (b * H + h) * N + at
    top = tl.full([M], LOWEST, tl.float32)
    acc = tl.zeros([M, WIDTH], tl.float32)
    if not FIRST:  # noqa: SIM102
        if piece < 0:  # of several pieces the one that joins them reads what was before
            top = tl.load(lse, mask=at_ok, other=LOWEST)
            acc = tl.load(o, mask=at_ok[:, None] & inside, other=0.0).to(tl.float32)
    total = tl.where(top > NOTHING, 1.0, 0.0)
    for number in range(tl.load(tile + 4), tl.load(tile + 5)):
        first, last = tl.load(runs + 4 * number), tl.load(runs + 4 * number + 1)
        place, stride = tl.load(runs + 4 * number + 2), tl.load(runs + 4 * number + 3)
        for begin in range(first, last, L):
            keys = begin + tl.arange(0, L)
            seen, seen_ok = _places(key_positions + b * kp_b + h * kp_h, keys, keys < last, N, KEYS_MAPPED)
            if PADDED:
                seen_ok = seen_ok & (tl.load(padding + b * N + seen, mask=seen_ok, other=1) == 0)
            some = seen_ok[:, None] & inside
            k = tl.load(K + b * k_b + h * k_h + seen[:, None] * k_n + d[None, :], mask=some, other=0.0)
            theirs = keys
            if LABELLED:
                theirs = tl.load(labels + b * l_b + h * l_h + keys // key_size, mask=seen_ok, other=-1)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            bias = tl.where(place >= 0, place + (slots - base)[:, None] * stride + (keys - first)[None, :], -1)
            s = _hidden(
                s, at[:, None], seen[None, :], at_ok[:, None], seen_ok[None, :], bias, biases, label, theirs[None, :],
                CAUSAL, LABELLED,
            )  # fmt: skip
            higher = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2((s - higher[:, None]) * LOG2E)
            fade = tl.exp2((top - higher) * LOG2E)
            total = total * fade + tl.sum(p, 1)
            v = tl.load(V + b * v_b + h * v_h + seen[:, None] * v_n + d[None, :], mask=some, other=0.0)
            acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            top = higher
    met = total > 0
    below = tl.where(met, total, 1.0)
    acc = acc / below[:, None]
    top = tl.where(met, top + tl.log(below), LOWEST)
    if piece < 0:
        tl.store(o, acc.to(Out.dtype.element_ty), mask=at_ok[:, None] & inside)
        tl.store(lse, top, mask=at_ok)
    else:  # (…, M, D + 1): the result and its log-sum-exp
        place = Pieces + ((tl.program_id(1).to(tl.int64) * count + piece) * M + tl.arange(0, M)) * (D + 1)
        tl.store(place[:, None] + d[None, :], acc, mask=inside)
        tl.store(place + D, top)


@triton.jit(do_not_specialize=VARYING)
def _join(
    Out, Lse, Pieces, positions, shares, H, N, count, o_b, o_h, o_n, p_b, p_h,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr, FIRST: tl.constexpr,
    MAPPED: tl.constexpr,
):  # fmt: skip
    """The results of a tile's pieces as one."""
    share = shares + 5 * tl.program_id(0)
    if SHARED:
        b, h = tl.program_id(1) // H, tl.program_id(1) % H
    else:
        b, h = tl.program_id(1), tl.load(share)
    set_of_pieces = tl.program_id(1).to(tl.int64)
    b, h = b.to(tl.int64), h.to(tl.int64)
    start, stop = tl.load(share + 1), tl.load(share + 2)
    slots = start + tl.arange(0, M)
    at, at_ok = _places(positions + b * p_b + h * p_h, slots, slots < stop, N, MAPPED)
    d = tl.arange(0, WIDTH)
    here = at_ok[:, None] & (d < D)[None, :]
    o = Out + b * o_b + h * o_h + at[:, None] * o_n + d[None, :]
    lse = Lse + (b * H + h) * N + at
    top = tl.full([M], LOWEST, tl.float32)
    acc = tl.zeros([M, WIDTH], tl.float32)
    if not FIRST:
        top = tl.load(lse, mask=at_ok, other=LOWEST)
        acc = tl.load(o, mask=here, other=0.0).to(tl.float32)
    for piece in range(tl.load(share + 3), tl.load(share + 4)):
        place = Pieces + ((set_of_pieces * count + piece) * M + tl.arange(0, M)) * (D + 1)
        more = tl.load(place[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0)
        more_top = tl.load(place + D)
        higher = tl.maximum(top, more_top)
        mine, theirs = tl.exp2((top - higher) * LOG2E), tl.exp2((more_top - higher) * LOG2E)
        acc = (acc * mine[:, None] + more * theirs[:, None]) / (mine + theirs)[:, None]
        top = tl.where(higher > NOTHING, higher + tl.log(mine + theirs), LOWEST)
    tl.store(o, acc.to(Out.dtype.element_ty), mask=here)
    tl.store(lse, top, mask=at_ok)


@triton.jit(do_not_specialize=VARYING)
def _backward_queries(
    Q, K, V, Grad, Lse, Delta, DQ, positions, key_positions, padding, labels, tiles, runs, biases,
    scale, H, N, size, key_size, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, o_b, o_h, o_n,
    p_b, p_h, kp_b, kp_h, l_b, l_h,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, L: tl.constexpr, SHARED: tl.constexpr,
    FIRST: tl.constexpr, MAPPED: tl.constexpr, KEYS_MAPPED: tl.constexpr, PADDED: tl.constexpr,
    CAUSAL: tl.constexpr, LABELLED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tiles + 7 * tl.program_id(0)
    if SHARED:
        b, h = tl.program_id(1) // H, tl.program_id(1) % H
    else:
        b, h = tl.program_id(1), tl.load(tile)
    b, h = b.to(tl.int64), h.to(tl.int64)
    base, start, stop = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    slots = start + tl.arange(0, M)
    at, at_ok = _places(positions + b * p_b + h * p_h, slots, slots < stop, N, MAPPED)
    label = 0
    if LABELLED:
        label = tl.load(labels + b * l_b + h * l_h + base // size)
    d = tl.arange(0, WIDTH)
    inside = d[None, :] < D
    here = at_ok[:, None] & inside
    q = tl.load(Q + b * q_b + h * q_h + at[:, None] * q_n + d[None, :], mask=here, other=0.0)
    grad = tl.load(Grad + b * g_b + h * g_h + at[:, None] * g_n + d[None, :], mask=here, other=0.0)
    lse = tl.load(Lse + (b * H + h) * N + at, mask=at_ok, other=LOWEST)
    at_ok = at_ok & (lse > NOTHING)
    delta = tl.load(Delta + (b * H + h) * N + at, mask=at_ok, other=0.0)
    acc = tl.zeros([M, WIDTH], tl.float32)
    for number in range(tl.load(tile + 4), tl.load(tile + 5)):
        first, last = tl.load(runs + 4 * number), tl.load(runs + 4 * number + 1)
        place, stride = tl.load(runs + 4 * number + 2), tl.load(runs + 4 * number + 3)
        for begin in range(first, last, L):
            keys = begin + tl.arange(0, L)
            seen, seen_ok = _places(key_positions + b * kp_b + h * kp_h, keys, keys < last, N, KEYS_MAPPED)
            if PADDED:
                seen_ok = seen_ok & (tl.load(padding + b * N + seen, mask=seen_ok, other=1) == 0)
            some = seen_ok[:, None] & inside
            k = tl.load(K + b * k_b + h * k_h + seen[:, None] * k_n + d[None, :], mask=some, other=0.0)
            theirs = keys
            if LABELLED:
                theirs = tl.load(labels + b * l_b + h * l_h + keys // key_size, mask=seen_ok, other=-1)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            bias = tl.where(place >= 0, place + (slots - base)[:, None] * stride + (keys - first)[None, :], -1)
            s = _hidden(
                s, at[:, None], seen[None, :], at_ok[:, None], seen_ok[None, :], bias, biases, label, theirs[None, :],
                CAUSAL, LABELLED,
            )  # fmt: skip
            p = tl.exp2((s - lse[:, None]) * LOG2E)
            v = tl.load(V + b * v_b + h * v_h + seen[:, None] * v_n + d[None, :], mask=some, other=0.0)
            slope = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None]) * scale
            acc += tl.dot(slope.to(k.dtype), k, input_precision=PRECISION)
    dq = DQ + b * o_b + h * o_h + at[:, None] * o_n + d[None, :]
    if tl.load(tile + 6) < 0:
        if not FIRST:
            acc += tl.load(dq, mask=here, other=0.0)
        tl.store(dq, acc, mask=here)
    else:
        tl.atomic_add(dq, acc, mask=here, sem="relaxed")


@triton.jit(do_not_specialize=VARYING)
def _backward_keys(
    Q, K, V, Grad, Lse, Delta, DK, DV, positions, key_positions, padding, labels, items, visits, biases,
    scale, H, N, size, key_size, slots_of_keys, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n,
    o_b, o_h, o_n, p_b, p_h, kp_b, kp_h, l_b, l_h,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, L: tl.constexpr, SHARED: tl.constexpr,
    MAPPED: tl.constexpr, KEYS_MAPPED: tl.constexpr, PADDED: tl.constexpr,
    CAUSAL: tl.constexpr, LABELLED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    item = items + 4 * tl.program_id(0)
    if SHARED:
        b, h = tl.program_id(1) // H, tl.program_id(1) % H
    else:
        b, h = tl.program_id(1), tl.load(item)
    b, h = b.to(tl.int64), h.to(tl.int64)
    keys = tl.load(item + 1) + tl.arange(0, L)
    seen, seen_ok = _places(key_positions + b * kp_b + h * kp_h, keys, keys < slots_of_keys, N, KEYS_MAPPED)
    if PADDED:
        seen_ok = seen_ok & (tl.load(padding + b * N + seen, mask=seen_ok, other=1) == 0)
    d = tl.arange(0, WIDTH)
    inside = d[None, :] < D
    some = seen_ok[:, None] & inside
    k = tl.load(K + b * k_b + h * k_h + seen[:, None] * k_n + d[None, :], mask=some, other=0.0)
    v = tl.load(V + b * v_b + h * v_h + seen[:, None] * v_n + d[None, :], mask=some, other=0.0)
    dk = tl.zeros([L, WIDTH], tl.float32)
    dv = tl.zeros([L, WIDTH], tl.float32)
    for number in range(tl.load(item + 2), tl.load(item + 3)):
        visit = visits + 7 * number
        base, start, stop = tl.load(visit), tl.load(visit + 1), tl.load(visit + 2)
        first, last = tl.load(visit + 3), tl.load(visit + 4)
        place, stride = tl.load(visit + 5), tl.load(visit + 6)
        slots = start + tl.arange(0, M)
        at, at_ok = _places(positions + b * p_b + h * p_h, slots, slots < stop, N, MAPPED)
        here = at_ok[:, None] & inside
        q = tl.load(Q + b * q_b + h * q_h + at[:, None] * q_n + d[None, :], mask=here, other=0.0)
        grad = tl.load(Grad + b * g_b + h * g_h + at[:, None] * g_n + d[None, :], mask=here, other=0.0)
        lse = tl.load(Lse + (b * H + h) * N + at, mask=at_ok, other=LOWEST)
        at_ok = at_ok & (lse > NOTHING)
        delta = tl.load(Delta + (b * H + h) * N + at, mask=at_ok, other=0.0)
        label = 0
        if LABELLED:
            label = tl.load(labels + b * l_b + h * l_h + base // size)
        here_ok = seen_ok & (keys >= first) & (keys < last)
        theirs = keys
        if LABELLED:
            theirs = tl.load(labels + b * l_b + h * l_h + keys // key_size, mask=here_ok, other=-1)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        bias = tl.where(place >= 0, place + (slots - base)[None, :] * stride + (keys - first)[:, None], -1)
        s = _hidden(
            s, at[None, :], seen[:, None], at_ok[None, :], here_ok[:, None], bias, biases, label, theirs[:, None],
            CAUSAL, LABELLED,
        )  # fmt: skip
        p = tl.exp2((s - lse[None, :]) * LOG2E)
        dv += tl.dot(p.to(grad.dtype), grad, input_precision=PRECISION)
        slope = p * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :]) * scale
        dk += tl.dot(slope.to(q.dtype), q, input_precision=PRECISION)
    place = b * o_b + h * o_h + seen[:, None] * o_n + d[None, :]
    tl.atomic_add(DK + place, dk, mask=some, sem="relaxed")
    tl.atomic_add(DV + place, dv, mask=some, sem="relaxed")


def forward(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the pairs that the parts show, and its log-sum-exp in float32.

    q, k, v and the result: (B, H, N, D) of one dtype; padding: (B, N) bool; the log-sum-exp: (B, H, N), ``HIDDEN``
    where a query sees nothing, whose result is 0.
    """
    B, H, N, D = q.shape
    q, k, v = (_rows(x) for x in (q, k, v))
    out = torch.zeros(B, N, H, D, dtype=q.dtype if len(parts) == 1 else torch.float32, device=q.device).transpose(1, 2)
    lse = torch.full((B, H, N), HIDDEN, dtype=torch.float32, device=q.device)
    for number, part in enumerate(parts):
        block_attention(q, k, v, out, lse, *_given(part, q, padding), scale, number == 0)
    return out.to(q.dtype), lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    parts: Sequence[Part],
) -> Tensors:
    """Gradients of q, k and v; ``out`` and ``lse`` are what ``forward`` returned."""
    grad, q, k, v = (_rows(x) for x in (grad, q, k, v))
    delta = (grad.float() * out).sum(-1)
    B, H, N, D = q.shape
    dq, dk, dv = (torch.zeros(B, N, H, D, device=q.device).transpose(1, 2) for _ in range(3))
    for number, part in enumerate(parts):
        given = _given(part, q, padding)
        block_attention_backward(grad, q, k, v, lse, delta, dq, dk, dv, *given, scale, number == 0)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _rows(x: Tensor) -> Tensor:
    """``x`` with its features side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _given(part: Part, q: Tensor, padding: Tensor | None) -> tuple[Any, ...]:
    """What the operators take of a part."""
    H, N, D = q.shape[1:]
    blocks = -(-N // part.size) if part.positions is None else part.positions.shape[-2]
    key_blocks, key_size = (blocks, part.size) if part.keys is None else part.keys.shape[-2:]
    lists = make_lists(tuple(part.groups), part.size, blocks, key_size, key_blocks, H, 64 if D <= 128 else 32, q.device)
    keys = part.positions if part.keys is None else part.keys
    return (
        None if part.positions is None else part.positions.int(),
        None if keys is None else keys.int(),
        padding,
        None if part.labels is None else part.labels.int(),
        [lists.tiles, lists.shares, lists.runs, lists.items, lists.visits, lists.biases],
        [
            part.size,
            key_size,
            key_blocks * key_size,
            lists.heads,
            lists.pairs,
            lists.block_m,
            lists.block_n,
            lists.count,
        ],
        part.causal,
    )


def _by_head(x: Tensor | None, dims: int, like: Tensor) -> tuple[Tensor, int, int]:
    """``x`` (…, B or none, H or none, and ``dims`` more), and its steps from sample to sample and from head to head."""
    if x is None:
        return like, 0, 0
    x = x.contiguous()
    steps = [0, 0, *(n for n in x.stride()[: x.dim() - dims])]
    return x, steps[-2], steps[-1]


def _launch(
    q: Tensor,
    positions: Tensor | None,
    key_positions: Tensor | None,
    padding: Tensor | None,
    labels: Tensor | None,
    sizes: list[int],
    causal: bool,
) -> tuple[tuple[Tensor, ...], tuple[int, ...], dict[str, Any]]:
    """What every kernel takes: tensors of the part, steps in them, and constants."""
    at, p_b, p_h = _by_head(positions, 2, q)
    seen, kp_b, kp_h = _by_head(key_positions, 2, q)
    label, l_b, l_h = _by_head(labels, 1, q)
    hidden = q if padding is None else padding.contiguous().view(torch.uint8)
    constants = {
        "D": q.shape[-1],
        "WIDTH": max(16, triton.next_power_of_2(q.shape[-1])),
        "M": sizes[5],
        "L": sizes[6],
        "SHARED": sizes[3] == 1,
        "MAPPED": positions is not None,
        "KEYS_MAPPED": key_positions is not None,
        "PADDED": padding is not None,
        "CAUSAL": causal,
        "LABELLED": labels is not None,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }
    return (at, seen, hidden, label), (p_b, p_h, kp_b, kp_h, l_b, l_h), constants


def _grid(programs: Tensor, q: Tensor, sizes: list[int]) -> tuple[int, int]:
    B, H = q.shape[:2]
    return len(programs), B * H if sizes[3] == 1 else B


@torch.library.custom_op("zoo::block_attention", mutates_args=("out", "lse"))
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    positions: Tensor | None,
    key_positions: Tensor | None,
    padding: Tensor | None,
    labels: Tensor | None,
    lists: list[Tensor],
    sizes: list[int],
    causal: bool,
    scale: float,
    first: bool,
) -> None:
    """Write one part's result and log-sum-exp, or where it is not the ``first`` one go on from those of the others."""
    tiles, shares, runs, _, _, biases = lists
    H, N, D = q.shape[1:]
    tensors, steps, constants = _launch(q, positions, key_positions, padding, labels, sizes, causal)
    strides = [n for x in (q, k, v, out) for n in x.stride()[:3]]
    grid, M = _grid(tiles, q, sizes), sizes[5]
    count = sizes[7]
    pieces = torch.empty(grid[1], count, M, D + 1, device=q.device) if count else lse
    _forward[grid](
        q, k, v, out, lse, pieces, *tensors, tiles, runs, biases, scale, H, N, *sizes[:2], count, *strides, *steps,
        FIRST=first, **constants,
    )  # fmt: skip
    if count:
        some = {name: constants[name] for name in ("D", "WIDTH", "M", "SHARED", "MAPPED")}
        _join[len(shares), grid[1]](
            out, lse, pieces, tensors[0], shares, H, N, count, *strides[-3:], *steps[:2], FIRST=first, **some
        )


@torch.library.custom_op("zoo::block_attention_backward", mutates_args=("dq", "dk", "dv"))
def block_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    positions: Tensor | None,
    key_positions: Tensor | None,
    padding: Tensor | None,
    labels: Tensor | None,
    lists: list[Tensor],
    sizes: list[int],
    causal: bool,
    scale: float,
    first: bool,
) -> None:
    """Add the gradients through one part, in float32; they are 0 before the ``first`` one."""
    tiles, _, runs, items, visits, biases = lists
    H, N = q.shape[1:3]
    tensors, steps, constants = _launch(q, positions, key_positions, padding, labels, sizes, causal)
    strides = [n for x in (q, k, v, grad, dq) for n in x.stride()[:3]]
    _backward_queries[_grid(tiles, q, sizes)](
        q, k, v, grad, lse, delta, dq, *tensors, tiles, runs, biases, scale, H, N, *sizes[:2], *strides, *steps,
        FIRST=first, **constants,
    )  # fmt: skip
    if len(items):
        _backward_keys[_grid(items, q, sizes)](
            q, k, v, grad, lse, delta, dk, dv, *tensors, items, visits, biases, scale, H, N, *sizes[:3], *strides,
            *steps, **constants,
        )  # fmt: skip


@register_flop_formula(torch.ops.zoo.block_attention, get_raw=True)
def _flops(q: Tensor, *given: Any, **_: Any) -> int:
    """Two matrix products over the pairs."""
    return 4 * _pairs(q, given[9])


@register_flop_formula(torch.ops.zoo.block_attention_backward, get_raw=True)
def _backward_flops(_grad: Tensor, q: Tensor, *given: Any, **_: Any) -> int:
    """Seven: the logits and their gradients in both kernels."""
    return 14 * _pairs(q, given[12])


def _pairs(q: Tensor, sizes: list[int]) -> int:
    B, H, _, D = q.shape
    heads, pairs = sizes[3:5]
    return B * D * pairs * (H if heads == 1 else 1)
