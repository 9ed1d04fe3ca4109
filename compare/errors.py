"""Errors in what the user typed."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class UsageError(Exception):
    """What the user typed is invalid; the message says what was expected and what was given."""


def closest(name: str, known: Sequence[str]) -> str:
    """The nearest known name as a hint for the end of a message; "" where none is close."""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
