"""Performer: M positive random features estimate the softmax kernel without bias (FAVOR+).

Rethinking Attention with Performers, arXiv:2009.14794, lemma 1 and section 2.4: with ``x' = x / D^¼``,
``φ(x) = exp(W x' - |x'|² / 2) / √M``, so that the mean of ``φ(q) φ(k)ᵀ`` over W is ``exp(q·k / √D)``. The rows of W are
Gaussian, and orthogonal within blocks of D, which lowers the variance. All heads share W.
Cost: O(N M D) time, O(N D) memory.

The estimate is unbiased, but its variance grows exponentially with the lengths of queries and keys, so a sharp weight
needs very many features. Example: 64 keys of one length (D = 16), one of which equals the query and has a logit of 8.
Softmax attention gives this key 89 % of the weight; Performer gives it 17, 26 and 37 % with M = 64, 256 and 1024.
Looking up a key, as mqar and noisy_recall require, needs such weights: on mqar at 64 tokens (M = 64, D = 16, the
context at a random place) Performer reaches 50 % after 600 optimizer steps at 3e-3, and ``full`` 89 and 96 % (two
seeds) after 500.

On mqar at 64 tokens ``performer`` recalls 98.9, 97.5 and 99.5 % after 1,000 optimizer steps of 64 samples (learning
rate 3e-3, the best of three; three seeds, ``results/cpu-2core/mqar_64``).

Departures from the paper:
- No epsilon is added to the features. The authors' code needs one because it divides all keys by one maximum; with keys
  larger than in a fresh model, the epsilon drowns the features. Here each feature has its own maximum (see
  ``zoo.cores.kernel_attention``), so no denominator vanishes and the result is that of the equation.
- In the causal form that maximum is over the keys of earlier chunks. A feature above e⁵⁹ times the maximum (float32)
  counts as e⁵⁹ times the maximum for the rows of its own chunk.
- W is drawn again every ``redraw_interval`` optimizer steps where the training loop calls
  ``encoder.redraw(after=steps)``, as ``compare`` does. performer-pytorch counts forwards instead (1000 by default); the
  authors' JAX code draws in every forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zoo.contract import Attention, Dims, Init, Tensors, Traits, at_least
from zoo.cores.kernel_attention import (
    FeatureMap,
    empty_state,
    kernel_absorb,
    kernel_attention,
    kernel_state_size,
    kernel_step,
)
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class PerformerConfig:
    """features: M, random features a head (m in the paper).
    redraw_interval: optimizer steps between two draws of the features; 0 keeps the first draw.
    """

    features: int = 256
    redraw_interval: int = 1000

    def __post_init__(self) -> None:
        at_least(1, **{"performer.features": self.features})
        at_least(0, **{"performer.redraw_interval": self.redraw_interval})


@register("performer", config=PerformerConfig)
class PerformerAttention(Attention):
    """Kernel attention with random features that estimate softmax attention."""

    traits = Traits(
        family="kernel",
        source="Choromanski et al., arXiv:2009.14794",
        year=2020,
        time="O(N·M)",
        memory="O(N)",
        causal=True,
        capacity="features",
        stochastic=True,
        subquadratic=True,
        init=Init(variance=1 / 3, source="nn.Linear's default, as in performer-pytorch"),
    )
    projection: Tensor

    def __init__(self, dims: Dims, config: PerformerConfig) -> None:
        super().__init__(dims)
        self.redraw_interval = config.redraw_interval
        self.register_buffer("projection", orthogonal_gaussian(config.features, dims.d_head))  # W: (M, D)

    def redraw(self) -> None:
        self.projection = orthogonal_gaussian(*self.projection.shape).to(self.projection)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return kernel_attention(q, k, v, self._features(), key_padding_mask=key_padding_mask, causal=self.causal)

    def begin(self, x: Tensor) -> Tensors:
        return empty_state(x, self._features())

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return kernel_step(q, k, v, self._features(), tensors, position)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        return kernel_absorb(q, k, v, self._features())

    def _features(self) -> FeatureMap:
        """The feature map with the W of now, so that a backward after the next ``redraw`` still uses this W."""
        queries, keys = (partial(features, self.projection) for features in (query_features, key_features))
        return FeatureMap(queries, keys, size=len(self.projection), logarithmic=True)

    def state_size(self, length: int) -> int:
        return kernel_state_size(self.dims, len(self.projection))

    def cache_size(self, length: int) -> int:
        """The state, and the maximum of each feature so far, by which the state is divided."""
        return self.state_size(length) + self.dims.n_heads * len(self.projection)


def project(projection: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, n, D) -> x' (B, H, n, D), W x' (B, H, n, M)."""
    x = x * x.shape[-1] ** -0.25
    return x, x @ projection.to(x.dtype).mT


def query_features(projection: Tensor, q: Tensor, _first: int) -> Tensor:
    return project(projection, q)[1]  # |q'|² / 2 is the same for all features of a query and cancels


def key_features(projection: Tensor, k: Tensor, _first: int) -> Tensor:
    k, projected = project(projection, k)
    return projected.sub_(k.square().sum(-1, keepdim=True) / 2)


def orthogonal_gaussian(rows: int, columns: int) -> Tensor:
    """(rows, columns): rows orthogonal within blocks of ``columns``, as long as Gaussian rows."""
    blocks, dtype = -(-rows // columns), torch.get_default_dtype()
    wide = torch.promote_types(dtype, torch.float32)  # the decomposition needs at least float32
    q, r = torch.linalg.qr(torch.randn(blocks, columns, columns, dtype=wide))
    directions = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # uniform over rotations and reflections
    lengths = torch.randn(rows, columns, dtype=wide).norm(dim=-1, keepdim=True)
    drawn: Tensor = directions.mT.flatten(0, 1)[:rows] * lengths
    return drawn.to(dtype)
