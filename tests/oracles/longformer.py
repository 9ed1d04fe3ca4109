"""Section 3.1 of arXiv:2004.05150 as dense masked matrices: one for ordinary queries, one for global ones."""

import torch
from torch import Tensor

from tests.oracles._masked import masked_attention

OPTIONS: list[dict[str, object]] = [
    {"window": 5},
    {"window": 3, "n_global": 0},
    {"window": 9, "n_global": 40},
    {},
]


def heads(linear, x: Tensor, n_heads: int) -> list[Tensor]:
    B, N, C = x.shape
    projected = x @ linear.weight.T + linear.bias
    return [part.view(B, N, n_heads, C // n_heads).transpose(1, 2) for part in projected.split(C, dim=-1)]


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    g = module.config.n_global
    i, j = torch.arange(N)[:, None], torch.arange(N)
    near = ((i - j).abs() <= module.config.window) | (j < g)
    if module.causal:
        near = near & (j <= i)
    mixed = masked_attention(*heads(module.qkv, x, module.n_heads), near, key_padding_mask)
    if g and not module.causal:
        looking = *heads(module.global_q, x, module.n_heads), *heads(module.global_kv, x, module.n_heads)
        globally = masked_attention(*looking, torch.ones(N, N, dtype=torch.bool), key_padding_mask)
        mixed = torch.where((torch.arange(N) < g)[:, None], globally, mixed)
    return mixed.transpose(1, 2).reshape(B, N, C) @ module.out.weight.T + module.out.bias
