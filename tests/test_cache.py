"""Rows that grow in blocks, and windows of them."""

from __future__ import annotations

import pytest
import torch

from zoo.contract import Dims
from zoo.cores.cache import BLOCK, append, empty, fill, room
from zoo.registry import build


def test_room_comes_in_blocks_up_to_the_limit() -> None:
    assert [room(rows, 300) for rows in (0, 1, 128, 129, 256, 257, 300)] == [0, 128, 128, 256, 256, 300, 300]
    assert [room(rows, 6) for rows in (0, 1, 6, 7, 1000)] == [0, 6, 6, 6, 6]


def test_a_row_is_written_in_place_and_a_block_of_room_is_made_at_once() -> None:
    tensors = empty(torch.zeros(2, 3, 4))
    seen = []  # held, so that no address is given twice
    for number in range(2 * BLOCK + 1):
        row = torch.full((2, 3, 1, 4), float(number))
        tensors = append(tensors, (row, -row), number, 1000)
        seen.append(tensors[0])
    assert len({x.data_ptr() for x in seen}) == 3
    assert torch.equal(tensors[0][0, 0, : 2 * BLOCK + 1, 0], torch.arange(2.0 * BLOCK + 1))
    assert torch.equal(tensors[0], -tensors[1])


@pytest.mark.parametrize(("limit", "pinned"), [(5, 0), (5, 2), (200, 0), (200, 150), (1, 0)])
def test_a_window_keeps_the_last_rows_and_those_pinned(limit: int, pinned: int) -> None:
    (x,) = empty(torch.zeros(1, 1, 1), 1)
    for number in range(450):
        (x,) = append((x,), (torch.full((1, 1, 1, 1), float(number)),), number, limit, pinned)
        kept = [n for n in range(number + 1) if n < pinned or n > number - (limit - pinned)]
        assert x[0, 0, : number + 1].flatten().sort().values.tolist() == kept


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 6, 7, 13, 128, 200, 201, 450])
@pytest.mark.parametrize(("limit", "pinned"), [(5, 0), (5, 2), (200, 0), (200, 150), (1, 0), (1000, 0)])
def test_all_rows_at_once_stand_where_one_after_another_would(rows: int, limit: int, pinned: int) -> None:
    want = empty(torch.zeros(2, 3, 4))
    whole = tuple(torch.randn(2, 2, 3, rows, 4))
    for number in range(rows):
        want = append(want, tuple(x[:, :, number : number + 1] for x in whole), number, limit, pinned)
    for got, expected in zip(fill(empty(torch.zeros(2, 3, 4)), whole, limit, pinned), want, strict=True):
        assert torch.equal(got, expected)


def test_bytes_of_a_state_are_those_of_its_tensors() -> None:
    attention = build("reformer", Dims(d_model=16, n_heads=2, max_len=300, causal=True))
    q, v = torch.randn(2, 3, 2, 8, dtype=torch.bfloat16)
    _, state = attention.to(torch.bfloat16).step(q, q, v)
    assert state.size == 128 * (2 * 16 + 2 * 4)  # keys, values and four buckets a head
    assert state.nbytes == 3 * 128 * (2 * 2 * 16 + 4 * 2 * 4)  # in two bytes, and in four
