"""Linear attention, and the core of all kernel attentions: chunks, what is kept, denominators of 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.peers import Pair
from benchmarks.peers.linear import leanest, pair, same_features
from compare.runs.measure import count_flops, saved_bytes
from tests.conftest import find_oracle
from tests.oracles.linear import oracle
from zoo.attention.linear import LinearAttention, LinearConfig
from zoo.contract import Dims
from zoo.cores.kernel_attention import FeatureMap, kernel_attention
from zoo.cores.scan import CHUNK
from zoo.registry import build

KERNELS = ["linear", "performer", "cosformer"]


def qkv(length: int, *, batch: int = 2, n_heads: int = 2, d_head: int = 8, grad: bool = True) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (batch, n_heads, length, d_head)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=grad) for _ in range(3)]


def outputs_and_gradients(pair: Pair, length: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Of ours and theirs: output, input gradient, weight gradients of queries, keys, values, output."""
    torch.manual_seed(1)
    x, weight = (torch.randn(2, length, pair.ours.d_model, dtype=dtype) for _ in range(2))
    results = []
    for layer in (pair.ours.to(dtype), pair.theirs.to(dtype)):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (y * weight).sum().backward()
        results.append([y.detach(), leaf.grad])
    results[0] += [*pair.ours.mixer.qkv.weight.grad.chunk(3), pair.ours.mixer.out.weight.grad]
    results[1] += [getattr(pair.theirs, name).weight.grad for name in ("to_q", "to_k", "to_v", "to_out")]
    return results


# Agreement with public implementations


@pytest.mark.parametrize(("length", "d_model", "n_heads"), [(256, 64, 4), (1000, 128, 2)])
def test_linear_agrees_with_performer_pytorch(length: int, d_model: int, n_heads: int) -> None:
    peer = same_features(d_model, n_heads, length)
    for ours, theirs in zip(*outputs_and_gradients(peer, length, torch.float64), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)
    for ours, theirs in zip(*outputs_and_gradients(peer, length, torch.float32), strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_core_with_softmax_features_agrees_with_linear_attention_transformer() -> None:
    """Its features: softmax over a query's features, and over positions for keys, which makes all denominators 1."""
    from linear_attention_transformer.linear_attention_transformer import linear_attn

    q, k, v = qkv(300)
    as_they_are = FeatureMap(lambda x, _: x.clone(), lambda x, _: x.clone(), size=8)
    ours = kernel_attention(q.softmax(-1), k.softmax(-2), v, as_they_are, key_padding_mask=None, causal=False)
    theirs = linear_attn(q, k, v) * 8**0.5
    weight = torch.randn_like(v)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    for mine, other in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-8)


def test_linear_attention_transformer_computes_another_kernel() -> None:
    """So its Pair has a wide tolerance, and says why; the first of the two has none."""
    exact, other = pair(d_model=64, n_heads=4, length=256)
    assert not exact.why
    assert "another kernel" in other.why
    ours, theirs = outputs_and_gradients(leanest(64, 4, 256), 256, torch.float32)
    assert 0.05 * theirs[0].norm() < (ours[0] - theirs[0]).norm() < other.tolerance * theirs[0].norm()


# Chunks


@pytest.mark.parametrize("length", [1, *(CHUNK + i for i in (-1, 0, 1)), 2 * CHUNK + 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", KERNELS)
def test_chunks_equal_the_quadratic_form(
    attention: str, causal: bool, padded: bool, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.cores.kernel_attention.CACHED", 1)  # chunks of CHUNK positions in both forms
    backend = build(attention, Dims(d_model=16, n_heads=2, max_len=300, causal=causal)).double()
    inputs = qkv(length)
    mask = None
    if padded:  # the first chunk of the second sample has no real key
        mask = torch.rand(2, length) < 0.3
        mask[1, :CHUNK] = True
    real = 1 if mask is None else ~mask[:, None, :, None]
    weight = torch.randn_like(inputs[2])
    literal = find_oracle(attention).oracle(backend, *inputs, mask)
    results = [
        [out * real, *torch.autograd.grad((out * real * weight).sum(), inputs)]
        for out in (backend(*inputs, key_padding_mask=mask), literal)
    ]
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("attention", KERNELS)
def test_causal_editing_across_chunks_leaves_earlier_outputs_alone(attention: str) -> None:
    backend = build(attention, Dims(d_model=16, n_heads=2, max_len=300, causal=True)).double()
    q, k, v = qkv(300, grad=False)
    before = backend(q, k, v)
    for edited in (CHUNK - 1, CHUNK, 299):
        for scale in (0.0, 30.0):
            changed = [x.clone() for x in (q, k, v)]
            for x in changed:
                x[:, :, edited] *= scale
            after = backend(*changed)
            torch.testing.assert_close(after[:, :, :edited], before[:, :, :edited], atol=1e-9, rtol=1e-9)
            assert not torch.allclose(after[:, :, edited:], before[:, :, edited:])


# Cost


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", KERNELS)
def test_little_more_than_queries_keys_values_and_output_is_kept(attention: str, causal: bool) -> None:
    def saved(length: int) -> int:
        backend = build(attention, Dims(d_model=128, n_heads=2, max_len=length, causal=causal))
        q, k, v = (torch.randn(1, 2, length, 64, requires_grad=True) for _ in range(3))
        return saved_bytes(lambda: backend(q, k, v), backend)

    inputs = 3 * 8192 * 128 * 4
    assert saved(8192) < 1.5 * inputs
    assert saved(8192) / saved(4096) < 2.01


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", KERNELS)
def test_far_fewer_operations_than_full_attention(attention: str, causal: bool) -> None:
    backend = build(attention, Dims(d_model=64, n_heads=1, max_len=8192, causal=causal))
    q, k, v = (torch.randn(1, 1, 8192, 64, requires_grad=True) for _ in range(3))
    ours = count_flops(lambda: backend(q, k, v).sum().backward())
    full = (2 + 5) * 2 * 8192**2 * 64  # two products forward, five backward
    assert ours < full / (7 if attention == "performer" else 15)


# Denominators


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_whose_features_vanish_gives_zero_and_finite_gradients(causal: bool) -> None:
    """Query features below the smallest float32."""
    backend = LinearAttention(Dims(d_model=4, n_heads=1, max_len=200, causal=causal), LinearConfig())
    q = torch.randn(1, 1, 200, 4)
    q[:, :, 7] = -200
    k, v = torch.randn(2, 1, 1, 200, 4)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = backend(*leaves)
    out.sum().backward()
    assert (out[:, :, 7] == 0).all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)
    kept = [i for i in range(200) if i != 7]
    doubled = [x.detach().double() for x in (q, k, v)]
    torch.testing.assert_close(out[:, :, kept].double(), oracle(backend, *doubled)[:, :, kept], atol=1e-5, rtol=1e-5)
