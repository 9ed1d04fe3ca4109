"""Softmax over the positions whose blocks the layout of the head allows, as one dense masked matrix."""

import torch
from torch import Tensor

from tests.oracles._masked import masked_attention

OPTIONS: list[dict[str, object]] = [
    {"block_size": 4},
    {"block_size": 8, "window": 1, "n_global": 0, "n_random": 2},
    {"block_size": 5, "window": 5, "n_global": 1, "n_random": 0},
    {},
]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    N = q.shape[2]
    block = torch.arange(N) // module.config.block_size
    allowed = module.layout[:, block][:, :, block]  # (H, N, N)
    if module.causal:
        allowed = allowed & torch.ones(N, N, dtype=torch.bool).tril()
    return masked_attention(q, k, v, allowed, key_padding_mask)
