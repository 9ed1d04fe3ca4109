"""transformers' Mamba2Mixer, its torch form, which runs without its compiled kernels. Causal."""

from __future__ import annotations

import torch

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.mamba2 import Mamba2, Mamba2Config


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    from transformers import Mamba2Config as Theirs
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config()
    theirs = Mamba2Mixer(
        Theirs(
            hidden_size=d_model,
            num_heads=n_heads,
            head_dim=config.expand * d_model // n_heads,
            expand=config.expand,
            state_size=config.state,
            conv_kernel=config.conv_width,
            n_groups=1,
            num_hidden_layers=1,
        ),
        layer_idx=0,
    )
    max_len = max(length, config.conv_width)  # our layer has at most max_len taps, their layer always all
    layer = MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=max_len, causal=True)
    ours = layer.mixer
    assert isinstance(ours, Mamba2)
    with torch.no_grad():
        theirs.in_proj.weight.copy_(ours.project.weight)
        theirs.conv1d.weight.copy_(ours.taps.T[:, None])
        theirs.conv1d.bias.copy_(ours.taps_bias)
        theirs.A_log.copy_(ours.log_a)
        theirs.dt_bias.copy_(ours.step_bias)
        theirs.D.copy_(ours.skip)
        theirs.norm.weight.copy_(ours.scale)
        theirs.out_proj.weight.copy_(ours.out.weight)  # their layer has no bias; our bias is 0
    return [Pair(layer, theirs, "transformers", "causal, torch ops, state 64, expand 1")]
