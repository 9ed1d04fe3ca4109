"""Long convolutions by the fast Fourier transform, one filter for each channel: O(N log N) time, O(N) memory.

Channels run in groups, so that few spectra exist at a time. Forward keeps the input and the filters, and backward
transforms them again.

A transform mixes all positions of a channel. So each result has an error of some 1e-7 (float32) of the largest input of
its channel, even if that input is outside the filter: a causal convolution is causal up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional import accumulator, once, traced

GROUP = 2**20  # numbers transformed at a time: more leave the cache, fewer mean many small calls
GROUP_ELSEWHERE = 2**26  # the same on devices other than a CPU, where small calls cost more


def convolve(x: Tensor, filters: Tensor) -> Tensor:
    """``y_t = Σ_s filter[t − s] x_s`` in each channel, in float32 at least.

    Args:
        x: (B, N, C), like the result.
        filters: (C, N) for the lags 0 … N − 1, or (C, 2 N − 1) for the lags −(N − 1) … N − 1.
    """
    if traced():
        return _convolve_some(x, filters, fft_size(2 * x.shape[1] - 1))
    out: Tensor = _Convolve.apply(x, filters)  # type: ignore[no-untyped-call]
    return out


def _convolve_some(x: Tensor, filters: Tensor, size: int) -> Tensor:
    """``convolve`` of some channels, by transforms of length ``size``."""
    N, K = x.shape[1], filters.shape[1]
    spectrum = _transform(x.mT, size) * _transform(filters, size)
    out: Tensor = torch.fft.irfft(spectrum, size)[..., K - N : K].mT
    return out


def fft_size(least: int) -> int:
    """The next size without prime factors above 5: transforms of other sizes take several times as long."""
    from scipy.fft import next_fast_len  # imported here: takes a fifth of torch's import time

    size: int = next_fast_len(least, real=True)
    return size


# What torch.compiler.assume_constant_result sets. That imports torch's compiler, which takes as long as torch itself.
fft_size._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Convolve(torch.autograd.Function):
    """``convolve``. Products of spectra are circular convolutions: a length of 2 N − 1 or more keeps wrapped terms out
    of the results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        size = fft_size(2 * x.shape[1] - 1)
        out = torch.empty(x.shape, dtype=accumulator(x), device=x.device)
        for channels in _channels_together(x, size):
            out[..., channels] = _convolve_some(x[..., channels], filters[channels], size)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, filters = ctx.saved_tensors
        N, K = x.shape[1], filters.shape[1]
        size = fft_size(2 * N - 1)
        dx, d_filters = torch.empty_like(x), torch.zeros_like(filters)
        for channels in _channels_together(x, size):
            spectrum = _transform(F.pad(grad[..., channels].mT, (K - N, 0)), size)
            lags = (spectrum * _transform(x[..., channels].mT, size).conj()).sum(0)
            d_filters[channels] = torch.fft.irfft(lags, size)[..., :K]
            dx[..., channels] = torch.fft.irfft(spectrum * _transform(filters[channels], size).conj(), size)[..., :N].mT
        return dx, d_filters


def _channels_together(x: Tensor, size: int) -> list[slice]:
    """Channels of ``x`` (B, N, C) to transform together."""
    B, _, C = x.shape
    step = max(1, (GROUP if x.device.type == "cpu" else GROUP_ELSEWHERE) // (max(1, B) * size))
    return [slice(first, min(first + step, C)) for first in range(0, C if B else 0, step)]  # MKL raises on 0 samples


def _transform(x: Tensor, size: int) -> Tensor:
    spectrum: Tensor = torch.fft.rfft(x.to(accumulator(x)), size)
    return spectrum
