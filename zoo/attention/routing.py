"""Routing attention: attention within the clusters that k-means makes of queries and keys.

Efficient Content-Based Sparse Attention with Routing Transformers, arXiv:2003.05997, sections 4.1 and 4.2. Each head
has centroids μ_c, shared by its queries and keys. Cluster c takes the w queries and the w keys with the largest
``x·μ_c / |x|``; its queries attend to its keys. A position's output is the mean over the clusters that took its query,
or 0 if none did. N real positions use ⌈N / w⌉ clusters.
Cost: O(N w D) time for attention and O(N² D / w) for the similarities: O(N^1.5) at the w = √N of the paper. For a fixed
w the similarities are quadratic with a small factor: they cost as much as the attention itself at N = w², 16,384 for
w = 128. O(N D) memory.

In training each forward uses the centroids, then moves each one towards the mean of the unit vectors nearest to it:
``μ <- decay μ + (1 - decay) mean / |mean|``. Evaluation moves nothing.

The paper's models have heads of local attention beside the heads that route. With ``half_local`` the first half of the
heads (rounded down) are local: they see ⌊w / 2⌋ positions on each side, about as many keys as the routing heads.

Departures from the paper:
- The number of clusters follows each sample's own real length, so neither padding nor the rest of the batch changes a
  sample's output: a sample uses the first ⌈N / w⌉ of the ⌈max_len / w⌉ centroids.
- Vectors are scaled to length 1 for the clusters only, as in the public package. The paper also normalises the queries
  and keys of the attention, and subtracts their mean.
- Centroids start as random unit vectors; the package takes them from the first batch. ``redraw()`` draws new ones.
- Every head routes unless ``half_local`` is set, as in the public package.
- There is no commitment loss: a backend returns one output. Queries and keys learn from the attention alone.
- Equal similarities are taken in no particular order.
There is no causal form: whether a cluster takes position t depends on the similarities of all later positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.attention.local import LocalAttention, LocalConfig
from zoo.contract import Attention, Dims, Kernel, Traits, at_least
from zoo.functional import accumulator, sdpa_kernel_name, softmax_attention, traced
from zoo.registry import register

CHUNK_ELEMENTS = 2**18  # numbers of queries processed at once; at least one head of one sample
SIMILARITIES = 2**20  # similarities held at once; at least those of one cluster


@dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """window: w, queries and keys in a cluster.
    decay: share of a centroid that remains after a training forward.
    half_local: whether half of the heads attend to neighbouring positions instead.
    """

    window: int = 128
    decay: float = 0.999
    half_local: bool = False

    def __post_init__(self) -> None:
        at_least(1, **{"routing.window": self.window})
        if not 0 <= self.decay <= 1:
            raise ValueError(f"routing.decay must be from 0 to 1, got {self.decay!r}")


@register("routing", config=RoutingConfig)
class RoutingAttention(Attention):
    """Each k-means cluster takes the queries and keys nearest to it and attends within."""

    traits = Traits(
        family="content sparse",
        source="Roy et al., arXiv:2003.05997",
        year=2020,
        time="O(N·w), clusters O(N²/w)",
        memory="O(N)",
        causal=False,
        capacity="window",
        stochastic=True,
        adapts=True,
        subquadratic=True,
        exceptions={"state": "k-means moves its centroids in every training forward"},
    )
    centroids: Tensor

    def __init__(self, dims: Dims, config: RoutingConfig) -> None:
        super().__init__(dims)
        self.config = config
        self.near = dims.n_heads // 2 if config.half_local else 0  # the first heads are local
        self.joined_heads = "with half_local, a head's number says whether it routes" if config.half_local else ""
        self.local = LocalAttention(dims, LocalConfig(window=max(1, config.window // 2))) if self.near else None
        shape = dims.n_heads - self.near, -(-dims.max_len // config.window), dims.d_head
        self.register_buffer("centroids", F.normalize(torch.randn(shape), dim=-1))

    def redraw(self) -> None:
        self.centroids = F.normalize(torch.randn(self.centroids.shape), dim=-1).to(self.centroids)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if self.local is None:
            return self._route(q, k, v, key_padding_mask)
        n = self.near
        near = self.local(q[:, :n], k[:, :n], v[:, :n], key_padding_mask=key_padding_mask)
        return torch.cat([near, self._route(q[:, n:], k[:, n:], v[:, n:], key_padding_mask)], dim=1)

    def _route(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        k = k.to(q.dtype)
        with torch.autocast(q.device.type, enabled=False):
            with torch.no_grad():
                moves = _Moves(self.centroids) if self.training else None
                queries, keys = (self._select(x, key_padding_mask, moves) for x in (q, k))
                if moves is not None:
                    self.centroids.lerp_(moves.means(self.centroids), 1 - self.config.decay)
                at, to = (_Slots(x, q.shape[2], masked=key_padding_mask is not None) for x in (queries, keys))
            mixed = softmax_attention(at.take(q), to.take(k), to.take(v), to.mask)
            return at.mean(mixed, like=q)

    def _select(self, x: Tensor, padding: Tensor | None, moves: _Moves | None) -> Tensor:
        """The positions that each cluster takes, (B, H, clusters, w); -1 = none.

        ``moves`` collects the vectors by their nearest centroid.
        """
        B, H, N, _ = x.shape
        width = min(self.config.window, N)
        clusters = -(-N // self.config.window)
        wide = accumulator(x)
        centroids = self.centroids[:, :clusters].to(wide)
        if padding is not None:
            used = ((~padding).sum(1) + self.config.window - 1) // self.config.window  # (B,)
            unused = (torch.arange(clusters, device=x.device) >= used[:, None])[:, None, :, None]
        chosen = x.new_empty(B, H, clusters, width, dtype=torch.long)
        for samples, heads in parts(x):
            units = F.normalize(x[samples, heads].to(wide), dim=-1)
            nearest, nearness = units.new_zeros(units.shape[:3], dtype=torch.long), None
            step = max(1, SIMILARITIES // units[..., 0].numel())
            for start in range(0, clusters, step):
                some = slice(start, start + step)
                near = centroids[heads, some] @ units.mT  # (b, h, clusters, N)
                if padding is not None:
                    near.masked_fill_(unused[samples, :, some] | padding[samples, None, None], -torch.inf)
                top = near.topk(width, sorted=False)
                chosen[samples, heads, some] = top.indices.masked_fill(top.values == -torch.inf, -1)
                if moves is not None:
                    best, at = near.max(2)
                    closer = torch.ones_like(best, dtype=torch.bool) if nearness is None else best > nearness
                    nearest = torch.where(closer, at + start, nearest)
                    nearness = best if nearness is None else torch.maximum(best, nearness)
            if moves is not None:
                moves.add(units, nearest, heads, None if padding is None else padding[samples])
        return chosen

    def state_size(self, length: int) -> int:
        """One cluster: the mean over queries, some of which are in several clusters and some in none."""
        routed = 2 * min(self.config.window, length) * self.d_model
        if self.local is None:
            return routed
        return routed + self.near * (self.local.state_size(length) - routed) // self.dims.n_heads

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel(f"gathered clusters on {sdpa_kernel_name(x).name}")


def parts(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and heads that cut x (B, H, N, D) into chunks."""
    B, H, N, D = x.shape
    heads = min(H, max(1, CHUNK_ELEMENTS // (N * D)))
    samples = max(1, CHUNK_ELEMENTS // (H * N * D))
    for b in range(0, B, samples):
        for h in range(0, H, heads):
            yield slice(b, b + samples), slice(h, h + heads)


class _Bags:
    """Sums rows by place. Rows are sorted once, instead of being added one at a time."""

    def __init__(self, place: Tensor, places: int) -> None:
        """place: (rows,) integers below ``places``, or equal to it for rows that no sum includes."""
        place, self.order = place.sort(stable=True)
        self.offsets = torch.searchsorted(place, torch.arange(places + 2, device=place.device))
        self.counts = self.offsets.diff()[:-1, None]

    def sum(self, x: Tensor) -> Tensor:
        """(rows, D) -> (places, D), in at least float32."""
        return bag_sum(x, self.order, self.offsets)


def bag_sum(x: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    x = x.to(accumulator(x))
    return F.embedding_bag(order, x, offsets, mode="sum", include_last_offset=True)[:-1]


class _Moves:
    """Sums and counts of the unit vectors nearest to each centroid."""

    def __init__(self, centroids: Tensor) -> None:
        wide = accumulator(centroids)
        self.sums = torch.zeros_like(centroids, dtype=wide)  # (H, clusters, D)
        self.counts = torch.zeros_like(self.sums[..., :1])

    def add(self, units: Tensor, nearest: Tensor, heads: slice, padding: Tensor | None) -> None:
        """units: (b, h, N, D); nearest: (b, h, N)."""
        h, clusters = self.sums[heads].shape[:2]
        place = nearest + clusters * torch.arange(h, device=units.device)[:, None]
        if padding is not None:
            place = place.masked_fill(padding[:, None], h * clusters)
        bags = _Bags(place.flatten(), h * clusters)
        self.sums[heads] += bags.sum(units.flatten(0, 2)).view(h, clusters, -1)
        self.counts[heads] += bags.counts.view(h, clusters, 1)

    def means(self, centroids: Tensor) -> Tensor:
        """Unit vectors, one for each centroid; a centroid to which no vector is nearest stays."""
        return torch.where(self.counts > 0, F.normalize(self.sums, dim=-1), centroids).to(centroids.dtype)


class _Slots:
    """Moves vectors between positions (B, H, N, D) and clusters (B H, clusters, w, D)."""

    def __init__(self, position: Tensor, length: int, *, masked: bool) -> None:
        """position: (B, H, clusters, w); -1 = none, only with ``masked``."""
        position = position.flatten(0, 1)
        self.shape, places = position.shape, position.shape[0] * length
        row = position + length * torch.arange(position.shape[0], device=position.device)[:, None, None]
        self.row, place = row.flatten(), row.flatten()
        self.filled = None
        if masked:
            self.filled = position >= 0
            self.row = self.row.clamp(min=0)
            place = place.masked_fill(~self.filled.flatten(), places)
        self.bags = _Bags(place, places)

    def take(self, x: Tensor) -> Tensor:
        """(B, H, N, D) -> (B H, clusters, w, D)."""
        if traced():
            return x.flatten(0, 2).index_select(0, self.row).view(*self.shape, -1)
        out: Tensor = _Take.apply(x, self.row, self.bags.order, self.bags.offsets)  # type: ignore[no-untyped-call]
        return out.view(*self.shape, x.shape[-1])

    def mean(self, x: Tensor, like: Tensor) -> Tensor:
        """The mean of a position's rows, (B H, clusters, w, D) -> (B, H, N, D); 0 for a position in no cluster."""
        if traced():
            return (self.bags.sum(x.flatten(0, 2)) / self.bags.counts.clamp(min=1)).view_as(like).to(x.dtype)
        out: Tensor = _Mean.apply(x, self, like)  # type: ignore[no-untyped-call]
        return out

    @property
    def mask(self) -> Tensor | None:
        """The mask for SDPA: (B H, clusters, 1, w), True = may be attended to; None = all."""
        return None if self.filled is None else self.filled[:, :, None]


class _Take(torch.autograd.Function):
    """Gathers rows; its gradient sums them in bags."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(order, offsets)
        ctx.shape = x.shape
        return x.flatten(0, 2).index_select(0, row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return bag_sum(grad, *ctx.saved_tensors).view(ctx.shape).to(grad.dtype), None, None, None


class _Mean(torch.autograd.Function):
    """Means of the rows of a position; its gradient gathers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: _Slots, like: Tensor) -> Tensor:
        counts = slots.bags.counts.clamp(min=1)
        ctx.shape = x.shape
        ctx.save_for_backward(slots.row, counts, slots.filled)
        return (slots.bags.sum(x.flatten(0, 2)) / counts).view_as(like).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, counts, filled = ctx.saved_tensors
        share = (grad.flatten(0, 2) / counts).to(grad.dtype).index_select(0, row).view(ctx.shape)
        return share if filled is None else share.masked_fill(~filled[..., None], 0), None, None
