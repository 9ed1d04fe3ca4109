"""Based: linear attention with Taylor features for all keys, and exact weights for keys nearby.

Simple linear attention language models balance the recall-throughput tradeoff, arXiv:2402.18668, section 4. Queries
and keys have a small width d = ``features``. For ``x = q·k / √d``, ``φ(q)·φ(k) = 1 + x + x² / 2`` is the second-order
Taylor series of exp(x), with ``φ(z) = [1, z / d^¼, z ⊗ z / √(2d)]`` (arXiv:2209.04881). Attention is exact in a small
window. Here a key j has in the row of i the weight

    exp(x_ij) for |i - j| < window, 1 + x_ij + x_ij² / 2 (which is at least 1/2) beyond,

divided by the sum of all weights of the row; j <= i when causal. A window over all keys gives softmax attention.
Cost: O(N (d² + window) D) time, O(N D) memory.

Positions join the sums of the keys beyond the window as they leave the window. So the sums never include a near key,
and nothing is subtracted. z ⊗ z is symmetric and each product is stored once, so M = 1 + d + d (d + 1) / 2. A row is
divided by its largest exact weight, or by 1 where that is less and the row has Taylor weights: so no exponential
overflows and no denominator vanishes.

Departures from the paper:
- The paper alternates layers with Taylor attention and layers with a window (and short convolutions). A backend belongs
  to one layer, so each layer has both, under one denominator. ``window=0`` is the paper's Taylor attention alone.
- The form in both directions is not the paper's: one scan in each direction, and in both the position's own key has
  half its weight. On two CPU cores at N = 8192, forward and backward, both scans take 0.35 (heads of 64) to 0.5 (of 32)
  of fused full attention's time, and about 0.6 on a Xeon whose fused kernel is faster: M is 153 for any head width,
  and chunks weigh all their keys, near ones twice.
- Up to ``short`` positions, in both directions, the weights of all pairs are computed at once, and again in backward:
  there two scans take more time and memory.
- No epsilon is added to the denominator, which is at least 1/4 after that division.
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
from zoo.cores.scan import CHUNK, fold, is_long, scan, scan_both, scan_step, scan_to_end
from zoo.embeddings import RotaryPositions, Table
from zoo.functional import accumulator
from zoo.registry import register

LOWEST = -1e30  # stands for the logarithm of a weight of 0


@dataclass(frozen=True, kw_only=True)
class BasedConfig:
    """features: d, the width of queries and keys in each head (d' in the paper).
    window: keys less than this far away have exact weights, on both sides unless causal; 0 for none.
    short: in both directions, up to this length, the weights of all pairs are computed, which costs less there.
    """

    features: int = 16
    window: int = 64
    short: int = 512

    def __post_init__(self) -> None:
        at_least(1, **{"based.features": self.features})
        at_least(0, **{"based.window": self.window, "based.short": self.short})


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

    def __init__(self, dims: Dims, config: BasedConfig) -> None:
        super().__init__(dims)
        C, H, d = dims.d_model, dims.n_heads, config.features
        self.d, self.window = d, min(config.window, dims.max_len)
        self.reach = max(0, self.window - 1)  # earlier positions in a position's window
        self.qkv = nn.Linear(C, 2 * H * d + C)
        self.out = nn.Linear(C, C)
        for linear in (self.qkv, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
            nn.init.zeros_(linear.bias)
        self.rotary = RotaryPositions.of(dims, d)
        self.short = 0 if self.causal else config.short
        self.products = Table(partial(pairs, d)) if dims.max_len > self.short else None

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        sequences = self._project(x)
        if key_padding_mask is not None:
            sequences = (*sequences, key_padding_mask[:, None, :, None])
        if x.shape[1] <= self.short:
            return self._finish(scan(self._at_once, sequences, (), size=x.shape[1]), x)
        if self.causal:
            return self._finish(scan(self._chunk, sequences, self.begin(x), next_state=self._next_state, folds=True), x)
        before, after = scan_both(
            self._chunk, sequences, sequences, self.begin(x), next_state=self._next_state, folds=True
        )
        share = (before[..., -1:] - after[..., -1:]).sigmoid()  # share of earlier keys in all weights
        return self._finish(torch.lerp(after[..., :-1], before[..., :-1], share), x)

    def begin(self, x: Tensor) -> Tensors:
        """Beyond the window Σ_j φ(k_j)ᵀ [v_j, 1], (B, H, M, D + 1); within it the keys (B, H, window - 1, d) and
        [values, 1] (B, H, window - 1, D + 1). All are 0 before the first position."""
        heads, D = (len(x), self.dims.n_heads), self.dims.d_head
        shapes = (self._size, D + 1), (self.reach, self.d), (self.reach, D + 1)
        return tuple(torch.zeros(*heads, *shape, dtype=accumulator(x), device=x.device) for shape in shapes)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = self._project(x, position)
            mixed, tensors = scan_step(self._chunk, position, (q, k, v), tensors)
            return self._finish(mixed, x), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        mixed, after = scan_to_end(self._chunk, self._project(x), self.begin(x), folds=True)
        return self._finish(mixed, x), after

    def _project(self, x: Tensor, first: int = 0) -> Tensors:
        """Queries and keys (B, H, N, d), both divided by d^¼ and in float32 at least, and values (B, H, N, D)."""
        width = self.dims.n_heads * self.d
        pieces = self.qkv(x).split([width, width, self.d_model], dim=-1)
        q, k, v = (rearrange(piece, "b n (h d) -> b h n d", h=self.dims.n_heads) for piece in pieces)
        q, k = (z.to(accumulator(z)) * self.d**-0.25 for z in (q, k))
        if self.rotary is not None:
            q, k = self.rotary(q, first), self.rotary(k, first)
        return q, k, v

    def _at_once(
        self, _first: int, _state: Tensors, q: Tensor, k: Tensor, v: Tensor, *hidden: Tensor
    ) -> tuple[Tensor, Tensors]:
        """The weighted mean of the values for each position, (B, H, N, D), from the weights of all pairs: a chunk of
        ``scan`` that is the whole input, so that backward computes the weights again."""
        k, v = self._real(k, v, *hidden)
        place = torch.arange(q.shape[2], device=q.device)
        return self._mean(q, k, v, (place[:, None] - place).abs())[0], ()

    def _chunk(
        self, _first: int, state: Tensors, q: Tensor, k: Tensor, v: Tensor, *hidden: Tensor
    ) -> tuple[Tensor, Tensors]:
        """The weighted mean of the values up to each position, (B, H, n, D), for ``scan``. In both directions the
        position's own key has half its weight, and the last feature is the logarithm of the sum of weights. State: as
        in ``begin``."""
        total, n = state[0], q.shape[2]
        k, v = self._with_past(state, k, v, *hidden)  # (B, H, past + n, …)
        size = max(CHUNK, self.window)
        if not is_long(q, size):
            return self._after(total, q, k, v), self._moved(total, k, v)
        keys, values = (fold(x[:, :, :n], size) for x in (k, v))  # (B, H, blocks, size, …)
        sums = (self._features(keys, of_keys=True).mT @ values).cumsum(2)
        after = total + sums[:, :, -1], k[:, :, n:], v[:, :, n:]
        total = total[:, :, None] + F.pad(sums[:, :, :-1], (0, 0, 0, 0, 1, 0))
        keys, values = (F.pad(x, (0, 0, 0, -n % size)).unfold(2, self.reach + size, size).mT for x in (k, v))
        return self._after(total, fold(q, size), keys, values).flatten(2, 3)[:, :, :n], after

    def _after(self, total: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result of ``_chunk`` for n positions, (…, n, D). They see the sums total (B, H, …, M, D + 1), and singly
        the keys k (B, H, …, window - 1 + n, d) with v (B, H, …, window - 1 + n, D + 1)."""
        place = torch.arange(k.shape[-2], device=k.device)
        distance = place[self.reach :, None] - place
        mean, below, top = self._mean(q, k, v, distance, own=1 if self.causal else 0.5, total=total)
        return mean if self.causal else torch.cat([mean, below.log() + top], dim=-1)

    def _mean(
        self, q: Tensor, k: Tensor, v: Tensor, distance: Tensor, *, own: float = 1.0, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted mean of the values for n queries, (…, n, D), the sum of their weights, and the logarithm of the
        factor that it lacks, both (…, n, 1). A query without a key has 0, 1 and ``LOWEST``.

        Args:
            q: (…, n, d). k, v: (…, keys, d) and (…, keys, D + 1), as ``_real`` returns them.
            distance: (n, keys). A query does not see a key with a negative one.
            own: share of the weight of a key at distance 0.
            total: the sums of further keys, (…, M, D + 1), that have Taylor weights.
        """
        share = torch.where(distance == 0, own, 1).to(v.dtype)
        near, far = (distance >= 0) & (distance < self.window), share * (distance >= self.window)
        real = v[:, :1, ..., -1:]
        logits = q @ k.mT
        exact = logits + torch.where(near & (real > 0).mT, share.log(), -math.inf)
        top = exact.detach().amax(-1, keepdim=True)
        beyond = far @ real if total is None else far @ real + total[:, :1, ..., :1, -1:]
        # A Taylor weight is at least 1/2, or half of 1/2.
        top = torch.where(beyond > 0, top.clamp(min=0), top).clamp(min=LOWEST)
        scale = (-top).clamp(max=0).exp()
        taylor = torch.addcmul(far, far, torch.addcmul(logits, logits, logits, value=0.5))
        weights = torch.addcmul((exact - top).exp(), taylor, scale)
        sums = weights @ v
        if total is not None:
            sums = sums + self._features(q) * scale @ total
        below = sums[..., -1:].masked_fill(~(sums[..., -1:] > 0), 1)
        return sums[..., :-1] * below.reciprocal(), below, top

    def _next_state(self, _first: int, state: Tensors, _q: Tensor, k: Tensor, v: Tensor, *hidden: Tensor) -> Tensors:
        """Only the next state, for ``scan``."""
        return self._moved(state[0], *self._with_past(state, k, v, *hidden))

    def _with_past(self, state: Tensors, k: Tensor, v: Tensor, *hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As ``_real``, (B, H, window - 1 + n, …), with those before."""
        k, v = self._real(k, v, *hidden)
        return torch.cat([state[1], k], dim=2), torch.cat([state[2], v], dim=2)

    def _real(self, k: Tensor, v: Tensor, *hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, n, d) and [values, 1] (B, H, n, D + 1), both 0 at padding."""
        v = F.pad(v, (0, 1), value=1)
        if hidden:
            k, v = k.masked_fill(hidden[0], 0), v.masked_fill(hidden[0], 0)
        return k, v

    def _moved(self, total: Tensor, k: Tensor, v: Tensor) -> Tensors:
        """The state after k and v, which come from ``_with_past``."""
        n = k.shape[2] - self.reach
        return total + self._features(k[:, :, :n], of_keys=True).mT @ v[:, :, :n], k[:, :, n:], v[:, :, n:]

    def _features(self, z: Tensor, *, of_keys: bool = False) -> Tensor:
        assert self.products is not None, "it scans"
        of_query, of_key, other = self.products(z).to(z.dtype)
        return features(z, of_key if of_keys else of_query, other)

    def _finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)").to(x.dtype))
        return y

    @property
    def _size(self) -> int:
        return 1 + self.d + self.d * (self.d + 1) // 2

    def state_size(self, length: int) -> int:
        """The sums of the Taylor weights, and the keys and values in the window."""
        D = self.dims.d_head
        within = min(length, self.window if self.causal else max(0, 2 * self.window - 1))
        return self.dims.n_heads * (self._size * (D + 1) + within * (self.d + D))

    def cache_size(self, length: int) -> int:
        D = self.dims.d_head
        return self.dims.n_heads * (self._size * (D + 1) + self.reach * (self.d + D + 1))


def pairs(d: int) -> Tensor:
    """Three matrices (d, d (d + 1) / 2) that pick features of z: the first or second pick times the third is z_a z_b
    for each a <= b. The first matrix, for queries, has a factor ½ where a = b; the second, for keys, has none. So the
    product of query and key features is (q·k)² / 2, and no factor is rounded in any dtype."""
    a, b = torch.triu_indices(d, d)
    each = torch.arange(len(a))
    picked = torch.zeros(3, d, len(a), dtype=torch.float32)
    picked[0, a, each] = 1 - 0.5 * (a == b).float()
    picked[1, a, each] = picked[2, b, each] = 1
    return picked


def features(z: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[1, z, products of z], from two matrices of ``pairs``. (…, n, d) -> (…, n, M)."""
    return torch.cat([torch.ones_like(z[..., :1]), z, (z @ left) * (z @ right)], dim=-1)
