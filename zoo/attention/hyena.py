"""Hyena: gates and long convolutions in turn; a small network writes the filters.

Hyena Hierarchy: Towards Larger Convolutional Language Models, arXiv:2302.10866, definition 3.1, with P = ``order``.
Linear maps of the input, each followed by a short convolution, give the gates g¹ … g^P and the values v. Then

``z¹ = g¹ v,  z^{p+1} = g^{p+1} (h^p * z^p),  y = z^P``

and a linear map. In each channel a filter h^p has a skip D at lag 0 and ``h_t = window(t) · MLP(features(t))``
(equation 7). t is the lag over ``max_len``, so filters do not depend on the length of the input. The features are t and
sines and cosines of t, the activations of the network are sines, and the windows fall as exp(−α |t|), α from 3 to 15
over the channels.
Cost: O(P N log N) time, O(P N) memory.

Step form: a convolution has no state of constant size, so steps store the inputs of each convolution. Every 128 steps,
one transform adds up what all stored inputs give to the next 128 positions; a step in between adds only the inputs
since then. So for each channel a step costs O(N log N / 128) on average, and the filters at up to 128 lags.

Filters do not depend on the content, so a channel compares positions only at the lags of its filter, and recall takes a
width that grows with the length (Zoology, arXiv:2312.04927, section 4). In Zoology's Figure 2, up to 64 epochs of
100,000 samples reach about 52 % at a d_model of 64 and 87 % at 512, on mqar of 64 tokens with the pairs at the start.
On mqar at 64 tokens ``hyena`` recalls 2.9, 2.4 and 2.5 % after 1,000 optimizer steps of 64 samples (learning rate 3e-3,
the best of three; three seeds, ``results/cpu-2core/mqar_64``).

Departures from the paper:
- P gates have P − 1 long filters: the short convolution takes the place of the first, as in the authors' code.
- In both directions the short convolution is centred and the filters have two sides: the network also gets negative
  lags, which its odd features tell from positive ones. Values at padded positions are 0 in every convolution.
- Windows are scaled to an energy of 1, so a fresh layer's outputs are as large as its inputs at any ``max_len``.
- The options are those of the authors' experiments (HazyResearch/safari), not the defaults of their class (16, 1 and
  one band): 64 hidden units, 16 bands as on the Pile (``emb_dim`` 33), a frequency of 10 as in recall at 131,072 tokens
  (14 on the Pile). At a d_model of 256 the network adds a tenth to a layer's parameters. The network has no weight
  decay, as in their code; its features are not learned, and its learning rate is that of all other parameters.
- Everything runs in float32, also under autocast: the layer multiplies P + 1 maps of the input, so inputs 100 times as
  large give results that float16 cannot hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least
from zoo.cores.convolution import convolve
from zoo.functional import accumulator, convolve_taps, dtype_of, precisely, recompute
from zoo.registry import register

TAPS = 3  # taps of the short convolution
BANDS = 16  # sines and cosines among the features of a lag
LAYERS = 3  # hidden layers of the network
DECAY = (math.log(100) / 1.5, math.log(100) / 0.3)  # α: windows fall to 1/100 at 1.5 and at 0.3 of max_len
BLOCK = 128  # the cache of the step form grows by this many positions


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """order: gates, P in the paper.
    filter_width: hidden width of the network that writes the filters.
    frequency: initial factor inside the network's sines; the higher, the rougher the filters.
    """

    order: int = 2
    filter_width: int = 64
    frequency: float = 10.0

    def __post_init__(self) -> None:
        at_least(2, **{"hyena.order": self.order})
        at_least(1, **{"hyena.filter_width": self.filter_width})
        if not 0 < self.frequency < math.inf:
            raise ValueError(f"hyena.frequency must be above 0 and finite, got {self.frequency!r}")


@register("hyena", config=HyenaConfig)
class Hyena(Mixer):
    """Gated long convolutions whose filters a network writes."""

    traits = Traits(
        family="convolution",
        source="Poli et al., arXiv:2302.10866",
        year=2023,
        time="O(N·log N)",
        memory="O(N)",
        causal=True,
        rotary=False,
        bidirectional="two-sided filters",
        capacity="filter_width",
        subquadratic=True,
    )
    undecayed = ("hidden", "write")  # the network of the filters, as in the authors' code

    def __init__(self, dims: Dims, config: HyenaConfig) -> None:
        super().__init__(dims)
        C, W = dims.d_model, config.filter_width
        self.order = config.order
        self.project = nn.Linear(C, (config.order + 1) * C)  # gates, the last one first, then values
        self.taps = nn.Parameter(torch.randn(TAPS, (config.order + 1) * C) * TAPS**-0.5)
        self.out = nn.Linear(C, C)
        for linear in (self.project, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
            nn.init.zeros_(linear.bias)
        widths = [2 * BANDS + 1, *[W] * LAYERS]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.frequency = nn.Parameter(torch.full((W,), config.frequency))
        self.write = nn.Linear(W, (config.order - 1) * C, bias=False)
        nn.init.normal_(self.write.weight, std=(2 / W) ** 0.5)  # sines have a variance of 1/2
        self.skip = nn.Parameter(torch.randn(config.order - 1, C))  # D
        self.bind_to("max_len", dims.max_len)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        N = x.shape[1]
        hidden = None if key_padding_mask is None else key_padding_mask[..., None]
        past = TAPS - 1 if self.causal else TAPS // 2
        with torch.autocast(x.device.type, enabled=False):
            u = F.pad(_hide(self._project(x), hidden), (0, 0, past, TAPS - 1 - past))
            *gates, z = convolve_taps(u, self.taps).chunk(self.order + 1, dim=-1)
            for gate, skip, h in zip(gates[:0:-1], self.skip, self._filters(N, two_sided=not self.causal), strict=True):
                z = _hide(z * gate, hidden)
                z = convolve(z, h) + skip * z
            return self._output(z * gates[0])

    def _project(self, x: Tensor) -> Tensor:
        u: Tensor = self.project(x.to(dtype_of(self.project, x)))
        return u.to(accumulator(u))

    def _output(self, y: Tensor) -> Tensor:
        out: Tensor = self.out(y.to(dtype_of(self.out, y)))
        return out

    def _filters(self, length: int, *, two_sided: bool) -> Tensor:
        """(P − 1, C, K): filters at the lags from 0 to N − 1, or from −(N − 1) to N − 1."""
        write = partial(self._write, 1 - length if two_sided else 0, length)
        return recompute(write, self.frequency, calls=[*self.hidden, self.write])

    def _write(self, first: int, last: int, frequency: Tensor) -> Tensor:
        """The filters at the lags ``first`` … ``last − 1``."""
        dtype, device = accumulator(frequency), frequency.device
        t = torch.arange(first, last, dtype=dtype, device=device)[:, None] / self.max_len
        angles = 2 * math.pi * t * torch.arange(1, BANDS + 1, dtype=dtype, device=device)
        h = torch.cat([t, angles.cos(), angles.sin()], dim=-1)
        for linear in self.hidden:
            h = torch.sin(frequency * precisely(linear, h))
        h = precisely(self.write, h).view(len(t), self.order - 1, -1) * self._window(t)[:, None]
        return h.permute(1, 2, 0)

    def _window(self, t: Tensor) -> Tensor:
        """The windows (K, C) at t (K, 1), lags over ``max_len``; the squares of a window sum to 1 over all lags."""
        decay = torch.linspace(*DECAY, self.skip.shape[1], dtype=t.dtype, device=t.device)
        energy = torch.expm1(-2 * decay) / torch.expm1(-2 * decay / self.max_len)  # of the lags from 0 on
        return (-decay * t.abs()).exp() * (energy if self.causal else 2 * energy - 1) ** -0.5

    def begin(self, x: Tensor) -> Tensors:
        """Past inputs of the short convolution, (B, 2, (P + 1) C), and of the long ones, (B, P − 1, blocks · 128, C);
        and what earlier blocks give to the positions of the current block, (B, P − 1, 128, C)."""
        B, C, filters = *x.shape, self.order - 1
        zeros = torch.zeros(B, filters, BLOCK, C, dtype=accumulator(x), device=x.device)
        return zeros.new_zeros(B, TAPS - 1, (self.order + 1) * C), zeros[:, :, :0], zeros

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        past, inputs, carried = tensors
        place = position % BLOCK
        with torch.autocast(x.device.type, enabled=False):
            if place == 0:
                inputs = F.pad(inputs, (0, 0, 0, BLOCK))
                filters = self._filters(inputs.shape[2], two_sided=False)
                ahead = [convolve(z, h)[:, -BLOCK:] for z, h in zip(inputs.unbind(1), filters, strict=True)]
                carried = torch.stack(ahead, dim=1)
            u = torch.cat([past, self._project(x)], dim=1)
            *gates, z = (self.taps * u).sum(1).chunk(self.order + 1, dim=-1)
            recent = self._filters(place + 1, two_sided=False).flip(-1).mT  # (P − 1, place + 1, C), this position last
            for i, gate in enumerate(gates[:0:-1]):
                inputs[:, i, position] = z = z * gate
                since = (recent[i] * inputs[:, i, position - place : position + 1]).sum(1)
                z = carried[:, i, place] + since + self.skip[i] * z
            return self._output((z * gates[0])[:, None]), (u[:, 1:], inputs, carried)

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        N, begun = x.shape[1], (x.shape[1] - 1) // BLOCK * BLOCK
        inputs, carried = [], []
        past = self.begin(x[:, 0])[0]
        with torch.autocast(x.device.type, enabled=False):
            u = torch.cat([past, self._project(x)], dim=1)
            *gates, z = convolve_taps(u, self.taps).chunk(self.order + 1, dim=-1)
            filters = self._filters(begun + BLOCK, two_sided=False)
            for gate, skip, h in zip(gates[:0:-1], self.skip, filters, strict=True):
                z = F.pad(z * gate, (0, 0, 0, begun + BLOCK - N))  # so ``y`` covers the whole block
                y = convolve(z, h)
                inputs.append(z)
                carried.append(y[:, begun:] - convolve(z[:, begun:], h[:, :BLOCK]))
                z = (y + skip * z)[:, :N]
            return self._output(z * gates[0]), (u[:, N:].clone(), torch.stack(inputs, 1), torch.stack(carried, 1))

    def state_size(self, length: int) -> int:
        """The inputs of the long convolutions."""
        return length * self.skip.numel()

    def cache_size(self, length: int) -> int:
        blocks = -(-length // BLOCK) + 1
        return (TAPS - 1) * self.taps.shape[1] + blocks * BLOCK * self.skip.numel()

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("torch FFT")


def _hide(x: Tensor, hidden: Tensor | None) -> Tensor:
    return x if hidden is None else x.masked_fill(hidden, 0)
