"""Sections 4.1 and 4.2 of arXiv:2003.05997, cluster by cluster, on the real positions only; local heads beside."""

import math

import torch
from torch import Tensor

from tests.oracles._masked import masked_attention

OPTIONS: list[dict[str, object]] = [{"window": 8}, {"window": 5}, {"window": 8, "half_local": True}, {"window": 33}, {}]


def members(vectors: Tensor, centroid: Tensor, window: int) -> list[int]:
    nearness = vectors @ centroid / vectors.norm(dim=-1)
    return nearness.argsort(descending=True)[:window].tolist()


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    window = module.config.window
    out = torch.zeros_like(q)
    local = module.near
    if local:
        place = torch.arange(N)
        allowed = (place[:, None] - place).abs() <= max(1, window // 2)
        out[:, :local] = masked_attention(*(x[:, :local] for x in (q, k, v)), allowed, key_padding_mask)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        for h in range(local, H):
            queries, keys, values = q[b, h, real], k[b, h, real], v[b, h, real]
            found: list[list[Tensor]] = [[] for _ in real]
            for centroid in module.centroids[h - local, : math.ceil(len(real) / window)].to(q.dtype):
                inside = members(keys, centroid, window)
                for i in members(queries, centroid, window):
                    weights = torch.softmax(keys[inside] @ queries[i] / D**0.5, 0)
                    found[i].append(weights @ values[inside])
            for i, outputs in enumerate(found):
                if outputs:
                    out[b, h, real[i]] = torch.stack(outputs).mean(0)
    return out
