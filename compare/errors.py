"""What goes wrong because of what the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class UsageError(Exception):
    """What the user asked for cannot be; the message says what was expected and what came."""


def closest(name: str, known: Sequence[str]) -> str:
    """What was meant, for the end of a message; "" where nothing is close."""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
