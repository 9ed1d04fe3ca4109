"""Equations 5 to 8 of arXiv:2307.08621, one head and one sample at a time, on the real positions only."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [{}, {"expand": 3}]


def rate(head: int) -> float:
    """Equation 8: γ."""
    return 1 - 2 ** (-5 - head)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x_m, x_{m + D/2}) as a complex number times e^{inθ}; an odd last feature as it is."""
    half = cos.shape[-1]
    z = torch.complex(x[:, :half], x[:, half : 2 * half]) * torch.complex(cos, sin)
    return torch.cat([z.real, z.imag, x[:, 2 * half :]], dim=-1)


def recurrent(q: Tensor, k: Tensor, v: Tensor, gamma: float) -> Tensor:
    """Equation 6."""
    state, rows = torch.zeros(q.shape[-1], v.shape[-1], dtype=q.dtype), []
    for n in range(len(q)):
        state = gamma * state + torch.outer(k[n], v[n])
        rows.append(q[n] @ state)
    return torch.stack(rows)


def later(q: Tensor, k: Tensor, v: Tensor, gamma: float) -> Tensor:
    """The same from the last position to the first, of the positions after each."""
    state, rows = torch.zeros(q.shape[-1], v.shape[-1], dtype=q.dtype), []
    for n in reversed(range(len(q))):
        state = gamma * state
        rows.insert(0, q[n] @ state)
        state = state + torch.outer(k[n], v[n])
    return torch.stack(rows)


def parallel(q: Tensor, k: Tensor, v: Tensor, gamma: float, *, normalised: bool = False) -> Tensor:
    """Equation 5; with the three normalisations of section 2.2, or without any."""
    n = torch.arange(len(q))
    decay = (gamma ** (n[:, None] - n[None, :]).double()).tril()
    if not normalised:
        return (q @ k.T * decay) @ v
    scores = q @ k.T / q.shape[-1] ** 0.5 * (decay / decay.sum(1, keepdim=True).sqrt())
    return scores / scores.sum(1, keepdim=True).abs().clamp(min=1) @ v


def normal(x: Tensor) -> Tensor:
    """GroupNorm of one head."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    out = torch.zeros_like(x)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        if not len(real):
            continue
        *pieces, gate = (x[b, real] @ module.qkvg.weight.T).split(module.sizes, dim=-1)
        read = []
        for h in range(module.n_heads):
            q, k, v = (piece.chunk(module.n_heads, dim=-1)[h] for piece in pieces)
            cos, sin = module.table.table[:, : len(real)].to(x.dtype)
            q, k = turned(q, cos, sin), turned(k, cos, sin) / (C // module.n_heads) ** 0.5
            o = recurrent(q, k, v, rate(h))
            if not module.causal:
                o = o + later(q, k, v, rate(h))
            read.append(normal(o))
        mixed = gate * torch.sigmoid(gate) * torch.cat(read, dim=-1)
        out[b, real] = mixed @ module.out.weight.T + module.out.bias
    return out
