"""Definition 3.1 of arXiv:2302.10866: each convolution as a dense Toeplitz matrix, each filter lag by lag."""

import math

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{"filter_width": 5}, {"order": 3, "filter_width": 4, "frequency": 1.5}, {}]


def network(module, lag: int) -> Tensor:
    """The last hidden features of one lag."""
    t = lag / module.max_len
    angles = [2 * math.pi * band * t for band in range(1, 17)]
    h = torch.tensor([t, *map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)
    for linear in module.hidden:
        h = torch.sin(module.frequency * (linear.weight @ h + linear.bias))
    return h


def windows(module, lags: range) -> Tensor:
    """(lags, C): exponentials whose squares sum to 1 over all the lags that there can be."""
    C = module.out.in_features
    steepness = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, C, dtype=torch.float64)
    every = range(0 if module.causal else 1 - module.max_len, module.max_len)
    energy = sum(torch.exp(-steepness * abs(lag) / module.max_len) ** 2 for lag in every)
    return torch.stack([torch.exp(-steepness * abs(lag) / module.max_len) for lag in lags]) / energy**0.5


def toeplitz(module, N: int) -> Tensor:
    """(filters, C, N, N): the weight of position s in the result at t."""
    C = module.out.in_features
    lags = range(0 if module.causal else 1 - N, N)
    written = torch.stack([module.write.weight @ network(module, lag) for lag in lags])
    written = written.view(len(lags), -1, C) * windows(module, lags)[:, None]
    written[lags.index(0)] += module.skip
    place = torch.arange(N)
    index = place[:, None] - place - lags[0]
    dense = written[index.clamp(min=0)] * (index >= 0)[..., None, None]
    return dense.permute(2, 3, 0, 1)


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    matrices = toeplitz(module, N)
    rows = []
    for b in range(B):
        real = torch.ones(N, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask[b]
        u = (x[b] @ module.project.weight.T + module.project.bias) * real[:, None]
        mixed = torch.zeros_like(u)
        for t in range(N):
            for tap in range(3):
                s = t + tap - (2 if module.causal else 1)
                if 0 <= s < N:
                    mixed[t] = mixed[t] + module.taps[tap] * u[s]
        *gates, z = (mixed * real[:, None]).split(C, dim=-1)
        gates = gates[::-1]
        z = gates[0] * z
        for gate, matrix in zip(gates[1:], matrices, strict=True):
            z = gate * torch.einsum("cts,sc->tc", matrix, z)
        rows.append(z @ module.out.weight.T + module.out.bias)
    return torch.stack(rows)
