"""transformers' Big Bird block-sparse attention: its blocks, the last one global too, as our layout.

Its random blocks follow one rule at the lengths 1024, 3072 and 4096, and another rule at all other lengths. Each
forward draws them again; in evaluation all are block 0, which then counts four times. Here the second rule draws the
blocks once, at any length: this rule never repeats a block that a row already sees.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.bigbird import BigBirdConfig

BLOCK, N_RANDOM = 64, 3


class Layer(nn.Module):
    """Their self-attention with the masks of their model, and an output projection as in our layer."""

    def __init__(self, attention: nn.Module, d_model: int) -> None:
        super().__init__()
        self.attention = attention
        self.out = nn.Linear(d_model, d_model)
        self.masks: tuple[Tensor, ...] = ()  # without padding; their model makes the masks once for all layers

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        from transformers import BigBirdModel

        make = BigBirdModel.create_masks_for_block_sparse_attn
        if key_padding_mask is not None:
            masks = make((~key_padding_mask).to(x.dtype), BLOCK)
        else:
            if not self.masks or self.masks[2].shape[:3:2] != x.shape[:2] or self.masks[2].dtype != x.dtype:
                self.masks = make(x.new_ones(x.shape[:2]), BLOCK)
            masks = self.masks
        blocked, band, rows, columns = masks
        mixed = self.attention(
            x, band_mask=band, from_mask=rows, to_mask=columns, from_blocked_mask=blocked, to_blocked_mask=blocked
        )
        y: Tensor = self.out(mixed[0])
        return y


@torch.no_grad()
def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    """At 768 positions or more: below, the rule finds too few blocks."""
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    if length % BLOCK:
        raise NotImplementedError(f"transformers' layer takes whole blocks of {BLOCK} positions")

    class DrawnOnce(BigBirdBlockSparseAttention):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            plan = self._get_rand_attn_plan(length, BLOCK, N_RANDOM)
            self.drawn = super()._bigbird_block_rand_mask_with_head(length, length, BLOCK, BLOCK, n_heads, *plan)
            self.turns = cycle(self.drawn)

        def _bigbird_block_rand_mask_with_head(self, *args: Any, **kwargs: Any) -> list[Any]:
            return self.drawn

        def _bigbird_block_rand_mask(self, *args: Any, **kwargs: Any) -> Any:
            return next(self.turns)  # called once for each head

    config = BigBirdConfig(block_size=BLOCK, window=3, n_random=N_RANDOM)
    ours = MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=length)
    attention = DrawnOnce(their_config(d_model, n_heads))
    theirs = Layer(attention, d_model)
    copy_weights(ours, theirs)
    layout = without_random(length // BLOCK).repeat(n_heads, 1, 1)
    for head, drawn in enumerate(attention.drawn):
        layout[head, 1:-1].scatter_(1, torch.as_tensor(drawn).long(), True)
    ours.mixer.attention.layout.copy_(layout)
    setting = f"block {BLOCK}, window 3, first and last block global, {N_RANDOM} random"
    return [Pair(ours, theirs, "transformers", setting)]


def their_config(d_model: int, n_heads: int) -> Any:
    from transformers import BigBirdConfig as TheirConfig

    return TheirConfig(hidden_size=d_model, num_attention_heads=n_heads, block_size=BLOCK, num_random_blocks=N_RANDOM)


@torch.no_grad()
def copy_weights(ours: MultiHeadAttention, theirs: Layer) -> None:
    theirs.out.load_state_dict(ours.mixer.out.state_dict())
    projections = (theirs.attention.query, theirs.attention.key, theirs.attention.value)
    qkv = ours.mixer.qkv
    for linear, weight, bias in zip(projections, qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def without_random(blocks: int) -> Tensor:
    """Window of 3, first and last block global. (blocks, blocks) bool."""
    row = torch.arange(blocks)
    layout = (row[:, None] - row).abs() <= 1
    for end in (0, -1):
        layout[end] = layout[:, end] = True
    return layout
