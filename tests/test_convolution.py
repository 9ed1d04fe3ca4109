"""Convolutions by Fourier transforms are the sums that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compare.runs.measure import saved_bytes
from zoo.cores import convolution
from zoo.cores.convolution import convolve, fft_size


def literal(x: Tensor, filters: Tensor) -> Tensor:
    """Each channel times its Toeplitz matrix."""
    N, K = x.shape[1], filters.shape[1]
    place = torch.arange(N)
    index = place[:, None] - place + K - N
    dense = filters[:, index.clamp(min=0)] * (index >= 0)
    return torch.einsum("cts,bsc->btc", dense, x)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 31, 64, 65])
def test_results_and_gradients_are_those_of_the_sums(length: int, two_sided: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, length, 5, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(5, 2 * length - 1 if two_sided else length, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, length, 5, dtype=torch.float64)
    results = [[y, *torch.autograd.grad((y * weight).sum(), (x, filters))] for y in (f(x, filters) for f in BOTH)]
    for ours, want in zip(*results, strict=True):
        torch.testing.assert_close(ours, want, atol=1e-12, rtol=1e-12)


BOTH = (convolve, literal)


@pytest.mark.parametrize("group", [1, 200, 2**20])
def test_groups_of_any_size_give_the_same(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "GROUP", group)
    x, filters = torch.randn(2, 20, 7, dtype=torch.float64), torch.randn(7, 39, dtype=torch.float64)
    torch.testing.assert_close(convolve(x, filters), literal(x, filters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32_at_least(dtype: torch.dtype) -> None:
    x, filters = 100 * torch.ones(1, 4096, 2, dtype=dtype), torch.ones(2, 4096)
    out = convolve(x, filters)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0, :, 0], 100 * torch.arange(1.0, 4097), rtol=1e-4, atol=1)


def test_input_and_filters_alone_are_kept() -> None:
    x, filters = torch.randn(2, 1000, 8, requires_grad=True), torch.randn(8, 1000, requires_grad=True)
    assert saved_bytes(lambda: convolve(x, filters), torch.nn.Identity()) == x.nbytes + filters.nbytes


def test_what_comes_later_stays_out_up_to_rounding() -> None:
    x, filters = torch.randn(1, 500, 3), torch.randn(3, 500)
    later = x.clone()
    later[:, 300:] *= 1e3
    torch.testing.assert_close(convolve(later, filters)[:, :300], convolve(x, filters)[:, :300], atol=2e-2, rtol=0)


@pytest.mark.parametrize(("least", "size"), [(1, 1), (2, 2), (7, 8), (11, 12), (17, 18), (121, 125), (16383, 16384)])
def test_sizes_have_small_factors(least: int, size: int) -> None:
    assert fft_size(least) == size


def test_a_compiler_takes_the_size_for_a_constant() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(convolve, fullgraph=True, backend="eager", dynamic=False)
    x, filters = torch.randn(2, 20, 7), torch.randn(7, 39)
    torch.testing.assert_close(compiled(x, filters), convolve(x, filters))
