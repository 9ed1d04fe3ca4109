"""Backends from outside: classes named as ``module:Class``, and the entry points of installed packages.

Every function takes ``entries``, the registered backends by name; imported modules add to it.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from importlib import metadata
from types import ModuleType

from zoo.entry import Entry
from zoo.validation import RegistrationError

GROUP = "attention_zoo.backends"  # entry point group of packages with backends


def find(path: str, entries: dict[str, Entry]) -> Entry:
    """Import the module of ``module:Class`` and return the entry of its registered class."""
    module_name, _, class_name = path.partition(":")
    module = _import(module_name, entries)
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        classes = [
            name for name, value in vars(module).items() if isinstance(value, type) and value.__module__ == module_name
        ]
        close = difflib.get_close_matches(class_name, classes, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise RegistrationError(f"{module_name} has no class {class_name!r}{hint}")
    for entry in entries.values():
        if entry.cls is cls:
            return entry
    raise RegistrationError(f"{path} is not registered: decorate it with @register(NAME, config=…)")


def _import(module_name: str, entries: dict[str, Entry]) -> ModuleType:
    """Import a plug-in. If the import fails, nothing of it stays registered."""
    before = dict(entries)
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        entries.clear()
        entries.update(before)
        if isinstance(error, RegistrationError):
            raise
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise RegistrationError(
                f"there is no module {module_name!r}: name it as in `import {module_name.removesuffix('.py')}`, "
                "from the current folder, PYTHONPATH or an installed package"
            ) from error
        said = " ".join(str(error).split())
        raise RegistrationError(f"cannot import {module_name}: {type(error).__name__}: {said}") from error


def load(entries: dict[str, Entry]) -> dict[str, str]:
    """Load the entry points of installed packages. Returns the refused ones: name -> reason."""
    refused: dict[str, str] = {}
    points = sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name)
    for point in points:
        rivals = [_source(other) for other in points if other.name == point.name]
        try:
            if len(rivals) > 1:
                raise RegistrationError(f"{' and '.join(rivals)} have the same name")
            _load(point, entries)
        except RegistrationError as error:
            if point.name not in refused:
                refused[point.name] = f"attention plug-in {point.name!r} of {_source(point)} is left out: {error}"
                logging.getLogger(__name__).warning(refused[point.name])
    return refused


def _load(point: metadata.EntryPoint, entries: dict[str, Entry]) -> None:
    """Import ``module:Class`` or ``module``, which must register the entry point's name."""
    if ":" in point.value:
        registered = find(point.value, entries).name
    else:
        _import(point.value, entries)
        entry = entries.get(point.name)
        registered = "" if entry is None or entry.own else entry.name
    if registered != point.name:
        got = repr(registered) if registered else "nothing of that name"
        raise RegistrationError(f"expected {point.value} to register {point.name!r}, got {got}")


def _source(point: metadata.EntryPoint) -> str:
    """The distribution and the module of an entry point."""
    distribution = "an unknown distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"{distribution} ({point.value})"
