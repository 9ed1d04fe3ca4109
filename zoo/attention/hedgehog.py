"""Hedgehog: linear attention with learned features that can be trained to mimic softmax attention.

The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry, arXiv:2402.04347, section 4: kernel
attention ``out_i = Σ_j a_ij v_j``, ``a_ij = φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j)`` with ``φ(x) = [exp(x W), exp(-x W)]``.
Each head learns two D × D matrices W, one for queries and one for keys, that start as the identity. The authors' code
divides each half by its sum over the features, ``φ(x) = [softmax(x W), softmax(-x W)]``; so does this backend.
Cost: O(N D²) time, O(N D) memory.

The paper first trains only the maps W, with ``distillation_loss``: the cross-entropy of a, given the weights of softmax
attention over the same queries and keys. The loss takes O(N²) time and O(N) memory.

Departures from the paper:
- W has no bias, as in the authors' code.
- The authors' code raises features to 1e-12 so that no denominator vanishes. Here features are logarithms over a
  reference for each feature (see ``zoo.cores.kernel_attention``), which cancels in the quotient. When causal, a feature
  above e⁵⁹ times its reference (float32) counts as e⁵⁹ times the reference in its own chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.contract import Attention, Dims, Tensors, Traits
from zoo.cores.kernel_attention import (
    FeatureMap,
    empty_state,
    kernel_absorb,
    kernel_attention,
    kernel_state_size,
    kernel_step,
)
from zoo.functional import accumulator, recompute
from zoo.registry import register

BUDGET = 2**22  # weights in one chunk of rows of the distillation loss


@dataclass(frozen=True, kw_only=True)
class HedgehogConfig:
    """No options."""


@register("hedgehog", config=HedgehogConfig)
class HedgehogAttention(Attention):
    """Kernel attention with learned features that mimic softmax attention."""

    traits = Traits(
        family="kernel",
        source="Zhang et al., arXiv:2402.04347",
        year=2024,
        time="O(N)",
        memory="O(N)",
        causal=True,
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: HedgehogConfig) -> None:
        super().__init__(dims)
        self.query_map = nn.Parameter(torch.eye(dims.d_head).repeat(dims.n_heads, 1, 1))  # W: (H, D, D)
        self.key_map = nn.Parameter(torch.eye(dims.d_head).repeat(dims.n_heads, 1, 1))
        self.features = FeatureMap(log_features, log_features, size=2 * dims.d_head, logarithmic=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        q, k = q @ self.query_map, k @ self.key_map
        return kernel_attention(q, k, v, self.features, key_padding_mask=key_padding_mask, causal=self.causal)

    def begin(self, x: Tensor) -> Tensors:
        return empty_state(x, self.features)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        q, k = q @ self.query_map.to(q.dtype), k @ self.key_map.to(k.dtype)
        return kernel_step(q, k, v, self.features, tensors, position)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        q, k = q @ self.query_map.to(q.dtype), k @ self.key_map.to(k.dtype)
        return kernel_absorb(q, k, v, self.features)

    def state_size(self, length: int) -> int:
        return kernel_state_size(self.dims, self.features.size)

    def cache_size(self, length: int) -> int:
        """The state, and the reference of each feature."""
        return self.state_size(length) + self.dims.n_heads * self.features.size

    def distillation_loss(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """``-Σ_j softmax(q_i kᵀ / √D)_j log a_ij``, its mean over heads and real queries i. A scalar.

        q, k: (B, H, N, D), without gradient: only the two maps get one. key_padding_mask: (B, N) bool, True = padding.
        Forward and backward compute the weights for one chunk of rows at a time.
        """
        B, H, N, D = q.shape
        q, k = (x.detach().to(accumulator(x)) for x in (q, k))
        hidden = torch.zeros(B, N, dtype=torch.bool, device=q.device) if key_padding_mask is None else key_padding_mask
        place = torch.arange(N, device=q.device)
        floor, least = torch.finfo(q.dtype).min, torch.finfo(q.dtype).tiny ** 0.75  # least counts for smaller weights

        def of_rows(rows: slice, fq: Tensor, fk: Tensor) -> Tensor:
            unseen = hidden[:, None, None]
            if self.causal:
                unseen = unseen | (place > place[rows, None])
            target = (q[:, :, rows] @ k.mT * D**-0.5).masked_fill(unseen, floor).softmax(-1)
            weights = (fq @ fk.mT).masked_fill(unseen, 0)
            total = weights.sum(-1, keepdim=True)
            losses: Tensor = -(target * (weights.clamp(min=least).log() - total.clamp(min=least).log())).sum(-1)
            return losses.masked_fill(hidden[:, None, rows], 0).sum()

        with torch.autocast(q.device.type, enabled=False):
            fq = log_features(q @ self.query_map.to(q.dtype), 0).exp()
            fk = log_features(k @ self.key_map.to(q.dtype), 0).exp()
            step = max(1, BUDGET // (max(1, B) * H * N))
            chunks = [slice(first, first + step) for first in range(0, N, step)]
            total = torch.stack([recompute(partial(of_rows, rows), fq[:, :, rows], fk) for rows in chunks]).sum()
        mean: Tensor = total / (H * (~hidden).sum().clamp(min=1))
        return mean


def log_features(x: Tensor, _first: int) -> Tensor:
    """The logarithm of φ, given x W. (B, H, n, D) -> (B, H, n, 2 D)."""
    return torch.cat([F.log_softmax(x, dim=-1), F.log_softmax(-x, dim=-1)], dim=-1)
