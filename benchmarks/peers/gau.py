"""FLASH-pytorch 0.1.9 on PyPI: gated attention unit with mixed chunk attention, both directions.

Here its norm is the first norm of our layer, its relative bias is 0, and its residual connection is removed. The causal
form divides the sum over earlier chunks by the length of one chunk, not by the number of keys: so causal forms agree on
the first two chunks and differ from the third on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.gau import EPSILON, GatedAttentionUnit


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    ours = MultiHeadAttention("gau", d_model=d_model, n_heads=n_heads, max_len=length)
    return [
        Pair(ours, Peer(ours), "FLASH-pytorch", "not causal, chunks of 256, as wide as the input, no relative bias")
    ]


class Peer(nn.Module):
    """FLASH-pytorch's layer with the weights of ours, without its residual connection."""

    def __init__(self, ours: MultiHeadAttention) -> None:
        from flash_pytorch import FLASH

        super().__init__()
        unit = ours.mixer
        assert isinstance(unit, GatedAttentionUnit)
        e, _, s = unit.widths
        self.flash = FLASH(
            dim=ours.d_model,
            group_size=unit.chunk,
            query_key_dim=s,
            expansion_factor=e / ours.d_model,
            causal=unit.causal,
            shift_tokens=False,
        )
        self.flash.norm = nn.RMSNorm(ours.d_model, eps=EPSILON, elementwise_affine=False)
        with torch.no_grad():
            for key, parameter in unit.hidden.named_parameters():
                u, v, z = parameter.split(unit.widths)
                self.flash.to_hidden[0].get_parameter(key).copy_(torch.cat([v, u]))
                self.flash.to_qk[0].get_parameter(key).copy_(z)
            self.flash.to_out.load_state_dict(unit.out.state_dict())
            order = [0, 2, 1, 3]  # theirs: q, q', k, k'
            self.flash.qk_offset_scale.gamma.copy_(unit.scale[order])
            self.flash.qk_offset_scale.beta.copy_(unit.offset[order])
            self.flash.rel_pos_bias.relative_attention_bias.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.flash(x) - x
        return y
