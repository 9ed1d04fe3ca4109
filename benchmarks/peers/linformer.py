"""linformer on PyPI: a projection of the keys and one of the values, each shared by all heads, as in our default."""

from __future__ import annotations

import torch

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.linformer import LinformerConfig


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    from linformer.linformer import LinformerSelfAttention

    rank = 256
    ours = MultiHeadAttention(LinformerConfig(rank=rank), d_model=d_model, n_heads=n_heads, max_len=length)
    theirs = LinformerSelfAttention(d_model, length, k=rank, heads=n_heads)
    with torch.no_grad():
        queries, keys, values = ours.mixer.qkv.weight.chunk(3)
        theirs.to_q.weight.copy_(queries)
        theirs.to_k.weight.copy_(keys)
        theirs.to_v.weight.copy_(values)
        theirs.to_out.load_state_dict(ours.mixer.out.state_dict())
        projection = ours.mixer.attention.projection  # (2, 1, M, N)
        theirs.proj_k.copy_(projection[0, 0].T)
        theirs.proj_v.copy_(projection[1, 0].T)
    return [Pair(ours, theirs, "linformer", f"rank {rank}, projections shared over heads")]
