"""Based: linear attention with Taylor features for all keys, and exact weights for those nearby.

Simple linear attention language models balance the recall-throughput tradeoff, arXiv:2402.18668, section 4: queries
and keys of a small width d = ``features``, with ``φ(q)·φ(k) = 1 + x + x² / 2`` for ``x = q·k / √d``, the second-order
Taylor series of exp(x), by ``φ(z) = [1, z / d^¼, z ⊗ z / √(2d)]`` (arXiv:2209.04881); and exact attention in a small
window. Here a key j weighs, in the row of i,

    exp(x_ij) for |i - j| < window, 1 + x_ij + x_ij² / 2 (which is at least 1/2) beyond,

divided by the sum of all weights of the row; j <= i when causal. A window over all keys gives softmax attention.
Cost: O(N (d² + window) D) time, O(N D) memory.

Sums over the keys beyond the window never hold a near key, so none is subtracted: positions join the sums as they leave
the window. Of z ⊗ z, which is symmetric, each product is kept once, so M = 1 + d + d (d + 1) / 2. A row is divided by
its largest exact weight, or by its sum of Taylor weights where that is larger, so no exponential overflows.

Departures from the paper:
- It takes turns of layers with Taylor attention and layers with a window (and short convolutions). A backend lives in
  one layer, so both are in each, under one denominator. ``window=0`` is the paper's Taylor attention alone.
- The form in both directions is not the paper's: one scan for the keys up to the own one, one for those after it.
- No epsilon is added to the denominator, which is at least 1/2 after division by the scale of its row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Mixer, Tensors, Traits, at_least
from zoo.embeddings import RotaryPositions
from zoo.functional import accumulator
from zoo.registry import register
from zoo.scan import scan

LOWEST = -1e30  # logarithm of the scale of a row that has met no key


@dataclass(frozen=True, kw_only=True)
class BasedConfig:
    """features: d, the width of queries and keys in each head (d' in the paper).
    window: keys at a distance below it have exact weights, on both sides unless causal; 0 for none.
    """

    features: int = 16
    window: int = 64

    def __post_init__(self) -> None:
        at_least(1, **{"based.features": self.features})
        at_least(0, **{"based.window": self.window})


@register("based", config=BasedConfig)
class Based(Mixer):
    """Taylor linear attention over all keys, with exact weights in a window."""

    traits = Traits(
        family="kernel",
        source="Arora et al., arXiv:2402.18668",
        year=2024,
        time="O(N)",
        memory="O(N)",
        causal=True,
        bidirectional="two scans, one denominator",
        capacity="features",
        subquadratic=True,
    )
    products: Tensor

    def __init__(self, dims: Dims, config: BasedConfig) -> None:
        super().__init__()
        C, H, d = dims.d_model, dims.n_heads, config.features
        self.dims, self.causal = dims, dims.causal
        self.d, self.window = d, min(config.window, dims.max_len)
        self.reach = max(0, self.window - 1)  # positions before the own one in the window
        self.qkv = nn.Linear(C, 2 * H * d + C)
        self.out = nn.Linear(C, C)
        for linear in (self.qkv, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
            nn.init.zeros_(linear.bias)
        self.rotary = RotaryPositions(dims.max_len, d) if dims.rotary else None
        self.register_buffer("products", pairs(d), persistent=False)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        sequences = self._project(x)
        if key_padding_mask is not None:
            sequences = (*sequences, key_padding_mask[:, None, :, None])
        empty = self.begin(x)
        parts = [scan(partial(self._chunk, 0), sequences, empty)]
        if not self.causal:
            parts.append(scan(partial(self._chunk, 1), sequences, empty, reverse=True))
        return self._finish(parts, x)

    def begin(self, x: Tensor) -> Tensors:
        """Σ_j φ(k_j)ᵀ [v_j, 1] of the keys beyond the window, (B, H, M, D + 1), and of those within the keys
        (B, H, window - 1, d) and [values, 1] (B, H, window - 1, D + 1), all 0 where there is none yet."""
        heads, D = (len(x), self.dims.n_heads), self.dims.d_head
        shapes = (self._size, D + 1), (self.reach, self.d), (self.reach, D + 1)
        return tuple(torch.zeros(*heads, *shape, dtype=accumulator(x), device=x.device) for shape in shapes)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = self._project(x, position)
            part, tensors = self._chunk(0, position, tensors, q, k, v.to(q.dtype))
            return self._finish([part], x), tensors

    def _project(self, x: Tensor, first: int = 0) -> Tensors:
        """Queries and keys (B, H, N, d), both divided by d^¼ and in float32 at least, and values (B, H, N, D)."""
        width = self.dims.n_heads * self.d
        pieces = self.qkv(x).split([width, width, self.dims.d_model], dim=-1)
        q, k, v = (rearrange(piece, "b n (h d) -> b h n d", h=self.dims.n_heads) for piece in pieces)
        q, k = (z.to(accumulator(z)) * self.d**-0.25 for z in (q, k))
        if self.rotary is not None:
            q, k = self.rotary(q, first), self.rotary(k, first)
        return q, k, v

    def _chunk(
        self, nearest: int, _first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, *hidden: Tensor
    ) -> tuple[Tensor, Tensors]:
        """Sums over the keys at a distance of ``nearest`` or more, for ``scan``: state as in ``begin``, and out
        (B, H, n, D + 2): numerator, denominator, and the logarithm of what both are divided by."""
        total, past_keys, past_values = state
        v = F.pad(v, (0, 1), value=1)
        if hidden:
            k, v = k.masked_fill(hidden[0], 0), v.masked_fill(hidden[0], 0)
        n = q.shape[2]
        k, v = torch.cat([past_keys, k], dim=2), torch.cat([past_values, v], dim=2)  # (B, H, reach + n, …)
        place = torch.arange(k.shape[2], device=k.device)
        distance = place[self.reach :, None] - place
        near = (distance >= nearest) & (distance < self.window)
        far = distance >= max(nearest, self.window)
        logits = q @ k.mT
        exact = logits.masked_fill(~near | (v[..., -1] == 0)[:, :, None], -math.inf)
        taylor = (1 + logits + logits.square() / 2).masked_fill(~far, 0)
        of_query, of_key, other = self.products.to(q.dtype)
        beyond = taylor @ v + features(q, of_query, other) @ total
        top = torch.maximum(exact.amax(-1, keepdim=True), beyond[..., -1:].log()).detach().clamp(min=LOWEST)
        # Where Taylor weights are summed at all, top is at least log(1/2): nothing is cut off.
        out = (exact - top).exp() @ v + beyond * (-top).clamp(max=1).exp()
        total = total + features(k[:, :, :n], of_key, other).mT @ v[:, :, :n]
        return torch.cat([out, top], dim=-1), (total, k[:, :, n:], v[:, :, n:])

    def _finish(self, parts: list[Tensor], x: Tensor) -> Tensor:
        """The parts of ``_chunk``, joined, divided and projected. (B, N, C)."""
        tops = [part[..., -1:].detach() for part in parts]
        top = torch.stack(tops).amax(0)
        total = sum(part[..., :-1] * (own - top).exp() for part, own in zip(parts, tops, strict=True))
        assert isinstance(total, Tensor)
        denominator = total[..., -1:]
        mixed = total[..., :-1] / denominator.masked_fill(denominator == 0, 1)
        y: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)").to(x.dtype))
        return y

    @property
    def _size(self) -> int:
        return 1 + self.d + self.products.shape[-1]

    def state_size(self, length: int) -> int:
        """The sums of the Taylor weights, and the keys and values in the window."""
        D = self.dims.d_head
        within = min(length, self.window if self.causal else max(0, 2 * self.window - 1))
        return self.dims.n_heads * (self._size * (D + 1) + within * (self.d + D))

    def cache_size(self, length: int) -> int:
        D = self.dims.d_head
        return self.dims.n_heads * (self._size * (D + 1) + self.reach * (self.d + D + 1))


def pairs(d: int) -> Tensor:
    """Three matrices (d, d (d + 1) / 2): what the first or second picks from z, times what the third does, is z_a z_b
    for each a <= b. The first, for queries, has a factor ½ where a = b, and the second, for keys, has none: so the sum
    over both is (q·k)² / 2, and no factor is rounded in any dtype."""
    a, b = torch.triu_indices(d, d)
    each = torch.arange(len(a))
    picked = torch.zeros(3, d, len(a))
    picked[0, a, each] = torch.where(a == b, 0.5, 1.0)
    picked[1, a, each] = picked[2, b, each] = 1
    return picked


def features(z: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """1, z and its products, given two matrices of ``pairs``. (B, H, n, d) -> (B, H, n, M)."""
    return torch.cat([torch.ones_like(z[..., :1]), z, (z @ left) * (z @ right)], dim=-1)
