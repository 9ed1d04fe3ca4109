"""Ours beside nystrom-attention and transformers' Nyströmformer."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.nystromformer import NystromformerAttention, NystromformerConfig
from zoo.shell import Shell


class _Transformers(nn.Module):
    """Their self-attention, which returns a tuple and has no output projection, with a projection as in our layer."""

    def __init__(self, attention: nn.Module, d_model: int) -> None:
        super().__init__()
        self.attention = attention
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.attention(x)[0])
        return y


@torch.no_grad()
def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    """Each peer at its defaults, 64 landmarks; ``length`` must be a multiple of 64, as transformers requires."""
    from nystrom_attention import NystromAttention
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    ours, heads, attention = _ours(d_model, n_heads, length, conv_width=33)
    theirs: Any = NystromAttention(d_model, d_model // n_heads, n_heads, num_landmarks=64)
    theirs.to_qkv.weight.copy_(heads.qkv.weight)
    theirs.to_out[0].load_state_dict(heads.out.state_dict())
    theirs.res_conv.weight.copy_(rearrange(attention.conv, "h t -> h 1 t 1"))
    lucid = Pair(
        ours=ours,
        theirs=theirs,
        package="nystrom-attention",
        setting="64 landmarks, 6 iterations, convolution of 33",
        tolerance=5e-3,
        why="its pseudo-inverse starts from norms over all samples and heads, ours from each one's own",
    )

    from transformers import NystromformerConfig as TheirConfig

    ours, heads, attention = _ours(d_model, n_heads, length, conv_width=65)
    config = TheirConfig(
        hidden_size=d_model,
        num_attention_heads=n_heads,
        segment_means_seq_len=length,
        num_landmarks=64,
        conv_kernel_size=65,
        attention_probs_dropout_prob=0.0,
    )
    inner: Any = NystromformerSelfAttention(config)
    # Norms for each sample and head. The constructor's option for this reads a field that does not exist.
    inner.init_option = "exact"
    for i, linear in enumerate((inner.query, inner.key, inner.value)):
        rows = slice(i * d_model, (i + 1) * d_model)
        linear.weight.copy_(heads.qkv.weight[rows])
        linear.bias.copy_(heads.qkv.bias[rows])
    inner.conv.weight.copy_(rearrange(attention.conv, "h t -> h 1 t 1"))
    wrapped = _Transformers(inner, d_model)
    wrapped.out.load_state_dict(heads.out.state_dict())
    hugging = Pair(
        ours=ours,
        theirs=wrapped,
        package="transformers",
        setting="64 landmarks, 6 iterations, convolution of 65",
    )
    return [lucid, hugging]


def _ours(
    d_model: int, n_heads: int, length: int, *, conv_width: int
) -> tuple[MultiHeadAttention, Shell, NystromformerAttention]:
    config = NystromformerConfig(landmarks=64, conv_width=conv_width)
    ours = MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=length)
    assert isinstance(ours.mixer, Shell)
    assert isinstance(ours.mixer.attention, NystromformerAttention)
    return ours, ours.mixer, ours.mixer.attention
