"""Values of records, where old and failed records lack some; keys of settings; file names."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compare.units import slug

Record = dict[str, Any]
LONGEST_SLUG = 120  # letters; a file name can have 255 bytes


def as_number(value: object) -> float | None:
    """The value as a finite float; None for anything else, so that old or failed records never raise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def as_mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_pairs(value: object) -> list[tuple[str, Any]]:
    """Options from a record's list of [name, value]."""
    return [(str(pair[0]), pair[1]) for pair in value or [] if len(pair) == 2] if isinstance(value, list) else []


def numbers(records: Iterable[Record], field: str) -> list[float]:
    values = (as_number(record.get(field)) for record in records)
    return [value for value in values if value is not None]


def status_of(record: Record) -> str:
    return str(record.get("status") or "error")


def as_key(config: Mapping[str, Any]) -> str:
    """A config as text, the same for equal configs; 25 and 25.0 are equal."""
    whole = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in config.items()}
    return json.dumps(whole, sort_keys=True)


def tell_apart(key: str, rivals: Iterable[str]) -> str:
    """The settings of one config that differ in one of its rivals (keys from `as_key`), as "key=value" words."""
    own, others = json.loads(key), [json.loads(rival) for rival in rivals]
    names = sorted({name for config in (own, *others) for name in config})
    varying = [name for name in names if any(config.get(name) != own.get(name) for config in others)]
    return ", ".join(f"{name}={as_word(own.get(name))}" for name in varying)


def conditions_in_words(key: str, rivals: Iterable[str]) -> str:
    """The settings that distinguish a group or a series from its rivals; "causal" is always named."""

    def rest(config: str) -> str:
        return as_key({name: value for name, value in json.loads(config).items() if name != "causal"})

    causal = "causal" if json.loads(key).get("causal") is True else ""
    return ", ".join(part for part in (causal, tell_apart(rest(key), map(rest, rivals))) if part)


def as_word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def natural(name: str) -> list[str | int]:
    """A sort key for names that puts 16 before 128."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def distinct_slugs(names: Sequence[tuple[str, ...]]) -> list[str]:
    """A slug for each name. A slug that is too long for a file name, or equal to another, ends in a hash."""
    whole = [slug(*parts) for parts in names]
    met = Counter(word.casefold() for word in whole)  # some file systems ignore case
    slugs: list[str] = []
    for word, parts in zip(whole, names, strict=True):
        if met[word.casefold()] > 1 or len(word) > LONGEST_SLUG:
            full_name = json.dumps([*parts, names[: len(slugs)].count(parts)])
            word = f"{word[:LONGEST_SLUG]}_{hashlib.sha256(full_name.encode()).hexdigest()[:8]}"
        slugs.append(word)
    return slugs
