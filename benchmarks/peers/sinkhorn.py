"""sinkhorn-transformer on PyPI: its default, the top bucket of a softmax, and its Sinkhorn sort without the noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.sinkhorn import SinkhornConfig

BUCKET, ITERATIONS, TEMPERATURE = 64, 5, 0.75


class WithoutNoise(nn.Module):
    """The peer's layer, with 0 in place of its Gumbel noise."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        from sinkhorn_transformer import sinkhorn_transformer as package

        drawn = package.sample_gumbel
        package.sample_gumbel = lambda shape, device, dtype: torch.zeros(shape, device=device, dtype=dtype)
        try:
            y: Tensor = self.layer(x)
        finally:
            package.sample_gumbel = drawn
        return y


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    """Values have the weights of the keys: the peer mixes the sorted keys where it should mix the sorted values."""
    from sinkhorn_transformer.sinkhorn_transformer import SinkhornSelfAttention

    pairs = []
    for sort in ("top", "soft"):
        # Its top sort ignores the temperature.
        temperature = 1.0 if sort == "top" else TEMPERATURE
        config = SinkhornConfig(bucket_size=BUCKET, sort=sort, iterations=ITERATIONS, temperature=temperature)
        ours = MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=length)
        theirs = SinkhornSelfAttention(
            d_model,
            BUCKET,
            length,
            heads=n_heads,
            non_permutative=sort == "top",
            sinkhorn_iter=ITERATIONS,
            temperature=TEMPERATURE,
        )
        with torch.no_grad():
            queries, keys, values = ours.mixer.qkv.weight.chunk(3)
            values.copy_(keys)
            theirs.to_q.weight.copy_(queries)
            theirs.to_kv.weight.copy_(torch.cat([keys, values]))
            theirs.to_out.load_state_dict(ours.mixer.out.state_dict())
        layer = theirs if sort == "top" else WithoutNoise(theirs)
        pairs.append(Pair(ours, layer, "sinkhorn-transformer", f"bucket size {BUCKET}, {sort} sort"))
    return pairs
