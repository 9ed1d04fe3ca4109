"""Numbers as people read them: times, bytes, counts and percentages with their units; words as names of files."""

import math
import re
from collections.abc import Sequence

SPACE = "\N{NO-BREAK SPACE}"
MISSING = "–"


def significant(value: float) -> str:
    """At most three significant digits, never an exponent: 1.6, 42.1, 5,120."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if value < limit:
            return f"{significant(value * factor)}{SPACE}{unit}"
    return f"{significant(value / 60)}{SPACE}min"


def size(value: float) -> str:
    """Bytes in binary units."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0 if value < 1 else min(int(math.log2(value) // 10), len(units) - 1)
    number = f"{value:.0f}" if power == 0 else significant(value / 1024**power)
    return f"{number}{SPACE}{units[power]}"


def count(value: float) -> str:
    """Whole numbers below 10,000, then k, M, G, T and P (powers of a thousand)."""
    if value < 10_000:
        return f"{value:,.0f}"
    units = ("", "k", "M", "G", "T", "P", "E")
    power = min(int(math.log10(value) // 3), len(units) - 1)
    return f"{significant(value / 1000**power)}{SPACE}{units[power]}"


def percent(fraction: float) -> str:
    return f"{round(100 * fraction, 1) or 0.0:.1f}{SPACE}%"


def plain(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}"


def plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def joined(words: Sequence[str], most: int) -> str:
    """ "a, b and c"; beyond ``most`` words "a, b and 3 more"."""
    rest = len(words) - most
    shown = [*words[:most], f"{rest} more"] if rest > 1 else list(words)
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def slug(*parts: str) -> str:
    """Words as part of a file name."""
    words = (re.sub(r"[^A-Za-z0-9.=-]+", "-", part).strip("-") for part in parts)
    return "_".join(word for word in words if word)
