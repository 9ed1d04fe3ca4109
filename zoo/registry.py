"""Names to backends. A file in ``zoo/attention`` that calls ``register`` is all that a new backend needs.

From outside come a class of one's own, named as ``module:Class``, and the entry points of installed packages.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import pkgutil
import re
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from zoo.contract import SHELL_INIT, Attention, Backend, Dims, Mixer, Traits

T = TypeVar("T", bound=type[Backend])
OWN = "zoo.attention"
GROUP = "attention_zoo.backends"  # the entry points of packages that bring backends
REFERENCE = Dims(d_model=512, n_heads=8, max_len=1024)  # where parameters and state are counted


class RegistrationError(ValueError):
    """A class cannot become a backend; the message names the rule that it breaks, or the backend in its way."""


@dataclass(frozen=True)
class Entry:
    """One registered backend: its name, its class and the dataclass of its options. Printed, it says all of them."""

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
        return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self.config)}

    @property
    def explanations(self) -> dict[str, str]:
        """Option names and what they mean, for those that the config's docstring explains as ``name: text``."""
        text = " ".join((self.config.__doc__ or "").split())
        names = "|".join(self.options)
        parts = re.split(rf"(?:^| )({names}): ", text)[1:] if names else []
        return dict(zip(parts[::2], parts[1::2], strict=True))

    @property
    def capacity(self) -> tuple[str, Any] | None:
        """The option that buys accuracy for cost, and its default; None where there is none."""
        field = self.traits.capacity
        return None if field is None else (field, self.options[field])

    @property
    def init(self) -> str:
        """How large queries and keys are in a fresh layer, and who has it so."""
        init = self.traits.init or (SHELL_INIT if issubclass(self.cls, Attention) else None)
        return "of its own" if init is None else f"queries and keys of variance {init.variance:.2g}: {init.source}"

    @property
    def directions(self) -> str:
        """How it sees both sides, and whether it can see the past alone: ``at once, causal``."""
        return self.traits.bidirectional + (", causal" if self.traits.causal else "")

    @cached_property
    def parameters_added(self) -> int | None:
        """Parameters of one layer less those of ``full``, at the sizes of ``REFERENCE``.

        None where the backend, a plug-in, cannot be built at that size.
        """
        linear = REFERENCE.d_model**2 + REFERENCE.d_model  # full: queries, keys, values and output

        def count(backend: Backend) -> int:
            own = sum(parameter.numel() for parameter in backend.parameters())
            if isinstance(backend, Mixer):
                return own - 4 * linear
            return own - linear if self.traits.shared_qk else own

        return self._at_reference(count)

    @cached_property
    def state_bytes(self) -> int | None:
        """Bytes in float32 that stand between the positions and a query, in one layer at the sizes of ``REFERENCE``.

        See ``Backend.state_size``. None where the backend does not say, or, a plug-in, cannot be built at that size.
        """
        numbers = self._at_reference(lambda backend: backend.state_size(REFERENCE.max_len))
        return None if numbers is None else 4 * numbers

    @cached_property
    def cache_bytes(self) -> int | None:
        """Bytes in float32 that the step form of such a layer keeps after as many positions.

        See ``Backend.cache_size``. None where there is no step form, or, a plug-in, it cannot be built at that size.
        """
        if not self.traits.causal:
            return None
        numbers = self._at_reference(lambda backend: backend.cache_size(REFERENCE.max_len), causal=True)
        return None if numbers is None else 4 * numbers

    def _at_reference(self, measure: Callable[[Backend], int | None], *, causal: bool = False) -> int | None:
        """Of one layer with default options at the sizes of ``REFERENCE``; None where a plug-in fails there."""
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                return measure(build(self.config(), replace(REFERENCE, causal=causal)))
        except Exception:
            return None

    @property
    def steps(self) -> bool:
        """Has a causal form that goes position by position."""
        return self.traits.causal and self.cls.begin is not Backend.begin

    @property
    def own(self) -> bool:
        """Belongs to the zoo itself, not to a plug-in."""
        return self.cls.__module__.startswith(f"{OWN}.")

    def __str__(self) -> str:
        traits = self.traits
        words = ["causal form" if traits.causal else "no causal form"]
        words += [word for word in ("exact", "stochastic", "subquadratic") if getattr(traits, word)]
        words += ["keys are the queries"] if traits.shared_qk else []
        words += [] if traits.rotary else ["rotary positions have no effect"]
        added = "unknown" if self.parameters_added is None else format_added(self.parameters_added)
        size = f"d_model {REFERENCE.d_model}, {REFERENCE.n_heads} heads, max_len {REFERENCE.max_len}"
        state = "unknown" if self.state_bytes is None else format_bytes(self.state_bytes)
        kept = f"kept by steps after {REFERENCE.max_len} positions, in such a layer in float32"
        cache = "no step form" if self.cache_bytes is None else f"{format_bytes(self.cache_bytes)} {kept}"
        explained = self.explanations
        options = [f"{k}={v}" + (f": {explained[k]}" if k in explained else "") for k, v in self.options.items()]
        exceptions = [f"{law}: {reason}" for law, reason in traits.exceptions.items()]
        rows = [
            ("family", traits.family),
            ("source", traits.source if traits.year is None else f"{traits.source} ({traits.year})"),
            ("time", f"{traits.time} for a forward"),
            ("memory", f"{traits.memory} kept for backward"),
            ("init", self.init),
            ("directions", self.directions),
            ("traits", ", ".join(words)),
            ("parameters", f"{added} beside full, in one layer of {size}"),
            ("state", f"{state} between {REFERENCE.max_len} positions and a query, in such a layer in float32"),
            ("cache", cache),
            ("capacity", "none" if self.capacity is None else "{}={}".format(*self.capacity)),
            *zip(["options", *[""] * len(options)], options or ["none"], strict=False),
            *zip(["exceptions", *[""] * len(exceptions)], exceptions or ["none"], strict=False),
            ("class", f"{_place(self.cls)}, options in {self.config.__qualname__}"),
        ]
        lines = [
            textwrap.fill(text, 100, initial_indent=f"  {label:12}", subsequent_indent=" " * 16) for label, text in rows
        ]
        return "\n".join([f"{self.name}: {self.summary}", *lines])


def format_added(parameters: int) -> str:
    """``+524,288``, ``-262,656`` or ``0``."""
    return f"{parameters:+,}" if parameters else "0"


def format_bytes(number: int) -> str:
    """``4.0 MiB``, ``130 KiB`` or ``0``."""
    if number >= 2**20:
        return f"{number / 2**20:.1f} MiB"
    return f"{number / 2**10:.0f} KiB" if number else "0"


_entries: dict[str, Entry] = {}


def register(name: str, *, config: type) -> Callable[[T], T]:
    """Class decorator: make an ``Attention`` or a ``Mixer`` known under ``name``.

    A class that is defined again, as by a notebook's cell that runs twice, takes the place of the former.

    Args:
        name: what users write in ``Encoder(attn=name)``.
        config: frozen dataclass of the options, every one with a default.

    Raises:
        ValueError: the class breaks a rule of ``zoo.contract``, which the message names; or the name or the config
            class is taken.
    """

    def add(cls: T) -> T:
        broken = _broken_rule(name, cls, config)
        if broken:
            raise RegistrationError(f"{_place(cls)} breaks the contract: {broken}")
        if not cls.__module__.startswith(f"{OWN}."):
            _load_own()  # so that the zoo's own names are taken
        for entry in _entries.values():
            taken = name == entry.name and _place(cls) != _place(entry.cls)
            if taken or (config is entry.config and name != entry.name):
                raise RegistrationError(
                    f"cannot register {_place(cls)} as {name!r} with {config.__name__}: "
                    f"{_place(entry.cls)} is registered as {entry.name!r} with {entry.config.__name__}"
                )
        cls.name = name
        _entries[name] = Entry(name, cls, config)
        return cls

    return add


def available() -> list[str]:
    """The names that ``Encoder(attn=…)`` takes, sorted: the zoo's own and those of installed plug-ins.

    A plug-in that cannot be loaded is left out, with a line to the log.
    """
    _load_own()
    _load_plugins()
    return sorted(_entries)


def describe(name: str) -> Entry:
    """The registered backend ``name``, or ``module:Class`` from one's own file: what it is, costs and takes.

    Raises:
        ValueError: unknown name (the message holds the closest match and the list), or a module that cannot be
            imported or holds no such registered class.
    """
    known = available()
    if ":" in name:
        return _find(name)
    if name in _entries:
        return _entries[name]
    if name in _load_plugins():
        raise RegistrationError(_load_plugins()[name])
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown attention {name!r}.{hint} Available: {', '.join(known)}")


def build(attn: object, dims: Dims) -> Backend:
    """Make the backend that ``attn`` asks for: a name (default options) or an instance of a config class.

    Raises:
        ValueError: unknown name or config class, options out of range, ``causal`` without a causal form, or a
            ``Mixer`` without its linear map ``out``.
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
    backend = entry.cls(dims, config)  # type: ignore[call-arg]  # a subclass takes both
    backend.kind = _kind(entry, dims, config)
    if isinstance(backend, Mixer) and not isinstance(getattr(backend, "out", None), nn.Linear):
        raise ValueError(
            f"{_place(entry.cls)} breaks the contract: a Mixer must end in an nn.Linear named out, "
            f"got {type(getattr(backend, 'out', None)).__name__}"
        )
    return backend


def _kind(entry: Entry, dims: Dims, config: Any) -> str:
    """A backend in words: ``local (d_model=16, n_heads=2, max_len=64, rotary=False, window=128)``."""
    options = {option.name: getattr(config, option.name) for option in fields(config) if option.compare}
    names = ("d_model", "n_heads", "max_len", "rotary")
    values = {name: getattr(dims, name) for name in names} | options
    words = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"{entry.name} ({' '.join(words.split())})"


def _place(cls: type) -> str:
    """Where a class is defined, as ``module:Class``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _signature(function: Callable[..., object]) -> str:
    """What a method takes besides ``self``, without annotations: ``(q, k, v, *, key_padding_mask=None)``."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare[1:], return_annotation=inspect.Signature.empty))


def _broken_rule(name: str, cls: type[Backend], config: type) -> str | None:
    """The first rule that a class breaks: what was expected, what came, and what to do; None where it keeps all."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return f"a name is made of a-z, 0-9 and _, and starts with a letter, got {name!r}"
    if not (isinstance(cls, type) and issubclass(cls, Attention | Mixer)):
        got = ", ".join(base.__name__ for base in getattr(cls, "__bases__", ())) or "no class"
        return f"it must subclass zoo.Attention or zoo.Mixer, got {got}"
    if not (isinstance(config, type) and is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        got = getattr(config, "__name__", repr(config))
        return f"config must be a dataclass that is frozen, got {got}: write @dataclass(frozen=True, kw_only=True)"
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
        return "it must define forward, got none"
    inputs = "q, k, v" if issubclass(cls, Attention) else "x"
    expected = {"__init__": "(dims, config)", "forward": f"({inputs}, *, key_padding_mask=None)"}
    for method, wanted in expected.items():
        if (got := _signature(getattr(cls, method))) != wanted:
            return f"{method} must take {wanted}, got {got}"
    return None


def _find(path: str) -> Entry:
    """The registered class that ``module:Class`` names; the module is imported."""
    module_name, _, class_name = path.partition(":")
    module = _import(module_name)
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        classes = [
            name for name, value in vars(module).items() if isinstance(value, type) and value.__module__ == module_name
        ]
        close = difflib.get_close_matches(class_name, classes, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise RegistrationError(f"{module_name} has no class {class_name!r}{hint}")
    for entry in _entries.values():
        if entry.cls is cls:
            return entry
    raise RegistrationError(f"{path} is not registered: decorate it with @register(NAME, config=…)")


def _import(module_name: str) -> ModuleType:
    """Import a plug-in. Where that fails nothing of it stays registered."""
    before = dict(_entries)
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        _entries.clear()
        _entries.update(before)
        if isinstance(error, RegistrationError):
            raise
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise RegistrationError(
                f"there is no module {module_name!r}: name it as in `import {module_name.removesuffix('.py')}`, "
                "from the current folder, PYTHONPATH or an installed package"
            ) from error
        said = " ".join(str(error).split())
        raise RegistrationError(f"cannot import {module_name}: {type(error).__name__}: {said}") from error


@cache
def _load_own() -> None:
    """Import every file of ``zoo/attention``, so that each registers itself. A broken one is our mistake and raises."""
    package = importlib.import_module(OWN)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{OWN}.{module.name}")


@cache
def _load_plugins() -> dict[str, str]:
    """Load the entry points of installed packages; those that are refused, and why."""
    refused: dict[str, str] = {}
    points = sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name)
    for point in points:
        rivals = [_source(other) for other in points if other.name == point.name]
        try:
            if len(rivals) > 1:
                raise RegistrationError(f"{' and '.join(rivals)} have one name")
            _load_plugin(point)
        except RegistrationError as error:
            if point.name not in refused:
                refused[point.name] = f"attention plug-in {point.name!r} of {_source(point)} is left out: {error}"
                logging.getLogger(__name__).warning(refused[point.name])
    return refused


def _load_plugin(point: metadata.EntryPoint) -> None:
    """Import ``module:Class`` or ``module``, which must register the entry point's name."""
    if ":" in point.value:
        found = _find(point.value).name
    else:
        _import(point.value)
        entry = _entries.get(point.name)
        found = "" if entry is None or entry.own else entry.name
    if found != point.name:
        raise RegistrationError(f"{point.value} registers {repr(found) if found else 'nothing of that name'}")


def _source(point: metadata.EntryPoint) -> str:
    """The distribution and the module of an entry point."""
    distribution = "an unknown distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"{distribution} ({point.value})"
