"""The Triton programs of block attention: what each computes for one tile (see ``block_attention.py``)."""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.cores.parts import HIDDEN

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
)  # arguments that vary: one compilation serves all values
LOG2E = tl.constexpr(1.4426950408889634)  # applied to differences: logits near 1e5 have only two decimals
LOWEST = tl.constexpr(HIDDEN)
NOTHING = tl.constexpr(HIDDEN / 2)  # logits below are hidden; a log-sum-exp below is that of no key


@triton.jit
def _places(positions, slots, valid, N, MAPPED: tl.constexpr):
    """The positions in some slots, and which slots hold a position."""
    place = slots
    if MAPPED:
        place = tl.load(positions + slots, mask=valid, other=-1)
    valid = valid & (place >= 0) & (place < N)
    return place.to(tl.int64), valid


@triton.jit
def _hidden(
    s, at, seen, at_ok, seen_ok, place, biases, label, theirs, CAUSAL: tl.constexpr, LABELLED: tl.constexpr
):  # fmt: skip
    """Logits plus bias, -inf where hidden. ``s`` is queries × keys or keys × queries; the other arguments broadcast
    to it. place: the index of each bias, below 0 = none."""
    visible = seen_ok & at_ok
    if CAUSAL:
        visible = visible & (seen <= at)
    if LABELLED:
        visible = visible & (theirs == label)
    bias = tl.load(biases + place, mask=visible & (place >= 0), other=0.0)
    visible = visible & (bias > NOTHING)
    return tl.where(visible, s + bias, float("-inf"))


@triton.jit(do_not_specialize=VARYING)
def forward(
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
        if piece < 0:  # with several pieces, ``join`` reads the earlier parts' result
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
def join(
    Out, Lse, Pieces, positions, shares, H, N, count, o_b, o_h, o_n, p_b, p_h,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr, FIRST: tl.constexpr,
    MAPPED: tl.constexpr,
):  # fmt: skip
    """Join the results of a tile's pieces."""
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
def backward_queries(
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
def backward_keys(
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
