"""Nyströmformer: softmax attention through M landmarks and the pseudo-inverse of their attention to each other.

Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention, arXiv:2102.03902, equations 13 to 15:
``softmax(q k̃ᵀ / √D) · Z · softmax(q̃ kᵀ / √D) v + DConv(v)``. q̃ and k̃ are means over M consecutive segments, and Z
approximates the pseudo-inverse of ``A = softmax(q̃ k̃ᵀ / √D)``: ``Z₀ = Aᵀ / (‖A‖₁ ‖A‖∞)``,
``Z ← ¼ Z (13 I - A Z (15 I - A Z (7 I - A Z)))``. DConv is a convolution along the positions, one filter for each head.
Cost: O(N M D + M³) time, O(N D + M²) memory: both softmaxes run on torch's fused kernels, which keep no N × M tensor.

The inverse magnifies rounding by up to its norm, so inputs of low precision are computed in float32.

Departures from the paper:
- Z₀ takes the norms of each sample's and head's own A. Public code takes them over the whole batch, so a sample's
  output depends on the rest of the batch.
- Segments split each sample's real positions in order, by the sample's own real length, so padding changes nothing.
  Where the length is no multiple of M, segments differ in size by one. A padded value counts as 0 in DConv.
- In a sample of at most M real positions each position is a landmark. ``A A⁺ A = A`` then makes the method exact
  attention, and it runs as such: the iterations would only approximate it.
There is no causal form: a landmark is a mean over positions before and after a query, and the inverse mixes them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from zoo.contract import Attention, Dims, Kernel, Traits, at_least
from zoo.cores.landmarks import iterate_inverse, segments
from zoo.functional import (
    accumulator,
    convolve_taps,
    full_attention,
    pad_to_multiple,
    recompute,
    sdpa_kernel_name,
    softmax_attention,
    traced,
    visible_keys,
)
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class NystromformerConfig:
    """landmarks: M, segments; their means are the landmarks of queries and keys.
    iterations: of the approximation of the pseudo-inverse.
    conv_width: taps (odd) of the convolution over the values that is added to the result; None for none.
    """

    landmarks: int = 64
    iterations: int = 6
    conv_width: int | None = 33

    def __post_init__(self) -> None:
        at_least(1, **{"nystromformer.landmarks": self.landmarks, "nystromformer.iterations": self.iterations})
        if self.conv_width is not None:
            at_least(1, **{"nystromformer.conv_width": self.conv_width})
            if self.conv_width % 2 == 0:
                raise ValueError(f"nystromformer.conv_width must be odd, got {self.conv_width}")


@register("nystromformer", config=NystromformerConfig)
class NystromformerAttention(Attention):
    """Softmax attention rebuilt from landmarks by the Nyström method."""

    traits = Traits(
        family="low-rank",
        source="Xiong et al., arXiv:2102.03902",
        year=2021,
        time="O(N·M)",
        memory="O(N)",
        causal=False,
        capacity="landmarks",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: NystromformerConfig) -> None:
        super().__init__(dims)
        self.config = config
        self.conv: nn.Parameter | None = None  # (H, taps)
        if config.conv_width is not None:
            bound = config.conv_width**-0.5
            self.conv = nn.Parameter(torch.empty(dims.n_heads, config.conv_width).uniform_(-bound, bound))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        dtype = q.dtype
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = (x.to(accumulator(x)) for x in (q, k, v))
            if key_padding_mask is not None:
                v = v.masked_fill(key_padding_mask[:, None, :, None], 0)
            if traced():  # one form for any length: with few positions the mask makes it full attention
                mask = (
                    torch.zeros_like(v[:, 0, :, 0], dtype=torch.bool) if key_padding_mask is None else key_padding_mask
                )
                out = self._attend(q, k, v, mask, dtype)
            elif q.shape[-2] <= self.config.landmarks:
                out = full_attention(q, k, v, key_padding_mask=key_padding_mask)
            else:
                out = self._attend(q, k, v, key_padding_mask, dtype)
            if self.conv is not None:
                out = out + convolve(v, self.conv.to(v.dtype))
        return out.to(dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The Nyström product, for more positions than landmarks. ``dtype``: that of the inputs."""
        M, D = self.config.landmarks, q.shape[-1]
        if key_padding_mask is None:
            q_mean, k_mean = segment_means(q, M), segment_means(k, M)  # (B, H, M, D)
            used = None
            between = (q_mean @ k_mean.mT * D**-0.5).softmax(-1)  # (B, H, M, M)
        else:
            place = (~key_padding_mask).cumsum(1) - 1
            real = place[:, -1] + 1
            starts, sizes = segments(real, M)
            q_mean, k_mean, v_mean = (
                means_of(x, place.masked_fill(key_padding_mask, -1), starts, sizes) for x in (q, k, v)
            )
            used = (sizes > 0)[:, None, None, :]
            logits = (q_mean @ k_mean.mT * D**-0.5).masked_fill(~used, torch.finfo(q.dtype).min)
            between = logits.softmax(-1) * (used & used.mT)
        visible = visible_keys(key_padding_mask)
        if k.device.type == "cpu":
            values = softmax_attention(q_mean, k, v, visible)
        else:
            values = recompute(partial(look_up, visible), q_mean, k, v)
        inverse = recompute(lambda a: pseudo_inverse(a, self.config.iterations), between)
        values = inverse @ values
        if key_padding_mask is not None:
            values = torch.where((real <= M)[:, None, None, None], v_mean, values)
        if dtype == torch.bfloat16 and q.device.type != "cpu":  # fused kernels for GPUs are slow in 32 bits
            q, k_mean, values = (x.to(dtype) for x in (q, k_mean, values))
        return softmax_attention(q, k_mean, values, used)

    def state_size(self, length: int) -> int:
        """k̃, the values of the landmarks and the values under the filters; at most all keys and values."""
        taps = self.config.conv_width or 0
        return min(2 * length, 2 * self.config.landmarks + taps) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        wide = x.device.type == "cpu" or x.dtype != torch.bfloat16
        return sdpa_kernel_name(x.to(accumulator(x)) if wide else x)


def look_up(visible: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention as matrix products. Fused GPU kernels split the queries among programs, not the keys, so few
    queries over many keys leave most of a GPU idle."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if visible is not None:
        logits = logits.masked_fill(~visible, torch.finfo(q.dtype).min)
    read: Tensor = logits.softmax(-1) @ v
    return read


def segment_means(x: Tensor, count: int) -> Tensor:
    """Means over ``count`` consecutive segments, split as ``segments`` does. (B, H, N, D) -> (B, H, count, D)."""
    size, longer = divmod(x.shape[-2], count)
    cut = (count - longer) * size
    means = reduce(x[..., :cut, :], "b h (m n) d -> b h m d", "mean", n=size)
    if not longer:
        return means
    return torch.cat([means, reduce(x[..., cut:, :], "b h (m n) d -> b h m d", "mean", n=size + 1)], dim=-2)


def means_of(x: Tensor, place: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
    """Means over the segments of each sample: see ``_SegmentMeans``."""
    if traced():
        return mean_product(x, place, starts, sizes)
    out: Tensor = _SegmentMeans.apply(x, place, starts, sizes)  # type: ignore[no-untyped-call]
    return out


def mean_product(x: Tensor, place: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
    after = place[:, None] - starts[..., None]  # (B, M, N)
    weights = ((after >= 0) & (after < sizes[..., None])) / sizes.clamp(min=1)[..., None].to(x.dtype)
    means = weights @ rearrange(x, "b h n d -> b n (h d)")
    return rearrange(means, "b m (h d) -> b h m d", h=x.shape[1])


class _SegmentMeans(torch.autograd.Function):
    """Means over the segments of each sample, as one product; backward reads each position's segment.

    x: (B, H, N, D); place: (B, N), the index of a position among the real ones, -1 for padding; starts, sizes: (B, M).
    Empty segments give 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
        ctx.save_for_backward(place, starts, sizes)
        return mean_product(x, place, starts, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        place, starts, sizes = ctx.saved_tensors
        shares = grad / sizes.clamp(min=1)[:, None, :, None]
        own = torch.searchsorted((starts + sizes).contiguous(), place.clamp(min=0).contiguous(), right=True)
        own = own.clamp(max=sizes.shape[1] - 1)[:, None, :, None].expand(-1, grad.shape[1], -1, grad.shape[3])
        return shares.gather(2, own).masked_fill((place < 0)[:, None, :, None], 0), None, None, None


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Iterate from Z₀ towards the pseudo-inverse. a and the result: (B, H, M, M); rows of ``a`` sum to 1 or 0."""
    # Norms are at least 1 where rows sum to 1. A sample of padding alone has norm 0: clamp, not to divide by 0.
    norms = (a.sum(-1).amax(-1) * a.sum(-2).amax(-1)).clamp(min=0.5)
    return iterate_inverse(a, a.mT / norms[..., None, None], iterations)


def convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Each head's filter along the positions. x and the result: (B, H, N, D); filters: (H, taps)."""
    if traced():
        reach = filters.shape[1] // 2
        return convolve_taps(F.pad(x, (0, 0, reach, reach)), filters.T[..., None, None])
    out: Tensor = _Convolve.apply(x, filters)  # type: ignore[no-untyped-call]
    return out


class _Convolve(torch.autograd.Function):
    """``convolve``, with the gradient of the filters from block products.

    torch 2.13's own gradient, from oneDNN, is wrong by percents in float32 for a filter of one column and many taps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        return depthwise(x, filters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, filters = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            return convolve(grad, filters.flip(1)), filters_grad(x, grad, filters.shape[1])


def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Make a position's features the channels of one image row: the layout on which depthwise kernels are fast."""
    _, H, _, D = x.shape
    weight = repeat(filters, "h t -> (h d) 1 t 1", d=D)
    image = rearrange(x, "b h n d -> b (h d) n 1")
    out = F.conv2d(image, weight, padding=(filters.shape[1] // 2, 0), groups=H * D)
    return rearrange(out, "b (h d) n 1 -> b h n d", h=H)


def filters_grad(x: Tensor, grad: Tensor, taps: int, block: int = 32) -> Tensor:
    """``Σ grad[n] · x[n + t - taps // 2]`` for each head and tap. x, grad: (B, H, N, D); result: (H, taps).

    Each block of ``grad`` is multiplied by the stretch of ``x`` that its taps reach; diagonals of the product are taps.
    """
    grads = []
    reach = block + taps - 1
    for one, its_grad in zip(x.unbind(1), grad.unbind(1), strict=True):  # (B, N, D)
        parts = rearrange(pad_to_multiple(its_grad, block, -2), "b (n s) d -> b n s d", s=block)
        missing = parts.shape[1] * block - one.shape[1]
        reached = F.pad(one, (0, 0, taps // 2, taps // 2 + missing)).unfold(1, reach, block)  # (B, n, D, reach)
        products = (parts @ reached).sum((0, 1))  # (block, reach)
        grads.append(products.as_strided((block, taps), (reach + 1, 1)).sum(0))
    return torch.stack(grads)
