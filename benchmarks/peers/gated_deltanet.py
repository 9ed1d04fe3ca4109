"""transformers' Gated DeltaNet, the layer of Qwen3-Next, with as many heads for keys as for values.

Without its GPU kernels it computes the same chunks with torch operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention


class Layer(nn.Module):
    """Their layer with the signature of ours, a mask included."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        real = None if key_padding_mask is None else ~key_padding_mask
        y: Tensor = self.layer(x, attention_mask=real)
        return y


@torch.no_grad()
def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    d_head = d_model // n_heads
    config = Qwen3NextConfig(
        hidden_size=d_model,
        linear_num_key_heads=n_heads,
        linear_num_value_heads=n_heads,
        linear_key_head_dim=d_head,
        linear_value_head_dim=d_head,
        rms_norm_eps=1e-5,
    )
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    ours = MultiHeadAttention("gated_deltanet", d_model=d_model, n_heads=n_heads, max_len=length, causal=True)
    mixer = ours.mixer
    qkv, gate = (linear.weight.view(n_heads, -1, d_model) for linear in (mixer.qkv, mixer.gate))
    theirs.in_proj_qkvz.weight.copy_(torch.cat([qkv, gate], dim=1).flatten(0, 1))
    theirs.in_proj_ba.weight.copy_(mixer.rates.weight.view(2, n_heads, d_model).transpose(0, 1).flatten(0, 1))
    taps = mixer.conv[:, :, 0].permute(1, 2, 0).unflatten(1, (3, d_head))  # (H, 3, D, conv_width)
    theirs.conv1d.weight.copy_(taps.transpose(0, 1).flatten(0, 2)[:, None])
    mixer.strength.zero_()  # their layer has no such parameter
    theirs.A_log.copy_(mixer.log_rate)
    theirs.dt_bias.copy_(mixer.offset)
    theirs.norm.weight.copy_(mixer.norm)
    theirs.out_proj.weight.copy_(mixer.out.weight)
    return [Pair(ours, Layer(theirs), "transformers", "causal, Qwen3-Next's layer")]
