"""Longformer: a sliding window, and a few global tokens with their own projections.

Longformer: The Long-Document Transformer, arXiv:2004.05150, section 3.1. The first g positions are global. Every other
query sees its window, |i − j| <= w, and the global positions: ``out_i = softmax_j(q_i k_jᵀ / √D) v_j``. A global
position, i < g, sees all j through its own queries, keys and values (``Q_g, K_g, V_g``):
``out_i = softmax_j(q_g,i k_g,jᵀ / √D) v_g,j``. Cost: O(N · (w + g)) time and O(N) memory.

Departures from the paper:
- The global tokens are the first positions (where a CLS token or a question stands), not chosen for each input.
- No dilated windows (the paper dilates some heads of its language models; ``dilated`` has dilation).
- Causal form: the window looks back only. All later positions see the global tokens, which see their past as other
  positions do, with the projections of other positions. The paper's language models have no global tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import SHELL_INIT, Dims, Kernel, Mixer, Tensors, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend, kernel_name
from zoo.cores.cache import cached_attention, empty, fill, room
from zoo.cores.parts import Part, Span, made_once, window_block, window_spans
from zoo.embeddings import RotaryPositions
from zoo.functional import full_attention, split
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class LongformerConfig:
    """window: w, positions that a query sees on each side of itself (half the paper's window size).
    n_global: g, leading positions that see all positions and are seen by all; 0 for none.
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    window: int = 256
    n_global: int = 1
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("longformer.kernel", self.kernel, KERNELS)
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
        super().__init__(dims)
        self.config, self.n_heads = config, dims.n_heads
        self.kept = min(config.n_global + config.window + 1, dims.max_len)  # positions that the step form stores
        C = dims.d_model
        self.qkv = nn.Linear(C, 3 * C)
        see_all = config.n_global > 0 and not dims.causal
        self.global_q = nn.Linear(C, C) if see_all else None
        self.global_kv = nn.Linear(C, 2 * C) if see_all else None
        self.rotary = RotaryPositions.of(dims, dims.d_head)
        self.out = nn.Linear(C, C)
        for linear in (self.qkv, self.global_q, self.global_kv, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=C**-0.5)
                nn.init.zeros_(linear.bias)
        SHELL_INIT.scale(self.qkv.weight[: 2 * C])
        if self.global_q is not None and self.global_kv is not None:
            SHELL_INIT.scale(self.global_q.weight)
            SHELL_INIT.scale(self.global_kv.weight[:C])

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        n_global = self.config.n_global
        mixed = self._leading_and_near(*self._project(x), key_padding_mask)
        if self.global_q is not None and self.global_kv is not None:
            q = self._heads(self.global_q(x[:, :n_global]))
            k, v = (self._heads(part) for part in split(self.global_kv(x), 2))
            seen = full_attention(self._turn(q), self._turn(k), v, key_padding_mask=key_padding_mask)
            mixed = torch.cat([rearrange(seen, "b h g d -> b g (h d)"), mixed[:, n_global:]], dim=1)
        y: Tensor = self.out(mixed)
        return y

    def _project(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, C) of the positions from ``first`` on -> q, k, v (B, H, N, D)."""
        q, k, v = (self._heads(part) for part in split(self.qkv(x), 3))
        return self._turn(q, first), self._turn(k, first), v

    def _leading_and_near(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attention to the window and the global keys. (B, N, C)."""
        n_global, window, kernel = self.config.n_global, self.config.window, self.config.kernel
        parts = made_once(window_and_globals, q.shape[2], window, n_global, self.causal, q.device, like=q)
        mixed = attend(q, k, v, parts, key_padding_mask=key_padding_mask, kernel=kernel)
        return rearrange(mixed, "b h n d -> b n (h d)")

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.n_heads)

    def _turn(self, x: Tensor, first: int = 0) -> Tensor:
        return x if self.rotary is None else self.rotary(x, first)

    def begin(self, x: Tensor) -> Tensors:
        return empty(rearrange(x, "b (h d) -> b h d", h=self.n_heads))

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        q, k, v = self._project(x, position)
        mixed, tensors = cached_attention(q, k, v, tensors, position, self.kept, self.config.n_global)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)")), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        q, k, v = self._project(x)
        kept = fill(self.begin(x[:, 0]), (k, v), self.kept, self.config.n_global)
        return self.out(self._leading_and_near(q, k, v)), kept

    def state_size(self, length: int) -> int:
        """The window and the global tokens. Counts a query that is not global; global ones see all."""
        sides = 1 if self.causal else 2
        seen = sides * self.config.window + 1 + self.config.n_global
        return 2 * min(seen, length) * self.d_model

    def cache_size(self, length: int) -> int:
        return 2 * room(length, self.kept) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(self._heads(x), self.config.kernel)


def window_and_globals(length: int, window: int, n_global: int, causal: bool, device: torch.device) -> list[Part]:
    """The parts that queries see of ``length`` positions: the window without the global keys, and the global keys."""
    size = window_block(window)
    reach = (-window, 0 if causal else window)
    spans = window_spans(-(-length // size), size, reach, skip=n_global, device=device)
    parts = [Part(groups=spans, size=size)]
    if n_global:
        leading = torch.arange(n_global, device=device)[None]
        leading = leading.masked_fill(leading >= length, -1)
        parts.append(Part(groups=[Span(first=0, last=1)], size=length, keys=leading, causal=causal))
    return parts
