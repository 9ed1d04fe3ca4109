"""Equation 1 of arXiv:1706.03762, one query at a time."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{}, {"kernel": "math"}]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    rows = []
    for b in range(B):
        for h in range(H):
            for i in range(N):
                seen = [
                    j
                    for j in range(N)
                    if not (module.causal and j > i) and not (key_padding_mask is not None and key_padding_mask[b, j])
                ]
                if not seen or (key_padding_mask is not None and key_padding_mask[b, i]):
                    rows.append(torch.zeros(D, dtype=q.dtype))
                    continue
                weights = torch.softmax(k[b, h, seen] @ q[b, h, i] / D**0.5, dim=0)
                rows.append(weights @ v[b, h, seen])
    return torch.stack(rows).view(B, H, N, D)
