"""AFT: each channel averages its values under its own weights, without a product of queries and keys.

An Attention Free Transformer, arXiv:2105.14103, equation 2, in each channel, over the real positions j:

``y_i = σ(q_i) Σ_j exp(w_ij + k_j) v_j / Σ_j exp(w_ij + k_j)``

w is a learned bias of pairs of positions, the same for all channels. With s = ``window``:

- ``local``: w_ij is learned for |i − j| < s, and 0 beyond; positions beyond are still seen;
- ``full``: w_ij = a_i · b_j for all pairs, a and b of ``rank`` numbers for each of ``max_len`` positions;
- ``simple``: w = 0.

Cost: O(N s) time for ``local``, O(N² (1 + rank / d_model)) for ``full``, O(N) for ``simple``, for each channel; O(N)
memory for all.

``local`` runs in blocks: within a block's reach exp(w) is a matrix, the same for all blocks; beyond it sums replace the
matrix. The causal form is a scan whose state is the sums over positions that have left the window. ``full`` makes its
matrix for some rows at a time, and backward makes it again.

Each key is exponentiated minus a reference, the largest key of its channel; the reference cancels. When causal, the
reference is the largest key before the chunk of positions (in the first chunk, its first key), so no row depends on the
future. A key more than 58 above the reference counts as 58 above it within its chunk.

Departures from the paper:
- The w of ``local`` depends on i − j alone, as in the paper's AFT-conv: pairs would have max_len (2 s − 1) numbers.
- ``rank`` is 32; the paper has 128. a and b have 2·max_len·rank numbers a layer.
- Queries, keys and values are computed in float32, also under autocast: one key can dominate all positions, and its
  gradient is then a sum over all of them, which float16 cannot hold.
No product joins queries and keys, so rotary positions have no meaning here and are not applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial, reduce

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Dims, Kernel, Mixer, Tensors, Traits, at_least, one_of
from zoo.cores.cache import append, empty, fill, room
from zoo.cores.kernel_attention import finite
from zoo.cores.scan import CHUNK, scan, scan_step, scan_to_end
from zoo.functional import accumulator, dtype_of, pad_to_multiple, recompute, split
from zoo.registry import register

LIMIT = 58.0  # the most by which a key may exceed its reference, before the exponential
BLOCK = 64  # positions in a block of ``local`` in both directions, unless the window is larger
BUDGET = 2**22  # weights in one chunk of ``full``
LONG_CHUNK = 1024  # positions in a chunk of causal ``local`` off the CPU, where many small calls cost most


@dataclass(frozen=True, kw_only=True)
class AFTConfig:
    """form: for which pairs of positions a bias is learned: ``local`` (near ones), ``full`` (all) or ``simple`` (none).
    window: s; ``local`` learns the bias of positions less than s apart. At most max_len.
    rank: numbers for each position, whose products are the bias of ``full``.
    """

    form: str = "local"
    window: int = 32
    rank: int = 32

    def __post_init__(self) -> None:
        one_of("aft.form", self.form, ("local", "full", "simple"))
        at_least(1, **{"aft.window": self.window, "aft.rank": self.rank})


@register("aft", config=AFTConfig)
class AFT(Mixer):
    """Weighted means in each channel, without products of queries and keys."""

    traits = Traits(
        family="kernel",
        source="Zhai et al., arXiv:2105.14103",
        year=2021,
        time="O(N·w)",
        memory="O(N)",
        causal=True,
        rotary=False,
        capacity="window",
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: AFTConfig) -> None:
        super().__init__(dims)
        C = dims.d_model
        self.form = config.form
        self.window = min(config.window, dims.max_len) if config.form == "local" else 1
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)
        for linear in (self.qkv, self.out):
            nn.init.normal_(linear.weight, std=C**-0.5)
            nn.init.zeros_(linear.bias)
        if config.form == "local":
            self.bias = nn.Parameter(torch.zeros(self.window if self.causal else 2 * self.window - 1))
        elif config.form == "full":
            std = 0.1 * config.rank**-0.25  # so that w is about 0.01
            self.rows, self.columns = (nn.Parameter(std * torch.randn(dims.max_len, config.rank)) for _ in range(2))

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        hidden = None if key_padding_mask is None else key_padding_mask[..., None]
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = self._project(x if hidden is None else x.masked_fill(hidden, 0))
            if hidden is not None:
                k = k.masked_fill(hidden, -math.inf)
            mixed = torch.sigmoid(q) * self._mix(k, v).to(v.dtype)
        y: Tensor = self.out(mixed)
        return y

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        return split(self.qkv(x.to(dtype_of(self.qkv, x))), 3)

    def _mix(self, k: Tensor, v: Tensor) -> Tensor:
        """The weighted means. k, −inf at padding, v and the result: (B, N, C)."""
        N = k.shape[1]
        if self.form == "full":
            size = max(1, min(CHUNK if self.causal else N, BUDGET // N))
            return torch.cat([self._some_rows(slice(i, min(i + size, N)), k, v) for i in range(0, N, size)], dim=1)
        if self.causal:
            size = self._chunk_size(k)
            sequences = k[:, None], v[:, None]
            return scan(causal_chunk, sequences, self.begin(v[:, 0]), self._weights(size, v), size=size)[:, 0]
        if self.form == "simple":
            return recompute(everywhere, k, v).expand(-1, N, -1)
        return recompute(both_sides, k, v, *self._weights(max(BLOCK, self.window - 1), v))

    def _chunk_size(self, k: Tensor) -> int:
        """Positions of a chunk of causal ``local``."""
        return min(k.shape[1], CHUNK if k.device.type == "cpu" else LONG_CHUNK)

    def _some_rows(self, part: slice, k: Tensor, v: Tensor) -> Tensor:
        """The result of ``full`` at the rows ``part``."""
        seen = slice(0, part.stop if self.causal else k.shape[1])
        rows = partial(some_rows, part.start, self.causal)
        return recompute(rows, k[:, seen], v[:, seen], self.rows[part], self.columns[seen])

    def _weights(self, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """exp(w) between ``size`` positions and those within their reach, (size, columns), and beyond it, a number.

        The columns begin ``window`` − 1 before the first row and end at the last one; in both directions they begin and
        end ``size`` positions further. Both results are divided by a common factor, so that neither overflows.
        """
        bias = self.bias if self.form == "local" else like.new_zeros(1)
        bias = bias.to(accumulator(bias))
        before, after, least = (self.window - 1, 0, 0) if self.causal else (size, size, 1 - self.window)
        place = torch.arange(before + size + after, device=bias.device)
        lag = place[before : before + size, None] - place
        inside = (lag >= least) & (lag < self.window)
        w = bias[(lag - least).clamp(0, len(bias) - 1)].masked_fill(~inside, 0)
        top = bias.detach().amax().clamp(min=0)
        weights = (w - top).exp()
        return weights.masked_fill(lag < 0, 0) if self.causal else weights, (-top).exp()

    def begin(self, x: Tensor) -> Tensors:
        """``full``: keys and values so far, (B, 1, 0, C) each. Other forms: the state of ``causal_chunk``."""
        B, C = x.shape
        if self.form == "full":
            return empty(x[:, None].to(dtype_of(self.qkv, x)))
        total = torch.zeros(B, 1, 1, 2 * C, dtype=accumulator(x), device=x.device)
        values = total.new_zeros(B, 1, self.window - 1, C)
        return total, total.new_full((B, 1, 1, C), -math.inf), values - math.inf, values

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = self._project(x)
            if self.form == "full":
                tensors = append(tensors, (k[:, None], v[:, None]), position, len(self.rows))
                keys, values = (x[:, 0, : position + 1] for x in tensors)
                columns, row = (x.to(accumulator(x)) for x in (self.columns[: position + 1], self.rows[position]))
                weights = (keys + (columns @ row)[:, None]).softmax(1)
                mixed = (weights * values).sum(1, keepdim=True)
            else:
                sequences = k[:, None], v[:, None]
                mixed, tensors = scan_step(causal_chunk, position, sequences, tensors, self._weights(1, v))
                mixed = mixed[:, 0]
            mixed = torch.sigmoid(q) * mixed.to(q.dtype)
        return self.out(mixed), tensors

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        before = self.begin(x[:, 0])
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = self._project(x)
            if self.form == "full":
                mixed, after = self._mix(k, v), fill(before, (k[:, None], v[:, None]), len(self.rows))
            else:
                size = self._chunk_size(k)
                weights = self._weights(size, v)
                mixed, after = scan_to_end(causal_chunk, (k[:, None], v[:, None]), before, weights, size=size)
                mixed = mixed[:, 0]
            mixed = torch.sigmoid(q) * mixed.to(v.dtype)
        return self.out(mixed), after

    def state_size(self, length: int) -> int:
        """``full``: all keys and values. Other forms: the two sums, and for ``local`` keys and values in the window."""
        C = self.d_model
        if self.form == "full":
            return 2 * length * C
        reach = len(self.bias) if self.form == "local" else 0
        return 2 * C * (min(reach, length) + (length > reach))

    def cache_size(self, length: int) -> int:
        C = self.d_model
        return 2 * room(length, len(self.rows)) * C if self.form == "full" else (2 * self.window + 1) * C

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("torch ops on chunks" if self.form == "full" or self.causal else "torch ops")


def causal_chunk(
    _first: int, state: Tensors, k: Tensor, v: Tensor, weights: Tensor, far: Tensor
) -> tuple[Tensor, Tensors]:
    """Causal ``local``, for ``scan``. k, v and the result: (B, 1, n, C). ``simple`` has a window of 1.

    State: the sums over positions that left the window, (B, 1, 1, 2 C), relative to the largest key so far,
    (B, 1, 1, C); and keys and values in the window of the next position, (B, 1, window − 1, C). References get no
    gradient.
    """
    total, top, *window = state
    n = k.shape[2]
    keys, values = (torch.cat(pair, dim=2) for pair in zip(window, (k, v), strict=True))
    before = top.detach()
    after = torch.maximum(before, k.detach().amax(2, keepdim=True))
    reference = reference_of(before, k.detach())
    out = divide(weights[:n, : keys.shape[2]] @ weighed(keys, values, reference) + far * total)
    left = weighed(keys[:, :, :n], values[:, :, :n], finite(after)).sum(2, keepdim=True)
    total = total * (reference - finite(after)).exp().repeat(1, 1, 1, 2) + left
    return out, (total, after, keys[:, :, n:], values[:, :, n:])


def both_sides(k: Tensor, v: Tensor, weights: Tensor, far: Tensor) -> Tensor:
    """``local`` in both directions. Each block reads itself and its neighbours by weights, others by their sums."""
    k, v = (x.to(accumulator(x)) for x in (k, v))
    N, S = k.shape[1], len(weights)
    pairs = pad_to_multiple(weighed(k, v, finite(k.detach().amax(1, keepdim=True))), S, -2)
    blocks = rearrange(pairs, "b (n s) c -> s b n c", s=S)
    n = blocks.shape[2]
    sums = blocks.sum(0)  # (B, n, 2 C)
    left = F.pad(sums, (0, 0, 2, 0))[:, :n].cumsum(1)
    right = F.pad(sums, (0, 0, 0, 2))[:, 2:].flip(1).cumsum(1).flip(1)
    around = F.pad(blocks, (0, 0, 1, 1))  # (S, B, n + 2, 2 C)
    near = reduce(torch.add, (w @ around[:, :, i : i + n].flatten(1) for i, w in enumerate(weights.chunk(3, dim=1))))
    total = near.view_as(blocks) + far * (left + right)
    return divide(rearrange(total, "s b n c -> b (n s) c")[:, :N])


def everywhere(k: Tensor, v: Tensor) -> Tensor:
    """``simple`` in both directions: one mean for all positions, (B, 1, C)."""
    k, v = (x.to(accumulator(x)) for x in (k, v))
    return divide(weighed(k, v, finite(k.detach().amax(1, keepdim=True))).sum(1, keepdim=True))


def some_rows(first: int, causal: bool, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``full`` for the positions from ``first`` on. k, v: (B, seen, C); rows: (n, rank); columns: (seen, rank)."""
    k, v, rows, columns = (x.to(accumulator(x)) for x in (k, v, rows, columns))
    w = rows @ columns.T
    known = k.detach()
    before = known[:, :first] if causal else known
    none = known.new_full((len(k), 1, k.shape[2]), -math.inf)
    reference = reference_of(torch.cat([none, before], dim=1).amax(1, keepdim=True), known[:, first:])
    if causal:
        place = torch.arange(len(columns), device=k.device)
        w = w.masked_fill(place > place[first:, None], -math.inf)
    weights = (w - w.detach().amax(1, keepdim=True)).exp()
    return divide(weights.expand(len(k), -1, -1) @ weighed(k, v, reference))


def reference_of(before: Tensor, k: Tensor) -> Tensor:
    """The largest key ``before`` (…, 1, C); if it is -inf, the first real key of ``k`` (…, n, C); else 0. (…, 1, C)."""
    real = k > -math.inf
    first = k.masked_fill(~real | (real.cumsum(-2) > 1), -math.inf).amax(-2, keepdim=True)
    return finite(torch.where(before > -math.inf, before, first))


def weighed(k: Tensor, v: Tensor, reference: Tensor) -> Tensor:
    """Weights times values, then the weights: (…, 2 C)."""
    weights = (k - reference).clamp(max=LIMIT).exp()
    return torch.cat([weights * v, weights], dim=-1)


def divide(total: Tensor) -> Tensor:
    """(…, 2 C) -> (…, C); 0 where the weights are 0, or so small that a gradient over them could overflow."""
    numerator, denominator = total.chunk(2, dim=-1)
    return numerator / denominator.masked_fill(denominator <= torch.finfo(total.dtype).tiny ** 0.75, math.inf)
