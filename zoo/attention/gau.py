"""Gated attention unit with mixed chunk attention (FLASH): squared-relu attention in chunks, linear attention over all.

Transformer Quality in Linear Time, arXiv:2202.10447, sections 2 and 3. u, v (N, e) and z (N, s) are each SiLU of a
linear map of x. Two attentions have queries q, q' and keys k, k', each z with its own learned scale and offset per
feature:

    out = (u ∘ (quadratic + linear)) W_o
    quadratic_i = Σ_j relu(q_i·k_j / c)² v_j   over the keys j in i's chunk of c positions
    linear_i = q'_i Σ_j k'_jᵀ v_j / n          over all n keys; when causal, over the n keys of earlier chunks

When causal, j <= i in the quadratic part. There is one head. Padded positions count when the sequence is cut into
chunks.
Cost: O(N (c + s) e) time, O(N e) memory.

Departures from the paper:
- ``expand`` = e / d_model is 1, so a layer is as large as that of other backends; the paper has 2, and no feed-forward.
- The quadratic part has no relative bias: positions are those of the encoder. Rotary ones turn all queries and keys.
- n counts the real keys in the sum, so neither padding nor later positions change the scale.
- Scales start at constants with which the weights of a row sum to the order of 1. The paper draws scales of size 0.02,
  which, with squares and without bias, give hardly any attention at first.
- The norm at the beginning of the paper's unit has no gain here: the encoder's LayerNorm before it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.contract import Dims, Mixer, Tensors, Traits, at_least
from zoo.cores.scan import fold, scan, scan_step, scan_to_end, together
from zoo.embeddings import RotaryPositions
from zoo.functional import accumulator, recompute
from zoo.registry import register

EPSILON = 1e-6  # of the norm


@dataclass(frozen=True, kw_only=True)
class GAUConfig:
    """query_width: s, the width of queries and keys; at most d_model.
    expand: e / d_model, the width of gate and values as a multiple of the input (2 in the paper).
    chunk: c, positions in a chunk, within which attention is quadratic; at most max_len.
    """

    query_width: int = 128
    expand: int = 1
    chunk: int = 256

    def __post_init__(self) -> None:
        at_least(1, **{"gau.query_width": self.query_width, "gau.expand": self.expand, "gau.chunk": self.chunk})


@register("gau", config=GAUConfig)
class GatedAttentionUnit(Mixer):
    """Gated single-head attention: squared relu within chunks, linear across them."""

    traits = Traits(
        family="kernel",
        source="Hua et al., arXiv:2202.10447",
        year=2022,
        time="O(N)",
        memory="O(N)",
        causal=True,
        capacity="chunk",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: GAUConfig) -> None:
        super().__init__(dims)
        C, s, c = dims.d_model, min(config.query_width, dims.d_model), min(config.chunk, dims.max_len)
        self.chunk = c
        self.widths = (config.expand * C, config.expand * C, s)  # of u, v and z
        self.hidden = nn.Linear(C, sum(self.widths))
        self.out = nn.Linear(config.expand * C, C)
        for linear in (self.hidden, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        sizes = torch.tensor([(c / s) ** 0.25, (c / s) ** 0.25, s**-0.25, s**-0.25])
        self.scale = nn.Parameter(sizes[:, None].repeat(1, s))  # of q, k, q' and k'
        self.offset = nn.Parameter(torch.zeros(4, s))
        self.rotary = RotaryPositions.of(dims, s)
        self.bind_to("chunk", c)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        u, v, z = self._project(x)
        real = torch.ones_like(z[..., :1], dtype=torch.bool)
        if key_padding_mask is not None:
            real = ~key_padding_mask[:, None, :, None]
        learned, size = (self.scale, self.offset), self.chunk * together(v, self.chunk)
        if self.causal:
            mixed = scan(self._causal, (v, z, real), self.begin(x), learned, size=size)
        else:
            mean = recompute(partial(self._mean, real), v, z, *learned)
            mixed = scan(self._both, (v, z, real), (), (mean, *learned), size=size)
        return self._finish(u, mixed)

    def begin(self, x: Tensor) -> Tensors:
        """Earlier chunks: Σ_j k'_jᵀ v_j (B, 1, s, e) and the number of keys (B, 1, 1, 1). The current chunk: values
        (B, 1, r, e) and z (B, 1, r, s) of its r positions so far."""
        _, e, s = self.widths
        shapes = (s, e), (1, 1), (0, e), (0, s)
        return tuple(torch.zeros(len(x), 1, *shape, dtype=accumulator(x), device=x.device) for shape in shapes)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        with torch.autocast(x.device.type, enabled=False):
            u, v, z = self._project(x)
            sequences = v, z, torch.ones_like(z[..., :1], dtype=torch.bool)
            mixed, tensors = scan_step(self._causal, position, sequences, tensors, (self.scale, self.offset))
            return self._finish(u, mixed), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        u, v, z = self._project(x)
        sequences, size = (v, z, torch.ones_like(z[..., :1], dtype=torch.bool)), self.chunk * together(v, self.chunk)
        mixed, after = scan_to_end(self._causal, sequences, self.begin(x), (self.scale, self.offset), size=size)
        return self._finish(u, mixed), after

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """u, v (B, 1, N, e) and z (B, 1, N, s) before their SiLU, which runs in float32 at least."""
        x = F.rms_norm(x.to(accumulator(x)), x.shape[-1:], eps=EPSILON).to(x.dtype)
        pieces: tuple[Tensor, ...] = self.hidden(x)[:, None].split(self.widths, dim=-1)
        return pieces

    def _turned(self, z: Tensor, which: int, first: int, scale: Tensor, offset: Tensor) -> Tensor:
        """One of q, k, q' and k' (``which`` = 0 to 3) for the positions from ``first`` on. (B, 1, n, s)."""
        z = z * scale[which] + offset[which]
        return z if self.rotary is None else self.rotary(z, first)

    def _quadratic(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights (B, 1, n, m) of m keys in n rows."""
        return (q @ k.mT / self.chunk).relu().square()

    def _mean(self, real: Tensor, v: Tensor, z: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """The mean of k'ᵀ v over all real keys. (B, 1, s, e)."""
        with torch.autocast(v.device.type, enabled=False):
            v, z = F.silu(v.to(accumulator(v))) * real, F.silu(z.to(accumulator(z)))
            return self._turned(z, 3, 0, scale, offset).mT @ v / real.sum(2, keepdim=True).clamp(min=1)

    def _both(
        self,
        first: int,
        state: Tensors,
        v: Tensor,
        z: Tensor,
        real: Tensor,
        mean: Tensor,
        scale: Tensor,
        offset: Tensor,
    ) -> tuple[Tensor, Tensors]:
        """Chunks in both directions, for ``scan``, without a state. ``mean``: the result of ``_mean``."""
        v, z, n = F.silu(v) * real, F.silu(z), v.shape[2]
        q, k, query = (self._turned(z, which, first, scale, offset) for which in (0, 1, 2))
        far = query @ mean
        if n > self.chunk:
            q, k, v = (fold(each, self.chunk) for each in (q, k, v))  # (B, 1, chunks, chunk, …)
        return far + (self._quadratic(q, k) @ v).flatten(2, -2)[:, :, :n], state

    def _causal(
        self, first: int, state: Tensors, v: Tensor, z: Tensor, real: Tensor, scale: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensors]:
        """Chunks, or the next positions of one chunk, for ``scan`` and for steps. State: as in ``begin``."""
        total, count, past_v, past_z = state
        past, n = past_v.shape[2], v.shape[2]
        v, z = F.silu(v) * real, F.silu(z)
        if n > self.chunk:
            turned = (self._turned(z, which, first, scale, offset) for which in (0, 1, 2, 3))
            q, k, query, key, values, real = (fold(each, self.chunk) for each in (*turned, v, real))
            totals = torch.cat([total[:, :, None], key.mT @ values], dim=2).cumsum(2)  # before each, and after all
            counts = torch.cat([count[:, :, None], real.sum(3, keepdim=True)], dim=2).cumsum(2)
            far = query @ (totals[:, :, :-1] / counts[:, :, :-1].clamp(min=1))
            out = (self._quadratic(q, k).tril() @ values + far).flatten(2, 3)[:, :, :n]
            whole, begun = n // self.chunk, n - n % self.chunk
            state = totals[:, :, whole], counts[:, :, whole], v[:, :, begun:], z[:, :, begun:]
            return out, tuple(x.clone() for x in state)  # copies: views would keep all chunks alive
        q, query = (self._turned(z, which, first, scale, offset) for which in (0, 2))
        v, z = torch.cat([past_v, v], dim=2), torch.cat([past_z, z], dim=2)
        k, key = (self._turned(z, which, first - past, scale, offset) for which in (1, 3))
        out = self._quadratic(q, k).tril(past) @ v + query @ (total / count.clamp(min=1))
        if v.shape[2] < self.chunk:
            return out, (total, count, v, z)
        count = count + past + real.sum(2, keepdim=True)  # positions of steps are never padding
        return out, (total + key.mT @ v, count, v[:, :, :0], z[:, :, :0])

    def _finish(self, u: Tensor, mixed: Tensor) -> Tensor:
        gated = F.silu(u.to(accumulator(u))) * mixed
        y: Tensor = self.out(gated[:, 0].to(u.dtype))
        return y

    def state_size(self, length: int) -> int:
        """The sum over earlier chunks (or all keys), and the keys and values of one chunk."""
        _, e, s = self.widths
        return s * e + min(length, self.chunk) * (s + e)

    def cache_size(self, length: int) -> int:
        _, e, s = self.widths
        return s * e + 1 + length % self.chunk * (s + e)
