"""Skyformer: attention by a Gaussian kernel, which the Nyström method rebuilds from M of its rows.

Skyformer: Remodel Self-Attention with Gaussian Kernel and Nyström Method, arXiv:2111.00035. Kernelized attention is
``κ(Q, K) V`` with ``κ(q, k) = exp(-‖q - k‖² / 2√D)``: softmax attention's scores divided by the square roots of their
diagonals instead of row sums, so no row is normalised. ``κ(Q, K)`` is a block of the positive semi-definite
``κ([Q; K], [Q; K])``, which the Nyström method rebuilds from M landmark rows Z of ``[Q; K]``:
``out = κ(Q, Z) (κ(Z, Z) + γ I)⁻¹ κ(Z, K) V``. Let ``S = κ(Z, Z) + γ I``, and R the diagonal of its row sums: the
eigenvalues of ``A = R^-½ S R^-½`` lie in (0, 1], so a few matrix iterations give ``S⁻¹ = R^-½ A⁻¹ R^-½``.
Cost: O(N M D + M³) time, O(N D + M²) memory: the N × M kernels are made in chunks of rows, in backward once more.

On mqar at 64 tokens ``skyformer`` recalls 92.1, 87.8 and 88.5 % with 16 landmarks after 1,000 optimizer steps of 64
samples (learning rate 3e-3, the best of three; three seeds, ``results/cpu-2core/mqar_64``).

Rows that are not normalised add up: at the start a layer's output is over ten times as large as that of ``full`` on 64
positions, and grows with their number.

Departures from the paper:
- Landmarks are M/2 queries and M/2 keys, as in the authors' code, but drawn at construction and by ``redraw()`` instead
  of in every forward: one random position from each of M/2 consecutive segments of the real positions. So they depend
  on a sample's own real length alone, no landmark occurs twice, and in a short sample every position is a landmark.
- The scale is √D for any head width D (the authors' code fixes it at the √32 of their models).
- Values start at variance 1, as in every backend here; in the authors' code queries, keys and values start at
  nn.Linear's 1/3.
- γ is 0.001 by default; the authors' code adds 0.1, an error that no number of landmarks removes.
- The iterations start from I, which ``‖I - A‖ < 1`` allows. The authors' code starts from Aᵀ over a maximum in the
  whole batch: a sample's output then depends on the rest of the batch, and small eigenvalues are squared.
There is no causal form: a query reads every key through all landmarks, including later ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Attention, Dims, Init, Kernel, Traits, at_least
from zoo.cores.landmarks import iterate_inverse, segments
from zoo.functional import accumulator, once, recompute, side_by_side, traced
from zoo.registry import register

CHUNK = 512  # positions whose kernel values to all landmarks exist at a time


@dataclass(frozen=True, kw_only=True)
class SkyformerConfig:
    """landmarks: M, rows of queries and keys that the kernel is rebuilt from; half of them, rounded down, are queries.
    gamma: γ, added to the diagonal before the inverse.
    iterations: of the approximation of the inverse.
    """

    landmarks: int = 128
    gamma: float = 1e-3
    iterations: int = 6

    def __post_init__(self) -> None:
        at_least(1, **{"skyformer.landmarks": self.landmarks})
        at_least(1, **{"skyformer.iterations": self.iterations})
        if not (isinstance(self.gamma, int | float) and 0 < self.gamma < math.inf):
            raise ValueError(f"skyformer.gamma must be a positive number, got {self.gamma!r}")


class Landmarks(NamedTuple):
    """z: (B, H, M, D), in float32 at least: rows of queries, then of keys. used: (B, 1, M, 1) bool, which of them are
    there. places: positions of the rows of keys, (B, rows). real: how many positions of a sample are no padding, (B,).
    """

    z: Tensor
    used: Tensor
    places: Tensor
    real: Tensor


@register("skyformer", config=SkyformerConfig)
class SkyformerAttention(Attention):
    """A Gaussian kernel in place of softmax, rebuilt from landmarks by the Nyström method."""

    traits = Traits(
        family="low-rank",
        source="Chen et al., arXiv:2111.00035",
        year=2021,
        time="O(N·M)",
        memory="O(N)",
        causal=False,
        capacity="landmarks",
        stochastic=True,
        subquadratic=True,
        init=Init(variance=1 / 3, source="nn.Linear's default, as in the authors' code (pkuzengqi/Skyformer)"),
        exceptions={"scale": "the kernel's rows are not divided by their sums, so an output grows with its keys"},
    )
    draws: Tensor

    def __init__(self, dims: Dims, config: SkyformerConfig) -> None:
        super().__init__(dims)
        self.config = config
        self.key_landmarks = config.landmarks - config.landmarks // 2
        # (M,) integers: which position of its segment a landmark is, modulo the segment's size.
        self.register_buffer("draws", torch.randint(2**31, (config.landmarks,)))

    def redraw(self) -> None:
        self.draws = torch.empty_like(self.draws).random_(2**31)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            v = v.masked_fill(key_padding_mask[:, None, :, None], 0)
        with torch.autocast(q.device.type, enabled=False):
            if q.shape[2] <= self.key_landmarks and not traced():
                keys, values = k.to(accumulator(k)), v.to(accumulator(v))
                exact: Tensor = _Spread.apply(q, values, keys)  # type: ignore[no-untyped-call]
                return exact
            z, used, places, real = self._landmarks(q, k, key_padding_mask)
            inverse = recompute(lambda z: self._inverse(z, used), z)
            if traced():
                values = inverse @ (gaussian(k.to(z.dtype), z).mT @ v.to(z.dtype))
            else:
                values = inverse @ _Collect.apply(k, v, z)  # type: ignore[no-untyped-call]
            if key_padding_mask is not None or traced():  # some samples may be short
                own = v.gather(2, places[:, None, :, None].expand(-1, v.shape[1], -1, v.shape[3])).to(z.dtype)
                own = F.pad(own.masked_fill(~used[:, :, -own.shape[2] :], 0), (0, 0, z.shape[2] - own.shape[2], 0))
                values = torch.where((real <= self.key_landmarks)[:, None, None, None], own, values)
            if traced():
                return (gaussian(q.to(z.dtype), z) @ values).to(q.dtype)
            out: Tensor = _Spread.apply(q, values, z)  # type: ignore[no-untyped-call]
        return out

    def _landmarks(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Landmarks:
        B, H, N, D = q.shape
        order = None
        real = torch.full((B,), N, device=q.device)
        if key_padding_mask is not None:
            order = key_padding_mask.argsort(dim=1, stable=True)  # the real positions, then the padding
            real = N - key_padding_mask.sum(1)
        landmarks, used = [], []
        for x, draws in ((q, self.draws[: -self.key_landmarks]), (k, self.draws[-self.key_landmarks :])):
            count = len(draws) if traced() else min(len(draws), N)  # unused landmarks change nothing
            starts, sizes = segments(real, count)
            place = (starts + draws[:count] % sizes.clamp(min=1)).clamp(max=N - 1)
            index = place if order is None else order.gather(1, place)
            landmarks.append(x.gather(2, index[:, None, :, None].expand(-1, H, -1, D)))
            used.append(sizes > 0)
        present = torch.cat(used, dim=1)[:, None, :, None]
        z = torch.cat(landmarks, dim=2).masked_fill(~present, 0)
        return Landmarks(z.to(accumulator(z)), present, index, real)

    def _inverse(self, z: Tensor, used: Tensor) -> Tensor:
        """S⁻¹ on the landmarks in use, 0 elsewhere. (B, H, M, D) -> (B, H, M, M)."""
        present = used & used.mT
        eye = torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
        regular = gaussian(z, z) * present + self.config.gamma * eye
        scale = regular.sum(-1, keepdim=True).rsqrt()  # R^-½
        a = scale * regular * scale.mT
        return scale * iterate_inverse(a, eye.expand_as(a), self.config.iterations) * scale.mT * present

    def state_size(self, length: int) -> int:
        """Z and its values; of a short sequence all keys and values."""
        return 2 * (length if length <= self.key_landmarks else self.config.landmarks) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("torch ops in chunks")


def gaussian(x: Tensor, z: Tensor) -> Tensor:
    """κ(x, z). (B, H, N, D), (B, H, M, D) -> (B, H, N, M)."""
    products = x @ z.mT - 0.5 * (x.square().sum(-1, keepdim=True) + z.square().sum(-1)[..., None, :])
    # -‖x - z‖² / 2 is never above 0, but rounding may make it so.
    exponents: Tensor = products.clamp(max=0) * x.shape[-1] ** -0.5
    return exponents.exp()


def gaussian_grad(x: Tensor, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and z, from the gradient of the exponents of κ(x, z), ``-‖x - z‖² / 2√D``."""
    grad = grad * x.shape[-1] ** -0.5
    return grad @ z - grad.sum(-1, keepdim=True) * x, grad.mT @ x - grad.sum(-2)[..., None] * z


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same chunk of positions of each tensor (B, H, N, D), chunk by chunk."""
    for i in range(0, tensors[0].shape[2], CHUNK):
        yield tuple(x[:, :, i : i + CHUNK] for x in tensors)


class _Collect(torch.autograd.Function):
    """κ(z, k) v, a chunk of positions at a time. k, v: (B, H, N, D); z and the result: (B, H, M, D)."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(k, v, z)
        out = torch.zeros_like(z)
        for k_part, v_part in chunks(k, v):
            out += gaussian(k_part.to(z.dtype), z).mT @ v_part.to(z.dtype)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        k, v, z = ctx.saved_tensors
        (k_grad, v_grad), z_grad = side_by_side(k, v), torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for parts in chunks(k, v, k_grad, v_grad):
                k_part, v_part = (x.to(z.dtype) for x in parts[:2])
                kernel = gaussian(k_part, z)
                parts[3].copy_(kernel @ grad)
                to_k, to_z = gaussian_grad(k_part, z, v_part @ grad.mT * kernel)
                parts[2].copy_(to_k)
                z_grad += to_z
        return k_grad, v_grad, z_grad


class _Spread(torch.autograd.Function):
    """κ(q, z) values, a chunk of positions at a time. q and the result: (B, H, N, D); values, z: (B, H, M, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, values: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(q, values, z)
        (out,) = side_by_side(q)
        for q_part, part in chunks(q, out):
            part.copy_(gaussian(q_part.to(z.dtype), z) @ values)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, values, z = ctx.saved_tensors
        (q_grad,), values_grad, z_grad = side_by_side(q), torch.zeros_like(values), torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for parts in chunks(q, grad, q_grad):
                q_part, part = (x.to(z.dtype) for x in parts[:2])
                kernel = gaussian(q_part, z)
                values_grad += kernel.mT @ part
                to_q, to_z = gaussian_grad(q_part, z, part @ values.mT * kernel)
                parts[2].copy_(to_q)
                z_grad += to_z
        return q_grad, values_grad, z_grad
