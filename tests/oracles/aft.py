"""Equation 2 of arXiv:2105.14103, one position at a time, on the real positions only."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"window": 5},
    {"window": 1},
    {"form": "full", "rank": 3},
    {"form": "simple"},
    {"window": 100},
    {},
]


def w(module, i: int, j: int) -> Tensor:
    if module.form == "full":
        return module.rows[i] @ module.columns[j]
    if module.form == "simple" or abs(i - j) >= module.window:
        return torch.zeros((), dtype=torch.float64)
    return module.bias[i - j if module.causal else i - j + module.window - 1]


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).split(C, dim=-1)
    biases = torch.stack([torch.stack([w(module, i, j) for j in range(N)]) for i in range(N)])
    mixed = torch.zeros_like(x)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        for i in range(N):
            seen = real[real <= i] if module.causal else real
            if len(seen):
                weights = torch.softmax(biases[i, seen][:, None] + k[b, seen], dim=0)
                mixed[b, i] = (weights * v[b, seen]).sum(0) / (1 + torch.exp(-q[b, i]))
    return mixed @ module.out.weight.T + module.out.bias
