"""Full softmax attention on xformers' memory-efficient kernel.

Self-attention Does Not Need O(n²) Memory, arXiv:2112.05682; library: facebookresearch/xformers,
``xformers.ops.memory_efficient_attention``. Computes equation 1 of arXiv:1706.03762.
Cost: O(N² D) time, O(N D) memory.

xformers has kernels for CUDA in half precision and float32. Elsewhere (CPU, float64, xformers not installed or built
for another CUDA) torch's scaled_dot_product_attention computes the same mathematics, and ``kernel()`` reports it. Steps
have one query at a time, and always run on torch's kernel.
Padding: the real positions of the batch are packed end to end and attend within blocks, so padding costs nothing.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from zoo.contract import Dims, Kernel, Traits
from zoo.cores.cache import CachedAttention
from zoo.functional import full_attention, sdpa_kernel_name
from zoo.registry import register

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class XformersConfig:
    """No options."""


@register("xformers", config=XformersConfig)
class XformersAttention(CachedAttention):
    """Softmax attention on xformers' memory-efficient kernel (torch's where it has none)."""

    traits = Traits(
        family="exact",
        source="Rabe and Staats, arXiv:2112.05682; xformers",
        year=2021,
        time="O(N²)",
        memory="O(N)",
        causal=True,
        exact=True,
        weights=True,
    )

    def __init__(self, dims: Dims, config: XformersConfig) -> None:
        super().__init__(dims)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if missing_kernel(q):
            return full_attention(q, k, v, key_padding_mask=key_padding_mask, causal=self.causal, dropout=self.dropped)
        from xformers.ops import LowerTriangularMask, fmha, memory_efficient_attention

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, H, D)
        out: Tensor
        if key_padding_mask is None:
            out = memory_efficient_attention(q, k, v, LowerTriangularMask() if self.causal else None, self.dropped)
            return out.transpose(1, 2)
        real = ~key_padding_mask
        lengths = [n for n in real.sum(1).tolist() if n]
        out = torch.zeros_like(q)
        if lengths:
            bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(lengths)
            packed = [x[real][None] for x in (q, k, v)]  # (1, sum of lengths, H, D)
            bias = bias.make_causal() if self.causal else bias
            out[real] = memory_efficient_attention(*packed, bias, self.dropped)[0]
        return out.transpose(1, 2)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        missing = missing_kernel(x)
        if not missing:
            return Kernel("xformers memory_efficient_attention")
        torch_kernel = sdpa_kernel_name(x, key_padding_mask, causal=self.causal, dropout=self.dropped).name
        return Kernel(f"{torch_kernel}: {missing}", fallback=True)


def missing_kernel(q: Tensor) -> str:
    """Why xformers cannot compute attention for inputs like ``q``; empty if it can."""
    if q.device.type != "cuda":
        return f"xformers has no {q.device.type} kernel"
    if q.dtype not in DTYPES:
        return f"xformers has no {q.dtype} kernel"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    return _refused(q.device, q.dtype, q.shape[-1])


@cache
def _refused(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why the installed xformers cannot compute attention there; empty if it can."""
    from xformers.ops import fmha

    x = torch.empty(1, 1, 1, head_dim, device=device, dtype=dtype)
    if any(op.supports(fmha.Inputs(x, x, x)) for op in fmha.ALL_BW_OPS):  # each has a matching forward
        return ""
    return "the installed xformers has no kernel for this torch and device (see python -m xformers.info)"
