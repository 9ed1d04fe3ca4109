"""Long inputs with large activations in 16 bits: nothing overflows, forward or backward."""

from __future__ import annotations

import pytest
import torch

from zoo import MultiHeadAttention, available, describe

LENGTH = 16_384
SHORTER = {  # shorter, and why
    "naive": (2_048, "holds N × N weights"),
    "synthesizer": (4_096, "weighs all pairs, and learns a pattern of positions"),
    "topk": (4_096, "weighs all pairs, and sorts them"),
}
FORMS = [(name, causal) for name in available() for causal in (False, True)[: 1 + describe(name).traits.causal]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("variant", "causal"), FORMS, ids=[name + "-causal" * causal for name, causal in FORMS])
def test_long_inputs_with_large_activations_stay_finite(variant: str, causal: bool, dtype: torch.dtype) -> None:
    length, _ = SHORTER.get(variant, (LENGTH, ""))
    torch.manual_seed(0)
    sublayer = MultiHeadAttention(variant, d_model=8, n_heads=1, max_len=length, causal=causal)
    x = (100 * torch.randn(1, length, 8)).requires_grad_()
    mask = torch.rand(1, length) < 0.1
    with torch.autocast("cpu", dtype=dtype):
        y = sublayer(x, key_padding_mask=mask)
    (y.float() * torch.randn(y.shape)).sum().backward()
    assert y.isfinite().all()
    for key, tensor in [("input", x), *sublayer.named_parameters()]:
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key
