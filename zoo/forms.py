"""Modules with forms besides ``forward``, such as a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn

from zoo.state import State

T = TypeVar("T")


class Formed(nn.Module):
    """A module with forms besides ``forward``, such as a step. Each form runs as a call of the module.

    So a form runs the module's hooks, and everything else that acts on a call: adapters, offloading, sharding.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.forward = _formed(cls.forward)

    def through(self, form: Callable[..., tuple[Any, T]], *inputs: Tensor) -> tuple[Any, T]:
        """``form(*inputs)`` as a call of this module. It returns (result, rest); hooks see only the result."""
        beside = []

        def run(*tensors: Tensor) -> Any:
            result, rest = form(*tensors)
            beside.append(rest)
            return result

        return self(*inputs, form=run), beside[-1]

    def through_step(
        self, step: Callable[[Tensor, State | None], tuple[Tensor, State]], x: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """``step(x, state)``, x and the result (B, …), as a call of this module; hooks see (B, 1, …)."""

        def form(x: Tensor) -> tuple[Tensor, State]:
            y, after = step(x[:, 0], state)
            return y[:, None], after

        y, after = self.through(form, x[:, None])
        return y[:, 0], after


def _formed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, or the ``form`` that the caller passes instead."""

    @wraps(forward)
    def chosen(self: Formed, *inputs: Any, form: Callable[..., Any] | None = None, **options: Any) -> Any:
        return forward(self, *inputs, **options) if form is None else form(*inputs)

    return chosen
