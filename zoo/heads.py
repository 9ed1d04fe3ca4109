"""What turns an encoder's output into predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.contract import one_of


def masked_mean(x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Mean over the real positions. (B, N, C) -> (B, C); a sample that is all padding gives 0."""
    if key_padding_mask is None:
        return x.mean(1)
    real = ~key_padding_mask[..., None]
    return (x * real).sum(1) / real.sum(1).clamp(min=1)


class ClassificationHead(nn.Module):
    """One prediction a sequence. (B, N, C) -> (B, n_classes).

    Args:
        pool: ``mean`` over the real positions, or ``cls``: the first position, where the input has its CLS token.
    """

    def __init__(self, d_model: int, n_classes: int, *, pool: Literal["mean", "cls"] = "mean") -> None:
        super().__init__()
        one_of("pool", pool, ("mean", "cls"))
        self.pool = pool
        self.out = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        pooled = x[:, 0] if self.pool == "cls" else masked_mean(x, key_padding_mask)
        logits: Tensor = self.out(pooled)
        return logits


class TokenHead(nn.Module):
    """One prediction a position. (..., C) -> (..., n_classes)."""

    def __init__(self, d_model: int, n_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(d_model, n_classes)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x)
        return logits
