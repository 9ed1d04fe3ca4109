"""Heads, which turn an encoder's output into predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.contract import Device, one_of
from zoo.embeddings import SinusoidalPositions


def masked_mean(x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Mean over the real positions. (B, N, C) -> (B, C); a sample that is all padding gives 0."""
    if key_padding_mask is None:
        return x.mean(1)
    real = ~key_padding_mask[..., None]
    return (x * real).sum(1) / real.sum(1).clamp(min=1)


def first_real(x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """The first real position. (B, N, C) -> (B, C)."""
    if key_padding_mask is None:
        return x[:, 0]
    return x.take_along_dim(key_padding_mask.long().argmin(1)[:, None, None], 1)[:, 0]


class ClassificationHead(nn.Module):
    """One prediction a sequence. (B, N, C) -> (B, n_classes).

    Args:
        pool: ``mean`` over the real positions, or ``cls``: the first real position, that of the CLS token.
    """

    def __init__(
        self,
        d_model: int,
        n_classes: int,
        *,
        pool: Literal["mean", "cls"] = "mean",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        one_of("pool", pool, ("mean", "cls"))
        self.pool = pool
        self.out = nn.Linear(d_model, n_classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        pooled = first_real(x, key_padding_mask) if self.pool == "cls" else masked_mean(x, key_padding_mask)
        logits: Tensor = self.out(pooled)
        return logits


class PairHead(nn.Module):
    """One prediction for a pair of sequences, encoded separately. (2B, N, C), pairs side by side -> (B, n_classes).

    A hidden layer reads the pooled vectors x and y as (x, y, x · y, x - y), as in Nyströmformer's retrieval
    (arXiv:2102.03902).
    """

    def __init__(
        self,
        d_model: int,
        n_classes: int,
        *,
        d_hidden: int = 128,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * d_model, d_hidden, device=device, dtype=dtype)
        self.out = nn.Linear(d_hidden, n_classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        pooled = masked_mean(x, key_padding_mask)
        first, second = pooled[0::2], pooled[1::2]
        joined = torch.cat([first, second, first * second, first - second], dim=-1)
        logits: Tensor = self.out(self.hidden(joined).relu())
        return logits


class TokenHead(nn.Module):
    """One prediction a position. (..., C) -> (..., n_classes)."""

    def __init__(
        self, d_model: int, n_classes: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.out = nn.Linear(d_model, n_classes, device=device, dtype=dtype)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x)
        return logits


class RestoreHead(nn.Module):
    """One prediction a position, all from the last position. (B, N, C) without padding -> (B, N, n_classes).

    The decoder of MAD's compression task (arXiv:2403.17844, ``mad/model/auto_encoder.py``): the last position's vector
    plus the sines of the predicted position goes through two layers of width C, each a LayerNorm, a linear map and a
    GELU.

    Args:
        max_len: the longest input.
    """

    def __init__(
        self,
        d_model: int,
        n_classes: int,
        *,
        max_len: int = 8192,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.positions = SinusoidalPositions(max_len, d_model, scale=1.0)
        layers: list[nn.Module] = []
        for width in (d_model, d_model, n_classes):
            norm = nn.LayerNorm(d_model, device=device, dtype=dtype)
            layers += [norm, nn.Linear(d_model, width, device=device, dtype=dtype), nn.GELU()]
        self.decoder = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.positions(x[:, -1:].expand_as(x)))
        return logits
