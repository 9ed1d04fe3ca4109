"""One file per backend: our layer and a public implementation of the same method, with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Pair:
    """Two layers that should compute the same function from (B, N, d_model) to (B, N, d_model), projections included.

    Attributes:
        ours: a ``zoo.MultiHeadAttention``.
        theirs: the peer's layer, or the peer's inner attention between projections as in our layer.
        package: the peer's distribution on PyPI.
        setting: the settings of both, in a few words.
        tolerance: the largest relative difference of the outputs, and of the gradients of the input, as L2 norms.
        why: the reason for a difference beyond rounding; empty without such a difference.
    """

    ours: nn.Module
    theirs: nn.Module
    package: str
    setting: str
    tolerance: float = 1e-4
    why: str = ""
