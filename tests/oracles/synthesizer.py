"""Section 3 of arXiv:2005.00743, one row of logits at a time."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"kind": "factorised_random", "rank": 3},
    {"kind": "dense", "rank": 11},
    {"kind": "random"},
    {"kind": "factorised_dense"},
    {},
]


def row(module, x: Tensor, h: int, i: int) -> Tensor:
    """Logits of position i, one for every position up to max_len; x: (C,)."""
    kind = module.config.kind
    if kind == "random":
        return module.logits[h, i]
    if kind == "factorised_random":
        return torch.stack([module.rows[h, i] @ column for column in module.columns[h]])
    if kind == "dense":
        M = module.config.rank
        hidden = (module.hidden.weight[h * M : (h + 1) * M] @ x).clamp(min=0)
        return module.columns[h] @ hidden
    a, b = module.outer, module.inner
    both = module.factors.weight[h * (a + b) : (h + 1) * (a + b)] @ x
    return torch.outer(both[:a], both[a:]).flatten()


def oracle(module, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, N, C = x.shape
    H = module.n_heads
    D = C // H
    values = x @ module.value.weight.T + module.value.bias
    mixed = torch.zeros_like(x)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        for h in range(H):
            own = slice(h * D, (h + 1) * D)
            for i in range(N):
                seen = real[real <= i] if module.causal else real
                weights = torch.softmax(row(module, x[b, i], h, i)[seen], dim=0)
                mixed[b, i, own] = weights @ values[b, seen, own]
    return mixed @ module.out.weight.T + module.out.bias
