"""Block-sparse attention: each block of queries attends to a chosen set of key blocks.

Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 5 (block-sparse kernels); the default
layout, window + global + random, is that of Big Bird, arXiv:2007.14062, section 2.
``out_i = softmax_j(q_i k_jᵀ / √D) v_j`` over the keys j whose block the layout allows for the block of i.
Cost: O(N · W · S) time and O(N) memory, for W blocks of size S in a row of the layout.

The blocks that a row needs are gathered and given to torch's fused kernel; backward gathers them again instead of
keeping them. Rows with a similar number of blocks go together, so one row that sees everything (a global block)
does not make the others pay for it. No N × N tensor is ever made, masked or not.

Departures from the papers: random blocks of row i are drawn below twice i, so that a layout drawn for ``max_len``
keeps at least half of them at any shorter length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.contract import Attention, Dims, Kernel, Traits, at_least
from zoo.functional import pad_to_multiple, recompute, sdpa_kernel_name
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class BlockSparseConfig:
    """block_size: S, positions in a block.
    window: blocks around the diagonal that a row sees, its own included (odd).
    n_global: leading blocks that see all and are seen by all.
    n_random: random blocks a row.
    layout: (blocks, blocks) bool, True = attend; replaces the three above. Must cover ``max_len``.
    """

    block_size: int = 64
    window: int = 3
    n_global: int = 1
    n_random: int = 1
    layout: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        at_least(1, **{"block_sparse.block_size": self.block_size, "block_sparse.window": self.window})
        at_least(0, **{"block_sparse.n_global": self.n_global, "block_sparse.n_random": self.n_random})
        if self.window % 2 == 0:
            raise ValueError(f"block_sparse.window must be odd (the row's own block in the middle), got {self.window}")
        if self.layout is not None and (self.layout.dtype != torch.bool or self.layout.dim() != 2):
            raise ValueError(
                "block_sparse.layout must be a (blocks, blocks) bool tensor, "
                f"got shape {tuple(self.layout.shape)} of {self.layout.dtype}"
            )


@register("block_sparse", config=BlockSparseConfig)
class BlockSparseAttention(Attention):
    """Window, global and random blocks, or any layout of blocks."""

    traits = Traits(
        family="fixed sparse",
        source="Child et al., arXiv:1904.10509; Zaheer et al., arXiv:2007.14062",
        year=2019,
        time="O(N·W·S)",
        memory="O(N)",
        causal=True,
        capacity="window",
        stochastic=True,
        subquadratic=True,
    )
    layout: Tensor

    def __init__(self, dims: Dims, config: BlockSparseConfig) -> None:
        super().__init__()
        self.causal, self.config = dims.causal, config
        self.blocks = -(-dims.max_len // config.block_size)
        layout = self._draw() if config.layout is None else config.layout
        if min(layout.shape) < self.blocks or layout.shape[0] != layout.shape[1]:
            raise ValueError(
                f"block_sparse.layout must be at least {self.blocks} × {self.blocks} blocks for "
                f"max_len={dims.max_len}, got {' × '.join(map(str, layout.shape))}"
            )
        self.register_buffer("layout", layout.tril() if self.causal else layout.clone())

    def _draw(self) -> Tensor:
        """The default layout. (blocks, blocks) bool."""
        row = torch.arange(self.blocks)
        layout = (row[:, None] - row).abs() <= self.config.window // 2
        layout[: self.config.n_global] = True
        layout[:, : self.config.n_global] = True
        for i in range(self.blocks):
            reach = i + 1 if self.causal else min(self.blocks, 2 * (i + 1))
            free = (~layout[i, :reach]).nonzero()[:, 0]
            layout[i, free[torch.randperm(len(free))[: self.config.n_random]]] = True
        return layout

    def redraw(self) -> None:
        if self.config.layout is None:
            layout = self._draw()
            self.layout.copy_(layout.tril() if self.causal else layout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        B, H, N, _ = q.shape
        size = self.config.block_size
        hidden = key_padding_mask
        if N % size and hidden is None:
            hidden = torch.zeros(1, N, dtype=torch.bool, device=q.device)
        if hidden is not None:
            hidden = pad_to_multiple(hidden[..., None], size, -2, value=True)[..., 0]
            hidden = rearrange(hidden, "b (n s) -> b n s", s=size)
        # (B, blocks, H, S, D): a block of one head is contiguous, and is gathered whole.
        q, k, v = (rearrange(pad_to_multiple(x, size, -2), "b h (n s) d -> b n h s d", s=size) for x in (q, k, v))
        groups = self._groups(q.shape[1])

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = torch.zeros_like(q)
            for rows, columns, used in groups:
                out[:, rows] = self._attend(q[:, rows], k, v, hidden, rows, columns, used)
            return out

        out = recompute(attend, q, k, v)
        return rearrange(out, "b n h s d -> b h (n s) d")[:, :, :N]

    def _groups(self, blocks: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Rows of the layout by how many blocks they see, doubling: (rows (R,), columns (R, W), used (R, W)).

        A row that sees fewer than W blocks has unused columns; ``used`` is None where no row has.
        """
        layout = self.layout[:blocks, :blocks]
        counts = layout.sum(1)
        columns = layout.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        groups = []
        low, most = 0, int(counts.max())
        width = int(counts.median())
        while low < most:
            rows = ((counts > low) & (counts <= width)).nonzero()[:, 0]
            if len(rows):
                used = torch.arange(width, device=counts.device) < counts[rows, None]
                groups.append((rows, columns[rows, :width], None if bool(used.all()) else used))
            low, width = width, min(2 * max(width, 1), most)
        return groups

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        hidden: Tensor | None,
        rows: Tensor,
        columns: Tensor,
        used: Tensor | None,
    ) -> Tensor:
        """q: (B, R, H, S, D); k, v: (B, blocks, H, S, D); result as q."""
        R, W = columns.shape
        S = q.shape[3]

        def gather(x: Tensor) -> Tensor:
            index = columns.flatten()
            return rearrange(x.index_select(1, index), "b (r w) h s d -> (b r) h (w s) d", w=W)

        visible: Tensor | None = None  # broadcasts to (B, R, 1, S, W, S)
        if hidden is not None:
            visible = ~hidden[:, columns][:, :, None, None]
        if used is not None:
            visible = merge(visible, used[None, :, None, None, :, None])
        if self.causal:
            place = torch.arange(S, device=q.device)
            same = (columns == rows[:, None])[None, :, None, None, :, None]
            visible = merge(visible, ~same | (place[:, None, None] >= place))
        mask = None
        if visible is not None:
            visible = visible.expand(q.shape[0], R, 1, -1, W, S)
            mask = rearrange(visible, "b r h q w s -> (b r) h q (w s)")
        out = F.scaled_dot_product_attention(rearrange(q, "b r h s d -> (b r) h s d"), gather(k), gather(v), mask)
        return rearrange(out, "(b r) h s d -> b r h s d", r=R)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel(f"gathered blocks on {sdpa_kernel_name(x).name}")


def merge(visible: Tensor | None, more: Tensor) -> Tensor:
    return more if visible is None else visible & more
