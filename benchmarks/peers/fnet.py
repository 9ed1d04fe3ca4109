"""transformers' FNet: its Fourier transform, over √(N·d_model), followed by a linear map as in our layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention


class _Transformers(nn.Module):
    def __init__(self, fourier: nn.Module, d_model: int) -> None:
        super().__init__()
        self.fourier = fourier
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.fourier(x)[0] * (x.shape[1] * x.shape[2]) ** -0.5)
        return y


@torch.no_grad()
def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    from transformers import FNetConfig
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    ours = MultiHeadAttention("fnet", d_model=d_model, n_heads=n_heads, max_len=length)
    config = FNetConfig(hidden_size=d_model, max_position_embeddings=length)
    theirs = _Transformers(FNetBasicFourierTransform(config), d_model)
    theirs.out.load_state_dict(ours.mixer.out.state_dict())
    return [Pair(ours, theirs, "transformers", "no options")]
