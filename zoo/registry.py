"""Names to backends. A file in ``zoo/attention`` that calls ``register`` is all that a new backend needs."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from zoo.contract import Backend, Dims, Traits

T = TypeVar("T", bound=type[Backend])


@dataclass(frozen=True)
class Entry:
    """One registered backend: its name, its class and the dataclass of its options."""

    name: str
    cls: type[Backend]
    config: type

    @property
    def traits(self) -> Traits:
        return self.cls.traits

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults."""
        return {f.name: f.default for f in fields(self.config)}


_entries: dict[str, Entry] = {}


def register(name: str, *, config: type) -> Callable[[T], T]:
    """Class decorator: make an ``Attention`` or a ``Mixer`` known under ``name``.

    Args:
        name: what users write in ``Encoder(attn=name)``.
        config: frozen dataclass of the options, every one with a default.

    Raises:
        ValueError: the name or the config class is taken.
    """

    def add(cls: T) -> T:
        for entry in _entries.values():
            if name == entry.name or config is entry.config:
                raise ValueError(
                    f"cannot register {cls.__qualname__} as {name!r} with {config.__name__}: "
                    f"{entry.cls.__qualname__} is registered as {entry.name!r} with {entry.config.__name__}"
                )
        _entries[name] = Entry(name, cls, config)
        return cls

    return add


def available() -> list[str]:
    """The names that ``Encoder(attn=…)`` takes, sorted."""
    _load()
    return sorted(_entries)


def describe(name: str) -> Entry:
    """The registered backend ``name``: traits, options with their defaults, a one-line summary.

    Raises:
        ValueError: unknown name; the message holds the closest match and the list.
    """
    known = available()
    if name not in _entries:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown attention {name!r}.{hint} Available: {', '.join(known)}")
    return _entries[name]


def build(attn: object, dims: Dims) -> Backend:
    """Make the backend that ``attn`` asks for: a name (default options) or an instance of a config class.

    Raises:
        ValueError: unknown name or config class, options out of range, or ``causal`` without a causal form.
    """
    if isinstance(attn, str):
        entry = describe(attn)
        config = entry.config()
    else:
        available()
        matches = [entry for entry in _entries.values() if type(attn) is entry.config]
        if not matches:
            raise ValueError(f"attn must be a name or a registered config, got {attn!r}")
        entry, config = matches[0], attn
    if dims.causal and not entry.traits.causal:
        able = [e.name for e in _entries.values() if e.traits.causal]
        raise ValueError(f"{entry.name} has no causal form; these have: {', '.join(sorted(able))}")
    return entry.cls(dims, config)


def _load() -> None:
    """Import every file of ``zoo/attention``, so that each registers itself."""
    package = importlib.import_module("zoo.attention")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
