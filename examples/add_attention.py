"""Your own attention in the zoo's encoder: uniform weights over the values, in a dozen lines.

python examples/add_attention.py
python -m compare --variants full,add_attention:Uniform --tasks mqar --steps 50      # in this folder
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo import Attention, Dims, Encoder, Traits, register


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """No options."""


@register("uniform", config=UniformConfig)
class Uniform(Attention):
    """Each position receives the mean of all values."""

    traits = Traits(family="example", source="this file", year=None, time="O(N)", memory="O(N)", causal=False)

    def __init__(self, dims: Dims, config: UniformConfig) -> None:
        super().__init__(dims)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        real = v.new_ones(v.shape[0], v.shape[-2]) if key_padding_mask is None else (~key_padding_mask).to(v.dtype)
        weights = real / real.sum(-1, keepdim=True).clamp_min(1)  # (B, N)
        return torch.einsum("bn,bhnd->bhd", weights, v).unsqueeze(-2).expand_as(v)


if __name__ == "__main__":
    encoder = Encoder(attn="uniform", vocab_size=100, max_len=512, d_model=64, n_heads=4, n_layers=2)
    print(tuple(encoder(torch.randint(100, (2, 300))).shape))
