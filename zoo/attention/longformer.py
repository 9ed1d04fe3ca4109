"""Longformer: a sliding window, and a few global tokens with projections of their own.

Longformer: The Long-Document Transformer, arXiv:2004.05150, section 3.1. The first g positions are global: every query
sees them beside its window, |i − j| <= w; and they see everything, through queries, keys and values of their own
(``Q_g, K_g, V_g``) : ``out_i = softmax_j(q_i k_jᵀ / √D) v_j`` over the window and the global keys, and for i < g
``out_i = softmax_j(q_g,i k_g,jᵀ / √D) v_g,j`` over all j. Cost: O(N · (w + g)) time and O(N) memory.

Departures from the paper:
- The global tokens are the first positions (where a CLS token or a question stands), not chosen for each input.
- No dilated windows (the paper dilates some heads of its language models; ``dilated`` has dilation).
- Causal form: the window looks back only, and the global tokens see the past only, so that they are memories of the
  beginning; the paper's language models leave them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from zoo.blocks import Part, Span, attend, kernel_name, window_block, window_spans
from zoo.contract import Dims, Kernel, Mixer, Traits, at_least
from zoo.embeddings import RotaryPositions
from zoo.functional import full_attention
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LongformerConfig:
    """window: w, positions that a query sees on each side of itself (half the paper's window size).
    n_global: g, leading positions that see all and are seen by all; 0 for none.
    """

    window: int = 256
    n_global: int = 1

    def __post_init__(self) -> None:
        at_least(1, **{"longformer.window": self.window})
        at_least(0, **{"longformer.n_global": self.n_global})


@register("longformer", config=LongformerConfig)
class LongformerAttention(Mixer):
    """A sliding window, and leading global tokens with their own projections."""

    traits = Traits(
        family="fixed sparse",
        source="Beltagy et al., arXiv:2004.05150",
        year=2020,
        time="O(N·(w + g))",
        memory="O(N)",
        causal=True,
        capacity="window",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: LongformerConfig) -> None:
        super().__init__()
        self.causal, self.config, self.n_heads = dims.causal, config, dims.n_heads
        C = dims.d_model
        self.qkv = nn.Linear(C, 3 * C)
        self.global_qkv = nn.Linear(C, 3 * C) if config.n_global else None
        self.rotary = RotaryPositions(dims.max_len, dims.d_head) if dims.rotary else None
        self.out = nn.Linear(C, C)
        for linear in (self.qkv, self.global_qkv, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=C**-0.5)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        N, n_global, window = x.shape[1], self.config.n_global, self.config.window
        q, k, v = self._heads(self.qkv(x))
        size = window_block(window)
        reach = (-window, 0 if self.causal else window)
        spans = window_spans(-(-N // size), size, reach, skip=n_global, device=x.device)
        parts = [Part(groups=spans, size=size)]
        if n_global:
            leading = torch.arange(n_global, device=x.device)[None]
            leading = leading.masked_fill(leading >= N, -1)
            parts.append(Part(groups=[Span(first=0, last=1)], size=N, keys=leading, causal=self.causal))
        mixed = attend(q, k, v, parts, key_padding_mask=key_padding_mask)
        if self.global_qkv is not None:
            mixed = torch.cat([self._global(x, key_padding_mask), mixed[:, :, n_global:]], dim=2)
        y: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return y

    def _global(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """What the global tokens see. (B, H, g or N, D)."""
        assert self.global_qkv is not None
        if self.causal:  # they lie at the beginning: nothing after them is past
            x = x[:, : self.config.n_global]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[:, : self.config.n_global]
        q, k, v = self._heads(self.global_qkv(x))
        q = q[:, :, : self.config.n_global]
        return full_attention(q, k, v, key_padding_mask=key_padding_mask, causal=self.causal)

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(projected, "b n (i h d) -> i b h n d", i=3, h=self.n_heads)
        return (q, k, v) if self.rotary is None else (self.rotary(q), self.rotary(k), v)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x)
