"""Softmax over |i − j| <= window, as one dense masked matrix."""

import torch
from torch import Tensor

from tests.oracles._masked import masked_attention

OPTIONS: list[dict[str, object]] = [{"window": 5}, {"window": 1}, {"window": 37}, {}]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    N = q.shape[2]
    i, j = torch.arange(N)[:, None], torch.arange(N)
    allowed = (i - j).abs() <= module.config.window
    if module.causal:
        allowed = allowed & (j <= i)
    return masked_attention(q, k, v, allowed, key_padding_mask)
