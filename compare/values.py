"""Readers of values on the command line, which argparse calls types. Their errors say what they expected."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from pathlib import Path


def memory(text: str) -> int:
    """Bytes; KB, MB, GB and TB, with or without an i or the B, are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?", text.strip().lower())
    size = float(match[1]) * 1024 ** " kmgt".index(match[2] or " ") if match else 0
    if size < 1:
        raise ArgumentTypeError(f"expected a size such as 500MB or 16GB, got {text!r}")
    return int(size)


def positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"expected a positive integer, got {text!r}")


def batch(text: str) -> int:
    """A number of samples; ``auto`` is 0."""
    return 0 if text == "auto" else positive(text)


def seeds(text: str) -> int:
    if re.fullmatch(r"\d+([,:]\d+)+", text):
        raise ArgumentTypeError(f"expected the number of seeds (3 runs seeds 0, 1 and 2), got {text!r}")
    return positive(text)


def natural(text: str) -> int:
    return 0 if text == "0" else positive(text)


def length(text: str) -> int:
    """``8192``, or ``8k``."""
    number = text.removesuffix("k").removesuffix("K")
    return positive(number) * 1024 if number != text and number.isdecimal() else positive(text)


def lengths(text: str) -> list[int]:
    """``512:2k,3000`` -> [512, 1024, 2048, 3000]."""
    numbers = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        start = length(low.strip())
        last = length(high.strip()) if colon else start
        if start > last:
            raise ArgumentTypeError(f"expected LOW:HIGH with LOW <= HIGH, got {part.strip()!r}")
        while start <= last:
            numbers.append(start)
            start *= 2
    return list(dict.fromkeys(numbers))


def folders(text: str) -> list[Path]:
    """Existing folders, each once."""
    paths = list(dict.fromkeys(Path(part.strip()) for part in text.split(",")))
    for path in paths:
        if not path.is_dir():
            raise ArgumentTypeError(f"expected folders such as results/main,results/cost, but {path} is none")
    return paths


def engine(text: str) -> str:
    """``local``, ``ray``, ``slurm`` or ``ray://HOST:PORT``."""
    if text in ("local", "ray", "slurm") or re.fullmatch(r"ray://[^/\s]+:\d+", text):
        return text
    raise ArgumentTypeError(f"expected local, ray, ray://HOST:PORT or slurm, got {text!r}")


def rates(text: str) -> tuple[float, ...]:
    """Rates in rising order, each once."""
    numbers = tuple(sorted({positive_float(part.strip()) for part in text.split(",")}))
    if len(numbers) < 2:
        raise ArgumentTypeError(f"expected at least two rates such as 1e-3,3e-3, got {text!r}")
    return numbers


def amount(text: str) -> float:
    """0 or a positive number."""
    try:
        return 0.0 if text.strip() in ("0", "0.0") else positive_float(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"expected 0 or a positive number, got {text!r}") from None


def amounts(text: str) -> tuple[float, ...]:
    """Amounts in rising order, each once."""
    return tuple(sorted({amount(part.strip()) for part in text.split(",")}))


def one_rate(text: str) -> float:
    if "," in text:
        raise ArgumentTypeError(f"expected one rate, got {text!r}; to choose among several, use --lr-grid {text}")
    return positive_float(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < 1:
        return value
    raise ArgumentTypeError(f"expected a share, at least 0 and below 1, got {text!r}")


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 < value < float("inf"):
        return value
    raise ArgumentTypeError(f"expected a positive number, got {text!r}")
