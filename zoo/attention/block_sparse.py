"""Block-sparse attention: each block of queries attends to a chosen set of key blocks.

Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 5 (block-sparse kernels); the default
layout, window + global + random, is that of Big Bird, arXiv:2007.14062, section 2.
``out_i = softmax_j(q_i k_jᵀ / √D) v_j`` over the keys j whose block the layout allows for the block of i.
Cost: O(N · W · S) time and O(N) memory, for W blocks of size S in a row of the layout.

Departures from the papers: random blocks of row i are drawn below 2i, so that a layout drawn for ``max_len`` keeps at
least half of them at any shorter length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.contract import Dims, Kernel, Tensors, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend_layout, attend_layout_next, kernel_name
from zoo.cores.cache import CachedAttention
from zoo.cores.parts import random_layout, row_width
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class BlockSparseConfig:
    """block_size: S, positions in a block.
    window: blocks around the diagonal that a row sees, its own included (odd).
    n_global: leading blocks that see all blocks and are seen by all.
    n_random: random blocks of a row.
    layout: (blocks, blocks) bool, True = attend; replaces window, n_global and n_random. Must cover ``max_len``.
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    block_size: int = 64
    window: int = 3
    n_global: int = 1
    n_random: int = 1
    layout: Tensor | None = field(default=None, compare=False)
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("block_sparse.kernel", self.kernel, KERNELS)
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
class BlockSparseAttention(CachedAttention):
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
        super().__init__(dims)
        self.config = config
        self.blocks = -(-dims.max_len // config.block_size)
        layout = self._draw() if config.layout is None else config.layout
        if min(layout.shape) < self.blocks or layout.shape[0] != layout.shape[1]:
            raise ValueError(
                f"block_sparse.layout must be at least {self.blocks} × {self.blocks} blocks for "
                f"max_len={dims.max_len}, got {' × '.join(map(str, layout.shape))}"
            )
        layout = layout.tril() if self.causal else layout.clone()
        self.register_buffer("layout", layout.to(torch.get_default_device()))

    def _draw(self) -> Tensor:
        c = self.config
        return random_layout(self.blocks, c.window, c.n_global, c.n_random, self.causal)

    def redraw(self) -> None:
        if self.config.layout is None:
            self.layout = self._draw().to(self.layout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        size = self.config.block_size
        return attend_layout(
            q, k, v, self.layout, size, causal=self.causal, key_padding_mask=key_padding_mask, kernel=self.config.kernel
        )

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        size, max_len = self.config.block_size, self.max_len
        return attend_layout_next(q, k, v, self.layout, size, tensors, position, max_len)

    def state_size(self, length: int) -> int:
        """Counts a row that is not global; in a given layout, the row that sees most."""
        c = self.config
        seen = row_width(c.window, c.n_global, c.n_random, self.causal)
        if c.layout is not None:
            seen = int(self.layout.sum(-1).max())
        return 2 * min(seen * c.block_size, length) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel)
