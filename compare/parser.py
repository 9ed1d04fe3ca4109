"""argparse, with errors of one line that know what was meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from compare.errors import UsageError

PROGRAM = "python -m compare"
UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line. commands: what may have been meant by a word that is no option."""

    commands: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        hint = self.hint(message.removeprefix(UNKNOWN)) if message.startswith(UNKNOWN) else ""
        raise UsageError(f"{message}{hint} ({self.prog} --help lists the options)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As of argparse, but what is unknown is an error here: the parser of a command knows what is close to it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(UNKNOWN + " ".join(unknown))
        return found, unknown

    def hint(self, words: str) -> str:
        """What was meant by the first word that is much like an option or a command."""
        known = {option.lstrip("-"): option for action in self._actions for option in action.option_strings}
        known |= {command: command for command in self.commands}
        names = (word.partition("=")[0].lstrip("-–—") for word in words.split())
        close = next((found[0] for name in names if (found := get_close_matches(name, known, n=1, cutoff=0.7))), None)
        return f"; did you mean {known[close]}?" if close else ""


class Named(argparse.Action):
    """Keeps a value, and that it was typed."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, value: object, _option: object = None) -> None:
        setattr(namespace, self.dest, value)
        namespace.named = True


class Version(argparse.Action):
    """Prints what somebody who reports a bug has, and ends; looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import platform

        from compare.runs.machine import version_of

        parts = [f"{name} {version_of(name) or 'not installed'}" for name in ("attention-zoo", "torch")]
        print(f"{', '.join(parts)}, Python {platform.python_version()} on {platform.platform()}")
        parser.exit()
