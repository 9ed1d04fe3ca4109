"""Exact and Taylor weights by distance, as one dense matrix for each sample and head. Places count padded ones."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"features": 4, "window": 5, "short": 0},
    {"features": 3, "window": 0, "short": 0},
    {"features": 2, "window": 1, "short": 0},
    {"features": 4, "window": 1000, "short": 0},
    {"features": 3, "window": 5},
    {},
]


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    H, d, D = module.dims.n_heads, module.d, C // module.dims.n_heads
    projected = x @ module.qkv.weight.T + module.qkv.bias
    q, k, v = projected.split([H * d, H * d, C], dim=-1)
    place = torch.arange(N)
    distance = place[:, None] - place
    mixed = torch.zeros_like(x)
    for b in range(B):
        allowed = torch.ones(N, N, dtype=torch.bool)
        if key_padding_mask is not None:
            allowed = allowed & ~key_padding_mask[b]
        if module.causal:
            allowed = allowed & (distance >= 0)
        for h in range(H):
            own, values = slice(h * d, (h + 1) * d), slice(h * D, (h + 1) * D)
            logits = q[b, :, own] @ k[b, :, own].T / d**0.5
            weights = torch.where(distance.abs() < module.window, logits.exp(), 1 + logits + logits**2 / 2)
            weights = torch.where(allowed, weights, torch.zeros_like(weights))
            total = weights.sum(-1, keepdim=True)
            mixed[b, :, values] = weights / torch.where(total > 0, total, torch.ones_like(total)) @ v[b, :, values]
    return mixed @ module.out.weight.T + module.out.bias
