"""Performer: what its features estimate, how they are drawn, and where it parts from performer-pytorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.performer import pair
from tests.backends.test_linear import outputs_and_gradients, qkv
from tests.oracles.performer import oracle
from zoo.attention.performer import (
    PerformerAttention,
    PerformerConfig,
    key_features,
    orthogonal_gaussian,
    query_features,
)
from zoo.contract import Dims
from zoo.cores.scan import CHUNK
from zoo.registry import build


def performer(features: int = 256, *, causal: bool = False, d_head: int = 8, seed: int = 0) -> PerformerAttention:
    torch.manual_seed(seed)
    dims = Dims(d_model=2 * d_head, n_heads=2, max_len=512, causal=causal)
    return PerformerAttention(dims, PerformerConfig(features=features)).double()


# Limit


@pytest.mark.parametrize("causal", [False, True])
def test_error_against_softmax_attention_falls_with_features(causal: bool) -> None:
    q, k, v = qkv(256, grad=False)
    q, k = q / 2, k / 2
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    errors = [
        sum(float((performer(m, causal=causal, seed=s)(q, k, v) - exact).norm()) for s in range(4))
        for m in (64, 256, 1024)
    ]
    assert errors[0] > 1.4 * errors[1] > 1.4**2 * errors[2], errors


def test_a_key_that_is_looked_up_gets_little_of_the_weight() -> None:
    """The figures of the file: more features help slowly, since the estimate's variance is exponential in the logit."""
    torch.manual_seed(0)
    logit, d_head = 8, 16
    k = F.normalize(torch.randn(32, 1, 64, d_head, dtype=torch.float64), dim=-1) * (logit * d_head**0.5) ** 0.5
    exact = (k @ k.mT * d_head**-0.5).softmax(-1).diagonal(dim1=-2, dim2=-1).mean()
    found = []
    for features in (64, 256, 1024):
        projection = orthogonal_gaussian(features, d_head).double()
        weights = query_features(projection, k, 0).exp() @ key_features(projection, k, 0).exp().mT
        found.append((weights / weights.sum(-1, keepdim=True)).diagonal(dim1=-2, dim2=-1).mean().item())
    assert exact.item() == pytest.approx(0.89, abs=0.02)
    assert found == pytest.approx([0.17, 0.26, 0.37], abs=0.03)


# Features


def test_features_are_orthogonal_in_blocks_with_the_lengths_of_gaussian_rows() -> None:
    torch.manual_seed(0)
    rows = orthogonal_gaussian(4 * 64 + 10, 64)
    assert rows.shape == (266, 64)
    for block in rows.split(64):
        lengths = block.norm(dim=-1)
        torch.testing.assert_close(block @ block.T, lengths.square().diag(), atol=1e-3, rtol=1e-4)
    between = F.normalize(rows[:64], dim=-1) @ F.normalize(rows[64:128], dim=-1).T
    assert between.abs().max() > 0.1, "blocks are drawn apart from each other"
    assert 56 < rows.square().sum(-1).mean() < 72  # chi-squared with 64 degrees of freedom
    assert rows.square().sum(-1).std() > 5


def test_redraw_changes_features_and_outputs_and_follows_the_seed() -> None:
    backend, twin = performer(seed=3), performer(seed=3)
    q, k, v = qkv(40, grad=False)
    before = backend(q, k, v)
    assert torch.equal(before, twin(q, k, v))
    for each in (backend, twin):
        torch.manual_seed(4)
        each.redraw()
    assert not torch.allclose(before, backend(q, k, v))
    assert torch.equal(backend(q, k, v), twin(q, k, v))


@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_bad_number_of_features_is_said(value: int) -> None:
    with pytest.raises(ValueError, match=f"performer.features must be an integer of at least 1, got {value}"):
        PerformerConfig(features=value)


# Stability


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_large_inputs_in_float32_give_mixtures_of_values(causal: bool, scale: float) -> None:
    """No denominator vanishes, so every output lies between the smallest and the largest value."""
    backend = performer(64, causal=causal).float()
    q, k, v = (x.float() for x in qkv(300, grad=False))
    leaves = [x.requires_grad_() for x in (scale * q, scale * k, v + 10)]
    out = backend(*leaves)
    out.sum().backward()
    assert (out > leaves[2].min() - 1e-3).all()
    assert (out < leaves[2].max() + 1e-3).all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


def test_steps_pass_over_keys_whose_features_all_vanish() -> None:
    backend = build("performer", Dims(d_model=32, n_heads=2, max_len=64, causal=True))
    q, k, v = torch.randn(3, 1, 2, 6, 16)
    k[:, :, [0, 3]] *= 1e20  # exp(-|k|² / 2) is 0, and its logarithm -inf
    state, rows = None, []
    for t in range(6):
        y, state = backend.step(q[:, :, t], k[:, :, t], v[:, :, t], state)
        rows.append(y)
    out = torch.stack(rows, dim=2)
    assert out.isfinite().all()
    torch.testing.assert_close(out, backend(q, k, v), atol=1e-4, rtol=1e-4)


def test_causal_first_key_of_tiny_features_spoils_no_later_chunk() -> None:
    """The features of the others are e⁹⁰ times those of the outlier, more than float32 can tell apart in its chunk."""
    backend = performer(64, causal=True)
    q, k, v = qkv(300, grad=False)
    k[:, :, 0] *= 8
    want = oracle(backend, q, k, v)
    torch.testing.assert_close(backend(q, k, v), want, atol=1e-9, rtol=1e-7)
    single = backend.float()(q.float(), k.float(), v.float()).double()
    torch.testing.assert_close(single[:, :, CHUNK:], want[:, :, CHUNK:], atol=1e-4, rtol=1e-3)
    assert single.isfinite().all()


# Agreement with performer-pytorch


@pytest.mark.parametrize(("length", "d_model", "n_heads"), [(256, 64, 4), (1000, 128, 2)])
def test_performer_agrees_with_performer_pytorch_without_epsilon(length: int, d_model: int, n_heads: int) -> None:
    (peer,) = pair(d_model=d_model, n_heads=n_heads, length=length)
    for ours, theirs in zip(*outputs_and_gradients(peer, length, torch.float64), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)
    for ours, theirs in zip(*outputs_and_gradients(peer, length, torch.float32), strict=True):
        assert (ours - theirs).norm() < 2e-5 * theirs.norm()


def test_causal_performer_agrees_with_the_plain_causal_function_of_performer_pytorch() -> None:
    from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda, softmax_kernel

    backend = performer(48, causal=True)
    q, k, v = qkv(300)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fq, fk = (softmax_kernel(x, projection_matrix=backend.projection, is_query=x is q, eps=0.0) for x in (q, k))
        return causal_linear_attention_noncuda(fq, fk, v, eps=0.0)

    weight = torch.randn_like(v)
    results = [
        [out, *torch.autograd.grad((out * weight).sum(), (q, k, v))] for out in (backend(q, k, v), theirs(q, k, v))
    ]
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-7)


def test_epsilon_of_performer_pytorch_drowns_the_features_of_ordinary_keys() -> None:
    """Keys of unit variance, 64 wide: theirs lies closer to the plain mean of the values than to softmax attention."""
    from performer_pytorch.performer_pytorch import FastAttention

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 512, 64)
    fast = FastAttention(64, nb_features=256)
    backend = PerformerAttention(Dims(d_model=128, n_heads=2, max_len=512), PerformerConfig())
    backend.projection.copy_(fast.projection_matrix)
    mean = v.mean(-2, keepdim=True).expand_as(v)
    exact = F.scaled_dot_product_attention(q, k, v)
    theirs, ours = fast(q, k, v), backend(q, k, v)
    assert (theirs - mean).norm() < 0.6 * (theirs - exact).norm()
    assert (ours - theirs).norm() > 0.1 * theirs.norm()


def test_padding_reaches_real_positions_in_performer_pytorch_and_not_in_ours() -> None:
    """It hides the values of padding only: keys still count in the denominator and in the maximum."""
    from performer_pytorch import SelfAttention

    torch.manual_seed(0)
    peer = SelfAttention(32, heads=2, dim_head=16, nb_features=64).eval()
    ours = pair(d_model=32, n_heads=2, length=96)[0].ours
    x = torch.randn(1, 96, 32)
    mask = torch.arange(96)[None] >= 60
    dirty = x.masked_fill(mask[..., None], 3.0)
    assert (peer(x, mask=~mask) - peer(dirty, mask=~mask))[:, :60].abs().max() > 1e-3
    assert torch.equal(ours(x, key_padding_mask=mask), ours(dirty, key_padding_mask=mask))
