"""local-attention on PyPI: its layer with an exact window and without rotary positions, as in our layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    layer = theirs if length % window == 0 else _Masked(theirs)
    return [Pair(ours, layer, "local-attention", f"window {window} on each side")]


class _Masked(nn.Module):
    """Their layer with a mask: it pads to whole windows, and without one attends to its padding."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, mask=torch.ones(x.shape[:2], dtype=torch.bool))
        return y
