"""Softmax over the positions whose blocks the layout of the head allows, as one dense masked matrix."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"block_size": 4},
    {"block_size": 8, "window": 1, "n_global": 0, "n_random": 2},
    {"block_size": 5, "window": 5, "n_global": 1, "n_random": 0},
    {},
]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    N, D = q.shape[-2:]
    block = torch.arange(N) // module.config.block_size
    allowed = module.layout[:, block][:, :, block]  # (H, N, N)
    if module.causal:
        allowed = allowed & torch.ones(N, N, dtype=torch.bool).tril()
    if key_padding_mask is not None:
        allowed = allowed & ~key_padding_mask[:, None, None, :]
    weights = torch.exp(q @ k.mT / D**0.5) * allowed
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-300), torch.zeros_like(weights)) @ v
