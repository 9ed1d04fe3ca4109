"""transformers' Longformer self-attention, whose window counts both sides, with the first token global."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.longformer import LongformerConfig


class _Layer(nn.Module):
    """Their self-attention with the masks of their model, and an output projection as in our layer."""

    def __init__(self, attention: nn.Module, d_model: int, n_global: int) -> None:
        super().__init__()
        self.attention, self.n_global = attention, n_global
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        kind = x.new_zeros(x.shape[:2])  # 10,000 = global, −10,000 = padding
        kind[:, : self.n_global] = 10_000
        if key_padding_mask is not None:
            kind = kind.masked_fill(key_padding_mask, -10_000)
        mixed = self.attention(
            x,
            attention_mask=kind,
            is_index_masked=kind < 0,
            is_index_global_attn=kind > 0,
            is_global_attn=self.n_global > 0,
        )
        y: Tensor = self.out(mixed[0])
        return y


@torch.no_grad()
def pair(*, d_model: int, n_heads: int, length: int, n_global: int = 1) -> list[Pair]:
    """``length`` must be a multiple of twice the window, 512, as their layer requires."""
    from transformers import LongformerConfig as TheirConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    window = 256
    config = LongformerConfig(window=window, n_global=n_global)
    ours = MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=length)
    their_config = TheirConfig(
        hidden_size=d_model,
        num_attention_heads=n_heads,
        num_hidden_layers=1,
        attention_window=[2 * window],
        attention_probs_dropout_prob=0.0,
    )
    attention = LongformerSelfAttention(their_config, layer_id=0)
    theirs = _Layer(attention, d_model, n_global)
    theirs.out.load_state_dict(ours.mixer.out.state_dict())
    _copy(ours.mixer.qkv, [attention.query, attention.key, attention.value])
    if n_global:
        _copy(ours.mixer.global_q, [attention.query_global])
        _copy(ours.mixer.global_kv, [attention.key_global, attention.value_global])
    tokens = f"{n_global} global token{'' if n_global == 1 else 's'}"
    return [Pair(ours, theirs, "transformers", f"window {window} on each side, {tokens}")]


def _copy(ours: nn.Linear, theirs: list[nn.Linear]) -> None:
    for linear, weight, bias in zip(theirs, ours.weight.chunk(len(theirs)), ours.bias.chunk(len(theirs)), strict=True):
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
