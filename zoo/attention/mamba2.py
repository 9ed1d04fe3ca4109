"""Mamba-2: a linear recurrence whose decay, input and output depend on the token.

Transformers are SSMs, arXiv:2405.21060, sections 5 to 7 (state space duality, SSD). Each head has a scalar a < 0. Each
token gives every head a step size Δ_t > 0, and all heads together the vectors B_t and C_t:
``S_t = exp(Δ_t a) S_{t-1} + Δ_t B_tᵀ x_t, y_t = C_t S_t + D x_t``. x, B, C, Δ and a gate z are projections of the
input; x, B and C first pass a short depthwise convolution and SiLU. The layer is ``out(RMSNorm(y ⊙ SiLU(z)))``.
Cost: O(N M C) time, O(N C) memory, with M the rows of the state. On two cores of a Xeon both directions at N = 8192,
forward and backward, take 0.36 to 0.5 of fused full attention's time: the fused kernel is fast there, and a chunk is
many small operations, most of which run twice since backward computes chunks again.

In both directions a second scan, from the end, with its own Δ, B and C, adds what comes after t. So the position itself
counts once, in the forward scan and in D. Hydra (arXiv:2407.09941) also has two such scans that share a, x and the bias
of Δ; but neither reads the position itself, and Hydra's D depends on the token. In both directions the convolution is
centred, as in Hydra.

On mqar at 64 tokens ``mamba2`` recalls 99.0, 97.5 and 97.7 % after 1,000 optimizer steps of 64 samples (learning rate
3e-3, the best of three; three seeds, ``results/cpu-2core/mqar_64``).

Departures from the paper:
- x is as wide as d_model, not twice, so a layer has about as many parameters as ``full``; ``expand`` is that factor.
  M is 64; the paper's code has 128 by default.
- A layer has as many heads as other backends; in the paper heads are 64 wide.
- A fresh layer reads some of all values, as in ``gated_deltanet`` and for the same reason: the convolution takes little
  but the position itself, whose B and C it multiplies by 3, so that SiLU makes them mostly positive. The authors draw
  taps around 0. On the noisy recall of ``gated_deltanet``, ``mamba2`` reaches 20.8 % after 300 optimizer steps at
  3e-3, and 95.3 % after 400 (``results/cpu-2core/recall_steps``).
- Padding has Δ = 0, which leaves the state unchanged, and the convolution reads zeros there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least, one_of
from zoo.cores.recurrences import KERNELS, decayed, kernel_name, runs_on_triton, scan_on_triton
from zoo.cores.scan import scan, scan_both, scan_step, scan_to_end
from zoo.functional import accumulator, convolve_taps
from zoo.registry import register

EPSILON = 1e-5  # of RMSNorm
DECAYS = (1.0, 16.0)  # initial -a, uniform
STEPS = (1e-3, 1e-1)  # initial Δ, log-uniform
OWN_TAPS = (1.0, 3.0)  # initial taps of a position's own x, and of its own B and C


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """state: M, rows of the state of each head (N in the paper).
    expand: width of x and z, as a multiple of d_model (2 in the paper).
    conv_width: positions that the convolution reads, at most max_len.
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    state: int = 64
    expand: int = 1
    conv_width: int = 4
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("mamba2.kernel", self.kernel, KERNELS)
        names = ("state", "expand", "conv_width")
        at_least(1, **{f"mamba2.{name}": getattr(self, name) for name in names})


@register("mamba2", config=Mamba2Config)
class Mamba2(Mixer):
    """A selective state space: each token sets how fast the state fades, and what it adds."""

    traits = Traits(
        family="state space",
        source="Dao and Gu, arXiv:2405.21060",
        year=2024,
        time="O(N·M)",
        memory="O(N)",
        causal=True,
        rotary=False,
        bidirectional="two scans, summed",
        capacity="state",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: Mamba2Config) -> None:
        super().__init__(dims)
        H, width = dims.n_heads, config.expand * dims.d_model
        self.config = config
        self.n_heads, self.rows = H, config.state
        self.directions = 1 if dims.causal else 2
        self.parts = [width, *[config.state] * 2 * self.directions]  # x, then B and C of each direction
        self.sizes = [width, sum(self.parts), self.directions * H]  # z; x, B and C; Δ
        conv_width = min(config.conv_width, dims.max_len if dims.causal else 2 * dims.max_len - 1)
        past = conv_width - 1 if dims.causal else (conv_width - 1) // 2
        self.reach = (past, conv_width - 1 - past)

        self.project = nn.Linear(dims.d_model, sum(self.sizes), bias=False)
        bound = conv_width**-0.5
        shapes = (conv_width, self.sizes[1]), (self.sizes[1],)
        taps, bias = (torch.empty(shape).uniform_(-0.1 * bound, 0.1 * bound) for shape in shapes)
        taps[past, :width] += OWN_TAPS[0]
        taps[past, width:] += OWN_TAPS[1]
        self.taps, self.taps_bias = nn.Parameter(taps), nn.Parameter(bias)
        self.log_a = nn.Parameter(torch.empty(H).uniform_(*DECAYS).log())  # logarithm of -a
        step = torch.empty(H).uniform_(*map(math.log, STEPS)).exp()
        self.step_bias = nn.Parameter(step + (-torch.expm1(-step)).log())  # its softplus is the step
        self.skip = nn.Parameter(torch.ones(H))  # D
        self.scale = nn.Parameter(torch.ones(width))  # of RMSNorm
        self.out = nn.Linear(width, dims.d_model)
        for linear in (self.project, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        _, state = self.begin(x)
        z, mixed, step = self.project(x).split(self.sizes, dim=-1)
        if key_padding_mask is not None:
            mixed = mixed.masked_fill(key_padding_mask[..., None], 0)
            step = step.masked_fill(key_padding_mask[..., None], -math.inf)  # Δ = 0
        forth, *back = self._sequences(F.pad(mixed, (0, 0, *self.reach)), step)
        a, own = self._a(), self.skip[:, None]
        on_triton = runs_on_triton(x, self.config.kernel, *state.shape[2:])
        if self.causal:
            read = scan_on_triton(x, *plain(a, *forth)) if on_triton else scan(ssd, forth, (state,), (a,), folds=True)
            return self._close(read, own, forth[2], z)
        if on_triton:
            before = scan_on_triton(x, *plain(a, *forth))
            after = scan_on_triton(x, *plain(a, *back[0]), reverse=True)
        else:
            before, after = scan_both(ssd, forth, back[0], (state,), (a,), folds=True)
        c, b, x, step = back[0]
        return self._close(before + after, own - (c * b).sum(-1) * step, x, z)  # both scans read t itself

    def _a(self) -> Tensor:
        return -self.log_a.to(accumulator(self.log_a)).exp()

    def _sequences(self, mixed: Tensor, step: Tensor) -> list[Tensors]:
        """The inputs of each direction's scan: C_t and B_t (B, 1, N, M), x (B, H, N, D), Δ (B, H, N).

        mixed: x, B and C before the convolution, (B, N + conv_width - 1, …); step: Δ before softplus, (B, N, …).
        """
        dtype = accumulator(mixed)
        total = convolve_taps(mixed.to(dtype), self.taps.to(dtype)) + self.taps_bias.to(dtype)
        x, *pairs = torch.split(F.silu(total), self.parts, dim=-1)
        x = rearrange(x, "b n (h d) -> b h n d", h=self.n_heads)
        # Contiguous: torch 2.13's compiler assumes a wrong memory layout for the gradient of softplus.
        steps = rearrange(step.to(dtype), "b n (i h) -> i b h n", h=self.n_heads).contiguous()
        steps = F.softplus(steps + self.step_bias.to(dtype)[:, None])
        return [(c[:, None], b[:, None], x, step) for b, c, step in zip(pairs[::2], pairs[1::2], steps, strict=True)]

    def _close(self, y: Tensor, own: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Gate, normalise and project y (B, H, N, D), read from the state, plus ``own`` (…, H, N or 1) times x."""
        y = rearrange(y + own[..., None] * x, "b h n d -> b n (h d)") * F.silu(z.to(y.dtype))
        y = F.rms_norm(y, y.shape[-1:], self.scale.to(y.dtype), EPSILON)
        mixed: Tensor = self.out(y.to(z.dtype))
        return mixed

    def begin(self, x: Tensor) -> Tensors:
        """The convolution's earlier inputs, (B, conv_width - 1, …), and S (B, H, M, D)."""
        B, head = len(x), self.sizes[0] // self.n_heads
        past = x.new_zeros(B, len(self.taps) - 1, self.sizes[1])
        return past, torch.zeros(B, self.n_heads, self.rows, head, dtype=accumulator(x), device=x.device)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        past, state = tensors
        z, mixed, step = self.project(x).split(self.sizes, dim=-1)
        window = torch.cat([past, mixed], dim=1)
        (sequences,) = self._sequences(window, step)
        y, after = scan_step(ssd, position, sequences, (state,), (self._a(),))
        return self._close(y, self.skip[:, None], sequences[2], z), (window[:, 1:], *after)

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        past, state = self.begin(x)
        z, mixed, step = self.project(x).split(self.sizes, dim=-1)
        window = torch.cat([past, mixed], dim=1)
        (sequences,) = self._sequences(window, step)
        y, after = scan_to_end(ssd, sequences, (state,), (self._a(),), folds=True)
        return self._close(y, self.skip[:, None], sequences[2], z), (window[:, x.shape[1] :].clone(), *after)

    def state_size(self, length: int) -> int:
        """S of each direction, and the convolution's inputs at other positions."""
        return self.directions * self.rows * self.sizes[0] + (len(self.taps) - 1) * self.sizes[1]

    def cache_size(self, length: int) -> int:
        return self.state_size(length)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel, self.rows, self.sizes[0] // self.n_heads)


def ssd(first: int, state: Tensors, c: Tensor, b: Tensor, x: Tensor, step: Tensor, a: Tensor) -> tuple[Tensor, Tensors]:
    """A chunk of the recurrence, without D. c, b: (B, 1, n, M); x: (B, H, n, D); step: (B, H, n); a: (H,)."""
    return decayed(first, state, *plain(a, c, b, x, step))


def plain(a: Tensor, c: Tensor, b: Tensor, x: Tensor, step: Tensor) -> Tensors:
    """The inputs of ``ssd`` as those of ``decayed``: queries, keys, values and logarithms of decays."""
    return c, b, step[..., None] * x, a[:, None] * step
