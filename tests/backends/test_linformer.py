"""Linformer: its limit, how projections are shared, bad options, agreement with the linformer package."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.linformer import pair
from zoo.attention.linformer import LinformerAttention, LinformerConfig
from zoo.contract import Dims


def attention(config: LinformerConfig, length: int = 60) -> LinformerAttention:
    return LinformerAttention(Dims(d_model=16, n_heads=2, max_len=length), config).double()


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


def test_with_rank_n_and_identity_projections_it_is_full_attention() -> None:
    backend = attention(LinformerConfig(rank=60))
    q, k, v = qkv()
    with torch.no_grad():
        backend.projection.copy_(torch.eye(60))
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_sharing_sets_the_number_of_projections() -> None:
    shapes = {
        sharing: attention(LinformerConfig(rank=5, sharing=sharing)).projection.shape[:2]
        for sharing in ("none", "heads", "kv")
    }
    assert shapes == {"none": (2, 2), "heads": (2, 1), "kv": (1, 1)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinformerConfig(rank=0), "linformer.rank must be an integer of at least 1, got 0"),
        (lambda: LinformerConfig(rank=2.5), "linformer.rank must be an integer of at least 1, got 2.5"),
        (lambda: LinformerConfig(sharing="all"), "linformer.sharing must be one of none, heads, kv; got 'all'"),
    ],
)
def test_bad_options_are_said(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rank_above_the_length_is_cut_to_it() -> None:
    backend = attention(LinformerConfig(rank=500))
    assert backend.projection.shape[2:] == (60, 60)
    assert backend.state_size(60) == 2 * 60 * 16


# Agreement with the linformer package


@pytest.mark.parametrize("length", [384, 200], ids=["at full length", "shorter than max_len"])
def test_outputs_and_gradients_are_those_of_the_linformer_package(length: int) -> None:
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=384)[0]
    ours, theirs = found.ours.double(), found.theirs.double()
    x = torch.randn(2, length, 64, dtype=torch.float64)
    weight = torch.randn_like(x)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (y * weight).sum().backward()
        results.append([y, leaf.grad])
    results[0] += our_gradients(ours)
    results[1] += their_gradients(theirs)
    for own, other in zip(*results, strict=True):
        assert own.abs().max() > 0
        torch.testing.assert_close(own, other, atol=1e-10, rtol=1e-8)


def our_gradients(layer: nn.Module) -> list[Tensor]:
    mixer = layer.mixer
    return [mixer.qkv.weight.grad, mixer.attention.projection.grad, mixer.out.weight.grad, mixer.out.bias.grad]


def their_gradients(layer: nn.Module) -> list[Tensor]:
    inputs = torch.cat([layer.to_q.weight.grad, layer.to_k.weight.grad, layer.to_v.weight.grad])
    projections = torch.stack([layer.proj_k.grad.T, layer.proj_v.grad.T])[:, None]
    return [inputs, projections, layer.to_out.weight.grad, layer.to_out.bias.grad]
