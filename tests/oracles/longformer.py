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
    everything = torch.ones(N, N, dtype=torch.bool)
    if module.causal:
        near, everything = near & (j <= i), everything & (j <= i)
    real = torch.ones(B, N, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
    mixed = masked_attention(*heads(module.qkv, x, module.n_heads), near & real[:, None, None, :])
    if g:
        globally = masked_attention(*heads(module.global_qkv, x, module.n_heads), everything & real[:, None, None, :])
        mixed = torch.where((torch.arange(N) < g)[:, None], globally, mixed)
    return mixed.transpose(1, 2).reshape(B, N, C) @ module.out.weight.T + module.out.bias
