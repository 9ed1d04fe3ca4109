"""Luna: attention packs all positions into a short learned sequence, and unpacks them from it.

Luna: Linear Unified Nested Attention, arXiv:2106.01540, section 3:
``Y_P = Attn(P, X, X)`` (pack), ``Y_X = Attn(X, Y_P, Y_P)`` (unpack), with P a learned sequence of M vectors (l in the
paper) and ``Attn(X, C, C) = softmax((X W_Q) (C W_K)ᵀ / √D) C W_V`` on heads. Both run on torch's fused kernels.
Cost: O(N M D) time, O(N D + M D) memory.

The parameters are those of the paper: W_Q, W_K and W_V for each of the two attentions, with W_K = W_V within each
("Reducing the number of parameters") unless ``tie_kv`` is off, and an output map after the second attention.

Departures from the paper:
- Each layer has its own P, since a backend belongs to one layer. In the paper, P of a layer is the normalised sum of P
  and Y_P of the layer below. The paper's LayerNorm is only on that path between layers, so there is none here.
- P starts at the size of normalised inputs (unit variance). P gets no positions: it is learned, so it can hold them.
- Rotary positions turn the keys of pack and the queries of unpack. P has no positions, so its side of both products is
  not turned.
There is no causal form. The paper's causal form replaces the softmax of pack by an activation of each logit, with sums
over the past: a different function, not this one restricted to the past.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Traits, at_least
from zoo.embeddings import RotaryPositions
from zoo.functional import sdpa_kernel_name, softmax_attention, visible_keys
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LunaConfig:
    """projected_len: M, the length of P (l in the paper, whose main results use 16, 128 and 256).
    tie_kv: whether keys and values are the same, in pack and in unpack.
    """

    projected_len: int = 16
    tie_kv: bool = True

    def __post_init__(self) -> None:
        at_least(1, **{"luna.projected_len": self.projected_len})


@register("luna", config=LunaConfig)
class Luna(Mixer):
    """All positions packed into a short sequence by attention, and unpacked by attention."""

    traits = Traits(
        family="low-rank",
        source="Ma et al., arXiv:2106.01540",
        year=2021,
        time="O(N·M)",
        memory="O(N)",
        causal=False,
        capacity="projected_len",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: LunaConfig) -> None:
        super().__init__(dims)
        C = dims.d_model
        self.n_heads = dims.n_heads
        contexts = 1 if config.tie_kv else 2  # (key = value) or (key, value)
        self.memory = nn.Parameter(torch.randn(config.projected_len, C))
        self.pack_query = nn.Linear(C, C)
        self.pack_context = nn.Linear(C, contexts * C)
        self.unpack_query = nn.Linear(C, C)
        self.unpack_context = nn.Linear(C, contexts * C)
        self.out = nn.Linear(C, C)
        self.rotary = RotaryPositions.of(dims, dims.d_head)
        for linear in (self.pack_query, self.pack_context, self.unpack_query, self.unpack_context, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        k, v = self._context(self.pack_context(x))
        q = self._heads(self.unpack_query(x))  # (B, H, N, D)
        if self.rotary is not None:
            k, q = self.rotary(k), self.rotary(q)
        p = self._heads(self.pack_query(self.memory)[None]).expand(len(x), -1, -1, -1)  # (B, H, M, D)
        packed = softmax_attention(p, k, v, visible_keys(key_padding_mask))
        k, v = self._context(self.unpack_context(rearrange(packed, "b h m d -> b m (h d)")))
        mixed = softmax_attention(q, k, v)
        y: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.n_heads)

    def _context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C or 2 C) -> keys and values, (B, H, N, D) each."""
        k, *v = rearrange(x, "b n (i c) -> i b n c", c=self.d_model)
        return self._heads(k), self._heads(v[0] if v else k)

    def state_size(self, length: int) -> int:
        """Y_P, from which the keys and values of unpack are projected."""
        return self.memory.numel()

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return sdpa_kernel_name(self._heads(x), key_padding_mask)
