"""local-attention on PyPI: its layer with an exact window and without rotary positions, as in our layer."""

from __future__ import annotations

import torch

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.local import LocalConfig


def pair(*, d_model: int, n_heads: int, length: int, causal: bool = False) -> list[Pair]:
    from local_attention import LocalMHA

    window = 256
    ours = MultiHeadAttention(
        LocalConfig(window=window), d_model=d_model, n_heads=n_heads, max_len=length, causal=causal
    )
    theirs = LocalMHA(
        dim=d_model,
        window_size=window,
        dim_head=d_model // n_heads,
        heads=n_heads,
        causal=causal,
        exact_windowsize=True,
        use_rotary_pos_emb=False,
    )
    with torch.no_grad():  # the peer has no biases; ours start at 0
        theirs.to_qkv.weight.copy_(ours.mixer.qkv.weight)
        theirs.to_out.weight.copy_(ours.mixer.out.weight)
    return [Pair(ours, theirs, "local-attention", f"window {window} on each side")]
