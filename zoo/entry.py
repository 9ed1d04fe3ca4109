"""A registered backend: its facts, its costs and its options."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from zoo.contract import SHELL_INIT, Attention, Backend, Dims, Mixer, Traits
from zoo.validation import place

OWN = "zoo.attention"
REFERENCE = Dims(d_model=512, n_heads=8, max_len=1024)  # the layer whose numbers tables show


@dataclass(frozen=True)
class Entry:
    """One registered backend: its name, its class and the dataclass of its options. ``print`` shows all its facts."""

    name: str
    cls: type[Backend]
    config: type

    @property
    def traits(self) -> Traits:
        return self.cls.traits

    def build(self, dims: Dims, config: object) -> Backend:
        """The backend with these sizes and options.

        Raises:
            ValueError: sizes that do not fit, or a ``Mixer`` without its linear map ``out``.
        """
        backend = self.cls(dims, config)  # type: ignore[call-arg]  # a subclass takes both
        backend.kind, backend.built_from = _kind(self.name, dims, config), config
        if isinstance(backend, Mixer) and not isinstance(getattr(backend, "out", None), nn.Linear):
            raise ValueError(
                f"{place(self.cls)} breaks the contract: a Mixer must end in an nn.Linear named out, "
                f"got {type(getattr(backend, 'out', None)).__name__}"
            )
        return backend

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
        """Option names and their meanings, for options that the config's docstring explains as ``name: text``."""
        text = " ".join((self.config.__doc__ or "").split())
        names = "|".join(self.options)
        parts = re.split(rf"(?:^| )({names}): ", text)[1:] if names else []
        return dict(zip(parts[::2], parts[1::2], strict=True))

    @property
    def capacity(self) -> tuple[str, Any] | None:
        """The option that buys accuracy for cost, and its default; None without one."""
        field = self.traits.capacity
        return None if field is None else (field, self.options[field])

    @property
    def init(self) -> str:
        """The initial size of queries and keys, and its source."""
        init = self.traits.init or (SHELL_INIT if issubclass(self.cls, Attention) else None)
        if init is None:
            return "the backend's own"
        return f"queries and keys of variance {init.variance:.2g}: {init.source}"

    @property
    def directions(self) -> str:
        """How it sees both sides, and whether it has a causal form: ``at once, causal``."""
        return self.traits.bidirectional + (", causal" if self.traits.causal else "")

    @cached_property
    def parameters_added(self) -> int | None:
        """Parameters of one layer minus those of ``full``, at the sizes of ``REFERENCE``.

        None for a plug-in that cannot be built at these sizes.
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
        """Bytes in float32 that a query reads, in one layer at the sizes of ``REFERENCE``.

        See ``Backend.state_size``. None if unknown, or for a plug-in that cannot be built at these sizes.
        """
        numbers = self._at_reference(lambda backend: backend.state_size(REFERENCE.max_len))
        return None if numbers is None else 4 * numbers

    @cached_property
    def cache_bytes(self) -> int | None:
        """Bytes in float32 of the state after ``REFERENCE.max_len`` positions, in one layer of these sizes.

        See ``Backend.cache_size``. None without a step form, or for a plug-in that cannot be built at these sizes.
        """
        if not self.traits.causal:
            return None
        numbers = self._at_reference(lambda backend: backend.cache_size(REFERENCE.max_len), causal=True)
        return None if numbers is None else 4 * numbers

    def _at_reference(self, measure: Callable[[Backend], int | None], *, causal: bool = False) -> int | None:
        """``measure`` of one layer with default options at the sizes of ``REFERENCE``; None if a plug-in fails."""
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                return measure(self.build(replace(REFERENCE, causal=causal), self.config()))
        except Exception:
            return None

    @property
    def steps(self) -> bool:
        """Whether the causal form can decode position by position."""
        return self.traits.causal and self.cls.begin is not Backend.begin

    @property
    def own(self) -> bool:
        """Whether the backend belongs to the zoo itself, not to a plug-in."""
        return self.cls.__module__.startswith(f"{OWN}.")

    def __str__(self) -> str:
        traits = self.traits
        words = ["causal form" if traits.causal else "no causal form"]
        words += [word for word in ("exact", "stochastic", "subquadratic") if getattr(traits, word)]
        words += ["queries and keys are shared"] if traits.shared_qk else []
        words += [] if traits.rotary else ["rotary positions have no effect"]
        added = "unknown" if self.parameters_added is None else format_added(self.parameters_added)
        size = f"d_model {REFERENCE.d_model}, {REFERENCE.n_heads} heads, max_len {REFERENCE.max_len}"
        state = "unknown" if self.state_bytes is None else format_bytes(self.state_bytes)
        kept = f"that steps store after {REFERENCE.max_len} positions, in such a layer in float32"
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
            ("parameters", f"{added} relative to full, in one layer of {size}"),
            ("state", f"{state} that a query reads of {REFERENCE.max_len} positions, in such a layer in float32"),
            ("cache", cache),
            ("capacity", "none" if self.capacity is None else "{}={}".format(*self.capacity)),
            *zip(["options", *[""] * len(options)], options or ["none"], strict=False),
            *zip(["exceptions", *[""] * len(exceptions)], exceptions or ["none"], strict=False),
            ("class", f"{place(self.cls)}, options in {self.config.__qualname__}"),
        ]
        lines = [
            textwrap.fill(text, 100, initial_indent=f"  {label:12}", subsequent_indent=" " * 16) for label, text in rows
        ]
        return "\n".join([f"{self.name}: {self.summary}", *lines])


def _kind(name: str, dims: Dims, config: Any) -> str:
    """A backend as text: ``local (d_model=16, n_heads=2, max_len=64, rotary=False, window=128)``."""
    options = {option.name: getattr(config, option.name) for option in fields(config) if option.compare}
    sizes = ("d_model", "n_heads", "max_len", "rotary")
    values = {size: getattr(dims, size) for size in sizes} | options
    words = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return f"{name} ({' '.join(words.split())})"


def format_added(parameters: int) -> str:
    """``+524,288``, ``-262,656`` or ``0``."""
    return f"{parameters:+,}" if parameters else "0"


def format_bytes(number: int) -> str:
    """``4.0 MiB``, ``130 KiB`` or ``0``."""
    if number >= 2**20:
        return f"{number / 2**20:.1f} MiB"
    return f"{number / 2**10:.0f} KiB" if number else "0"
