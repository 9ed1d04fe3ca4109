"""Sparse Transformer: its limits, its two patterns, cost, bad options.

No installable package has these patterns on a CPU (the authors' kernels are for their own GPUs and TensorFlow), so the
dense oracle of the contract suite stands alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import count_flops
from zoo.attention.sparse_transformer import SparseTransformerAttention, SparseTransformerConfig
from zoo.contract import Dims


def attention(length: int = 60, *, causal: bool = False, **options: Any) -> SparseTransformerAttention:
    dims = Dims(d_model=16, n_heads=2, max_len=length, causal=causal)
    return SparseTransformerAttention(dims, SparseTransformerConfig(**options))


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


# Limits


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1},
        {"stride": 59},
        {"stride": 60},
        {"stride": 1000},
        {"stride": 60, "pattern": "fixed"},
        {"stride": 1000, "pattern": "fixed"},
        {"stride": 1, "pattern": "fixed", "summary": 1},
        {"stride": 7, "pattern": "fixed", "summary": 7},
        {"stride": 1000, "pattern": "fixed", "summary": 1000},
    ],
    ids=str,
)
def test_where_a_pattern_shows_all_it_is_full_attention(options: dict[str, Any], causal: bool) -> None:
    q, k, v = qkv()
    ours = attention(causal=causal, **options)(q, k, v)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, is_causal=causal))


# Patterns


def seen(backend: SparseTransformerAttention, length: int, i: int) -> list[int]:
    q, k, v = (torch.randn(1, 2, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    (found,) = torch.autograd.grad(backend(q, k, v)[:, :, i].sum(), v)
    assert torch.equal(found[:, 0] != 0, found[:, 1] != 0)
    return found[0, 0].any(-1).nonzero()[:, 0].tolist()


def test_strided_sees_the_window_and_every_lth_position() -> None:
    backend = attention(stride=5)
    assert seen(backend, 23, 0) == [0, 1, 2, 3, 4, 5, 10, 15, 20]
    assert seen(backend, 23, 11) == [1, *range(6, 17), 21]
    causal = attention(stride=5, causal=True)
    assert seen(causal, 23, 22) == [2, 7, 12, *range(17, 23)]
    assert seen(causal, 23, 0) == [0]


def test_fixed_sees_its_block_and_the_end_of_every_block() -> None:
    backend = attention(stride=5, pattern="fixed", summary=2)
    assert seen(backend, 23, 0) == [0, 1, 2, 3, 4, 8, 9, 13, 14, 18, 19]
    assert seen(backend, 23, 12) == [3, 4, 8, 9, 10, 11, 12, 13, 14, 18, 19]
    assert seen(backend, 23, 22) == [3, 4, 8, 9, 13, 14, 18, 19, 20, 21, 22]
    causal = attention(stride=5, pattern="fixed", summary=2, causal=True)
    assert seen(causal, 23, 12) == [3, 4, 8, 9, 10, 11, 12]
    assert seen(causal, 23, 5) == [3, 4, 5]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_two_layers_reach_from_anywhere_to_anywhere(pattern: str, causal: bool) -> None:
    """The point of both patterns: a step nearby and a step afar join every pair."""
    backend = attention(stride=6, pattern=pattern, summary=1, causal=causal)
    reach = torch.zeros(60, 60)
    for i in range(60):
        reach[i, seen(backend, 60, i)] = 1
    twice = reach @ reach > 0
    want = torch.ones(60, 60, dtype=torch.bool)
    assert torch.equal(twice, want.tril() if causal else want)
    assert not torch.equal(reach > 0, twice)


def test_pairs_that_stand_in_both_parts_count_once() -> None:
    """With equal keys the weights are equal, so the output is the mean of the values seen."""
    q, _, v = qkv()
    for options in ({"stride": 6}, {"stride": 6, "pattern": "fixed", "summary": 3}):
        backend = attention(**options)
        out = backend(q, torch.zeros_like(q), v)
        for i in (0, 20, 59):
            torch.testing.assert_close(out[:, :, i], v[:, :, seen(backend, 60, i)].mean(2))


def test_error_falls_as_the_summary_grows() -> None:
    torch.manual_seed(0)
    q, k, v = qkv(256)
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [
        float((attention(256, stride=32, pattern="fixed", summary=c)(q, k, v) - exact).abs().mean())
        for c in (1, 8, 24, 32)
    ]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2], errors
    assert errors[3] < 1e-12


# Cost, options


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_it_costs_far_less_than_all_pairs(pattern: str, causal: bool) -> None:
    backend = attention(8192, pattern=pattern, causal=causal)
    q, k, v = (torch.randn(1, 2, 8192, 8, requires_grad=True) for _ in range(3))
    dense = (2 + 5) * 2 * 2 * 8192**2 * 8
    assert count_flops(lambda: backend(q, k, v).sum().backward()) < dense / 10


def test_kernel_is_named() -> None:
    assert "blocks" in attention().kernel(torch.randn(1, 2, 60, 8)).name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, r"sparse_transformer\.stride must be an integer of at least 1, got 0"),
        ({"stride": -2}, r"sparse_transformer\.stride must be an integer of at least 1, got -2"),
        ({"stride": 2.5}, r"sparse_transformer\.stride must be an integer of at least 1, got 2\.5"),
        ({"summary": 0}, r"sparse_transformer\.summary must be an integer of at least 1, got 0"),
        ({"summary": 1.5}, r"sparse_transformer\.summary must be an integer of at least 1, got 1\.5"),
        ({"pattern": "random"}, r"sparse_transformer\.pattern must be one of strided, fixed; got 'random'"),
        (
            {"pattern": "fixed", "stride": 4, "summary": 5},
            r"sparse_transformer\.summary must be at most the stride, 4, got 5",
        ),
    ],
)
def test_bad_options_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseTransformerConfig(**options)


def test_a_summary_above_the_stride_is_no_matter_where_none_is_used() -> None:
    q, k, v = qkv()
    out = attention(stride=4, summary=8)(q, k, v)
    torch.testing.assert_close(out, attention(stride=4, summary=1)(q, k, v))
