"""xformers: what runs where its kernels do not, and agreement where they do."""

from __future__ import annotations

import pytest
import torch

from zoo import MultiHeadAttention
from zoo.contract import Dims, Kernel
from zoo.registry import build


def test_it_says_what_ran_instead_on_cpu() -> None:
    kernel = kernel_of("xformers")
    assert kernel.fallback
    assert "SDPA flash (cpu)" in kernel.name
    assert "xformers has no cpu kernel" in kernel.name
    assert not kernel_of("full").fallback


def kernel_of(attention: str) -> Kernel:
    return MultiHeadAttention(attention, d_model=16, n_heads=2, max_len=60).kernel(torch.randn(1, 60, 16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers' kernels need a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
def test_its_kernel_matches_full_on_cuda(causal: bool) -> None:
    q, k, v = (torch.randn(3, 2, 100, 32, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    mask = torch.zeros(3, 100, dtype=torch.bool, device="cuda")
    mask[0, 70:] = True
    mask[2] = True
    dims = Dims(d_model=64, n_heads=2, max_len=100, causal=causal)
    for padding in (None, mask):
        ours, full = (build(attention, dims)(q, k, v, key_padding_mask=padding) for attention in ("xformers", "full"))
        if padding is not None:
            ours, full = (x.masked_fill(padding[:, None, :, None], 0) for x in (ours, full))
        torch.testing.assert_close(ours, full, atol=2e-2, rtol=2e-2)
