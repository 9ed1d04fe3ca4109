"""Kinds of values that the fields of a record may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

LARGEST = 1e100  # no larger number, and no time or rate below its inverse, can be a measured value


class Kind(NamedTuple):
    """Values that a field may hold, beside null. words: their name in errors. holds: whether a value is one."""

    words: str
    holds: Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_measured(value: Any) -> bool:
    return is_number(value) and value >= 1 / LARGEST


def is_spread(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_measured, value)) and value[0] <= value[1]


def is_options(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and is_text(pair[0]) and isinstance(pair[1], str | int | float)
        for pair in value
    )


def is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(each is None or is_number(each) for each in value.values())


def are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(each) and each > 0 for each in value)


def are_tests(value: Any) -> bool:
    """ "test_lens": length -> result of the test."""
    return isinstance(value, dict) and all(
        length.isdecimal()
        and isinstance(result, dict)
        and is_text(result.get("status"))
        and are_scores(result.get("baselines"))
        and all(result.get(name) is None or is_number(result[name]) for name in ("score", "loss", "size"))
        for length, result in value.items()
    )


def is_scale(value: Any) -> bool:
    """The fields of a task's `Metric`, without its name."""
    if not isinstance(value, dict) or not value.keys() >= {"unit", "lower_is_better", "bounds"}:
        return False
    ends = value["bounds"]
    bounded = isinstance(ends, list) and len(ends) == 2 and all(end is None or is_number(end) for end in ends)
    return bounded and is_text(value["unit"]) and isinstance(value["lower_is_better"], bool)


TEXT = Kind("a string", is_text)
NAME = Kind("a string that is not empty", lambda value: is_text(value) and bool(value.strip()))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
SWITCH_OR_TEXT = Kind("true, false or a string", lambda value: isinstance(value, bool | str))
COUNT = Kind("a whole number of at least 0", lambda value: is_whole(value) and value >= 0)
LENGTH = Kind("a whole number above 0", lambda value: is_whole(value) and value > 0)
NUMBER = Kind("a number", is_number)
AMOUNT = Kind("a number of at least 0", lambda value: is_number(value) and value >= 0)
MEASURED = Kind("a number above 0", is_measured)
SHARE = Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
SPREAD = Kind("two numbers above 0, the second not below the first", is_spread)
SCALE = Kind("an object of unit, lower_is_better and bounds", is_scale)
SCORES = Kind("an object of numbers", are_scores)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
OPTIONS = Kind("a list of [name, value]", is_options)
