"""performer-pytorch 1.1.4 on PyPI: FAVOR+ with one set of random features for all heads, as in our layer.

It divides features by their maximum over all keys, padding included, then adds 1e-4. Its functions accept another
epsilon; here epsilon is 0, so that both layers compute the paper's equation.
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
