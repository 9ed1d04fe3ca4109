"""Two peers of linear attention: one with the same features, and the leanest package of the family.

performer-pytorch 1.1.4 (PyPI) accepts any feature function in its generalized attention. It scales the input of the
function by D^-¼ and adds 0.001 to the output; the function here reverses both.

linear-attention-transformer 0.19.1 (PyPI) has other features: softmax over a query's features and over the positions of
the keys. It divides the result by √D, which the output weights here reverse. The two layers compute different
functions; only their costs are compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    return [same_features(d_model, n_heads, length), leanest(d_model, n_heads, length)]


def same_features(d_model: int, n_heads: int, length: int) -> Pair:
    from performer_pytorch.performer_pytorch import SelfAttention

    d_head = d_model // n_heads

    def elu_plus_one(x: Tensor) -> Tensor:
        return F.elu(x * d_head**0.25) + (1 - 0.001)

    theirs = SelfAttention(
        d_model, heads=n_heads, dim_head=d_head, generalized_attention=True, kernel_fn=elu_plus_one, nb_features=d_head
    )
    theirs.fast_attention.projection_matrix = None  # features of the head itself, not of random projections
    ours = with_weights_of(theirs, d_model, n_heads, length)
    return Pair(ours, theirs, "performer-pytorch", "generalized attention, features elu + 1")


def leanest(d_model: int, n_heads: int, length: int) -> Pair:
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    theirs = SelfAttention(d_model, heads=n_heads)
    ours = with_weights_of(theirs, d_model, n_heads, length)
    with torch.no_grad():
        theirs.to_out.weight *= (d_model // n_heads) ** 0.5
    return Pair(
        ours,
        theirs,
        "linear-attention-transformer",
        "not causal, its own features",
        tolerance=1.0,
        why="another kernel: softmax features, so only the cost is compared",
    )


def with_weights_of(theirs: nn.Module, d_model: int, n_heads: int, length: int) -> MultiHeadAttention:
    """Our layer, with weights initialised for the scale of a head; the peer gets the same weights."""
    ours = MultiHeadAttention("linear", d_model=d_model, n_heads=n_heads, max_len=length)
    with torch.no_grad():
        for linear, weight in zip((theirs.to_q, theirs.to_k, theirs.to_v), ours.mixer.qkv.weight.chunk(3), strict=True):
            linear.weight.copy_(weight)
        theirs.to_out.load_state_dict(ours.mixer.out.state_dict())
    return ours
