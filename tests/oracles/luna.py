"""Section 3 of arXiv:2106.01540, one head and one sample at a time, on the real positions only."""

import torch
from torch import Tensor, nn

OPTIONS: list[dict[str, object]] = [{"projected_len": 5}, {"projected_len": 3, "tie_kv": False}, {"projected_len": 1}]
OPTIONS += [{}]


def affine(map_: nn.Linear, x: Tensor) -> Tensor:
    return x @ map_.weight.T + map_.bias


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """RoFormer, equation 34: the pair (x_m, x_{m + D/2}) turned by position · 10000^(-2m/D)."""
    D = x.shape[-1]
    angle = positions[:, None].float() * (10_000.0 ** (-torch.arange(0, D, 2).double() / D)).float()
    cos, sin = (f(angle.double()) for f in (torch.cos, torch.sin))
    a, b = x[:, : D // 2], x[:, D // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    D = C // module.n_heads
    heads = [slice(h * D, (h + 1) * D) for h in range(module.n_heads)]
    tied = module.pack_context.out_features == C
    rows = []
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        context = affine(module.pack_context, x[b, real])
        keys, values = context[:, :C], context if tied else context[:, C:]
        p = affine(module.pack_query, module.memory)
        turn = turned if module.rotary is not None else lambda x, _: x
        packed = torch.cat([attention(p[:, h], turn(keys[:, h], real), values[:, h]) for h in heads], dim=-1)
        context = affine(module.unpack_context, packed)
        keys, values = context[:, :C], context if tied else context[:, C:]
        q = affine(module.unpack_query, x[b])
        mixed = [attention(turn(q[:, h], torch.arange(N)), keys[:, h], values[:, h]) for h in heads]
        rows.append(affine(module.out, torch.cat(mixed, dim=-1)))
    return torch.stack(rows)
