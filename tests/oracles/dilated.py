"""Equations 8 to 11 of arXiv:2307.02486: each level by itself, then joined by the softmax denominators."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{"segment": 5, "growth": 2}, {"segment": 1, "growth": 3}, {"segment": 16}, {}]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    numerator, denominator = torch.zeros_like(q), torch.zeros_like(q[..., :1])
    place = torch.arange(N)
    for dilation in module.dilations:
        segment = module.config.segment * dilation
        for h in range(H):
            chosen = place % dilation == h % dilation
            together = place[:, None] // segment == place // segment
            allowed = chosen[:, None] & chosen & together
            if module.causal:
                allowed = allowed & (place <= place[:, None])
            allowed = allowed.expand(B, N, N)
            if key_padding_mask is not None:
                allowed = allowed & ~key_padding_mask[:, None, :]
            weights = torch.exp(q[:, h] @ k[:, h].mT / D**0.5) * allowed
            numerator = numerator + torch.eye(H, dtype=q.dtype)[h].view(1, H, 1, 1) * (weights @ v[:, h])[:, None]
            total = weights.sum(-1)[:, None, :, None]
            denominator = denominator + torch.eye(H, dtype=q.dtype)[h].view(1, H, 1, 1) * total
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1e-300), torch.zeros_like(q))
