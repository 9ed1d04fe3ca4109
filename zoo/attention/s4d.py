"""S4D: a diagonal linear state space in each channel, computed as one long convolution.

On the Parameterization and Initialization of Diagonal State Space Models, arXiv:2206.11893, sections 3 and 4. Each
channel has a state of n = ``state`` / 2 complex numbers, rates A_m = −exp(a_m) + i b_m, a step size Δ, an output
vector C and a skip D:

``h_t = Ā h_{t−1} + B̄ x_t,  y_t = 2 Re(C h_t) + D x_t,  Ā = exp(Δ A),  B̄ = (Ā − 1) / A`` (zero-order hold, B = 1)

This is the convolution of x with the kernel ``K_l = 2 Re Σ_m C_m B̄_m Ā_m^l`` (equation 9). GELU and the gated linear
map ``out(y) σ(gate(y))`` follow. A, C, Δ and D are learned; A_m starts at −1/2 + iπm (S4D-Lin), Δ between 0.001 and
0.1.
In both directions a second kernel, with the same A and Δ and its own C, reads the future. It starts at the next
position, so a position counts itself once.
Cost: O(N log N) time, O(N) memory; a step of the causal form costs O(state) for each channel.

The powers split: Ā^l = Ā^(r·b) Ā^j with b about √N. So one small matrix product for each channel makes the kernel from
O(n √N) exponentials. Backward makes it again.

A kernel knows distances alone: what one position gives to another depends on neither content, so no layer can look up
a key, wherever its value stands.

On mqar at 64 tokens ``s4d`` recalls 18.1, 8.6 and 14.4 % after 1,000 optimizer steps of 64 samples (learning rate 1e-2,
the best of three; three seeds, ``results/cpu-2core/mqar_64``). Always guessing the last value gives 25 %.

Departures from the paper:
- The gated map is two maps of C × C (2·d_model² parameters), as in the paper's experiments; no map precedes the
  convolution. So a layer has about 2·d_model² fewer parameters than one of full attention.
- There is no dropout between GELU and map, and no separate learning rate for A and Δ. A and Δ have no weight decay, as
  in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least
from zoo.cores.convolution import convolve
from zoo.functional import accumulator, recompute
from zoo.registry import register

STEPS = (1e-3, 1e-1)  # initial Δ
RANGE = 20.0  # the logarithms of Δ and of −Re A are clamped to ± this, so that no product overflows


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """state: numbers in the state of a channel, N in the paper; even, since they are conjugate pairs."""

    state: int = 64

    def __post_init__(self) -> None:
        at_least(2, **{"s4d.state": self.state})
        if self.state % 2:
            raise ValueError(f"s4d.state must be even, got {self.state}")


@register("s4d", config=S4DConfig)
class S4D(Mixer):
    """A diagonal state space in each channel."""

    traits = Traits(
        family="state space",
        source="Gu et al., arXiv:2206.11893",
        year=2022,
        time="O(N·log N)",
        memory="O(N)",
        causal=True,
        rotary=False,
        bidirectional="two-sided kernel",
        capacity="state",
        subquadratic=True,
    )
    undecayed = ("log_real", "imaginary")  # A, as in the authors' code; Δ is a vector

    def __init__(self, dims: Dims, config: S4DConfig) -> None:
        super().__init__(dims)
        C, n = dims.d_model, config.state // 2
        directions = 1 if dims.causal else 2
        low, high = (math.log(step) for step in STEPS)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(C))
        self.log_real = nn.Parameter(torch.full((C, n), math.log(0.5)))
        self.imaginary = nn.Parameter(math.pi * torch.arange(n, dtype=torch.get_default_dtype()).repeat(C, 1))
        self.readout = nn.Parameter(torch.randn(directions, C, n, 2) * 0.5**0.5)  # C: real and imaginary part
        self.skip = nn.Parameter(torch.randn(C))  # D
        self.gate = nn.Linear(C, C)
        self.out = nn.Linear(C, C)
        for linear in (self.gate, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0)
        make = partial(kernels, x.shape[1])
        return self._output(convolve(x, recompute(make, *self._parameters_of_kernel())), x)

    def _parameters_of_kernel(self) -> Tensors:
        return self.log_step, self.log_real, self.imaginary, self.readout

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """The rest of the layer after the convolution ``y`` of ``x``."""
        y = F.gelu(y + self.skip * x.to(y.dtype)).to(x.dtype)
        gated: Tensor = self.out(y) * torch.sigmoid(self.gate(y))
        return gated

    def begin(self, x: Tensor) -> Tensors:
        return (torch.zeros(len(x), *self.readout.shape[1:], dtype=accumulator(x), device=x.device),)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        powers, weights = discretise(*self._parameters_of_kernel())
        state = torch.view_as_complex(tensors[0]) * powers.exp() + x[:, 0, :, None]  # (B, C, n)
        y = 2 * (state * weights[0]).sum(-1).real
        return self._output(y[:, None], x), (torch.view_as_real(state),)

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        powers, weights = discretise(*self._parameters_of_kernel())
        fine, coarse = exponentials(x.shape[1], powers)
        y = convolve(x, kernels_of(x.shape[1], weights, fine, coarse))
        return self._output(y, x), (torch.view_as_real(final_state(x, fine, coarse)),)

    def state_size(self, length: int) -> int:
        """One state a channel; in both directions a second one, of the future."""
        return self.readout.numel()

    def cache_size(self, length: int) -> int:
        return self.state_size(length)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("torch FFT")


def discretise(log_step: Tensor, log_real: Tensor, imaginary: Tensor, readout: Tensor) -> tuple[Tensor, Tensor]:
    """``Δ A``, (C, n), and ``C B̄``, (directions, C, n), both complex."""
    wide = accumulator(log_step)
    real, step = (logarithm.to(wide).clamp(-RANGE, RANGE).exp() for logarithm in (log_real, log_step))
    poles = torch.complex(-real, imaginary.to(wide))
    powers = poles * step[:, None]
    return powers, torch.view_as_complex(readout.to(wide)) * torch.expm1(powers) / poles


def kernels(length: int, log_step: Tensor, log_real: Tensor, imaginary: Tensor, readout: Tensor) -> Tensor:
    """The kernel at the lags 0 … N − 1, (C, N); with that of the future −(N − 1) … N − 1, (C, 2 N − 1)."""
    powers, weights = discretise(log_step, log_real, imaginary, readout)
    return kernels_of(length, weights, *exponentials(length, powers))


def exponentials(length: int, powers: Tensor) -> tuple[Tensor, Tensor]:
    """Ā^j for j below b, about √N, (C, n, b), and Ā^(r·b) for the rows of b that N positions fill, (C, rows, n)."""
    width = math.isqrt(length - 1) + 1
    place = torch.arange(width, dtype=powers.real.dtype, device=powers.device)
    fine = (powers[..., None] * place).exp()
    return fine, (powers[:, None] * width * place[: -(-length // width), None]).exp()


def kernels_of(length: int, weights: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
    """The result of ``kernels``, from ``C B̄`` and the powers of Ā."""
    coarse = weights[:, :, None] * coarse
    with torch.autocast(fine.device.type, enabled=False):
        rows = torch.cat([coarse.real, -coarse.imag], dim=-1)  # (directions, C, rows, 2 n)
        both = 2 * (rows @ torch.cat([fine.real, fine.imag], dim=-2))  # (directions, C, rows, b)
    past, *future = both.flatten(-2)[..., :length]
    return torch.cat([future[0][:, : length - 1].flip(-1), past], dim=-1) if future else past


def final_state(x: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
    """``Σ_l Ā^l x_(N − 1 − l)`` of x (B, N, C), from the powers of Ā. (B, C, n), complex."""
    (C, n, width), B = fine.shape, len(x)
    rows = F.pad(x.flip(1), (0, 0, 0, -x.shape[1] % width)).to(fine.real.dtype)
    rows = rearrange(rows, "b (r w) c -> c (b r) w", w=width).contiguous()
    with torch.autocast(x.device.type, enabled=False):
        both = (rows @ torch.cat([fine.real, fine.imag], dim=-2).mT).view(C, B, coarse.shape[1], 2, n)
    total: Tensor = (torch.complex(*both.unbind(3)) * coarse[:, None]).sum(2)
    return total.transpose(0, 1).contiguous()
