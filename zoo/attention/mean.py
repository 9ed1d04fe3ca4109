"""The mean of all values at every position: the control that mixes without choosing.

Not from a paper. Each output is ``out(mean_j value(x_j))`` over the real positions j, as in attention whose logits are
all equal. A task that this control learns needs a bag of tokens, not attention.
Cost: O(N) time, O(N) memory. Without query and key projections, a layer has 2·d_model² fewer parameters.

``value`` is linear, so it is applied to the mean: one row a sample instead of N.
The causal form is the running mean: at position i, over the real positions up to i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.contract import Dims, Mixer, Tensors, Traits
from zoo.functional import accumulator
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class MeanConfig:
    """No options."""


@register("mean", config=MeanConfig)
class MeanMixing(Mixer):
    """Control: each position receives the mean of the values."""

    traits = Traits(
        family="control",
        source="control",
        year=None,
        time="O(N)",
        memory="O(N)",
        causal=True,
        rotary=False,
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: MeanConfig) -> None:
        super().__init__(dims)
        self.value = nn.Linear(dims.d_model, dims.d_model)
        self.out = nn.Linear(dims.d_model, dims.d_model)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        real = x.new_ones(x.shape[:2], dtype=torch.bool)
        if key_padding_mask is not None:
            real = ~key_padding_mask
            x = x.masked_fill(key_padding_mask[..., None], 0)
        dtype = accumulator(x)
        if self.causal:
            total, count = x.cumsum(1, dtype=dtype), real.cumsum(1)
        else:
            total, count = x.sum(1, keepdim=True, dtype=dtype), real.sum(1, keepdim=True)
        mean = (total / count.clamp(min=1)[..., None]).to(x.dtype)  # (B, N or 1, C)
        y: Tensor = self.out(self.value(mean))
        return y.expand(-1, x.shape[1], -1)

    def begin(self, x: Tensor) -> Tensors:
        return (torch.zeros_like(x, dtype=accumulator(x)),)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        total = tensors[0].add_(x[:, 0])
        mean = (total / (position + 1)).to(x.dtype)[:, None]
        return self.out(self.value(mean)), (total,)

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        return self.forward(x), (x.sum(1, dtype=accumulator(x)),)

    def state_size(self, length: int) -> int:
        return self.d_model

    def cache_size(self, length: int) -> int:
        return self.d_model
