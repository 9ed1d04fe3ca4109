"""FNet: odd and prime lengths, padding, what it keeps, and agreement with transformers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers.fnet import pair
from compare.runs.measure import saved_bytes
from zoo import MultiHeadAttention
from zoo.attention.fnet import FNet, _Transform, transform
from zoo.contract import Dims
from zoo.registry import build


def fnet(d_model: int = 8) -> FNet:
    torch.manual_seed(0)
    backend = build("fnet", Dims(d_model=d_model, n_heads=1, max_len=2048))
    assert isinstance(backend, FNet)
    return backend


@pytest.mark.parametrize("d_model", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 31, 97, 1009])
def test_half_the_spectrum_is_all_of_it(length: int, d_model: int) -> None:
    x = torch.randn(2, length, d_model, dtype=torch.float64)
    torch.testing.assert_close(transform(x), torch.fft.fft2(x, dim=(1, 2), norm="ortho").real)


def test_two_transforms_give_the_even_part_of_the_input() -> None:
    """So it mixes all positions and loses what is odd under turning both axes round, as Re(F) must."""
    x = torch.randn(2, 31, 6, dtype=torch.float64)
    turned = x.flip(1, 2).roll((1, 1), (1, 2))
    torch.testing.assert_close(transform(transform(x)), (x + turned) / 2)


@pytest.mark.parametrize("length", [32, 31])
def test_agrees_with_transformers_in_output_and_gradients(length: int) -> None:
    torch.manual_seed(0)
    (layers,) = pair(d_model=12, n_heads=2, length=length)
    x, grad = torch.randn(2, length, 12), torch.randn(2, length, 12)
    results = []
    for layer in (layers.ours, layers.theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append((y, *torch.autograd.grad((y * grad).sum(), [leaf, *layer.parameters()])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_padded_samples_are_those_that_stand_alone() -> None:
    module = fnet().double()
    x = torch.randn(5, 40, 8, dtype=torch.float64)
    mask = torch.zeros(5, 40, dtype=torch.bool)
    mask[1, 17:] = mask[2, :23] = True  # equally long, at different places
    mask[3, ::3] = True
    mask[4] = True
    y = module(x, key_padding_mask=mask)
    for sample, out, hidden in zip(x[:4], y, mask, strict=False):
        torch.testing.assert_close(out[~hidden], module(sample[~hidden][None])[0])


def test_gradients_of_gradients() -> None:
    mask = torch.tensor([[False] * 5, [False, True, False, False, True]])
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: _Transform.apply(x, mask) ** 2, x)


def test_nothing_is_kept_for_the_transform() -> None:
    x = torch.randn(2, 100, 8, requires_grad=True)
    assert saved_bytes(lambda: _Transform.apply(x, None), torch.nn.Identity()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_activations_under_autocast_are_finite_at_length(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention("fnet", d_model=8, n_heads=2, max_len=16384)
    x = (100 * torch.randn(1, 16384, 8)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_low_precision_is_transformed_in_float32() -> None:
    x = torch.randn(1, 1000, 8).half()
    assert transform(x).dtype == torch.float16
    torch.testing.assert_close(transform(x).float(), transform(x.float()), atol=2e-3, rtol=1e-3)
