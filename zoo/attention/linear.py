"""Linear attention: a product of positive features replaces the softmax kernel.

Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, arXiv:2006.16236, equations 5 to 9:
``out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) Σ_j φ(k_j)ᵀ)`` with ``φ(x) = elu(x) + 1``; j <= i when causal.
Cost: O(N D²) time, O(N D) memory.

Departures from the paper: queries and keys start at variance 1; the authors' code starts at nn.Linear's 1/3, where φ is
flatter. On noisy_recall at 128 tokens 600 optimizer steps at 3e-3 reach 97.4 to 98.4 % from 1/3 and 99.0 to 99.7 % from
1, better with each of three seeds. On mqar at 64 tokens 1,000 reach 38.1 to 73.2 % and 43.4 to 71.5 %, which speaks for
neither (``results/cpu-2core/initialisation``). In float32 φ rounds to 0 below x = -17. Where all products of a query
are 0, its output is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Attention, Dims, Init, Tensors, Traits
from zoo.cores.kernel_attention import (
    FeatureMap,
    empty_state,
    kernel_absorb,
    kernel_attention,
    kernel_state_size,
    kernel_step,
)
from zoo.functional import traced
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
        init=Init(variance=1.0, source="measured on noisy_recall; the authors' code has 1/3"),
    )

    def __init__(self, dims: Dims, config: LinearConfig) -> None:
        super().__init__(dims)
        self.features = FeatureMap(elu_plus_one, elu_plus_one, size=dims.d_head, slope=elu_plus_one_slope)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return kernel_attention(q, k, v, self.features, key_padding_mask=key_padding_mask, causal=self.causal)

    def begin(self, x: Tensor) -> Tensors:
        return empty_state(x, self.features)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return kernel_step(q, k, v, self.features, tensors, position)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        return kernel_absorb(q, k, v, self.features)

    def state_size(self, length: int) -> int:
        return kernel_state_size(self.dims, self.dims.d_head)

    def cache_size(self, length: int) -> int:
        return self.state_size(length)


def elu_plus_one(x: Tensor, _first: int) -> Tensor:
    """φ. The features do not depend on the position."""
    if traced():  # torch 2.13's compiler assumes a wrong memory layout for the gradient of elu
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
    return F.elu(x).add_(1)


def elu_plus_one_slope(phi: Tensor) -> Tensor:
    """The derivative of φ, from φ: 1 where x > 0 (φ > 1), else exp(x) = φ."""
    return phi.clamp(max=1)
