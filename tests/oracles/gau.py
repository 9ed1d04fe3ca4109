"""Sections 2 and 3 of arXiv:2202.10447, chunk after chunk, on the real keys only. Places count padded ones."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"query_width": 6, "chunk": 8},
    {"query_width": 5, "chunk": 7, "expand": 2},
    {"query_width": 4, "chunk": 1},
    {},
]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    N, c = x.shape[1], module.chunk
    normed = x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt()
    u, v, z = silu(normed @ module.hidden.weight.T + module.hidden.bias).split(module.widths, dim=-1)
    quad_q, quad_k, lin_q, lin_k = (
        z * scale + offset for scale, offset in zip(module.scale, module.offset, strict=True)
    )
    mixed = torch.zeros_like(v)
    for b in range(len(x)):
        real = [j for j in range(N) if key_padding_mask is None or not key_padding_mask[b, j]]
        for i in range(N):
            near = [j for j in real if j // c == i // c and (j <= i or not module.causal)]
            weights = torch.relu(quad_q[b, i] @ quad_k[b, near].T / c) ** 2
            far = [j for j in real if j // c < i // c or not module.causal]
            linear = lin_q[b, i] @ (lin_k[b, far].T @ v[b, far]) / max(1, len(far))
            mixed[b, i] = weights @ v[b, near] + linear
    return (u * mixed) @ module.out.weight.T + module.out.bias
