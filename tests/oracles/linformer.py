"""Equation 7 of arXiv:2006.04768, one head at a time, on the real positions only."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{"rank": 5, "sharing": sharing} for sharing in ("none", "heads", "kv")] + [{}]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    E, F = module.projection[0], module.projection[-1]  # (H or 1, M, max_len)
    out = torch.zeros_like(q)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        for h in range(H):
            own = h if len(E) > 1 else 0
            keys = E[own][:, real] @ k[b, h, real]  # (M, D)
            values = F[own][:, real] @ v[b, h, real]
            weights = torch.softmax(q[b, h] @ keys.T / D**0.5, dim=-1)
            out[b, h] = weights @ values
    return out
