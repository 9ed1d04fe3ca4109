"""Long inputs with large activations in 16 bits: nothing overflows, forward or backward."""

from __future__ import annotations

import pytest
import torch

from zoo import MultiHeadAttention, available, describe

LENGTH = 8_192
QUADRATIC = 2_048  # for methods that weigh all pairs, of which there are 16 times as many at LENGTH
FORMS = [(name, causal) for name in available() for causal in (False, True)[: 1 + describe(name).traits.causal]]


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.long)],  # whose range is that of float32
    ids=["float16", "bfloat16"],
)
@pytest.mark.parametrize(("variant", "causal"), FORMS, ids=[name + "-causal" * causal for name, causal in FORMS])
def test_long_inputs_with_large_activations_stay_finite(variant: str, causal: bool, dtype: torch.dtype) -> None:
    assert_large_activations_stay_finite(variant, causal, dtype, "cpu")


def assert_large_activations_stay_finite(variant: str, causal: bool, dtype: torch.dtype, device: str) -> None:
    length = LENGTH if describe(variant).traits.subquadratic else QUADRATIC
    torch.manual_seed(0)
    sublayer = MultiHeadAttention(variant, d_model=8, n_heads=1, max_len=length, causal=causal).to(device)
    x = (100 * torch.randn(1, length, 8)).to(device).requires_grad_()
    mask = torch.rand(1, length).to(device) < 0.1
    with torch.autocast(device, dtype=dtype):
        y = sublayer(x, key_padding_mask=mask)
    loss = (y.float() * torch.randn(y.shape).to(device)).sum() / length  # a mean, whose true gradients fit into 16 bits
    loss.backward()
    assert y.isfinite().all()
    for key, tensor in [("input", x), *sublayer.named_parameters()]:
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key
