"""cosFormer: linear attention with relu features, re-weighted by a cosine of the distance.

cosFormer: Rethinking Softmax in Attention, arXiv:2202.08791, equations 9 to 12: weights
``relu(q_i) relu(k_j)ᵀ cos(π (i - j) / 2M)``, divided by their sum over j. The cosine of a difference splits into
products, so the features are ``[relu(x_i) cos(π i / 2M), relu(x_i) sin(π i / 2M)]``, twice as wide as a head.
Cost: O(N D²) time, O(N D) memory.

Departures from the paper:
- M is ``max_len`` for every input; the authors' code takes the length of the (padded) input. So a distance weighs the
  same in every sample, padding changes nothing, and a causal row does not depend on how many positions follow.
  Choose ``max_len`` close to the lengths in use: far above them the cosine is nearly flat.
- i counts all positions of the input, padded ones too, as the encoder's positions do.
- A query whose products with all keys are 0 gives 0; the authors' code divides by 1e-6 at least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.contract import Attention, Dims, Tensors, Traits
from zoo.cores.kernel_attention import (
    FeatureMap,
    empty_state,
    kernel_absorb,
    kernel_attention,
    kernel_state_size,
    kernel_step,
)
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class CosformerConfig:
    """No options."""


@register("cosformer", config=CosformerConfig)
class CosformerAttention(Attention):
    """Kernel attention with relu features that favour near positions by a cosine."""

    traits = Traits(
        family="kernel",
        source="Qin et al., arXiv:2202.08791",
        year=2022,
        time="O(N)",
        memory="O(N)",
        causal=True,
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: CosformerConfig) -> None:
        super().__init__(dims)
        self.bind_to("max_len", dims.max_len)

    def _wave(self, x: Tensor, first: int) -> Tensor:
        """(B, H, n, D) -> (B, H, n, 2D)."""
        place = torch.arange(first, first + x.shape[-2], dtype=x.dtype, device=x.device)
        angle = (math.pi / 2 / self.max_len * place)[:, None]
        x = x.relu()
        return torch.cat([x * angle.cos(), x * angle.sin()], dim=-1)

    def _features(self) -> FeatureMap:
        return FeatureMap(self._wave, self._wave, size=2 * self.dims.d_head)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return kernel_attention(q, k, v, self._features(), key_padding_mask=key_padding_mask, causal=self.causal)

    def begin(self, x: Tensor) -> Tensors:
        return empty_state(x, self._features())

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return kernel_step(q, k, v, self._features(), tensors, position)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        return kernel_absorb(q, k, v, self._features())

    def state_size(self, length: int) -> int:
        return kernel_state_size(self.dims, 2 * self.dims.d_head)

    def cache_size(self, length: int) -> int:
        return self.state_size(length)
