"""cosFormer: the cosine, its independence of the input's length, rows without a common feature.

No public package that can be installed implements it, so the oracle stands alone.
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.backends.test_linear import qkv
from tests.oracles.cosformer import oracle
from zoo.attention.cosformer import CosformerAttention, CosformerConfig
from zoo.contract import Dims


def cosformer(max_len: int = 300, *, causal: bool = False) -> CosformerAttention:
    return CosformerAttention(Dims(d_model=16, n_heads=2, max_len=max_len, causal=causal), CosformerConfig()).double()


@pytest.mark.parametrize("max_len", [200, 1000])
def test_weights_are_a_cosine_of_the_distance(max_len: int) -> None:
    """With equal queries and keys, and values that pick one position each, the outputs are the weights."""
    ones = torch.ones(1, 2, 200, 8, dtype=torch.float64)
    distance = torch.arange(200)[:, None] - torch.arange(200)
    want = torch.cos(math.pi * distance.double() / (2 * max_len))
    want = want / want.sum(-1, keepdim=True)
    picks = torch.eye(200, dtype=torch.float64)[None, None].expand(1, 2, -1, -1)
    for columns in (slice(0, 8), slice(192, 200)):
        out = cosformer(max_len)(ones, ones, picks[..., columns])
        torch.testing.assert_close(out, want[:, columns].expand(1, 2, -1, -1))


def test_far_above_the_input_max_len_leaves_relu_attention() -> None:
    q, k, v = qkv(60, grad=False)
    weights = q.relu() @ k.relu().mT
    want = torch.nan_to_num(weights / weights.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(cosformer(10**7)(q, k, v), want, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_shift_of_all_positions_changes_nothing(causal: bool) -> None:
    """Only distances count: 40 padded places to the left are no matter."""
    q, k, v = qkv(100, grad=False)
    padded = [torch.cat([torch.randn_like(x[:, :, :40]), x], dim=2) for x in (q, k, v)]
    mask = (torch.arange(140) < 40).expand(2, -1)
    backend = cosformer(causal=causal)
    shifted = backend(*padded, key_padding_mask=mask)[:, :, 40:]
    torch.testing.assert_close(shifted, backend(q, k, v), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_a_common_feature_give_zero_and_finite_gradients(causal: bool, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in qkv(200, grad=False))
    q[:, :, 5] = -q[:, :, 5].abs()  # no feature at all
    k[..., 0] = -1
    q[:, :, 150] = -1
    q[:, :, 150, 0] = 1  # one feature, which no key has
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    backend = cosformer(causal=causal)
    out = backend(*leaves)
    assert (out[:, :, [5, 150]] == 0).all()
    torch.testing.assert_close(out, oracle(backend, *leaves), atol=1e-4, rtol=1e-4)
    out.sum().backward()
    grads = [x.grad for x in leaves]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert grads[0] is not None
    assert (grads[0][:, :, [5, 150]] == 0).all()
