"""Longformer: its limit, global tokens, positions, cost, bad options, agreement with transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers.longformer import pair
from compare.runs.measure import count_flops
from zoo import MultiHeadAttention
from zoo.attention.longformer import LongformerAttention, LongformerConfig
from zoo.contract import Dims

LENGTH = 60


def attention(
    window: int, n_global: int, length: int = LENGTH, *, causal: bool = False, rotary: bool = False
) -> LongformerAttention:
    dims = Dims(d_model=16, n_heads=2, max_len=length, causal=causal, rotary=rotary)
    return LongformerAttention(dims, LongformerConfig(window=window, n_global=n_global)).double()


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, 16, dtype=torch.float64)


@torch.no_grad()
def full(backend: LongformerAttention, *, causal: bool, rotary: bool) -> MultiHeadAttention:
    """Full attention with the projections of ``backend``."""
    layer = MultiHeadAttention("full", d_model=16, n_heads=2, max_len=LENGTH, causal=causal, rotary=rotary).double()
    layer.mixer.qkv.load_state_dict(backend.qkv.state_dict())
    layer.mixer.out.load_state_dict(backend.out.state_dict())
    return layer


# Limits


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "n_global"), [(59, 0), (1000, 0), (59, 1), (1000, 7), (1, 60), (5, 1000)])
def test_a_window_over_all_or_global_tokens_only_is_full_attention(
    window: int, n_global: int, causal: bool, rotary: bool
) -> None:
    """With the same projections for global tokens as for others."""
    backend = attention(window, n_global, causal=causal, rotary=rotary)
    if backend.global_q is not None:
        with torch.no_grad():
            for own, shared in ((backend.global_q, slice(0, 16)), (backend.global_kv, slice(16, 48))):
                own.weight.copy_(backend.qkv.weight[shared])
                own.bias.copy_(backend.qkv.bias[shared])
    x = inputs()
    torch.testing.assert_close(backend(x), full(backend, causal=causal, rotary=rotary)(x))


def test_error_falls_as_the_window_grows() -> None:
    errors = []
    for window in (2, 8, 32, 58):
        torch.manual_seed(0)
        backend = attention(window, 0)
        x = inputs()
        exact = full(backend, causal=False, rotary=False)(x)
        errors.append((backend(x) - exact).abs().mean().item())
    assert errors[0] > errors[1] > errors[2] > 5 * errors[3], errors


# Global tokens


def reads(backend: LongformerAttention, x: Tensor, i: int) -> list[int]:
    """The positions that the output at ``i`` depends on."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(backend(x)[:, i].sum(), x)
    return found.abs().sum((0, 2)).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("rotary", [False, True])
def test_global_tokens_see_all_and_all_see_them(rotary: bool) -> None:
    backend, x = attention(4, 2, rotary=rotary), inputs()
    for i in (0, 1):
        assert reads(backend, x, i) == list(range(60))
    assert reads(backend, x, 2) == list(range(7))
    assert reads(backend, x, 5) == list(range(10))
    assert reads(backend, x, 30) == [0, 1, *range(26, 35)]
    assert reads(backend, x, 59) == [0, 1, *range(55, 60)]


@pytest.mark.parametrize("rotary", [False, True])
def test_causal_global_tokens_see_the_past_only(rotary: bool) -> None:
    backend, x = attention(4, 3, causal=True, rotary=rotary), inputs()
    for i in (0, 1, 2):
        assert reads(backend, x, i) == list(range(i + 1))
    assert reads(backend, x, 30) == [0, 1, 2, *range(26, 31)]


def test_global_tokens_have_projections_of_their_own() -> None:
    """The queries, keys and values with which they look; others see them through the ordinary ones."""
    backend, x = attention(4, 3), inputs()
    before = backend(x)
    for linear, part, changed in (
        ("global_q", 0, slice(0, 3)),
        ("global_kv", 0, slice(0, 3)),
        ("global_kv", 1, slice(0, 3)),
        *(("qkv", part, slice(3, 60)) for part in range(3)),
    ):
        other = attention(4, 3)
        other.load_state_dict(backend.state_dict())
        with torch.no_grad():
            getattr(other, linear).weight[16 * part : 16 * (part + 1)] += 0.5 * torch.randn(16, 16)
        differs = (other(x) - before).abs().sum((0, 2)) > 0
        want = torch.zeros(60, dtype=torch.bool)
        want[changed] = True
        assert torch.equal(differs, want)


def test_without_tokens_that_see_all_there_are_no_projections_for_them() -> None:
    for backend in (attention(4, 0), attention(4, 3, causal=True)):
        assert backend.global_q is None
        assert backend.global_kv is None
    assert reads(attention(4, 0), inputs(), 30) == list(range(26, 35))


def test_positions_turn_the_queries_and_keys_of_global_tokens_too() -> None:
    """One token everywhere: only where queries are turned does the way that a global token looks depend on where."""
    backend = attention(4, 1, rotary=True)
    x = inputs()
    x[:, 40] = x[:, 20]
    x = x.requires_grad_()
    (found,) = torch.autograd.grad(backend(x)[:, 0].sum(), x)
    assert not torch.allclose(found[:, 20], found[:, 40])
    plain = attention(4, 1)
    (found,) = torch.autograd.grad(plain(x)[:, 0].sum(), x)
    torch.testing.assert_close(found[:, 20], found[:, 40])


# Cost, options


@pytest.mark.parametrize("causal", [False, True])
def test_it_costs_its_window_and_not_the_length(causal: bool) -> None:
    def flops(length: int) -> int:
        backend = attention(128, 2, length, causal=causal).float()
        x = torch.randn(1, length, 16, requires_grad=True)
        return count_flops(lambda: backend(x).sum().backward())

    dense = (2 + 5) * 2 * 8192**2 * 16
    assert flops(8192) < dense / (20 if causal else 12)
    assert flops(8192) < 2.1 * flops(4096)


def test_kernel_is_named() -> None:
    assert "blocks" in attention(4, 1).kernel(torch.randn(1, 60, 16)).name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, r"longformer\.window must be an integer of at least 1, got 0"),
        ({"window": -3}, r"longformer\.window must be an integer of at least 1, got -3"),
        ({"window": 2.5}, r"longformer\.window must be an integer of at least 1, got 2\.5"),
        ({"n_global": -1}, r"longformer\.n_global must be an integer of at least 0, got -1"),
        ({"n_global": 1.5}, r"longformer\.n_global must be an integer of at least 0, got 1\.5"),
    ],
)
def test_bad_options_are_said(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongformerConfig(**options)


def test_an_odd_head_cannot_be_turned_and_is_said() -> None:
    dims = Dims(d_model=10, n_heads=2, max_len=60, rotary=True)
    with pytest.raises(ValueError, match="d_head must be even, got 5"):
        LongformerAttention(dims, LongformerConfig())


# Agreement with transformers


def gradients(layer: nn.Module, linears: list[nn.Linear]) -> list[Tensor]:
    return [
        torch.cat([linear.weight.grad for linear in linears]),
        torch.cat([linear.bias.grad for linear in linears]),
        layer.out.weight.grad,
        layer.out.bias.grad,
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n_global", [0, 1, 3])
def test_outputs_and_gradients_are_those_of_transformers(n_global: int, padded: bool) -> None:
    """In float32, in which its softmax computes whatever the inputs are."""
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=1024, n_global=n_global)[0]
    ours, theirs = found.ours, found.theirs
    x = torch.randn(2, 1024, 64)
    mask = torch.zeros(2, 1024, dtype=torch.bool)
    mask[0, 700:] = padded
    mask[1, 1000:] = padded
    weight = torch.randn_like(x).masked_fill(mask[..., None], 0)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf, key_padding_mask=mask if padded else None)
        (y * weight).sum().backward()
        results.append([y[~mask], leaf.grad])
    results[0] += gradients(ours.mixer, [ours.mixer.qkv])
    inner = theirs.attention
    results[1] += gradients(theirs, [inner.query, inner.key, inner.value])
    if n_global:
        results[0] += gradients(ours.mixer, [ours.mixer.global_q, ours.mixer.global_kv])
        results[1] += gradients(theirs, [inner.query_global, inner.key_global, inner.value_global])
    for own, other in zip(*results, strict=True):
        assert own.abs().max() > 0
        assert (own - other).norm() < 3e-6 * other.norm()


@torch.no_grad()
def test_transformers_wants_multiples_of_its_window_and_ours_takes_any_length() -> None:
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=1024)[0]
    x = torch.randn(2, 1000, 64)
    with pytest.raises(AssertionError, match="multiple of 512"):
        found.theirs(x)
    filled = torch.cat([x, torch.full((2, 24, 64), 7.0)], dim=1)
    mask = (torch.arange(1024) >= 1000).expand(2, -1)
    want = found.theirs(filled, key_padding_mask=mask)[:, :1000]
    torch.testing.assert_close(found.ours(x), want, atol=1e-5, rtol=1e-4)
