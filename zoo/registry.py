"""From names to backends. A new backend needs one file in ``zoo/attention`` that calls ``register``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from zoo import plugins
from zoo.contract import Backend, Dims, Mixer, UnsupportedError
from zoo.entry import OWN, Entry
from zoo.validation import RegistrationError, broken_rule, place

T = TypeVar("T", bound=type[Backend])
_entries: dict[str, Entry] = {}


def register(name: str, *, config: type) -> Callable[[T], T]:
    """Class decorator: register an ``Attention`` or a ``Mixer`` under ``name``.

    A class that is defined again (a notebook cell that runs twice) replaces the earlier one.

    Args:
        name: what users write in ``Encoder(attn=name)``.
        config: frozen dataclass of the options; every option has a default.

    Raises:
        ValueError: the class breaks a rule of ``zoo.contract``, which the message names; or the name or the config
            class is taken.
    """

    def add(cls: T) -> T:
        broken = broken_rule(name, cls, config)
        if broken:
            raise RegistrationError(f"{place(cls)} breaks the contract: {broken}")
        if not cls.__module__.startswith(f"{OWN}."):
            _load_own()  # so that no plug-in can take a name of the zoo
        for entry in _entries.values():
            taken = name == entry.name and place(cls) != place(entry.cls)
            if taken or (config is entry.config and name != entry.name):
                raise RegistrationError(
                    f"cannot register {place(cls)} as {name!r} with {config.__name__}: "
                    f"{place(entry.cls)} is registered as {entry.name!r} with {entry.config.__name__}"
                )
        cls.name = name
        _entries[name] = Entry(name, cls, config)
        return cls

    return add


def available() -> list[str]:
    """The names that ``Encoder(attn=…)`` takes, sorted: the zoo's own and those of installed plug-ins.

    A plug-in that cannot be loaded is left out, with a warning in the log.
    """
    _load_own()
    _load_plugins()
    return sorted(_entries)


def describe(name: str) -> Entry:
    """The facts, costs and options of the backend ``name``, or of ``module:Class`` from your own file.

    Raises:
        ValueError: unknown name (the message has the closest match and all names), or a module that cannot be
            imported or has no such registered class.
    """
    known = available()
    if ":" in name:
        return plugins.find(name, _entries)
    if name in _entries:
        return _entries[name]
    if name in _load_plugins():
        raise RegistrationError(_load_plugins()[name])
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown attention {name!r}.{hint} Available: {', '.join(known)}")


def build(attn: object, dims: Dims) -> Backend:
    """Build the backend ``attn``: a name (default options) or an instance of a config class.

    Raises:
        ValueError: unknown name or config class, options out of range, or a ``Mixer`` without its linear map ``out``.
        UnsupportedError: ``causal`` without a causal form, ``qk_norm`` without the shell's queries and keys, or
            ``attention_dropout`` without attention weights.
    """
    entry, config = resolve(attn)
    if dims.causal and not entry.traits.causal:
        able = [e.name for e in _entries.values() if e.traits.causal]
        raise UnsupportedError(f"{entry.name} has no causal form; these have: {', '.join(sorted(able))}")
    if dims.qk_norm and issubclass(entry.cls, Mixer):
        raise UnsupportedError(f"qk_norm: {entry.name} has no queries and keys of the shell")
    if dims.attention_dropout and not entry.traits.weights:
        able = sorted(e.name for e in _entries.values() if e.traits.weights)
        raise UnsupportedError(
            f"attention_dropout: {entry.name} does not hold the weight of each pair; these do: {', '.join(able)}"
        )
    return entry.build(dims, config)


def resolve(attn: object) -> tuple[Entry, object]:
    """The backend and its config, from a name or an instance of a config class.

    Raises:
        ValueError: unknown name or config class.
    """
    if isinstance(attn, str):
        entry = describe(attn)
        return entry, entry.config()
    available()
    for entry in _entries.values():
        if type(attn) is entry.config:
            return entry, attn
    raise ValueError(f"attn must be a name or a registered config, got {attn!r}")


@cache
def _load_own() -> None:
    """Import every file of ``zoo/attention``, so that each registers its backend. A broken file raises: our bug."""
    package = importlib.import_module(OWN)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{OWN}.{module.name}")


@cache
def _load_plugins() -> dict[str, str]:
    """Load the plug-ins of installed packages. Returns the refused ones: name -> reason."""
    return plugins.load(_entries)
