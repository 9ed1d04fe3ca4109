"""Full softmax attention, unfused: what O(N²) memory costs.

Attention Is All You Need, arXiv:1706.03762, equation 1, as every textbook writes it:
``softmax(q kᵀ / √D) v`` with the N × N weights held in memory. Cost: O(N² D) time, O(N²) memory.
A step has one row of weights, and runs the step form of ``full``.
Departures from the paper: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Dims, Traits
from zoo.cores.cache import CachedAttention
from zoo.functional import accumulator, visible_keys
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class NaiveConfig:
    """No options."""


@register("naive", config=NaiveConfig)
class NaiveAttention(CachedAttention):
    """Softmax attention with the N × N weights in memory: the textbook form."""

    traits = Traits(
        family="exact",
        source="Vaswani et al., arXiv:1706.03762",
        year=2017,
        time="O(N²)",
        memory="O(N²)",
        causal=True,
        exact=True,
        weights=True,
    )

    def __init__(self, dims: Dims, config: NaiveConfig) -> None:
        super().__init__(dims)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        n, wide = q.shape[-2], accumulator(q)
        with torch.autocast(q.device.type, enabled=False):  # in float16 a product can overflow
            logits = (q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).mT  # (B, H, N, N)
        visible = visible_keys(key_padding_mask)
        if self.causal:
            past = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
            visible = past if visible is None else visible & past
        if visible is not None:
            # The smallest finite number, not -inf: a row that sees no key must not become NaN.
            logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        weights = F.dropout(logits.softmax(-1).to(v.dtype), self.dropped)
        out: Tensor = weights @ v
        return out if key_padding_mask is None else out.masked_fill(key_padding_mask[:, None, :, None], 0)
