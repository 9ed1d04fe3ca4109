"""Kernelized attention of arXiv:2111.00035 by the Nyström method, each sample and head alone, real positions only.

The distances are taken as differences, the inverse's iterations written out, and which rows are landmarks is read from
the module's draws: position ``draws[i] mod size`` of the i-th segment of the queries, then of the keys. Where all
keys are landmarks the kernel itself is applied.
"""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"landmarks": 9},
    {"landmarks": 2, "gamma": 0.1},
    {"landmarks": 1},
    {"landmarks": 32, "iterations": 3, "gamma": 0.01},
    {},
]


def kappa(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-(x[:, None] - y[None]).square().sum(-1) / (2 * x.shape[-1] ** 0.5))


def picks(length: int, draws: list[int]) -> list[int]:
    """One position out of each segment; the short segments come first."""
    count = min(length, len(draws))
    if count == 0:
        return []
    size, longer = divmod(length, count)
    places, start = [], 0
    for i in range(count):
        own = size + (i >= count - longer)
        places.append(start + draws[i] % own)
        start += own
    return places


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    draws = module.draws.tolist()
    half = module.config.landmarks // 2
    out = torch.zeros_like(q)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        if len(real) == 0:
            continue
        for h in range(H):
            queries, keys, values = q[b, h, real], k[b, h, real], v[b, h, real]
            if len(real) <= module.config.landmarks - half:
                out[b, h, real] = kappa(queries, keys) @ values
                continue
            rows = torch.cat([queries[picks(len(real), draws[:half])], keys[picks(len(real), draws[half:])]])
            eye = torch.eye(len(rows), dtype=q.dtype)
            regular = kappa(rows, rows) + module.config.gamma * eye
            root = torch.diag(regular.sum(1) ** -0.5)
            a = root @ regular @ root
            z = eye
            for _ in range(module.config.iterations):
                z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
            out[b, h, real] = kappa(queries, rows) @ root @ z @ root @ kappa(rows, keys) @ values
    return out
