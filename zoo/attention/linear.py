"""Linear attention: the softmax kernel replaced by a product of positive features.

Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, arXiv:2006.16236, equations 5 to 9:
``out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) Σ_j φ(k_j)ᵀ)`` with ``φ(x) = elu(x) + 1``; j <= i when causal.
Cost: O(N D²) time, O(N D) memory.

Departures from the paper: below 0, ``elu(x) + 1`` is computed as ``exp(x)``, which it equals, and which does not round
to 0 at x = -17 as the sum does in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.contract import Attention, Dims, Traits
from zoo.kernel_attention import FeatureMap, kernel_attention
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """No options."""


@register("linear", config=LinearConfig)
class LinearAttention(Attention):
    """Kernel attention with the features elu(x) + 1."""

    traits = Traits(
        family="kernel",
        source="Katharopoulos et al., arXiv:2006.16236",
        year=2020,
        time="O(N)",
        memory="O(N)",
        causal=True,
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: LinearConfig) -> None:
        super().__init__()
        self.causal = dims.causal

    def _features(self, x: Tensor, first: int) -> Tensor:
        phi: Tensor = _EluPlusOne.apply(x)  # type: ignore[no-untyped-call]
        return phi

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        features = FeatureMap(self._features, self._features, size=q.shape[-1])
        return kernel_attention(q, k, v, features, key_padding_mask=key_padding_mask, causal=self.causal)


class _EluPlusOne(torch.autograd.Function):
    """Its slope is min(φ, 1), which takes fewer passes over memory than the slopes of the parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        phi = x.clamp(max=0).exp_().add_(x.relu())
        ctx.save_for_backward(phi)
        return phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (phi,) = ctx.saved_tensors
        slope: Tensor = phi.clamp(max=1)
        return slope.mul_(grad)
