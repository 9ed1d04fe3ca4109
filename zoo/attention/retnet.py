"""RetNet: retention, in which what a key has written fades at a fixed rate that differs from head to head.

Retentive Network: A Successor to Transformer for Large Language Models, arXiv:2307.08621, equations 5 to 8:
``S_n = γ S_{n-1} + k_nᵀ v_n, o_n = q_n S_n``, with ``γ = 1 - 2^(-5-h)`` in head h = 0, 1, … Queries and keys are turned
by their position. The result is ``out(swish(W_G x) ⊙ GroupNorm(o))``, each head a group. The scan runs in chunks
(equation 7).
Cost: O(N D²) time, O(N D) memory.

In both directions i reads ``γ^|i-j| q_i k_jᵀ v_j`` from j: the sum of a scan forward and a scan back, minus the
position itself, which both include. The paper has the causal form only.

RetNet learns recall late: queries and keys have either sign, so the first readings do not show which values occur, and
training starts at a saddle (see ``gated_deltanet``). Noisy recall at 64 tokens (8 pairs, 2 heads, causal, 32 samples a
step) is at chance, 1.2 % at 3e-3, after 400 optimizer steps, where ``gated_deltanet`` has 99.3 %, and reaches 9.0 % at
1e-3 after 1,000 (``results/cpu-2core/recall_steps``).
On mqar at 64 tokens the causal form recalls 95.4 % after 4,000 optimizer steps of 64 samples at 3e-3 (one seed,
``results/cpu-2core/mqar_64_causal``), and 77 % on validation after the first 800. In both directions it recalls 3.0,
2.4 and 2.2 % after 1,000 optimizer steps at the best of three rates (three seeds, ``results/cpu-2core/mqar_64``): take
the causal form to look up keys.

Departures from the paper:
- Values are as wide as d_model, not twice, so a layer has about as many parameters as ``full``; ``expand`` is that
  factor.
- Of the normalisations before GroupNorm only 1/√D remains. The others divide a row by a number, which GroupNorm undoes;
  they keep half precision in range, and sums are float32 here. GroupNorm learns no scale, as in the authors' code.
- Features m and m + D/2 turn as a pair, as with rotary positions here; an odd last feature does not turn. They turn
  with any ``positions`` of the encoder. xPos also scales queries and keys; γ replaces that scaling.
- A layer has as many decays as heads: a layer of one head has γ = 31/32 alone.
- Padding is skipped: distances and rotation count real positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least, one_of
from zoo.cores.recurrences import KERNELS, decayed, kernel_name, runs_on_triton, scan_on_triton
from zoo.cores.scan import scan, scan_both, scan_step, scan_to_end
from zoo.embeddings import Table, real_positions, turned, waves
from zoo.functional import accumulator
from zoo.registry import register

EPSILON = 1e-6  # of GroupNorm


@dataclass(frozen=True, kw_only=True)
class RetNetConfig:
    """expand: width of the values, as a multiple of d_model (2 in the paper).
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    expand: int = 1
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("retnet.kernel", self.kernel, KERNELS)
        at_least(1, **{"retnet.expand": self.expand})


@register("retnet", config=RetNetConfig)
class RetNet(Mixer):
    """Linear attention without a denominator, over keys that fade with distance."""

    traits = Traits(
        family="recurrent",
        source="Sun et al., arXiv:2307.08621",
        year=2023,
        time="O(N)",
        memory="O(N)",
        causal=True,
        rotary=False,
        bidirectional="two scans, summed",
        capacity="expand",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: RetNetConfig) -> None:
        super().__init__(dims)
        self.config = config
        self.n_heads, self.d_head = dims.n_heads, dims.d_head
        self.sizes = [dims.d_model] * 2 + [config.expand * dims.d_model] * 2  # of queries, keys, values, gate
        self.qkvg = nn.Linear(dims.d_model, sum(self.sizes), bias=False)
        self.out = nn.Linear(self.sizes[-1], dims.d_model)
        for linear in (self.qkvg, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.out.bias)
        self.table = Table(partial(waves, dims.max_len, dims.d_head - dims.d_head % 2))

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        if key_padding_mask is not None:
            place = real_positions(key_padding_mask)
        q, k, v, gate = self._project(x, place)
        log_decay = self._log_decay(q).expand(-1, -1, x.shape[1])
        if key_padding_mask is not None:
            k = k.masked_fill(key_padding_mask[:, None, :, None], 0)
            log_decay = log_decay * ~key_padding_mask[:, None]
        sequences, state = (q, k, v, log_decay), self.begin(x)
        on_triton = runs_on_triton(x, self.config.kernel, *self._state)
        if self.causal:
            read = scan_on_triton(x, *sequences) if on_triton else scan(decayed, sequences, state, folds=True)
            return self._close(read, gate)
        sequences = (q, k, v, log_decay.expand(len(x), -1, -1))
        if on_triton:
            before, after = (scan_on_triton(x, *sequences, reverse=back) for back in (False, True))
        else:
            before, after = scan_both(decayed, sequences, sequences, state, folds=True)
        return self._close(before + after - (q * k).sum(-1, keepdim=True) * v, gate)

    def _project(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, N, C) at ``place`` ((B,) N) -> q, k (B, H, N, D) turned, v (B, H, N, …), gate (B, N, …)."""
        *pieces, gate = self.qkvg(x).split(self.sizes, dim=-1)
        q, k, v = (rearrange(piece, "b n (h d) -> b h n d", h=self.n_heads) for piece in pieces)
        dtype = accumulator(x)
        cos, sin = self.table(x)[:, place].to(dtype)[..., None, :, :]
        return turned(q.to(dtype), cos, sin), turned(k.to(dtype), cos, sin) * self.d_head**-0.5, v, gate

    def _log_decay(self, like: Tensor) -> Tensor:
        """log γ, (1, H, 1)."""
        head = torch.arange(self.n_heads, dtype=like.dtype, device=like.device)
        return torch.log1p(-(2 ** (-5 - head)))[None, :, None]

    def _close(self, y: Tensor, gate: Tensor) -> Tensor:
        """Normalise, gate and project what the heads read, (B, H, N, …) -> (B, N, C)."""
        y = F.layer_norm(y.transpose(1, 2), y.shape[-1:], eps=EPSILON).flatten(2)
        mixed: Tensor = self.out(F.silu(gate) * y.to(gate.dtype))
        return mixed

    def begin(self, x: Tensor) -> Tensors:
        return (torch.zeros(len(x), self.n_heads, *self._state, dtype=accumulator(x), device=x.device),)

    @property
    def _state(self) -> tuple[int, int]:
        """Rows and columns of S."""
        return self.d_head, self.sizes[-1] // self.n_heads

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        q, k, v, gate = self._project(x, torch.tensor([position], device=x.device))
        y, tensors = scan_step(decayed, position, (q, k, v, self._log_decay(q)), tensors)
        return self._close(y, gate), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        q, k, v, gate = self._project(x, torch.arange(x.shape[1], device=x.device))
        log_decay = self._log_decay(q).expand(-1, -1, x.shape[1])
        y, after = scan_to_end(decayed, (q, k, v, log_decay), self.begin(x), folds=True)
        return self._close(y, gate), after

    def state_size(self, length: int) -> int:
        """S of each direction."""
        return (1 if self.causal else 2) * self.d_head * self.sizes[-1]

    def cache_size(self, length: int) -> int:
        return self.state_size(length)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel, *self._state)
