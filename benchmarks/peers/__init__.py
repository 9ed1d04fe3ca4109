"""One file per backend: ours and a public implementation of the same mechanism, with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Pair:
    """Two layers that should compute the same: each maps (B, N, d_model) to (B, N, d_model), projections included.

    Attributes:
        ours: a ``zoo.MultiHeadAttention``.
        theirs: the peer's layer, or the peer's inner attention within projections as ours has them.
        package: the peer's distribution on PyPI.
        setting: what both were set to, in a few words.
        tolerance: the largest relative difference of the outputs, and of the gradients of the input, as L2 norms.
        why: what makes them differ by more than rounding; empty where nothing does.
    """

    ours: nn.Module
    theirs: nn.Module
    package: str
    setting: str
    tolerance: float = 1e-4
    why: str = ""
