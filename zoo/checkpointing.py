"""Gradient checkpointing: a part keeps only its input, and backward runs the part again (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.functional import Calls, RestoreBuffers, as_function

Part = Literal["layer", "attention", "feed_forward"]


def checkpointed(run: Callable[[Tensor], Tensor], x: Tensor, *modules: nn.Module) -> Tensor:
    """``run(x)``, which calls ``modules``. Keeps only ``x`` for backward, where one is possible."""
    if not (torch.is_grad_enabled() and any(module.training for module in modules)):
        return run(x)
    kept: Tensor = _Keep.apply(x)  # type: ignore[no-untyped-call]
    function: Callable[..., Tensor] = run
    learned: list[Tensor] = []
    called = Calls(run, *modules)
    plain = all(type(x) in (Tensor, nn.Parameter) for x in called.parameters())  # sharded ones change during a call
    if plain and not torch.compiler.is_compiling():
        function, learned = as_function(called)
    y: Tensor = checkpoint(function, kept, *learned, use_reentrant=False, context_fn=partial(_contexts, called))
    return y


def _contexts(called: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a forward and of its repetition, which sees the backend's buffers as the forward saw them."""
    return nullcontext(), RestoreBuffers(called)


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
