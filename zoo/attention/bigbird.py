"""Big Bird: a window, a few global blocks, and random blocks that differ from head to head.

Big Bird: Transformers for Longer Sequences, arXiv:2007.14062, section 2 and appendix D, the internal construction:
``out_i = softmax_j(q_i k_jᵀ / √D) v_j`` over the keys j whose block the layout shows to the block of i. Global blocks
are blocks of the input. Cost: O(N · W · S) time and O(N) memory, for W blocks of size S in a row of the layout.

Departures from the paper:
- The global blocks are the first ones. The authors' code takes the first and the last; which block is the last depends
  on the padding.
- Random blocks of row i are drawn below 2i (causal: below i), so that a layout drawn for ``max_len`` keeps at least
  half of them at any shorter length.
- The paper has encoders only. The causal form is the same layout without the blocks after the row's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.contract import Dims, Kernel, Tensors, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend_layout, attend_layout_next, kernel_name
from zoo.cores.cache import CachedAttention
from zoo.cores.parts import random_layout, row_width
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class BigBirdConfig:
    """block_size: S, positions in a block.
    window: blocks around the diagonal that a row sees, its own included (odd).
    n_global: g, leading blocks that see all blocks and are seen by all.
    n_random: r, random blocks of a row, drawn for each head.
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    block_size: int = 64
    window: int = 3
    n_global: int = 2
    n_random: int = 3
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("bigbird.kernel", self.kernel, KERNELS)
        at_least(1, **{"bigbird.block_size": self.block_size, "bigbird.window": self.window})
        at_least(0, **{"bigbird.n_global": self.n_global, "bigbird.n_random": self.n_random})
        if self.window % 2 == 0:
            raise ValueError(f"bigbird.window must be odd (the row's own block in the middle), got {self.window}")


@register("bigbird", config=BigBirdConfig)
class BigBirdAttention(CachedAttention):
    """Window, global blocks, and random blocks for each head."""

    traits = Traits(
        family="fixed sparse",
        source="Zaheer et al., arXiv:2007.14062",
        year=2020,
        time="O(N·W·S)",
        memory="O(N)",
        causal=True,
        capacity="n_random",
        stochastic=True,
        subquadratic=True,
    )
    layout: Tensor

    def __init__(self, dims: Dims, config: BigBirdConfig) -> None:
        super().__init__(dims)
        self.config, self.n_heads = config, dims.n_heads
        self.blocks = -(-dims.max_len // config.block_size)
        self.register_buffer("layout", self._draw().to(torch.get_default_device()))  # (H, blocks, blocks) bool

    def _draw(self) -> Tensor:
        c = self.config
        heads = range(self.n_heads)
        return torch.stack([random_layout(self.blocks, c.window, c.n_global, c.n_random, self.causal) for _ in heads])

    def redraw(self) -> None:
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
        """Counts a row that is not global; global rows see all."""
        c = self.config
        seen = row_width(c.window, c.n_global, c.n_random, self.causal) * c.block_size
        return 2 * min(seen, length) * self.d_model

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel)
