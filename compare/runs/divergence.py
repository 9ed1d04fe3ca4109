"""Says where numbers stopped being finite: which module, in forward or in backward, and what overflowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compare.runs.outcome import DivergedError


def first_not_finite(model: nn.Module, forward: Callable[[], Tensor], backward: Callable[[Tensor], None]) -> str:
    """Repeat a step that failed, with the weights that it began with, and name the first module that failed.

    Args:
        model: its modules are watched; its gradients are lost.
        forward: computes the loss. backward: computes the gradients of a loss.

    Returns:
        A sentence without a full stop; "" where the repeated step is finite.
    """
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            return f"the weight {name} was not finite before the step"
    names = names_of(model)
    said: list[str] = []
    with watching(model, partial(watch_forward, names, said)):
        loss = forward()
    if said:
        return said[0]
    if not is_finite(loss):
        return "the loss overflowed, and all outputs of modules are finite"
    del loss  # with the activations of this forward
    with watching(model, partial(watch_backward, names, said)):
        loss = forward()
        backward(loss)
    for name, weight in model.named_parameters():
        if not said and weight.grad is not None and not is_finite(weight.grad):
            said.append(f"backward: the gradient of the weight {name} {count_bad(weight.grad)}")
    model.zero_grad()
    return said[0] if said else ""


def first_bad_output(model: nn.Module, evaluate: Callable[[], object]) -> str:
    """Repeat an evaluation that failed, and name the first module whose output is not finite, as above."""
    said: list[str] = []
    with watching(model, partial(watch_forward, names_of(model), said)), suppress(DivergedError):
        evaluate()
    return said[0] if said else "all outputs of modules are finite"


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name or "the model" for name, module in model.named_modules()}


@contextmanager
def watching(model: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """A context in which each module calls ``hook(module, inputs, output)`` after its forward, inner modules first."""
    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch_forward(names: dict[nn.Module, str], said: list[str], module: nn.Module, inputs: Any, output: Any) -> None:
    """Note the first module whose output is not finite though its inputs are."""
    if said:
        return
    for x in tensors_in(output):
        if not is_finite(x) and all(map(is_finite, tensors_in(inputs))):
            largest = max((float(y.detach().abs().max()) for y in tensors_in(inputs) if y.numel()), default=0.0)
            said.append(
                f"forward: the output of {names[module]} ({type(module).__name__}) {count_bad(x)}; its inputs are "
                f"finite, at most {largest:.3g}"
            )
            return


def watch_backward(names: dict[nn.Module, str], said: list[str], module: nn.Module, inputs: Any, output: Any) -> None:
    """Note the first module, from the loss backwards, whose input has a gradient that is not finite though that of its
    output is."""
    arrived: list[bool] = []

    def at_output(grad: Tensor) -> None:
        arrived.append(is_finite(grad))

    def at_input(grad: Tensor) -> None:
        if not said and arrived and all(arrived) and not is_finite(grad):
            said.append(
                f"backward: the gradient at the input of {names[module]} ({type(module).__name__}) {count_bad(grad)}; "
                "that at its output is finite"
            )

    if torch.is_grad_enabled():
        for found, note in ((output, at_output), (inputs, at_input)):
            for x in tensors_in(found):
                if x.requires_grad:
                    x.register_hook(note)  # type: ignore[no-untyped-call]


def tensors_in(values: Any) -> list[Tensor]:
    """The floating-point tensors among a module's inputs or outputs."""
    listed = values if isinstance(values, tuple) else (values,)
    return [x for x in listed if isinstance(x, Tensor) and x.is_floating_point()]


def is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def count_bad(x: Tensor) -> str:
    """ "has 3 of 4,096 numbers that are not finite; float16 holds at most 65,504"."""
    bad = int((~torch.isfinite(x)).sum())
    limit = torch.finfo(x.dtype).max
    return f"has {bad:,} of {x.numel():,} numbers that are not finite ({str(x.dtype)[6:]} holds at most {limit:.3g})"
