"""routing-transformer on PyPI: all heads routed, separate queries and keys, the same centroids; both run k-means."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.routing import RoutingConfig

WINDOW = 128
WHY = "a near tie for the last place of a cluster falls either way by rounding, and moves one position's output"


class OutputOnly(nn.Module):
    """The peer's layer without its commitment loss."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    """Both compute the new centroids of a training step and neither uses them, so that all steps are equal."""
    from routing_transformer.routing_transformer import SelfAttention

    if length % WINDOW:
        raise NotImplementedError(f"routing-transformer takes whole windows of {WINDOW} positions")
    config = RoutingConfig(window=WINDOW, decay=1.0)
    ours = MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=length)
    theirs = SelfAttention(d_model, 1, length, n_heads, 0, WINDOW)
    with torch.no_grad():
        queries, keys, values = ours.mixer.qkv.weight.chunk(3)
        theirs.to_q.weight.copy_(queries)
        theirs.to_k.weight.copy_(keys)
        theirs.to_v.weight.copy_(values)
        theirs.to_out.weight.copy_(ours.mixer.out.weight)
    kmeans = theirs.global_attn.kmeans
    kmeans.means.copy_(ours.mixer.attention.centroids)
    kmeans.initted.fill_(True)
    return [Pair(ours, OutputOnly(theirs), "routing-transformer", f"window {WINDOW}, non-causal", 0.02, WHY)]
