"""Dilated attention: near positions in full, far ones ever more sparsely.

LongNet: Scaling Transformers to 1,000,000,000 Tokens, arXiv:2307.02486, section 2.2. Level p cuts the sequence into
segments of w_p positions. Within a segment, every r_p-th position attends to every r_p-th, starting in head h at offset
h mod r_p. w_p = w a^p and r_p = a^p (equation 11), up to the first level whose segment holds ``max_len``. Equation 10
joins the levels by their softmax denominators, which makes them one softmax over the pairs of all levels.
Cost: O(N · w · a / (a − 1)) time, O(N) memory: each level has w keys a query, and 1 / a of the queries of the last one.

Departures from the paper: none known; the paper's own w and r (2,048 up to 32,768, and 1 up to 12) are for far longer
inputs. A pair that meets in several levels counts once in each, as in equation 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.contract import Dims, Kernel, Tensors, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend, attend_next, kernel_name
from zoo.cores.cache import CachedAttention
from zoo.cores.parts import Part, Span, causal_bias, made_once
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class DilatedConfig:
    """segment: w, positions in a segment of the first level, and keys that a query sees in each level.
    growth: a, the factor by which segments get longer and sparser from level to level.
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    segment: int = 256
    growth: int = 4
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("dilated.kernel", self.kernel, KERNELS)
        at_least(1, **{"dilated.segment": self.segment})
        at_least(2, **{"dilated.growth": self.growth})


@register("dilated", config=DilatedConfig)
class DilatedAttention(CachedAttention):
    """Segments that grow longer and thinner from level to level."""

    traits = Traits(
        family="fixed sparse",
        source="Ding et al., arXiv:2307.02486",
        year=2023,
        time="O(N·w)",
        memory="O(N)",
        causal=True,
        capacity="segment",
        subquadratic=True,
    )
    joined_heads = "the offset of a head depends on its number"

    def __init__(self, dims: Dims, config: DilatedConfig) -> None:
        super().__init__(dims)
        self.config = config
        self.dilations = [1]  # r_p
        while config.segment * self.dilations[-1] < dims.max_len:
            self.dilations.append(self.dilations[-1] * config.growth)
        self.bind_to("levels", len(self.dilations))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        parts = made_once(levels, q.shape[2], *self._pattern, q.device, like=q)
        return attend(q, k, v, parts, key_padding_mask=key_padding_mask, kernel=self.config.kernel)

    @property
    def _pattern(self) -> tuple[int, tuple[int, ...], int, bool]:
        return self.config.segment, tuple(self.dilations), self.dims.n_heads, self.causal

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        parts = levels(position + 1, *self._pattern, q.device, first=position)
        return attend_next(q, k, v, parts, tensors, position, self.max_len)

    def state_size(self, length: int) -> int:
        """In level p a position is in every r_p-th head and sees w keys, w / a of which the level before has too."""
        n_heads, read, before = self.dims.n_heads, 0, 0
        for dilation in self.dilations:
            reach = min(self.config.segment * dilation, length)
            read += -(-n_heads // dilation) * (-(-reach // dilation) - before // dilation)
            before = reach
        return 2 * min(read, n_heads * length) * self.dims.d_head

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel)


def levels(
    length: int, size: int, dilations: tuple[int, ...], n_heads: int, causal: bool, device: torch.device, first: int = 0
) -> list[Part]:
    """One part for each level, with segments of ``size`` positions, for at least the queries from ``first`` on."""
    bias = causal_bias(size, device)[0] if causal else None
    parts = []
    for dilation in dilations:
        reach = size * dilation
        before, segments = first // reach, -(-length // reach)
        slot = dilation * torch.arange(before * size, segments * size, device=device).view(-1, size)
        offset = torch.arange(n_heads, device=device) % dilation
        position = slot + offset[:, None, None]  # (H, segments, w)
        position = position.masked_fill(position >= length, -1)
        groups = [Span(first=0, last=segments - before, bias=bias)]
        plain = dilation == 1 and first == 0
        parts.append(Part(groups=groups, size=size, positions=None if plain else position))
    return parts
