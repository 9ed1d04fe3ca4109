"""Gradient checkpointing: a layer keeps only its input, and backward runs the layer again (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.functional import Calls, RestoreBuffers, as_function


def checkpointed(layer: nn.Module, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """``layer(x, key_padding_mask=key_padding_mask)``, (B, N, C), which keeps only ``x`` for backward."""
    kept: Tensor = _Keep.apply(x)  # type: ignore[no-untyped-call]
    run: Callable[..., Tensor] = partial(layer, key_padding_mask=key_padding_mask)
    learned: list[Tensor] = []
    plain = all(type(x) in (Tensor, nn.Parameter) for x in layer.parameters())  # sharded ones change during a call
    if plain and not torch.compiler.is_compiling():
        run, learned = as_function(Calls(run, layer))
    y: Tensor = checkpoint(run, kept, *learned, use_reentrant=False, context_fn=partial(_contexts, layer))
    return y


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's forward and of its repetition, which sees the backend's buffers as the forward saw them."""
    return nullcontext(), RestoreBuffers(layer)


class _Keep(torch.autograd.Function):
    """Saves the input for backward, so that a count of saved bytes sees it: a checkpoint hides it in a closure."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return grad
