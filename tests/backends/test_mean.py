"""The mean: its limit, and sums that stay exact. No public package has this control, so the oracle stands alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.runs.measure import count_flops
from zoo.attention.mean import MeanConfig
from zoo.contract import Dims
from zoo.registry import build


def mean(*, d_model: int = 16, max_len: int = 60, causal: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return build(MeanConfig(), Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal))


def identity(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for linear in (module.value, module.out):
            linear.weight.copy_(torch.eye(len(linear.weight)))
            linear.bias.zero_()
    return module


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_attention_with_equal_logits(causal: bool) -> None:
    module = mean(causal=causal).double()
    x = torch.randn(2, 60, 16, dtype=torch.float64)
    values = module.value(x)
    equal = F.scaled_dot_product_attention(torch.zeros_like(values), torch.zeros_like(values), values, is_causal=causal)
    torch.testing.assert_close(module(x), module.out(equal))


def test_the_running_mean_counts_real_positions_only() -> None:
    x = torch.tensor([3.0, 100.0, 5.0, 100.0, 10.0])[None, :, None]
    mask = torch.tensor([[False, True, False, True, False]])
    y = identity(mean(d_model=2, causal=True))(x.expand(1, 5, 2), key_padding_mask=mask)
    assert y[0, [0, 2, 4], 0].tolist() == [3, 4, 6]


@pytest.mark.parametrize("causal", [False, True])
def test_long_sums_in_half_precision_are_exact(causal: bool) -> None:
    """Sums and counts of thousands, rounded to 8 bits, would be off by more than the last rounding."""
    length, ones = 4001, 2049
    x: Tensor = torch.zeros(1, length, 16, dtype=torch.bfloat16)
    x[:, :ones] = 1
    y = identity(mean(max_len=length, causal=causal)).bfloat16()(x)[0, :, 0]
    seen = torch.arange(1, length + 1) if causal else torch.full((length,), length)
    assert torch.equal(y, (seen.clamp(max=ones) / seen).bfloat16())


def test_values_are_made_of_one_row_a_sample() -> None:
    x = torch.randn(3, 60, 16)
    assert count_flops(lambda: mean()(x)) == 3 * 2 * 2 * 16 * 16
