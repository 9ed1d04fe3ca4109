"""The rules that a class must keep to become a backend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass

from zoo.contract import Attention, Backend, Mixer, Traits


class RegistrationError(ValueError):
    """A class cannot become a backend. The message names the broken rule, or the backend that has the name."""


def broken_rule(name: str, cls: type[Backend], config: type) -> str | None:
    """The first rule that a class breaks, with expected and actual, and what to do; None if it keeps all rules."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return f"a name is made of a-z, 0-9 and _, and starts with a letter, got {name!r}"
    if not (isinstance(cls, type) and issubclass(cls, Attention | Mixer)):
        got = ", ".join(base.__name__ for base in getattr(cls, "__bases__", ())) or "no class"
        return f"it must subclass zoo.Attention or zoo.Mixer, got {got}"
    if not (isinstance(config, type) and is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        got = getattr(config, "__name__", repr(config))
        return f"config must be a frozen dataclass, got {got}: write @dataclass(frozen=True, kw_only=True)"
    for option in fields(config):
        if option.default is MISSING and option.default_factory is MISSING:
            return f"every option needs a default, {config.__name__}.{option.name} has none"
    traits = getattr(cls, "traits", None)
    if not isinstance(traits, Traits):
        return f"traits must be a zoo.Traits, got {traits!r}: write traits = Traits(family=…, source=…, …)"
    options = [option.name for option in fields(config)]
    if traits.capacity is not None and traits.capacity not in options:
        listed = ", ".join(options) or "it has none"
        return f"traits.capacity must name an option of {config.__name__} ({listed}), got {traits.capacity!r}"
    if inspect.isabstract(cls):
        return "it must define forward"
    inputs = "q, k, v" if issubclass(cls, Attention) else "x"
    expected = {"__init__": "(dims, config)", "forward": f"({inputs}, *, key_padding_mask=None)"}
    for method, wanted in expected.items():
        if (got := _signature(getattr(cls, method))) != wanted:
            return f"{method} must take {wanted}, got {got}"
    return None


def _signature(function: Callable[..., object]) -> str:
    """The parameters of a method without ``self`` and annotations: ``(q, k, v, *, key_padding_mask=None)``."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare[1:], return_annotation=inspect.Signature.empty))


def place(cls: type) -> str:
    """Where a class is defined, as ``module:Class``."""
    return f"{cls.__module__}:{cls.__qualname__}"
