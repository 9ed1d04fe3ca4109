"""Tables from data files: csv and tsv, json, parquet and arrow, and folders of texts.

`folders.py` finds the files of each split, `layouts.py` detects the layout of a csv or tsv.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks.cache import Table
from tasks.folders import format_of
from tasks.layouts import Layout, as_bytes, layout_of, open_text

VERSION = 2  # raise it when the same files give other tables
BATCH = 1_000  # rows in memory at a time


def read_texts(files: Sequence[tuple[Path, str]]) -> Table:
    """A table of "text" and "label", one row for each file."""

    def rows() -> Iterator[dict[str, Any]]:
        for file, kind in files:
            stream, encoding = open_text(file)
            with stream:
                yield {"text": as_bytes(stream.read(), encoding), "label": kind.encode("utf-8", "surrogateescape")}

    return _table(rows, {"text": "binary", "label": "binary"}, [file for file, _ in files])


def read_files(files: Sequence[Path], kind: str) -> Table:
    """The rows of files of one format, file after file.

    kind: a format, as `format_of` returns it.

    Raises:
        ValueError: a file with other columns than the first; any fault of a file.
    """
    return {"csv": _read_csv, "json": _read_json, "parquet": _read_columns, "arrow": _read_columns}[kind](files)


def _read_csv(files: Sequence[Path]) -> Table:
    """Columns of bytes without type inference: "NA" and "01" are texts."""
    layouts = [layout_of(file) for file in files]
    first = layouts[0]
    for layout in layouts[1:]:
        if sorted(layout.columns) != sorted(first.columns):
            expected, got = ", ".join(first.columns), ", ".join(layout.columns)
            raise ValueError(f"expected the columns {expected} as in {first.file}, got {got} in {layout.file}")
    return _table(lambda: _csv_rows(layouts), dict.fromkeys(first.columns, "binary"), files)


def _csv_rows(layouts: Iterable[Layout]) -> Iterator[dict[str, Any]]:
    import pandas as pd  # type: ignore[import-untyped]

    for layout in layouts:
        stream, encoding = open_text(layout.file)
        chunks = pd.read_csv(
            stream,
            sep=layout.separator,
            quoting=layout.quoting,
            header=0,
            names=layout.columns,
            converters=dict.fromkeys(layout.columns, partial(as_bytes, encoding=encoding)),
            na_filter=False,
            lineterminator=layout.line_end,
            chunksize=BATCH,
        )
        with stream:
            for chunk in chunks:
                for row in zip(*(chunk[column] for column in layout.columns), strict=True):
                    yield dict(zip(layout.columns, row, strict=True))


def _read_json(files: Sequence[Path]) -> Table:
    """A row for each object; nested values get dotted names."""
    kinds: dict[str, set[str]] = {}
    for file in files:
        for row in json_rows(file):
            for column, value in row.items():
                column_kinds = kinds.setdefault(column, set())
                if value is not None:
                    column_kinds.add(_kind_of(value))
    if not kinds:
        raise ValueError(f"expected rows, got none in {files[0]}")
    types = {column: _type_for(column_kinds) for column, column_kinds in kinds.items()}
    makers = {column: MAKERS[kind] for column, kind in types.items()}

    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            for row in json_rows(file):
                values = {column: row.get(column) for column in makers}
                yield {column: None if v is None else makers[column](v) for column, v in values.items()}

    return _table(rows, types, files)


def _kind_of(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "str"  # an integer beyond 64 bits
    return type(value).__name__


def _type_for(kinds: set[str]) -> str:
    """The type of a column with values of these Python types."""
    if "list" in kinds:
        return "list"
    if kinds == {"bool"}:
        return "bool"
    if kinds == {"int"}:
        return "int64"
    return "float64" if kinds and kinds <= {"int", "float"} else "binary"


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        return str(value).encode()
    try:
        return value.encode("utf-8", "surrogateescape")  # keeps bytes of the file that are not UTF-8
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")  # an unpaired surrogate


MAKERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: list(map(_text, value)) if isinstance(value, list) else [_text(value)],
    "bool": bool,
    "int64": int,
    "float64": float,
    "binary": _text,
}


def json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file: one object a line, one list of objects, at the top or under a name, or lists of columns.

    Raises:
        ValueError: any other structure.
    """
    stream, encoding = open_text(file)
    if encoding == "latin-1":
        stream = io.TextIOWrapper(stream.detach(), encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[attr-defined]
    with stream:
        first = next((line for line in stream if line.strip()), "")
        if not first:
            raise ValueError(f"expected rows, got the empty file {file}")
        if (alone := _parsed(first)) is not None and isinstance(alone, dict):
            second = next((line for line in stream if line.strip()), "")
            if second:
                objects = (json.loads(line) for line in _chained(second, stream) if line.strip())
                yield from map(partial(_flat, file=file), _chained(alone, objects))
                return
            whole = alone
        else:
            whole = json.loads(first + stream.read())
    yield from map(partial(_flat, file=file), _objects(whole, file))


def _chained(first: Any, others: Iterable[Any]) -> Iterator[Any]:
    yield first
    yield from others


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _objects(whole: Any, file: Path) -> Iterable[Any]:
    """The rows of a parsed file."""
    if isinstance(whole, list):
        return whole
    if not isinstance(whole, dict):
        raise ValueError(f"expected a list of objects in {file}, got {type(whole).__name__}")
    data, columns = whole.get("data"), whole.get("columns")
    if isinstance(data, list) and isinstance(columns, list):  # the layout of pandas with orient="split"
        return [dict(zip(map(str, columns), row, strict=True)) for row in data]
    lists = {name: value for name, value in whole.items() if isinstance(value, list)}
    rows = {name: value for name, value in lists.items() if value and all(isinstance(row, dict) for row in value)}
    if "data" in rows or len(rows) == 1:
        return rows.get("data") or next(iter(rows.values()))
    if rows:
        raise ValueError(f"expected one list of objects in {file}, got {', '.join(rows)}: save each list as a file")
    if lists and len(lists) == len(whole) and len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if whole and all(isinstance(value, dict) for value in whole.values()):  # column -> index of the row -> value
        numbers = dict.fromkeys(number for value in whole.values() for number in value)
        return [{name: value.get(number) for name, value in whole.items()} for number in numbers]
    return [whole]


def _flat(row: Any, file: Path, before: str = "") -> dict[str, Any]:
    """The values of a row, nested ones under dotted names."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object for each row of {file}, got {type(row).__name__}")
    values: dict[str, Any] = {}
    for name, value in row.items():
        values |= _flat(value, file, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return values


def _read_columns(files: Sequence[Path]) -> Table:
    """The rows of parquet or arrow files."""
    import datasets

    schemas = [_schema_of(file) for file in files]
    classes = [_class_names(schema) for schema in schemas]
    for file, file_classes in zip(files, classes, strict=True):
        if file_classes != classes[0]:
            raise ValueError(f"expected the classes {classes[0]} as in {files[0]}, got {file_classes} in {file}")
    if any(_is_strange(kind) for schema in schemas for kind in schema.types):
        return datasets.concatenate_datasets([datasets.Dataset(_plain(_arrow_of(file))) for file in files])
    kind = format_of(files[0]) or "parquet"
    loaded: Mapping[str, Table] = datasets.load_dataset(kind, data_files={"train": [escape(str(f)) for f in files]})
    return loaded["train"]


def _schema_of(file: Path) -> Any:
    import pyarrow.parquet

    if format_of(file) == "arrow":
        return _arrow_of(file).schema
    return pyarrow.parquet.read_schema(file)


def _arrow_of(file: Path) -> Any:
    """The rows of a file, memory-mapped if possible."""
    import pyarrow as pa
    import pyarrow.parquet

    if format_of(file) != "arrow":
        return pyarrow.parquet.read_table(file)
    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The class names of each column that has them."""
    import datasets

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = datasets.Features.from_arrow_schema(schema)
    return {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def _is_strange(kind: Any) -> bool:
    """Whether `datasets` supports only the plain form of this Arrow type."""
    import pyarrow as pa

    return bool(pa.types.is_dictionary(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _plain(table: Any) -> Any:
    """The table with plain types in place of views and dictionaries."""
    import pyarrow as pa

    def plain(kind: Any) -> Any:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        if pa.types.is_string_view(kind):
            return pa.large_string()
        return pa.large_binary() if pa.types.is_binary_view(kind) else kind

    return table.cast(pa.schema([field.with_type(plain(field.type)) for field in table.schema], table.schema.metadata))


def escape(path: str) -> str:
    """A path with its pattern characters escaped for `datasets`."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _table(rows: Callable[[], Iterator[dict[str, Any]]], types: Mapping[str, str], files: Sequence[Path]) -> Table:
    """The rows as a `Dataset` that `datasets` caches, under a fingerprint of the files."""
    import datasets

    digest = hashlib.sha256(f"{VERSION} {sorted(types.items())}".encode("utf-8", "surrogateescape"))
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    features = {
        column: datasets.List(datasets.Value("binary")) if kind == "list" else datasets.Value(kind)
        for column, kind in types.items()
    }
    return datasets.Dataset.from_generator(
        rows, features=datasets.Features(features), fingerprint=digest.hexdigest()[:32]
    )
