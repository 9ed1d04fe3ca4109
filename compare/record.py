"""Records on disk: one JSON line for each run, and one file that describes the machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compare.fields import parse_record
from compare.spec import kind_of

SCHEMA = 3
"""Schema 2 adds FLOPs to the points of a curve; 3 adds the total memory of training and the CPU time that others took.
Older records lack these fields and stay readable."""
TIMED_ON = ("cpu", "cores", "of_cores", "threads", "device", "gpu", "torch", "python")
"""Fields of a machine that a time depends on. of_cores: all cores of a node, where a run had only some of them."""
RETRIED = ("timeout", "error")
"""Statuses of runs that are tried again; every other status is final."""
Record = dict[str, Any]
Identity = tuple[str, ...]
"""What two records of one run on one machine share: its ``run_id``, and what a time depends on."""


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Read all records of a file. Damaged lines are skipped, with a warning for each.

    Of several records of one run on one machine, the last counts. A run that failed in a way that is tried again, and
    was tried again on any machine, counts no longer.
    """
    records: dict[Identity, Record] = {}
    failed: dict[str, list[Identity]] = {}
    warnings = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = parse_record(line, SCHEMA)
        except ValueError as error:
            warnings.append(f"{path} line {number} is damaged and was skipped: {error}")
            continue
        key = identity(record)
        again = record["status"] in RETRIED
        for old in (key, *(() if again else failed.pop(record["run_id"], ()))):
            records.pop(old, None)
        records[key] = record  # at the end: of records of several machines, the last one is the latest
        if again:
            failed.setdefault(record["run_id"], []).append(key)
    return list(records.values()), warnings


def identity(record: Record) -> Identity:
    machine = record.get("machine")
    known = machine if isinstance(machine, dict) else {}
    return (record["run_id"], *(str(known.get(name)) for name in TIMED_ON))


def is_search(record: Record) -> bool:
    """Whether the run belongs to the search for a learning rate, and so is no result."""
    return kind_of(_spec(record)) == "search"


def is_result(record: Record) -> bool:
    """Whether the run is a result: it belongs neither to the search for a learning rate nor for the longest length."""
    return kind_of(_spec(record)) not in ("search", "probe")


def _spec(record: Record) -> Record:
    spec = record.get("spec")
    return spec if isinstance(spec, dict) else {}


def other_data(before: object, now: Mapping[str, Any]) -> str:
    """The first hash in which the data of a record differs from today's, in words; "" where no shared hash does."""
    known = before if isinstance(before, dict) else {}
    for name, value in now.items():
        if name.endswith("sha256") and str(known.get(name, value)) != str(value):
            return f"{name} was {str(known[name])[:8]}, is now {str(value)[:8]}"
    return ""


def other_machine(before: object, now: Mapping[str, Any]) -> str:
    """The first field in which a record's machine differs from today's, in words; "" if no field of `TIMED_ON` does."""
    known = before if isinstance(before, dict) else {}
    for name in TIMED_ON:
        if name in known and known[name] != now.get(name):
            return f"{name} was {known[name]}, is now {now.get(name)}"
    return ""


def as_kept(point: Record) -> Record:
    """A point of a learning curve as records keep it: what it has, fractions to six digits.

    Curves are nine tenths of a record, and no chart shows a seventh digit.
    """
    kept = ((name, value) for name, value in point.items() if value is not None)
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in kept}


def append_record(path: Path, record: Record) -> None:
    """Append a line and flush it to the disk. A line that an interrupted write left open is closed first.

    Raises:
        OSError: the line could not be written, and no part of it remains; ``filename`` names the file.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with naming(path), path.open("ab+", buffering=0) as file:
        size = file.tell()
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        try:
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one.

    Raises:
        OSError: the text could not be written, and the old file is unchanged; ``filename`` names the file.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with naming(path):
        try:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of the file to an OSError; one from a write lacks it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
