"""Softmax over the sets of section 4.3 of arXiv:1904.10509, as one dense masked matrix."""

import torch
from torch import Tensor

from tests.oracles._masked import masked_attention

OPTIONS: list[dict[str, object]] = [
    {"stride": 5},
    {"stride": 7, "pattern": "fixed", "summary": 2},
    {"stride": 1},
    {"stride": 8, "pattern": "fixed", "summary": 8},
    {},
]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    N = q.shape[2]
    stride = module.config.stride
    i, j = torch.arange(N)[:, None], torch.arange(N)
    if module.config.pattern == "strided":
        allowed = ((i - j).abs() <= stride) | ((i - j) % stride == 0)
    else:
        allowed = (i // stride == j // stride) | (j % stride >= stride - module.config.summary)
    if module.causal:
        allowed = allowed & (j <= i)
    return masked_attention(q, k, v, allowed, key_padding_mask)
