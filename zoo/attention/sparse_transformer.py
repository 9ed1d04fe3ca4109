"""Sparse Transformer: a local part, and a part that reaches far with a stride.

Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 4.3, with l the stride.
``strided``: query i sees the keys j with |i − j| <= l, and those with (i − j) mod l = 0.
``fixed``: query i sees its own block of l positions, and the last c positions of every block (the summary).
Both parts share one softmax, the paper's "merged" head (section 4.2).
Cost: O(N · (l + N / l)) time for ``strided``, O(N · (l + c N / l)) for ``fixed``, so O(N √N) where l is near √N;
O(N) memory, and a mask of (N / l)² numbers for ``strided``.

The strided part is attention within residue classes: positions that share i mod l are laid side by side.

Departures from the paper:
- The paper is causal. In both directions the sets are the same without j <= i.
- Every head sees both parts; the paper also tries one part a layer and one part a head.
- The stride is an option and does not follow N, so padding changes nothing.
- Queries and keys start at variance 1/3, the default here; the paper draws all weights smaller, N(0, 0.125 / √fan-in).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Attention, Dims, Kernel, Tensors, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend, attend_next, kernel_name
from zoo.cores.cache import append, empty, fill, room
from zoo.cores.parts import Part, Span, causal_bias, hide, made_once, window_block, window_spans
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class SparseTransformerConfig:
    """stride: l, reach of the local part, and distance between the positions of the far part.
    pattern: ``strided`` or ``fixed``.
    summary: c, positions at the end of each block that all queries see; at most the stride (``fixed`` only).
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    stride: int = 128
    pattern: str = "strided"
    summary: int = 8
    kernel: str = "auto"

    def __post_init__(self) -> None:
        at_least(1, **{"sparse_transformer.stride": self.stride, "sparse_transformer.summary": self.summary})
        one_of("sparse_transformer.kernel", self.kernel, KERNELS)
        one_of("sparse_transformer.pattern", self.pattern, ("strided", "fixed"))
        if self.pattern == "fixed" and self.summary > self.stride:
            raise ValueError(
                f"sparse_transformer.summary must be at most the stride, {self.stride}, got {self.summary}"
            )


@register("sparse_transformer", config=SparseTransformerConfig)
class SparseTransformerAttention(Attention):
    """A local window, and every l-th position (strided) or the ends of all blocks (fixed)."""

    traits = Traits(
        family="fixed sparse",
        source="Child et al., arXiv:1904.10509",
        year=2019,
        time="O(N·(l + N/l))",
        memory="O(N)",
        causal=True,
        capacity="stride",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: SparseTransformerConfig) -> None:
        super().__init__(dims)
        self.config = config

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        c, N = self.config, q.shape[2]
        if c.pattern == "strided":
            parts = made_once(strided, N, c.stride, self.causal, q.device, like=q)
        else:
            parts = made_once(fixed, N, c.stride, c.summary, self.causal, q.device, like=q)
        return attend(q, k, v, parts, key_padding_mask=key_padding_mask, kernel=c.kernel)

    def begin(self, x: Tensor) -> Tensors:
        return empty(x, 2 if self.config.pattern == "strided" else 4)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        if self.config.pattern == "strided":
            parts = strided(position + 1, self.config.stride, self.causal, q.device, first=position)
            return attend_next(q, k, v, parts, tensors, position, self.max_len)
        block, place = divmod(position, self.config.stride)
        near, far = tensors[:2], tensors[2:]  # this block, which overwrites the one before; all summaries
        near = append(near, (k, v), position, min(self.config.stride, self.max_len))
        before = self._summaries(position)
        if self._summaries(position + 1) > before:
            far = append(far, (k, v), before, self._summaries(self.max_len))
        own, seen = place + 1, block * self.config.summary
        keys, values = (torch.cat([x[:, :, :own], y[:, :, :seen]], dim=2) for x, y in zip(near, far, strict=True))
        return F.scaled_dot_product_attention(q, keys, values), near + far

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        out, max_len, stride = self.forward(q, k, v), self.max_len, self.config.stride
        if self.config.pattern == "strided":
            return out, fill(empty(v[:, :, 0]), (k, v), max_len)
        near = fill(empty(v[:, :, 0]), (k, v), min(stride, max_len))
        summary = torch.arange(v.shape[2], device=v.device) % stride >= stride - self.config.summary
        far = fill(empty(v[:, :, 0]), (k[:, :, summary], v[:, :, summary]), self._summaries(max_len))
        return out, near + far

    def _summaries(self, length: int) -> int:
        """How many of the first ``length`` positions are among the last c of their block."""
        blocks, rest = divmod(length, self.config.stride)
        return blocks * self.config.summary + max(0, rest - (self.config.stride - self.config.summary))

    def state_size(self, length: int) -> int:
        """The local part, and the positions of the far part outside it."""
        stride, blocks = self.config.stride, -(-length // self.config.stride)
        if self.config.pattern == "fixed":
            seen = stride + self.config.summary * (blocks - 1)
        else:
            sides = 1 if self.causal else 2
            seen = sides * stride + 1 + max(0, blocks - sides - 1)
        return 2 * min(seen, length) * self.d_model

    def cache_size(self, length: int) -> int:
        """``strided``: all keys and values, which later queries may see. ``fixed``: a block and the summaries."""
        rows = room(length, self.max_len)
        if self.config.pattern == "fixed":
            rows = room(length, min(self.config.stride, self.max_len))
            rows += room(self._summaries(length), self._summaries(self.max_len))
        return 2 * rows * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel)


def strided(length: int, stride: int, causal: bool, device: torch.device, first: int = 0) -> list[Part]:
    """The window and the residue classes, for at least the queries from ``first`` on."""
    size = window_block(stride)
    reach = (-stride, 0 if causal else stride)
    spans = window_spans(-(-length // size), size, reach, first=first // size, device=device)
    members = -(-length // stride)
    position = torch.arange(stride, device=device)[:, None] + stride * torch.arange(members, device=device)
    position = position.masked_fill(position >= length, -1)  # (l, N / l): the residue classes
    step = torch.arange(members, device=device)
    ahead = step - step[:, None]
    visible = ahead < -1 if causal else ahead.abs() > 1  # nearer positions are in the window
    classes = [Span(first=0, last=stride, bias=hide(visible))]
    return [Part(groups=spans, size=size), Part(groups=classes, size=members, positions=position)]


def fixed(length: int, size: int, summary: int, causal: bool, device: torch.device) -> list[Part]:
    """Blocks of ``size`` positions, and the last ``summary`` of every block."""
    blocks = -(-length // size)
    if causal:
        own = causal_bias(size, device)[0]
        far = [Span(first=row, last=row + 1, offset=-row, width=row) for row in range(1, blocks)]
    else:  # every query sees every summary, including that of its own block
        own = hide(torch.arange(size, device=device) < size - summary).expand(size, size)
        far = [Span(first=row, last=row + 1, offset=-row, width=blocks) for row in range(blocks)]
    ends = size * torch.arange(1, blocks + 1, device=device)[:, None] - torch.arange(summary, 0, -1, device=device)
    ends = ends.masked_fill(ends >= length, -1)  # (N / l, c)
    near = Part(groups=[Span(first=0, last=blocks, bias=own)], size=size)
    return [near, Part(groups=far, size=size, keys=ends)]
