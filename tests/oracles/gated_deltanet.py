"""Equation 10 of arXiv:2412.06464 step by step, one head and one sample at a time.

Padding: the convolution reads zeros there, and the memory is left as it is.
"""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{}, {"conv_width": 1}, {"conv_width": 7}]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolved(x: Tensor, taps: Tensor) -> Tensor:
    """x: (N, D); taps (width, D), the last for the position itself, those before for the positions before."""
    width = len(taps)
    rows = []
    for t in range(len(x)):
        seen = range(max(0, t - width + 1), t + 1)
        rows.append(sum(taps[width - 1 - (t - s)] * x[s] for s in seen))
    return torch.stack(rows)


def remembered(x: Tensor, taps: Tensor, beta: Tensor, alpha: Tensor, real: Tensor) -> Tensor:
    """What each position reads, (N, D). x: (N, 3D)."""
    q, k, v = silu(convolved(x, taps)).chunk(3, dim=-1)
    D = q.shape[-1]
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    S = torch.zeros(D, D, dtype=x.dtype)  # values × keys
    rows = []
    for t in range(len(x)):
        if real[t]:
            S = alpha[t] * S @ (torch.eye(D, dtype=x.dtype) - beta[t] * torch.outer(k[t], k[t]))
            S = S + beta[t] * torch.outer(v[t], k[t])
        rows.append(S @ q[t] / D**0.5)
    return torch.stack(rows)


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    H = module.n_heads
    D = C // H
    samples = []
    for b in range(B):
        real = torch.ones(N, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask[b]
        seen = torch.where(real[:, None], x[b], 0.0)
        heads = []
        for h in range(H):
            projected = seen @ module.qkv.weight[h * 3 * D : (h + 1) * 3 * D].T
            beta = 1 / (1 + torch.exp(-seen @ module.rates.weight[h] - module.strength[h]))
            step = torch.log(1 + torch.exp(seen @ module.rates.weight[H + h] + module.offset[h]))
            alpha = torch.exp(-torch.exp(module.log_rate[h]) * step)
            taps = module.conv[:, h, 0]
            o = remembered(projected, taps, beta, alpha, real)
            if not module.causal:
                o = o + remembered(projected.flip(0), taps, beta.flip(0), alpha.flip(0), real.flip(0)).flip(0)
            o = module.norm * o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            heads.append(o * silu(seen @ module.gate.weight[h * D : (h + 1) * D].T))
        samples.append(torch.cat(heads, dim=-1) @ module.out.weight.T + module.out.bias)
    return torch.stack(samples)
