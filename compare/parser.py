"""argparse with errors of one line that suggest the nearest option or command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from compare.errors import UsageError

PROGRAM = "python -m compare"
UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line. commands: names to suggest for a mistyped command."""

    commands: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        hint = self.hint(message.removeprefix(UNKNOWN)) if message.startswith(UNKNOWN) else ""
        raise UsageError(f"{message}{hint} ({self.prog} --help lists the options)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, but unknown words are an error here: the command's own parser knows the nearest options."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(UNKNOWN + " ".join(unknown))
        return parsed, unknown

    def hint(self, words: str) -> str:
        """A suggestion for the first word that resembles an option or a command; "" where none does."""
        known = {option.lstrip("-"): option for action in self._actions for option in action.option_strings}
        known |= {command: command for command in self.commands}
        names = (word.partition("=")[0].lstrip("-–—") for word in words.split())
        close = next((near[0] for name in names if (near := get_close_matches(name, known, n=1, cutoff=0.7))), None)
        return f"; did you mean {known[close]}?" if close else ""


Make = Callable[..., Parser]
"""``Parser``, or the function that adds a parser for a command."""


class Named(argparse.Action):
    """Stores a value, and that the flag was typed."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, value: object, _option: object = None) -> None:
        setattr(namespace, self.dest, value)
        namespace.named = True


class Version(argparse.Action):
    """Prints the versions that a bug report needs, and exits. They are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import platform

        from compare.runs.machine import version_of

        parts = [f"{name} {version_of(name) or 'not installed'}" for name in ("attention-zoo", "torch")]
        print(f"{', '.join(parts)}, Python {platform.python_version()} on {platform.platform()}")
        parser.exit()
