"""Arrow tables of `datasets`, built once and stored on disk.

The folder is `$ATTENTION_ZOO_CACHE`, or `~/.cache/attention-zoo`. Users may share it: a user without write permission
reads the existing tables.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = bytes | int | float | str
Row: TypeAlias = dict[str, Value]
"""One sample. Arrays travel as their bytes."""
Table: TypeAlias = Any
"""A `datasets.Dataset`; functions import `datasets` late, since the import takes a second."""
Split: TypeAlias = Literal["train", "validation", "test"]

FORMAT = 2
"""Raise it when the storage of rows changes."""
ARROW_TYPES = {bytes: "binary", int: "int64", float: "float64", str: "string"}


class DamagedCacheWarning(UserWarning):
    """A cache cannot be read and is rebuilt."""


@dataclass(frozen=True)
class Rows:
    """The samples of a split, generated while they are read, and their approximate number for the progress bar."""

    count: int
    rows: Iterable[Row]


def folder_of(key: str) -> Path:
    root = os.environ.get("ATTENTION_ZOO_CACHE") or "~/.cache/attention-zoo"
    return Path(os.path.expanduser(root)) / f"{key}-f{FORMAT}"


@contextmanager
def usable(root: Path) -> Iterator[None]:
    """Turn an OSError of the cache folder into a ValueError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the cache {root} cannot be used ({error.strerror}): set ATTENTION_ZOO_CACHE to a folder of your own"
        ) from error


def keep_what_is_read(root: Path) -> None:
    """Make `datasets`, before its import, store files beside our tables if its own cache folder is not writable."""
    home = Path(os.path.expanduser("~/.cache/huggingface/datasets"))
    there = next(place for place in (home, *home.parents) if place.exists())
    if not {"HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"} & os.environ.keys() and not os.access(there, os.W_OK):
        os.environ["HF_DATASETS_CACHE"] = str(root / "read")


def load_or_build(
    key: str, build: Callable[[], Mapping[Split, Rows]], on_progress: Callable[[float], None]
) -> Mapping[Split, Table]:
    """The `DatasetDict` cached under `key`; if it is missing or unreadable, built and saved first.

    The build uses a temporary folder and moves it into place in one step, so an interrupted build never looks
    complete. Rows go to disk as they come, a thousand at a time.

    Raises:
        ValueError: invalid data (from `build`), a split without a sample, or an unusable cache folder.
    """
    folder = folder_of(key)
    keep_what_is_read(folder.parent)
    import datasets

    datasets.disable_progress_bars()
    with usable(folder.parent):
        built = folder.exists()
    if built:
        try:
            return _load(folder)
        except Exception as error:  # whatever `datasets` and Arrow raise on a damaged folder
            with usable(folder.parent):
                shutil.rmtree(folder)
            reason = " ".join(str(error).split())
            warnings.warn(f"rebuilding the unreadable cache {folder}: {reason}", DamagedCacheWarning, stacklevel=2)

    with usable(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = tempfile.TemporaryDirectory(prefix=f"{key}.", dir=folder.parent, ignore_cleanup_errors=True)
    with building as scratch:
        unfinished = Path(scratch) / key
        splits = build()
        expected, done = sum(split.count for split in splits.values()), 0
        tables = {}
        for split, source in splits.items():

            def report(number: int, before: int = done) -> None:
                on_progress(min(1.0, (before + number) / max(1, expected)))

            tables[split] = _write(source.rows, f"{key}: {split}", Path(scratch) / split, report)
            done += source.count
        datasets.DatasetDict(tables).save_to_disk(str(unfinished))
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process has moved the same data into place.
    return _load(folder)


def _write(rows: Iterable[Row], name: str, folder: Path, report: Callable[[int], None]) -> Table:
    """A `Dataset` of these rows, on disk in ``folder``."""
    import datasets

    source = iter(rows)
    first = next(source, None)
    if first is None:
        raise ValueError(f"expected at least one sample, got none for {name}")
    types = {column: datasets.Value(ARROW_TYPES[type(value)]) for column, value in first.items()}

    failed: list[Exception] = []

    def generate() -> Iterator[Row]:
        try:
            for number, row in enumerate(chain([first], source)):
                if number % 100 == 0:
                    report(number)
                yield row
        except Exception as error:
            failed.append(error)
            raise

    try:
        return datasets.Dataset.from_generator(
            generate, features=datasets.Features(types), cache_dir=str(folder), fingerprint="rows"
        )
    except Exception as error:
        raise failed[0] if failed else error from None  # without the wrapper of `datasets`


def _load(folder: Path) -> Mapping[Split, Table]:
    import datasets

    loaded: Mapping[Split, Table] = datasets.load_from_disk(str(folder))
    return loaded


def load_or_compute(key: str, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``compute``, stored as JSON beside the tables of ``key`` if that folder is writable."""
    file = folder_of(key) / f"{name}.json"
    try:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        pass
    computed = compute()
    part = file.with_name(f"{name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(computed), encoding="utf-8")
        os.replace(part, file)
    except OSError:  # another user's folder, or a full disk: the next call computes again
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return computed


def digest_of(tables: Mapping[Split, Table]) -> str:
    """The SHA-256 of all rows of all splits: equal for two runs on the same data."""
    digest = hashlib.sha256()
    for split, table in tables.items():
        digest.update(f"{split} {len(table)} {table.column_names}".encode())
        for batch in table.with_format(None).iter(1_000):
            for values in batch.values():
                for value in values:
                    content = value if isinstance(value, bytes) else str(value).encode()
                    digest.update(b"%d " % len(content) + content)
    return digest.hexdigest()


def byte_lengths(table: Table, column: str) -> NDArray[np.int64]:
    """(rows,) the number of bytes of each value of a column, without reading the values."""
    import pyarrow.compute

    return np.asarray(pyarrow.compute.binary_length(table.data.column(column)), np.int64)


def matrix(values: list[bytes], dtype: type[np.generic]) -> NDArray[Any]:
    """Arrays of equal length, from their bytes: (rows, length)."""
    return np.frombuffer(b"".join(values), dtype).reshape(len(values), -1)


def padded(
    values: list[bytes], limit: int, *, dtype: type[np.generic] = np.uint8, shift: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Token ids from arrays of different lengths, each cut at ``limit``; and the padding mask, None without padding.

    dtype: type of the arrays whose bytes ``values`` holds. shift: added to each number. Padding is 0.
    """
    size = np.dtype(dtype).itemsize
    cut = [value[: limit * size] for value in values]
    lengths = np.array([len(value) // size for value in cut])
    inside = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(inside.shape, np.int64)
    ids[inside] = np.frombuffer(b"".join(cut), dtype).astype(np.int64) + shift
    return ids, None if inside.all() else ~inside


def fresh(rows: Iterable[Row], column: str, seen: set[bytes]) -> Iterator[Row]:
    """The rows whose ``column`` is new; calls for several splits share ``seen``, so no two splits share a sample."""
    from hashlib import blake2b

    for row in rows:
        value = row[column]
        digest = blake2b(value if isinstance(value, bytes) else str(value).encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            yield row
