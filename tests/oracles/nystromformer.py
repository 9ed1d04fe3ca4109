"""Equations 13 to 15 of arXiv:2102.03902, one sample and one head at a time, on the real positions only."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"landmarks": 5, "conv_width": 3},
    {"landmarks": 7, "iterations": 2, "conv_width": None},
    {"landmarks": 16, "conv_width": 33},
    {},
]


def means(x: Tensor, count: int) -> Tensor:
    """Segments of nearly equal size, the short ones first."""
    size, longer = divmod(len(x), count)
    sizes = [size] * (count - longer) + [size + 1] * longer
    return torch.stack([part.mean(0) for part in x.split(sizes)])


def pinv(a: Tensor, iterations: int) -> Tensor:
    eye = torch.eye(len(a), dtype=a.dtype)
    z = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max())
    for _ in range(iterations):
        z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
    return z


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    M = module.config.landmarks
    out = torch.zeros_like(q)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        if len(real) == 0:
            continue
        for h in range(H):
            queries, keys, values = q[b, h, real], k[b, h, real], v[b, h, real]
            if len(real) <= M:
                out[b, h, real] = torch.softmax(queries @ keys.T / D**0.5, dim=-1) @ values
            else:
                few_queries, few_keys = means(queries, M), means(keys, M)
                first = torch.softmax(queries @ few_keys.T / D**0.5, dim=-1)  # (n, M)
                middle = torch.softmax(few_queries @ few_keys.T / D**0.5, dim=-1)  # (M, M)
                last = torch.softmax(few_queries @ keys.T / D**0.5, dim=-1)  # (M, n)
                out[b, h, real] = first @ pinv(middle, module.config.iterations) @ last @ values
            if module.conv is not None:
                taps = module.conv[h]
                padded = torch.zeros(N + len(taps) - 1, D, dtype=v.dtype)
                padded[real + len(taps) // 2] = values
                out[b, h] = out[b, h] + sum(taps[t] * padded[t : t + N] for t in range(len(taps)))
    return out
