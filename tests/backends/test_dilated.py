"""Dilated attention: its limit, its levels, cost, bad options.

No installable package has LongNet's attention without kernels for a GPU, so the dense oracle of the contract suite
stands alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import count_flops
from zoo.attention.dilated import DilatedAttention, DilatedConfig
from zoo.contract import Dims


def attention(length: int = 60, *, causal: bool = False, n_heads: int = 2, **options: int) -> DilatedAttention:
    dims = Dims(d_model=8 * n_heads, n_heads=n_heads, max_len=length, causal=causal)
    return DilatedAttention(dims, DilatedConfig(**options))


def qkv(length: int = 60, n_heads: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, n_heads, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))


def seen(backend: DilatedAttention, length: int, head: int, i: int, *, n_heads: int = 2) -> list[int]:
    q, k, v = qkv(length, n_heads)
    (found,) = torch.autograd.grad(backend(q, k, v)[:, head, i].sum(), v)
    return found[0, head].any(-1).nonzero()[:, 0].tolist()


# Limits


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segment", [60, 61, 1000])
def test_a_segment_over_the_whole_input_is_full_attention(segment: int, causal: bool) -> None:
    q, k, v = qkv()
    backend = attention(causal=causal, segment=segment)
    assert backend.dilations == [1]
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def test_error_falls_as_the_segment_grows() -> None:
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in qkv(256))
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [float((attention(256, segment=w)(q, k, v) - exact).abs().mean()) for w in (4, 32, 128, 256)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2], errors
    assert errors[3] < 1e-12


# Levels


@pytest.mark.parametrize(
    ("max_len", "options", "dilations"),
    [
        (60, {"segment": 4, "growth": 2}, [1, 2, 4, 8, 16]),
        (64, {"segment": 4, "growth": 4}, [1, 4, 16]),
        (65, {"segment": 4, "growth": 4}, [1, 4, 16, 64]),
        (8192, {}, [1, 4, 16, 64]),
        (60, {"segment": 4, "growth": 1000}, [1, 1000]),
    ],
)
def test_levels_grow_until_a_segment_holds_the_longest_input(
    max_len: int, options: dict[str, int], dilations: list[int]
) -> None:
    assert attention(max_len, **options).dilations == dilations


def test_heads_have_offsets_of_their_own() -> None:
    """Segments of 4, 8 and 16: position i of head h is in level p where i mod 2^p = h mod 2^p."""
    backend = attention(16, n_heads=5, segment=4, growth=2)
    assert backend.dilations == [1, 2, 4]
    for head, want in enumerate(
        ([0, 1, 2, 3, 4, 6, 8, 12], [0, 1, 2, 3], [0, 1, 2, 3, 4, 6], [0, 1, 2, 3], [0, 1, 2, 3, 4, 6, 8, 12])
    ):
        assert seen(backend, 16, head, 0, n_heads=5) == want
    assert seen(backend, 16, 1, 5, n_heads=5) == [1, 3, 4, 5, 6, 7, 9, 13]
    assert seen(backend, 16, 3, 15, n_heads=5) == [3, 7, 9, 11, 12, 13, 14, 15]


def test_every_position_is_in_the_last_level_of_some_head() -> None:
    backend = attention(64, n_heads=4, segment=16, growth=4)
    reached = [len(seen(backend, 64, head, i, n_heads=4)) > 16 for i in (0, 1, 2, 3, 37) for head in range(4)]
    assert [any(reached[i : i + 4]) for i in range(0, 20, 4)] == [True] * 5
    assert sum(reached) == 5


@pytest.mark.parametrize("causal", [False, True])
def test_far_pairs_are_reached(causal: bool) -> None:
    backend = attention(300, causal=causal, segment=8, growth=3)
    top = backend.dilations[-1]
    assert top == 81
    for head in (0, 1):
        found = seen(backend, 300, head, head + 3 * top)
        assert {head, head + top, head + 2 * top} <= set(found)
        if not causal:
            assert {head + top, head + 2 * top, head + 3 * top} <= set(seen(backend, 300, head, head))
        elif head == 0:
            assert seen(backend, 300, head, head) == [0]


def test_a_pair_counts_once_in_each_level_that_holds_it() -> None:
    """With equal keys a weight is a count: equation 10 joins the levels by their denominators."""
    q, _, v = (x.detach() for x in qkv(16))
    out = attention(16, segment=4, growth=2)(q, torch.zeros_like(q), v)
    count = torch.zeros(16, dtype=torch.float64)
    for level in ([0, 1, 2, 3], [0, 2, 4, 6], [0, 4, 8, 12]):
        count[level] += 1
    torch.testing.assert_close(out[:, 0, 0], (count / 12) @ v[:, 0])


# Cost, options


@pytest.mark.parametrize("causal", [False, True])
def test_it_costs_its_segment_and_not_the_length(causal: bool) -> None:
    def flops(length: int) -> int:
        backend = attention(length, causal=causal, segment=128)
        q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        return count_flops(lambda: backend(q, k, v).sum().backward())

    dense = (2 + 5) * 2 * 2 * 8192**2 * 8
    assert flops(8192) < dense / 25
    assert flops(8192) < 2.5 * flops(4096)


def test_kernel_is_named() -> None:
    assert "blocks" in attention().kernel(torch.randn(1, 2, 60, 8)).name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, r"dilated\.segment must be an integer of at least 1, got 0"),
        ({"segment": -1}, r"dilated\.segment must be an integer of at least 1, got -1"),
        ({"segment": 2.5}, r"dilated\.segment must be an integer of at least 1, got 2\.5"),
        ({"growth": 1}, r"dilated\.growth must be an integer of at least 2, got 1"),
        ({"growth": 2.5}, r"dilated\.growth must be an integer of at least 2, got 2\.5"),
    ],
)
def test_bad_options_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DilatedConfig(**options)


def test_a_dilation_far_above_the_length_adds_what_a_query_sees_of_itself() -> None:
    """Each head's position of the second level is alone there, and counts itself twice."""
    q, k, v = (x.detach() for x in qkv())
    out = attention(segment=4, growth=1000)(q, k, v)
    logits = (q @ k.mT) / 8**0.5
    block = torch.arange(60) // 4
    weights = logits.exp() * (block[:, None] == block)
    for head in (0, 1):
        weights[:, head, head, head] *= 2
    torch.testing.assert_close(out, weights / weights.sum(-1, keepdim=True) @ v)
