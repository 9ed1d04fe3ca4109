"""Weights φ(q)·φ(k) of arXiv:2402.04347 with φ(x) = [softmax(x W), softmax(-x W)], on the real positions only."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{}]


def weights(module, q: Tensor, k: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, H, N, N), each row divided by its sum."""

    def phi(x: Tensor, maps: Tensor) -> Tensor:
        x = torch.einsum("bhnd,hde->bhne", x, maps)
        return torch.cat([torch.softmax(x, -1), torch.softmax(-x, -1)], -1)

    products = phi(q, module.query_map) @ phi(k, module.key_map).mT
    if module.causal:
        products = products.tril()
    return products / products.sum(-1, keepdim=True)


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, _, N, _ = q.shape
    out = torch.zeros_like(v)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        out[b, :, real] = (weights(module, q[b : b + 1, :, real], k[b : b + 1, :, real]) @ v[b : b + 1, :, real])[0]
    return out
