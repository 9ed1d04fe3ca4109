"""Block-sparse attention: its limit, layouts, cost, bad options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import count_flops
from zoo.attention.block_sparse import BlockSparseAttention, BlockSparseConfig
from zoo.contract import Dims


def attention(config: BlockSparseConfig, length: int = 60, *, causal: bool = False) -> BlockSparseAttention:
    return BlockSparseAttention(Dims(d_model=16, n_heads=2, max_len=length, causal=causal), config).double()


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("causal", [False, True])
def test_with_all_blocks_it_is_full_attention(causal: bool) -> None:
    backend = attention(BlockSparseConfig(block_size=8, layout=torch.ones(8, 8, dtype=torch.bool)), causal=causal)
    q, k, v = qkv()
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def test_a_row_of_a_layout_that_sees_nothing_gives_zero_in_steps_too() -> None:
    layout = torch.zeros(8, 8, dtype=torch.bool)
    layout[4:, :2] = True
    backend = attention(BlockSparseConfig(block_size=8, layout=layout), causal=True)
    q, k, v = qkv()
    whole = backend(q, k, v)
    assert (whole[:, :, :32] == 0).all()
    state = None
    for at in range(60):
        y, state = backend.step(q[:, :, at], k[:, :, at], v[:, :, at], state)
        torch.testing.assert_close(y, whole[:, :, at])


def test_default_layout_has_window_global_and_random_blocks() -> None:
    layout = attention(BlockSparseConfig(block_size=4, window=3, n_global=1, n_random=2), 400).layout
    row = torch.arange(100)
    window = (row[:, None] - row).abs() <= 1
    assert layout[window].all()
    assert layout[0].all()
    assert layout[:, 0].all()
    others = layout & ~window
    others[0] = others[:, 0] = False
    assert (others.sum(1)[5:] == 2).all()
    for length in (25, 50):  # a shorter input keeps at least half of its random blocks
        assert others[2:length, :length].sum() >= length - 8


def test_it_takes_any_layout() -> None:
    torch.manual_seed(1)
    layout = torch.rand(8, 8) < 0.4
    layout[3] = False  # a row that sees nothing
    backend = attention(BlockSparseConfig(block_size=8, layout=layout))
    q, k, v = qkv()
    dense = torch.kron(layout, torch.ones(8, 8, dtype=torch.bool))[:60, :60]
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, attn_mask=dense))
    assert (backend(q, k, v)[:, :, 24:32] == 0).all()


def test_a_row_that_sees_all_does_not_cost_the_others() -> None:
    def flops(n_global: int) -> int:
        dims = Dims(d_model=16, n_heads=2, max_len=8192)
        backend = BlockSparseAttention(dims, BlockSparseConfig(n_global=n_global))
        q, k, v = (torch.randn(1, 2, 8192, 8) for _ in range(3))
        return count_flops(lambda: backend(q, k, v))

    dense = 4 * 2 * 8192**2 * 8
    assert flops(0) < dense / 20
    assert flops(1) < dense / 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockSparseConfig(block_size=0), "block_sparse.block_size must be an integer of at least 1"),
        (lambda: BlockSparseConfig(window=2), "block_sparse.window must be odd .*got 2"),
        (lambda: BlockSparseConfig(layout=torch.ones(3, 3)), r"\(blocks, blocks\) bool tensor, got shape \(3, 3\)"),
        (
            lambda: attention(BlockSparseConfig(layout=torch.ones(3, 3, dtype=torch.bool), block_size=8)),
            "at least 8 × 8 blocks for max_len=60, got 3 × 3",
        ),
    ],
)
def test_bad_options_are_said(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_blocks_larger_than_the_input_are_merely_unusual() -> None:
    out = attention(BlockSparseConfig(block_size=500, window=9))(*qkv())
    assert out.isfinite().all()
    assert out.std().item() > 0
