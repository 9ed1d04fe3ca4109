"""Gated DeltaNet: a recurrent memory that decays, and in which a new value replaces what its key has stored.

Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv:2412.06464, equation 10 and section 3.4. In each head
``S_t = α_t S_{t-1} (I - β_t k_t k_tᵀ) + β_t v_t k_tᵀ``, ``o_t = S_t q_t / √D``. Linear maps, a depthwise convolution
over the last ``conv_width`` positions and SiLU give q, k and v; q and k have unit length.
``β_t = sigmoid(b_t + ε)`` and ``α_t = exp(-exp(A) softplus(a_t + δ))``, a and b linear in x; A, δ and ε are learned,
one number a head. The result is ``out(RMSNorm(o) · SiLU(gate(x)))``. The scan runs in chunks, in which the delta rule
is a triangular system (DeltaNet, arXiv:2406.06484): see ``zoo.cores.recurrences``.
Cost: O(N D²) time and O(N D) memory. On two CPU cores both directions at N = 8192, forward and backward, take about 0.4
of fused full attention's time (0.6 to 0.8 on a Xeon whose fused kernel is faster): a chunk needs ten products, a
triangular system, decays and a convolution in each direction, most of which run twice since backward computes chunks
again. Products alone take a third of the time.

On mqar at 64 tokens ``gated_deltanet`` recalls 90.8, 18.0, 78.8, 79.0 and 89.2 % after 1,000 optimizer steps of 64
samples (learning rate 3e-3, the best of three; five seeds, ``results/cpu-2core/mqar_64``). After 2,000 it recalls 97.1,
97.2 and 86.9 % at 3e-3 (three seeds, ``results/cpu-2core/mqar_64_longer``).

Departures from the paper:
- Keys and values are both as wide as the model: 5 · d_model² parameters. The paper has 6 · d_model², with keys of 0.75
  and values of 1.5 · d_model.
- 1 / √D and the epsilons are those of the authors' code; they only set the scale before the norm.
- The paper is causal. In both directions the same weights, convolution included, run from the first position to the
  last and from the last to the first; the outputs are summed before the norm, so a position reads itself twice.
- Rotary positions are not applied, as in the paper: decay and convolution encode the order.
- A fresh layer reads some of all values. The convolution takes little but the position itself, whose q and k it
  multiplies by 3, so that SiLU makes them mostly positive. ε, which the authors do not have, makes β 0.02, so that the
  delta rule does not erase at once what all keys have in common. The authors draw taps around 0 and have a β of 1/2:
  values come with either sign, the first gradients do not show which values occur, and training starts at a saddle.
  Heads fade within 1,000 positions at first. Half of the rates that the authors draw forget within 12 positions; a
  layer of few heads cannot cover the range of such rates. On noisy recall (64 tokens, 8 pairs, 2 heads, causal, 32
  samples a step, rate 3e-3, one seed) the layer reaches 96.6 % after 300 optimizer steps and 99.3 % after 400
  (``results/cpu-2core/recall_steps``). From the authors' start it is at a guess after 1,000, at three rates. At 128
  tokens the layer reaches 78.8 % after 300 optimizer steps and 94.9 % after 400.
The convolution reads a padded position as zeros, and the state stays as it is there: β = 0, α = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least, one_of
from zoo.cores.recurrences import delta, recur, runs_on_fla
from zoo.cores.scan import scan, scan_both, scan_step, scan_to_end
from zoo.functional import accumulator, convolve_taps, recompute
from zoo.registry import register

OWN_TAPS = (3.0, 3.0, 1.0)  # initial taps of a position's own query, key and value
STRENGTH = -4.0  # initial ε: β is about 0.02
STEP = 1e-3  # initial softplus(δ): memory fades within about 1,000 positions


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    """conv_width: taps of the convolution over queries, keys and values; 1 sees no neighbour. At most max_len.
    kernel: ``fla`` (flash-linear-attention, bfloat16 on GPUs), ``torch``, or ``auto`` (the first that can run).
    """

    conv_width: int = 4
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("gated_deltanet.kernel", self.kernel, ("auto", "torch", "fla"))
        at_least(1, **{"gated_deltanet.conv_width": self.conv_width})


@register("gated_deltanet", config=GatedDeltaNetConfig)
class GatedDeltaNet(Mixer):
    """A recurrent memory with decay, in which a key's new value replaces its old one."""

    traits = Traits(
        family="recurrent",
        source="Yang et al., arXiv:2412.06464",
        year=2024,
        time="O(N)",
        memory="O(N)",
        causal=True,
        rotary=False,
        bidirectional="two scans, summed",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: GatedDeltaNetConfig) -> None:
        super().__init__(dims)
        C, H, D, width = dims.d_model, dims.n_heads, dims.d_head, min(config.conv_width, dims.max_len)
        self.config, self.n_heads = config, H
        self.qkv = nn.Linear(C, 3 * C, bias=False)  # q, k, v of each head
        taps = torch.empty(width, H, 1, 3 * D).uniform_(-0.1 * width**-0.5, 0.1 * width**-0.5)
        taps[-1] += torch.tensor(OWN_TAPS).repeat_interleave(D)
        self.conv = nn.Parameter(taps)
        self.rates = nn.Linear(C, 2 * H, bias=False)  # b and a in the docstring
        self.strength = nn.Parameter(torch.full((H,), STRENGTH))  # ε
        self.log_rate = nn.Parameter(torch.zeros(H))  # A
        self.offset = nn.Parameter(torch.full((H,), STEP).expm1().log())  # δ, whose softplus is ``STEP``
        self.gate = nn.Linear(C, C, bias=False)
        self.norm = nn.Parameter(torch.ones(D))
        self.out = nn.Linear(C, C)
        for linear in (self.qkv, self.rates, self.gate, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0)
        sequences, state = self._sequences(x, key_padding_mask), self.begin(x[:, 0])
        if runs_on_fla(x, self.config.kernel):
            forth = self._plain(*sequences)
            if self.causal:
                return self._leave(x, *recur(forth))
            back = self._plain(*(each.flip(2) for each in sequences))
            before, after = recur(forth, back)
            return self._leave(x, before + after)
        if self.causal:
            return self._leave(x, scan(chunk, sequences, state, (self.conv,), folds=True))
        before, after = scan_both(chunk, sequences, sequences, state, (self.conv,), folds=True)
        return self._leave(x, before + after)

    def _sequences(self, x: Tensor, hidden: Tensor | None = None) -> Tensors:
        """x (B, N, C) -> β and log α (B, H, N), in float32 at least; q, k and v side by side (B, H, N, 3D)."""
        strength, rate = rearrange(self.rates(x), "b n (i h) -> i b h n", i=2).to(accumulator(x))
        beta = (strength + self.strength[:, None]).sigmoid()
        log_decay = -self.log_rate.to(rate).exp()[:, None] * F.softplus(rate + self.offset[:, None])
        if hidden is not None:
            beta, log_decay = (each.masked_fill(hidden[:, None], 0) for each in (beta, log_decay))
        return beta, log_decay, rearrange(self.qkv(x), "b n (h d) -> b h n d", h=self.n_heads)

    def _plain(self, beta: Tensor, log_decay: Tensor, x: Tensor) -> Tensors:
        """Convolve all positions and return the inputs of ``delta``: q, k, v, beta, log_decay."""
        x = F.pad(x.to(beta), (0, 0, len(self.conv) - 1, 0))
        q, k, v = F.silu(convolve_taps(x, self.conv.to(x))).chunk(3, dim=-1)
        return unit(q, q.shape[-1] ** -0.5), unit(k), v, beta, log_decay

    def _leave(self, x: Tensor, read: Tensor) -> Tensor:
        """x (B, N, C) and what each position read from memory, (B, H, N, D) -> the output (B, N, C)."""
        normed = recompute(gated_norm, rearrange(read, "b h n d -> b n h d"), self.gate(x), self.norm)
        y: Tensor = self.out(normed)
        return y

    def begin(self, x: Tensor) -> Tensors:
        width, H, _, D = self.conv.shape
        window = torch.zeros(len(x), H, width - 1, D, dtype=accumulator(x), device=x.device)
        return window, window.new_zeros(len(x), H, D // 3, D // 3)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        read, tensors = scan_step(chunk, position, self._sequences(x), tensors, (self.conv,))
        return self._leave(x, read), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        read, after = scan_to_end(chunk, self._sequences(x), self.begin(x[:, 0]), (self.conv,), folds=True)
        return self._leave(x, read), after

    def state_size(self, length: int) -> int:
        """S and the convolution's earlier inputs, in each direction."""
        width, H, _, D = self.conv.shape
        return (1 if self.causal else 2) * H * (D // 3 * D // 3 + (width - 1) * D)

    def cache_size(self, length: int) -> int:
        return self.state_size(length)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("flash-linear-attention" if runs_on_fla(x, self.config.kernel) else "torch ops")


def chunk(
    first: int, state: Tensors, beta: Tensor, log_decay: Tensor, x: Tensor, taps: Tensor
) -> tuple[Tensor, Tensors]:
    """Convolution and memory, for ``scan``. State: x before the chunk (B, H, conv_width - 1, 3D), and S (B, H, D, D).

    beta, log_decay: (B, H, n); x: q, k and v before the convolution (B, H, n, 3D); taps: (conv_width, H, 1, 3D).
    """
    window, memory = state
    n = x.shape[2]
    x = torch.cat([window, x], dim=2)
    q, k, v = F.silu(convolve_taps(x, taps)).chunk(3, dim=-1)
    out, after = delta(first, (memory,), unit(q, q.shape[-1] ** -0.5), unit(k), v, beta, log_decay)
    return out, (x[:, :, n:].clone(), *after)  # a copy: a view would keep the whole chunk alive


def unit(x: Tensor, length: float = 1) -> Tensor:
    """Scale vectors (…, D) to ``length``; 0 stays 0."""
    return x * (length * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt())


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of each head of x (B, N, H, D), times SiLU(gate), (B, N, C)."""
    wide = accumulator(x)
    normed = F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps=1e-5)
    return (normed.flatten(2) * F.silu(gate.to(wide))).to(gate.dtype)
