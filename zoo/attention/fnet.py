"""FNet: a Fourier transform mixes the tokens, with nothing to learn.

FNet: Mixing Tokens with Fourier Transforms, arXiv:2105.03824, equation 3: ``y = Re(F_seq(F_hidden(x)))``, the real part
of the discrete Fourier transform over positions and features.
Cost: O(N log N) time, O(N) memory. Without query, key and value maps, a layer has 3·d_model² fewer parameters.

The input is real, so half of the features' spectrum is computed: the other half mirrors it. The transform equals its
own transpose, so backward applies the same transform and stores nothing.

Departures from the paper:
- The transform is orthonormal (divided by √(N·d_model)), so its output is as large as its input.
- The linear map ``out`` follows, as in every sublayer here; the paper has none.
- The transform runs over a sample's real positions, moved side by side, so padding changes nothing. The paper
  transforms the padding too, so the amount of padding changes every output. Samples with equally many real positions
  run as one batch.
There is no causal form: each output sums over all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Traits
from zoo.functional import accumulator, traced
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class FNetConfig:
    """No options."""


@register("fnet", config=FNetConfig)
class FNet(Mixer):
    """The Fourier transform over positions and features."""

    traits = Traits(
        family="spectral",
        source="Lee-Thorp et al., arXiv:2105.03824",
        year=2021,
        time="O(N·log N)",
        memory="O(N)",
        causal=False,
        rotary=False,
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: FNetConfig) -> None:
        super().__init__(dims)
        self.out = nn.Linear(dims.d_model, dims.d_model)
        nn.init.normal_(self.out.weight, std=dims.d_model**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        mixed = _mixed(x, key_padding_mask) if traced() else _Transform.apply(x, key_padding_mask)  # type: ignore[no-untyped-call]
        y: Tensor = self.out(mixed)
        return y

    def state_size(self, length: int) -> int:
        """The spectrum: as many numbers as the input has."""
        return length * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("torch FFT")


class _Transform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden)
        return _mixed(x, hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Transform.apply(grad, *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


def _mixed(x: Tensor, hidden: Tensor | None) -> Tensor:
    return transform(x) if hidden is None else transform_real(x, ~hidden)


def transform(x: Tensor) -> Tensor:
    """The real part of the orthonormal transform over positions and features. (B, N, C)."""
    if len(x) == 0:  # MKL raises on an empty batch
        return x
    half = torch.fft.rfft2(x.to(accumulator(x)), dim=(1, 2), norm="ortho").real  # (B, N, C // 2 + 1)
    rest = half[..., 1 : (x.shape[2] + 1) // 2]  # the value at (n, C − c) is that at (−n, c)
    return torch.cat([half, rest.flip(1, 2).roll(1, 1)], dim=2).to(x.dtype)


def transform_real(x: Tensor, real: Tensor) -> Tensor:
    """``transform`` over the ``real`` (B, N) positions of each sample; 0 at padding."""
    B, _, C = x.shape
    out = torch.zeros_like(x)
    lengths = real.sum(1)
    for length in torch.unique(lengths).tolist():
        if length:
            place = real & (lengths == length)[:, None]
            out[place] = transform(x[place].view(-1, length, C)).flatten(0, 1)
    return out
