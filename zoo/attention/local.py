"""Local attention: each query sees the keys within a window around it.

Image Transformer, arXiv:1802.05751, section 3 (local self-attention); the sliding form is that of Longformer,
arXiv:2004.05150, section 3.1, without its global tokens.
``out_i = softmax_j(q_i k_jᵀ / √D) v_j`` over |i − j| <= w; causal: 0 <= i − j <= w.
Cost: O(N · w) time and O(N) memory.

Departures from the papers: the window slides with each query (the Image Transformer gives a whole block of queries the
same keys), so every query sees equally far.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.blocks import Part, attend, attend_window, kernel_name, window_block, window_spans
from zoo.cache import cached_attention, empty, room
from zoo.contract import Attention, Dims, Kernel, Tensors, Traits, at_least
from zoo.functional import traced
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """window: w, positions that a query sees on each side of itself (before itself where causal)."""

    window: int = 128

    def __post_init__(self) -> None:
        at_least(1, **{"local.window": self.window})


@register("local", config=LocalConfig)
class LocalAttention(Attention):
    """A sliding window around each position."""

    traits = Traits(
        family="fixed sparse",
        source="Parmar et al., arXiv:1802.05751",
        year=2018,
        time="O(N·w)",
        memory="O(N)",
        causal=True,
        capacity="window",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: LocalConfig) -> None:
        super().__init__()
        self.dims = dims
        self.causal, self.config = dims.causal, config
        self.kept = min(config.window + 1, dims.max_len)  # positions, by the step form

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        window = self.config.window
        size = window_block(window)
        reach = (-window, 0 if self.causal else window)
        if traced():
            return attend_window(q, k, v, size, reach, key_padding_mask=key_padding_mask)
        spans = window_spans(-(-q.shape[2] // size), size, reach, device=q.device)
        return attend(q, k, v, [Part(groups=spans, size=size)], key_padding_mask=key_padding_mask)

    def begin(self, x: Tensor) -> Tensors:
        return empty(x)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return cached_attention(q, k, v, tensors, position, self.kept)

    def state_size(self, length: int) -> int:
        sides = 1 if self.causal else 2
        return 2 * min(sides * self.config.window + 1, length) * self.dims.d_model

    def cache_size(self, length: int) -> int:
        return 2 * room(length, self.kept) * self.dims.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x)
