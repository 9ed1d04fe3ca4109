"""What the oracles of fixed patterns share: softmax over the allowed pairs, as one dense masked matrix."""

import torch
from torch import Tensor


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, key_padding_mask: Tensor | None = None
) -> Tensor:
    """``allowed`` broadcasts to (B, H, N, N), True = may be seen; a row that sees nothing gives 0."""
    if key_padding_mask is not None:
        allowed = allowed & ~key_padding_mask[:, None, None, :]
    weights = torch.exp(q @ k.mT / q.shape[-1] ** 0.5) * allowed
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-300), torch.zeros_like(weights)) @ v
