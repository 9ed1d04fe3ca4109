"""Equation 3 of arXiv:2105.03824: two dense matrices of roots of unity, on the real positions of each sample."""

import math

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{}]


def fourier(size: int) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    angle = -2 * math.pi * torch.outer(place, place) / size
    return torch.complex(angle.cos(), angle.sin()) / math.sqrt(size)


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    mixed = torch.zeros_like(x)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        mixed[b, real] = (fourier(len(real)) @ x[b, real].to(torch.complex128) @ fourier(C)).real
    return mixed @ module.out.weight.T + module.out.bias
