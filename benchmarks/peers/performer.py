"""performer-pytorch 1.1.4 on PyPI: FAVOR+ with one set of random features for all heads, as ours.

It adds 1e-4 to features that it has divided by their largest over all keys, padded ones too. Its functions take another
epsilon, so both compute the paper's equation here: with 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.performer import PerformerConfig


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    from performer_pytorch.performer_pytorch import FastAttention, SelfAttention, linear_attention, softmax_kernel

    class WithoutEpsilon(FastAttention):  # type: ignore[misc]
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q = softmax_kernel(q, projection_matrix=self.projection_matrix, is_query=True, eps=0.0)
            k = softmax_kernel(k, projection_matrix=self.projection_matrix, is_query=False, eps=0.0)
            out: Tensor = linear_attention(q, k, v)
            return out

    features, d_head = 256, d_model // n_heads
    ours = MultiHeadAttention(PerformerConfig(features=features), d_model=d_model, n_heads=n_heads, max_len=length)
    theirs = SelfAttention(d_model, heads=n_heads, dim_head=d_head, nb_features=features)
    theirs.fast_attention = WithoutEpsilon(d_head, features)
    with torch.no_grad():
        for linear, weight in zip((theirs.to_q, theirs.to_k, theirs.to_v), ours.mixer.qkv.weight.chunk(3), strict=True):
            linear.weight.copy_(weight)
        theirs.to_out.load_state_dict(ours.mixer.out.state_dict())
        theirs.fast_attention.projection_matrix.copy_(ours.mixer.attention.projection)
    return [Pair(ours, theirs, "performer-pytorch", f"{features} features, epsilon 0")]
