"""What a line of records.jsonl may hold: numbers that a run can measure, strings that a report can show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from compare.kinds import (
    AMOUNT,
    COUNT,
    LARGEST,
    LENGTH,
    MEASURED,
    NAME,
    NUMBER,
    OBJECT,
    OPTIONS,
    SCALE,
    SCORES,
    SHARE,
    SPREAD,
    SWITCH,
    SWITCH_OR_TEXT,
    TEXT,
    Kind,
    are_lengths,
    are_tests,
    is_list_of,
    is_whole,
)
from compare.quantities import QUANTITIES

NEEDED = ("run_id", "variant", "task", "seq_len", "seed", "status")
MOST_DIGITS = 100
DEEPEST = 20  # levels of nested lists and objects
# Characters that no chart, page or terminal shows as they are: control characters and unpaired surrogates.
UNSHOWN = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ufffe\\uffff\\ud800-\\udfff]")

FIELDS: dict[str, Kind] = {
    **{quantity.field: quantity.kind for quantity in QUANTITIES},
    **{quantity.spread_field: SPREAD for quantity in QUANTITIES if quantity.quartiles},
    **dict.fromkeys(("run_id", "variant", "task", "status", "label", "plan", "tip", "baseline_id"), NAME),
    **dict.fromkeys(
        ("family", "reason", "kernel", "metric", "command", "started", "task_summary", "remark", "model"), TEXT
    ),
    **{"seq_len": LENGTH, "seed": COUNT, "kernel_fallback": SWITCH, "causal": SWITCH, "rotary_without_effect": SWITCH},
    "val_loss": NUMBER,
    **dict.fromkeys(("test_size", "val_size", "train_flops"), AMOUNT),
    **dict.fromkeys(("matrix_rate_flops", "copy_rate_bytes"), AMOUNT),
    **dict.fromkeys(("train_tokens", "loader_seconds", "wall_seconds"), AMOUNT),
    **dict.fromkeys(("measure_others_share", "measure_lost_share"), SHARE),
    **dict.fromkeys(("baselines", "test_slices"), SCORES),
    "test_lens": Kind("an object of test results by length", are_tests),
    "metric_scale": SCALE,
    **dict.fromkeys(("spec", "data", "lr_search", "machine"), OBJECT),
    "data_notes": Kind("a list of strings", lambda value: is_list_of(str, value)),
    "curve": Kind("a list of objects", lambda value: is_list_of(dict, value)),
}
SPEC_FIELDS: dict[str, Kind] = {
    **dict.fromkeys(("options", "task_options"), OPTIONS),
    **dict.fromkeys(("lr", "budget"), MEASURED),
    **dict.fromkeys(("search", "causal", "decode", "reversible", "compile", "length_warmup", "qk_norm"), SWITCH),
    "checkpointing": SWITCH_OR_TEXT,
    **dict.fromkeys(("batch_size", "probe", "memory_limit"), LENGTH),
    **dict.fromkeys(("seed", "steps"), COUNT),
    **dict.fromkeys(("lr_schedule", "length_schedule", "parallel"), TEXT),
    "warmup": AMOUNT,
    "test_lens": Kind("a list of whole numbers above 0", are_lengths),
}
POINT_FIELDS: dict[str, Kind] = {
    **dict.fromkeys(("step", "seconds", "tokens", "flops", "grad_norm"), AMOUNT),
    **dict.fromkeys(("train_loss", "train_score", "val_loss", "val_score", "restoring_loss"), NUMBER),
    "seq_len": LENGTH,
}


def parse_record(line: bytes, newest: int) -> dict[str, Any]:
    """Parse a line into a record, and check its known fields. Fields that this version does not know stay as they are.

    Args:
        line: JSON in UTF-8.
        newest: the newest schema that this version reads.

    Raises:
        ValueError: the line is damaged, or its schema is newer.
    """
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {in_short(record)}")
    schema = record.get("schema", newest)
    if not is_whole(schema) or schema > newest:
        raise ValueError(f"expected schema {newest} or older, got {in_short(schema)}")
    for name in NEEDED:
        if record.get(name) is None:
            raise ValueError(f"missing field {name!r}")
    check(record, FIELDS)
    check(record.get("spec") or {}, SPEC_FIELDS)
    for point in record.get("curve") or []:
        check(point, POINT_FIELDS)
    return record


def check(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and not kind.holds(value):
            raise ValueError(f"{name}: expected {kind.words}, got {in_short(value)}")


def parse_json(text: bytes) -> Any:
    r"""Parse JSON in UTF-8 into values that a report can show.

    A byte of a file name that is not UTF-8 is written out as ``\xe9``, so that two such names stay distinct.

    Raises:
        ValueError: the text is damaged, holds numbers that are not finite, or is nested too deep.
    """
    try:
        return shown(json.loads(text.decode("utf-8-sig"), parse_int=as_integer))
    except RecursionError:
        raise ValueError(f"lists and objects are nested more than {DEEPEST} deep") from None


def as_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:  # Python refuses to convert thousands of digits
        raise ValueError(f"an integer of {len(digits):,} digits cannot be a measured value")
    return int(digits)


def shown(value: Any, depth: int = 0) -> Any:
    """The value, with strings that can be shown.

    Raises:
        ValueError: the value holds an unpaired surrogate, or a number that cannot be a measured value.
        RecursionError: the value is nested too deep.
    """
    if isinstance(value, str):
        return UNSHOWN.sub(in_words, value)
    if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{in_short(value)} cannot be a measured value")
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        return {shown(key): shown(each, depth + 1) for key, each in value.items()}
    return [shown(each, depth + 1) for each in value] if isinstance(value, list) else value


def in_words(match: re.Match[str]) -> str:
    """A character that cannot be shown, as its escape."""
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python reads a byte that is not UTF-8
        code -= 0xDC00
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"\\u{code:04x} is an unpaired surrogate, not a character")
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def in_short(value: object) -> str:
    """A value as JSON, cut to 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
