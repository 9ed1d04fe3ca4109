"""Synthesizer: attention whose logits are learned, not products of queries and keys.

Synthesizer: Rethinking Self-Attention in Transformer Models, arXiv:2005.00743, section 3: ``Y = softmax(B) G(X)``,
G a linear map, on heads. With L = ``max_len`` and M = ``rank`` (k in the paper) the logits B are

- ``dense``: ``B_i = W_2 relu(W_1 x_i)``, W_1: M × C, W_2: L × M, so that each token chooses positions;
- ``random``: ``B = R``, L × L, learned, the same for all inputs;
- ``factorised_dense``: ``B_ij = a_i[j // b] · b_i[j % b]``, with a_i and b_i linear maps of x_i to about √L numbers;
- ``factorised_random``: ``B = R_1 R_2ᵀ``, both L × M, learned.

An input of N positions uses the first N rows and columns.
Cost: O(N² (M + D)) time, O(N (M + D)) memory; ``random`` also has H · L² parameters, and a gradient of that size.

``dense`` is attention with queries ``relu(W_1 x)`` and learned keys W_2; ``factorised_random`` is attention with
learned queries and keys. Both run on torch's fused kernels, at the cost of full attention without its query and key
projections. The other two kinds have no such form: they run on chunks of rows, which backward computes again.

Departures from the paper:
- The hidden width of ``dense`` is ``rank`` for each head, so that it can be chosen; there are no biases.
- Logits of padded keys, and when causal of later positions, are hidden, as in any attention. The causal form needs
  nothing else: row i of the logits depends on x_i alone.
- Positions are absolute, so rotary positions add nothing and are not applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least, one_of
from zoo.cores.cache import append, empty, fill, room
from zoo.functional import accumulator, full_attention, leading, recompute, sdpa_kernel_name
from zoo.registry import register

BUDGET = 2**22  # logits in one chunk


@dataclass(frozen=True, kw_only=True)
class SynthesizerConfig:
    """kind: how the logits are learned: ``dense``, ``random``, ``factorised_dense`` or ``factorised_random``.
    rank: M, the rank of the logits in ``dense`` and ``factorised_random``; the other two ignore it.
    """

    kind: str = "dense"
    rank: int = 32

    def __post_init__(self) -> None:
        one_of("synthesizer.kind", self.kind, ("dense", "random", "factorised_dense", "factorised_random"))
        at_least(1, **{"synthesizer.rank": self.rank})


@register("synthesizer", config=SynthesizerConfig)
class Synthesizer(Mixer):
    """Attention patterns learned from positions or single tokens, not from pairs of tokens."""

    traits = Traits(
        family="learned pattern",
        source="Tay et al., arXiv:2005.00743",
        year=2020,
        time="O(N²)",
        memory="O(N)",
        causal=True,
        rotary=False,
        capacity="rank",
    )

    def __init__(self, dims: Dims, config: SynthesizerConfig) -> None:
        super().__init__(dims)
        C, H, L, M = dims.d_model, dims.n_heads, dims.max_len, config.rank
        self.config, self.n_heads = config, H
        self.value = nn.Linear(C, C)
        self.out = nn.Linear(C, C)
        # Logits of about unit variance, from inputs of unit variance.
        if config.kind == "dense":
            self.hidden = nn.Linear(C, H * M, bias=False)
            nn.init.normal_(self.hidden.weight, std=C**-0.5)
            self.columns = nn.Parameter(torch.randn(H, L, M) * (2 / M) ** 0.5)
        elif config.kind == "factorised_random":
            self.rows = nn.Parameter(torch.randn(H, L, M) * M**-0.25)
            self.columns = nn.Parameter(torch.randn(H, L, M) * M**-0.25)
        elif config.kind == "random":
            self.logits = nn.Parameter(torch.randn(H, L, L))
        else:
            self.inner = math.isqrt(L - 1) + 1  # b in the docstring
            self.outer = -(-L // self.inner)
            self.factors = nn.Linear(C, H * (self.outer + self.inner), bias=False)
            nn.init.normal_(self.factors.weight, std=C**-0.5)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return self._mix(x, self._heads(self.value(x)), key_padding_mask)

    def _mix(self, x: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """The result for ``x``, given its values (B, H, N, D)."""
        if self.config.kind in ("dense", "factorised_random"):
            mixed = self._fused(x, v, key_padding_mask)
        else:
            mixed = self._chunked(x, v, key_padding_mask)
        y: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.n_heads)

    def _fused(self, x: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
        """Attention with learned keys, and queries that are learned or computed from single tokens. (B, H, N, D)."""
        B, _, N, D = v.shape
        rows = F.relu(self._heads(self.hidden(x))) if self.config.kind == "dense" else leading(self.rows, N, 1)[None]
        # The kernels need queries, keys and values of one width, and divide the logits by its root.
        width = max(D, rows.shape[-1])
        rows, columns = (
            F.pad(part, (0, width - part.shape[-1])).to(v.dtype).expand(B, -1, -1, -1)
            for part in (rows * width**0.5, leading(self.columns, N, 1)[None])
        )
        v = F.pad(v, (0, width - D))
        return full_attention(rows, columns, v, key_padding_mask=hidden, causal=self.causal)[..., :D]

    def _chunked(self, x: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
        """Softmax over the logits of one chunk of rows at a time. (B, H, N, D)."""
        B, H, N, _ = v.shape
        dtype = accumulator(v)
        floor = torch.finfo(dtype).min
        place = torch.arange(N, device=x.device)
        step = max(1, BUDGET // (max(1, B) * H * N))

        def attend(start: int, v: Tensor, source: Tensor) -> Tensor:
            logits = self._product(source, dtype=dtype, length=N) if self.config.kind != "random" else source.to(dtype)
            if hidden is not None:
                logits = logits.masked_fill(hidden[:, None, None], floor)
            if self.causal:
                logits = logits.masked_fill(place > place[start : start + step, None], floor)
            return logits.softmax(-1).to(v.dtype) @ v

        if self.config.kind == "random":
            sources, calls = torch.split(self.logits[None, :, :N, :N], step, dim=-2), []
        else:
            sources, calls = torch.split(x, step, dim=1), [self.factors]
        chunks = zip(range(0, N, step), sources, strict=True)
        return torch.cat([recompute(partial(attend, start), v, source, calls=calls) for start, source in chunks], -2)

    def _product(self, x: Tensor, *, dtype: torch.dtype, length: int) -> Tensor:
        """Logits of ``factorised_dense`` for some rows x (B, rows, C): (B, H, rows, length)."""
        factors = self._heads(self.factors(x)).to(dtype)
        needed = -(-length // self.inner)
        outer, inner = factors[..., :needed, None], factors[..., None, self.outer :]
        return (outer * inner).flatten(-2)[..., :length]

    def begin(self, x: Tensor) -> Tensors:
        return empty(rearrange(x, "b (h d) -> b h d", h=self.n_heads), 1)

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        v = self._heads(self.value(x))
        tensors = append(tensors, (v,), position, self.max_len)
        seen = position + 1
        dtype = accumulator(v)
        if self.config.kind == "random":
            logits = self.logits[:, position:seen, :seen].to(dtype)
        elif self.config.kind == "factorised_dense":
            logits = self._product(x, dtype=dtype, length=seen)
        else:
            rows = F.relu(self._heads(self.hidden(x))) if self.config.kind == "dense" else self.rows[:, position:seen]
            logits = rows.to(dtype) @ self.columns[:, :seen].to(dtype).mT
        mixed = logits.softmax(-1).to(v.dtype) @ tensors[0][:, :, :seen].to(v.dtype)  # (B, H, 1, D)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)")), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        v = self._heads(self.value(x))
        return self._mix(x, v), fill(self.begin(x[:, 0]), (v,), self.max_len)

    def state_size(self, length: int) -> int:
        """The values. The keys' substitutes are parameters, or come from the query's own token."""
        return length * self.d_model

    def cache_size(self, length: int) -> int:
        """The values."""
        return room(length, self.max_len) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        if self.config.kind in ("dense", "factorised_random"):
            return sdpa_kernel_name(self._heads(x), key_padding_mask, causal=self.causal)
        return Kernel("torch ops on chunks")
