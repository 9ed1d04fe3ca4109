"""Bytes moved: what single operations read and write, and what a step adds up to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compare.runs.traffic import copy_rate, moved_bytes
from zoo import MultiHeadAttention

ROWS = torch.arange(5)


def into(shape: tuple[int, ...], write: Callable[[torch.Tensor], object]) -> Callable[[], object]:
    """An operation on a tensor of its own, which is made before bytes are counted."""
    target = torch.zeros(shape)
    return lambda: write(target)


A, B, ONE = torch.zeros(6, 10), torch.zeros(10, 3), torch.zeros(10)


@pytest.mark.parametrize(
    ("operation", "numbers"),
    [
        (lambda: A @ B, 60 + 30 + 18),
        (lambda: A + ONE, 60 + 10 + 60),
        (lambda: ONE.expand(6, 10).exp(), 10 + 60),
        (lambda: A.T[2:4].unsqueeze(0).view(1, 2, 6), 0),
        (lambda: torch.empty(100), 0),
        (lambda: torch.zeros(100), 100),
        (lambda: torch.cat([A, A]), 60 + 60 + 120),
        (lambda: A.sum(0), 60 + 10),
        (into((6, 10), lambda x: x.add_(ONE)), 60 + 10 + 60),
        (into((6, 10), lambda x: x.copy_(A)), 60 + 60),
        (into((6, 10), lambda x: x.zero_()), 60),
        (into((6, 10), lambda x: torch.exp(A, out=x)), 60 + 60),
        # The 5 whole numbers of an index have twice the bytes of as many floats.
        (lambda: A.index_select(1, ROWS), 10 + 2 * 30),
        (lambda: B[ROWS], 10 + 2 * 15),
        (into((10, 3), lambda x: x.index_add_(0, ROWS, torch.empty(5, 3))), 10 + 15 + 2 * 15),
        (into((10, 3), lambda x: x.index_put_((ROWS,), torch.empty(5, 3))), 10 + 15 + 2 * 15),
    ],
)
def test_an_operation_moves_what_it_reads_and_writes(operation: Callable[[], object], numbers: int) -> None:
    assert moved_bytes(operation) == 4 * numbers


def test_full_attention_by_operations_moves_n_by_n_numbers_and_fused_does_not() -> None:
    def moved(backend: str, length: int) -> int:
        layer, x = MultiHeadAttention(backend, d_model=16, n_heads=2, max_len=1024), torch.zeros(1, length, 16)
        return moved_bytes(lambda: layer(x).sum().backward())

    assert moved("naive", 1024) > 4 * 1024**2 * 2 * 4, "logits and weights of two heads, written and read"
    assert 1.9 < moved("full", 1024) / moved("full", 512) < 2.1
    assert 3.5 < moved("naive", 1024) / moved("naive", 512) < 4.1


def test_the_rate_of_a_copy_is_a_rate() -> None:
    assert 1e8 < copy_rate(torch.device("cpu")) < 1e13
