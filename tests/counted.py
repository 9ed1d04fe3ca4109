"""Parts as a dense matrix of counted pairs, and softmax over it in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.cores.parts import Group, Part, Span


def seen(group: Group | Span, n_heads: int, blocks: int, key_blocks: int) -> Iterator[tuple[int, int, Any]]:
    """(head, query block, key blocks), one by one."""
    if isinstance(group, Span):
        for head in range(n_heads):
            for row in range(group.first, group.last):
                yield head, row, list(range(row + group.offset, row + group.offset + group.width))
        return
    for number, columns in zip(group.rows.tolist(), group.columns.tolist(), strict=True):
        head, row = divmod(number, blocks)
        assert {column // key_blocks for column in columns} == {head}
        yield head, row, [column % key_blocks for column in columns]


def cut(positions: Tensor | None, size: int, B: int, H: int, N: int) -> Tensor:
    """(B, H, blocks, S): the position in each slot, −1 = empty."""
    if positions is None:
        slots = -(-N // size) * size
        positions = torch.arange(slots).where(torch.arange(slots) < N, -1).view(-1, size)
    return positions.expand(B, H, *positions.shape[-2:])


def counts(parts: Sequence[Part], B: int, H: int, N: int) -> Tensor:
    """(B, H, N, N) float64: the sum of exp(bias) over all the times that a part shows j to i."""
    total = torch.zeros(B, H, N, N, dtype=torch.float64)
    for part in parts:
        queries = cut(part.positions, part.size, B, H, N)
        keys = queries if part.keys is None else cut(part.keys, part.keys.shape[-1], B, H, N)
        for group in part.groups:
            for head, row, columns in seen(group, H, queries.shape[2], keys.shape[2]):
                for sample in range(B):
                    i, j = queries[sample, head, row][:, None], keys[sample, head, columns].flatten()
                    visible = (i >= 0) & (j >= 0)
                    if part.causal:
                        visible = visible & (j <= i)
                    if part.labels is not None:
                        label = part.labels[sample, head]
                        visible = visible & (label[row] == label[columns].repeat_interleave(keys.shape[-1]))
                    weight = visible.double() if group.bias is None else group.bias.double().exp() * visible
                    at = (i.clamp(min=0) * N + j.clamp(min=0)).flatten()
                    total[sample, head].view(-1).index_add_(0, at, weight.flatten())
    return total


def dense(q: Tensor, k: Tensor, v: Tensor, count: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    """In float64: softmax in which a pair counts ``count`` times, 0 where a query sees nothing."""
    q, k, v = q.double(), k.double(), v.double()
    if padding is not None:
        count = count * ~padding[:, None, None, :]
    logits = scale * q @ k.mT
    top = logits.masked_fill(count == 0, -torch.inf).amax(-1, keepdim=True).detach()
    weights = count * (logits - top.where(top.isfinite(), 0)).clamp(max=0).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / total.where(total > 0, 1) @ v
