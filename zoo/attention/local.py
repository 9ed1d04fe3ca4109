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

import torch
from torch import Tensor

from zoo.contract import Dims, Kernel, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend, attend_window, kernel_name
from zoo.cores.cache import CachedAttention
from zoo.cores.parts import Part, made_once, window_block, window_spans
from zoo.functional import traced
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """window: w, positions that a query sees on each side of itself (before itself where causal).
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    window: int = 128
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("local.kernel", self.kernel, KERNELS)
        at_least(1, **{"local.window": self.window})


@register("local", config=LocalConfig)
class LocalAttention(CachedAttention):
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
        super().__init__(dims)
        self.config = config
        self.kept = min(config.window + 1, dims.max_len)  # positions that the step form stores

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        config, N = self.config, q.shape[2]
        if traced() and config.kernel != "triton":  # attend cannot run traced
            reach = (-config.window, 0 if self.causal else config.window)
            return attend_window(q, k, v, window_block(config.window), reach, key_padding_mask=key_padding_mask)
        parts = made_once(window_parts, N, config.window, self.causal, q.device, like=q)
        return attend(q, k, v, parts, key_padding_mask=key_padding_mask, kernel=config.kernel)

    def state_size(self, length: int) -> int:
        sides = 1 if self.causal else 2
        return 2 * min(sides * self.config.window + 1, length) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel)


def window_parts(length: int, window: int, causal: bool, device: torch.device) -> list[Part]:
    """The keys that queries see among ``length`` positions, as parts."""
    size = window_block(window)
    spans = window_spans(-(-length // size), size, (-window, 0 if causal else window), device=device)
    return [Part(groups=spans, size=size)]
