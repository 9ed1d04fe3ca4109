"""Linformer: keys and values projected from N positions to M.

Linformer: Self-Attention with Linear Complexity, arXiv:2006.04768, equation 7:
``softmax(q (E k)ᵀ / √D) (F v)`` with E, F: M × N learned (k in the paper is M here).
Cost: O(N M D) time, O(N D + M D) memory.

Departures from the paper:
- Padded keys and values are set to 0 before the projection, so padding changes nothing.
- A rank above ``max_len`` is cut to it, where projecting saves nothing.
- Inputs shorter than ``max_len`` use the first N columns of E and F.
- Queries and keys start at variance 1/3, the default here; the authors' fairseq code has 1/2.
- Layers do not share E and F: a backend belongs to one layer.
There is no causal form: E mixes the future into every projected key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.contract import Attention, Dims, Kernel, Traits, at_least, one_of
from zoo.functional import leading, sdpa_kernel_name, softmax_attention
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LinformerConfig:
    """rank: M, how many positions keys and values are projected to (k in the paper); at most ``max_len``.
    sharing: ``none`` (E and F for each head), ``heads`` (one E and one F), ``kv`` (one E, also used as F).
    """

    rank: int = 256
    sharing: str = "heads"

    def __post_init__(self) -> None:
        at_least(1, **{"linformer.rank": self.rank})
        one_of("linformer.sharing", self.sharing, ("none", "heads", "kv"))


@register("linformer", config=LinformerConfig)
class LinformerAttention(Attention):
    """Keys and values projected along the sequence to a fixed rank."""

    traits = Traits(
        family="low-rank",
        source="Wang et al., arXiv:2006.04768",
        year=2020,
        time="O(N·M)",
        memory="O(N)",
        causal=False,
        capacity="rank",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: LinformerConfig) -> None:
        super().__init__(dims)
        heads = dims.n_heads if config.sharing == "none" else 1
        projections = 1 if config.sharing == "kv" else 2
        shape = projections, heads, min(config.rank, dims.max_len), dims.max_len
        # (1 or 2, H or 1, M, max_len). Inputs of unit variance and full length give outputs of unit variance.
        self.projection = nn.Parameter(torch.randn(shape) * dims.max_len**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            hidden = key_padding_mask[:, None, :, None]
            k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        projection = leading(self.projection, k.shape[-2], -1)
        return softmax_attention(q, projection[0] @ k, projection[-1] @ v)

    def state_size(self, length: int) -> int:
        return 2 * self.projection.shape[2] * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return sdpa_kernel_name(x)
