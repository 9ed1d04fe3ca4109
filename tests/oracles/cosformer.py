"""Equation 9 of arXiv:2202.08791 as a matrix of weights, M = max_len, on the real positions only."""

import math

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{}]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    out = torch.zeros_like(v)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        cosine = torch.cos(math.pi / 2 * (real[:, None] - real).to(q.dtype) / module.dims.max_len)
        for h in range(H):
            weights = torch.relu(q[b, h, real]) @ torch.relu(k[b, h, real]).T * cosine
            if module.causal:
                weights = weights.tril()
            total = weights.sum(-1, keepdim=True)
            # A row without a common feature gives 0.
            out[b, h, real] = weights / total.masked_fill(total == 0, 1) @ v[b, h, real]
    return out
