"""Section 7.1 of arXiv:2405.21060 and its recurrence (equation 1, with a scalar decay), one sample and head at a time.

The convolution reads zeros where there is padding; the recurrence takes the real positions only.
"""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {},
    {"state": 3},
    {"state": 5, "expand": 2, "conv_width": 1},
    {"state": 8, "conv_width": 5},
]


def recurrent(x: Tensor, step: Tensor, a: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """x: (N, D), step: (N,), B and C: (N, M)."""
    state, rows = torch.zeros(B.shape[-1], x.shape[-1], dtype=x.dtype), []
    for n in range(len(x)):
        state = torch.exp(step[n] * a) * state + torch.outer(step[n] * B[n], x[n])
        rows.append(C[n] @ state)
    return torch.stack(rows)


def later(x: Tensor, step: Tensor, a: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same from the last position to the first, of the positions after each."""
    state, rows = torch.zeros(B.shape[-1], x.shape[-1], dtype=x.dtype), []
    for n in reversed(range(len(x))):
        state = torch.exp(step[n] * a) * state
        rows.insert(0, C[n] @ state)
        state = state + torch.outer(step[n] * B[n], x[n])
    return torch.stack(rows)


def convolved(module, x: Tensor) -> Tensor:
    """(N, channels): each channel's taps over its neighbours, past ones alone when causal."""
    width = len(module.taps)
    before = width - 1 if module.causal else (width - 1) // 2
    rows = []
    for n in range(len(x)):
        near = [(tap, n + tap - before) for tap in range(width) if 0 <= n + tap - before < len(x)]
        rows.append(module.taps_bias + sum(module.taps[tap] * x[place] for tap, place in near))
    return torch.stack(rows)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    H, M, width = module.n_heads, module.rows, module.out.in_features
    directions = [recurrent] if module.causal else [recurrent, later]
    out = torch.zeros_like(x)
    for b in range(B):
        padded = torch.zeros(N, dtype=torch.bool) if key_padding_mask is None else key_padding_mask[b]
        real = (~padded).nonzero()[:, 0]
        if not len(real):
            continue
        channels = width + 2 * M * len(directions)
        z, mixed, steps = (x[b] @ module.project.weight.T).split([width, channels, H * len(directions)], dim=-1)
        mixed = silu(convolved(module, mixed.masked_fill(padded[:, None], 0)))[real]
        inputs, *vectors = mixed.split([width, *[M] * 2 * len(directions)], dim=-1)
        steps = torch.log1p(torch.exp(steps[real] + module.step_bias.repeat(len(directions))))
        heads = []
        for h, own in enumerate(inputs.chunk(H, dim=-1)):
            y = module.skip[h] * own
            for number, scanned in enumerate(directions):
                step, (B_, C_) = steps[:, number * H + h], vectors[2 * number :][:2]
                y = y + scanned(own, step, -torch.exp(module.log_a[h]), B_, C_)
            heads.append(y)
        gated = torch.cat(heads, dim=-1) * silu(z[real])
        gated = module.scale * gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        out[b, real] = gated @ module.out.weight.T + module.out.bias
    return out
