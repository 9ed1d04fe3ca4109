"""Data files as tables: their separators, their encodings and their splits are detected.

The separator of a csv or tsv comes from the contents. Between tabs, quotes are special only if the file uses them so:

>>> separator_of("text;label\\na, b;1\\nc, d;0\\n", ",", "reviews.csv")
';'
>>> is_quoted('"a\\nb"\\t1\\n'), is_quoted('say "a"\\t1\\n')
(True, False)

A word in the name of a file, or else of a folder around it, names the split:

>>> [split_of(Path(name)) for name in ("labeledTrainData.tsv", "dev/part-0.csv", "latest.csv")]
['train', 'validation', '']

Files may be compressed with gzip, bzip2 or zstd.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from tasks.cache import Table, folder_of

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".ndjson": "json",
    ".feather": "arrow",
}
"""Suffix of a file -> its format."""
PACKED = (".gz", ".bz2", ".zst")
VERSION = 2  # raise it when the same files give other tables
SAMPLE = 2**20  # characters at the start of a file that the separator is detected from
BATCH = 1_000  # rows in memory at a time
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "eval",
    "evaluation": "eval",
}
"""Word in a name -> split; "eval" means validation beside a test split, else test."""
UNLABELLED = {"unsup", "unsupervised", "unlabeled", "unlabelled"}
"""Names of folders whose texts have no class."""
PACKAGES = {"site-packages", "node_modules"}
OURS = {"environment.json", "records.jsonl", "table.csv", "charts", "checkpoints", "track"}
"""Files and folders that a comparison writes and that look like data."""


def known_formats() -> str:
    return ", ".join(suffix[1:] for suffix in READERS)


def suffix_of(path: Path) -> str:
    """The suffix of the format: ".csv" for reviews.csv.gz."""
    plain = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return plain.suffix.lower()


def format_of(path: Path) -> str:
    """ "csv", "json", "parquet" or "arrow"; "" for any other file. Only text files may be compressed."""
    found = READERS.get(suffix_of(path), "")
    return "" if found in ("parquet", "arrow") and path.suffix.lower() in PACKED else found


def split_of(path: Path) -> str:
    """The split that the name of a file, or else of a folder around it, contains; "" for none."""
    for part in reversed(path.parts):
        for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part):
            if word.lower() in SPLIT_WORDS:
                return SPLIT_WORDS[word.lower()]
    return ""


def files_below(folder: Path) -> list[Path]:
    """All possible data files, in order: no hidden files, packages, caches, or results of a comparison."""
    import datasets

    caches = folder_of("").parent, Path(datasets.config.HF_DATASETS_CACHE)
    seen = {path.resolve() for path in (folder, *caches)}
    found = []
    for here, folders, names in os.walk(folder, followlinks=True):
        place, written = Path(here), set(PACKAGES)
        if _is_results(place, names):
            written |= OURS if place == folder else {*folders, *names}
        for name in folders.copy():
            inside = (place / name).resolve()
            if name.startswith((".", "__")) or name in written or inside in seen:
                folders.remove(name)
            seen.add(inside)
        found += [place / name for name in names if not name.startswith(".") and name not in written]
    return sorted(file for file in found if file.is_file())


def _is_results(folder: Path, names: Iterable[str]) -> bool:
    """Whether a comparison wrote its results, or a report of several folders, into this folder."""
    if {"report.md", "table.tex"} <= set(names):
        return True
    if "environment.json" not in names:
        return False
    try:
        machine = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(machine, dict) and {"python", "torch", "packages", "command"} <= set(machine)


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The files with columns of each split, in the most frequent format of the split; {} = there are none.

    Files whose names contain no split are train if no file is named train; otherwise they are ignored.
    """
    named: dict[str, list[Path]] = defaultdict(list)
    for file in files_below(folder):
        if format_of(file):
            named[split_of(file.relative_to(folder))].append(file)
    others = named.pop("", [])
    if "train" not in named and others:
        named["train"] = others
    splits = {}
    for split, files in named.items():
        count = Counter(map(format_of, files))
        most = max(READERS.values(), key=count.__getitem__)
        splits[split] = [file for file in files if format_of(file) == most]
    return splits


def texts_by_split(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """The texts of each split and their classes, from folders named after the classes with one file for each text.

    {} if there are fewer than two such folders. The class "" means no class.
    """
    splits: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for file in files_below(folder):
        *around, kind = file.relative_to(folder).parts[:-1] or ("",)
        if suffix_of(file) in ("", ".txt") and kind and kind.lower() not in SPLIT_WORDS:
            split = split_of(Path(*around)) or "train"
            splits[split].append((file, "" if kind.lower() in UNLABELLED else kind))
    classes = {kind for files in splits.values() for _, kind in files} - {""}
    return dict(splits) if len(classes) > 1 else {}


def read_texts(files: Sequence[tuple[Path, str]]) -> Table:
    """A table of "text" and "label", one row for each file."""

    def rows() -> Iterator[dict[str, Any]]:
        for file, kind in files:
            stream, encoding = open_text(file)
            with stream:
                yield {"text": _as_bytes(stream.read(), encoding), "label": kind.encode("utf-8", "surrogateescape")}

    return _table(rows, {"text": "binary", "label": "binary"}, [file for file, _ in files])


def read_files(files: Sequence[Path], kind: str) -> Table:
    """The rows of files of one format, file after file.

    kind: a format, as `format_of` returns it.

    Raises:
        ValueError: a file with other columns than the first; any fault of a file.
    """
    return {"csv": _read_csv, "json": _read_json, "parquet": _read_columns, "arrow": _read_columns}[kind](files)


def open_text(file: Path) -> tuple[TextIO, str]:
    """The decompressed text of a file and its encoding: "utf-16" or "utf-32" if a byte order mark says so.

    Otherwise "latin-1", in which each byte is a character, so that no byte is lost. The mark of UTF-8 is skipped. Line
    ends stay unchanged.
    """
    with file.open("rb") as peeked:
        magic = peeked.read(4)
    raw: Any
    if magic.startswith(b"\x1f\x8b"):
        raw = gzip.GzipFile(file)
    elif magic.startswith(b"BZh"):
        raw = bz2.BZ2File(file)
    elif magic == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        raw = pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")
    else:
        raw = file.open("rb", buffering=0)
    stream = io.BufferedReader(raw)
    start = stream.peek(4)[:4]
    encoding = "latin-1"
    if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        encoding = "utf-32"
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif start.startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    return io.TextIOWrapper(stream, encoding=encoding, newline=""), encoding


def _as_bytes(letters: str, encoding: str) -> bytes:
    """The bytes of the file; UTF-8 if the file has two or more bytes a character."""
    return letters.encode("latin-1") if encoding == "latin-1" else letters.encode("utf-8", "surrogatepass")


def letters_of(text: bytes) -> str:
    """The text of these bytes: UTF-8, else Windows-1252, else Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return text.decode(encoding)
        except UnicodeDecodeError:
            pass
    return text.decode("latin-1")


@dataclass(frozen=True)
class Layout:
    """The layout of a csv or tsv.

    Attributes:
        file: the csv or tsv.
        columns: names of the columns, without outer spaces.
        separator: between two columns.
        quoting: a constant of the module `csv`.
        line_end: "\\n" if only "\\n" ends a line, so that a "\\r" in a text does not; else None.
    """

    file: Path
    columns: tuple[str, ...]
    separator: str
    quoting: Literal[0, 3]
    line_end: str | None


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
            converters=dict.fromkeys(layout.columns, partial(_as_bytes, encoding=encoding)),
            na_filter=False,
            lineterminator=layout.line_end,
            chunksize=BATCH,
        )
        with stream:
            for chunk in chunks:
                for row in zip(*(chunk[column] for column in layout.columns), strict=True):
                    yield dict(zip(layout.columns, row, strict=True))


def layout_of(file: Path) -> Layout:
    """The layout of a file, detected from its start.

    Raises:
        ValueError: no text, no rows, or an ambiguous layout, in one line.
    """
    import pandas as pd

    stream, encoding = open_text(file)
    with stream:
        start = stream.read(SAMPLE)
        blocks = iter(lambda: stream.read(SAMPLE), "")
        if encoding == "latin-1" and ("\0" in start or any("\0" in block for block in blocks)):
            raise ValueError(f"expected text, got zero bytes in {file}: unpack it, or save it as UTF-8")
    if not start.strip():
        raise ValueError(f"expected a header and rows, got the empty file {file}")
    line, end, _ = start.partition("\n")
    line_end = "\n" if end and not line.endswith("\r") else None
    sample = start.replace("\r", " ") if line_end else start
    separator = separator_of(sample, "\t" if suffix_of(file) == ".tsv" else ",", str(file))
    quoting = _quoting(sample, separator)
    stream, _ = open_text(file)
    with stream:
        head = pd.read_csv(stream, sep=separator, quoting=quoting, header=None, nrows=2, dtype=str, na_filter=False)
    if len(head) < 2:
        raise ValueError(f"expected rows below the header of {file}, got none")
    columns = tuple(letters_of(_as_bytes(name, encoding)).strip() for name in head.iloc[0])
    if quoting == csv.QUOTE_NONE:
        columns = tuple(name.strip('"').strip() for name in columns)
    if len(set(columns)) < len(columns):
        raise ValueError(f"expected columns with different names in {file}, got {', '.join(columns)}")
    return Layout(file, columns, separator, quoting, line_end)


def separator_of(sample: str, usual: str, name: str) -> str:
    """The separator of the columns: the usual one, or another that gives every row as many fields as the header.

    Args:
        sample: the start of a file, at most SAMPLE characters.
        usual: the separator of the suffix.
        name: of the file, for messages.

    Raises:
        ValueError: only another separator divides the header, but not every row into as many fields.
    """
    order = [usual, *(separator for separator in SEPARATORS if separator != usual)]
    widths = {separator: _widths(sample, separator) for separator in order}
    divided = [separator for separator in order if widths[separator] and widths[separator][0] > 1]
    for separator in divided:
        if len(set(widths[separator])) == 1:
            return separator
    if divided and usual not in divided:
        wanted = SEPARATORS[usual]
        raise ValueError(
            f"expected columns separated by a {wanted}, got one column in {name}: if {divided[0]!r} separates them, "
            "quote the texts that contain it, since rows differ in length"
        )
    return usual


def _quoting(sample: str, separator: str) -> Literal[0, 3]:
    """The quoting of a sample, as a constant of the module `csv`."""
    return csv.QUOTE_NONE if separator == "\t" and not is_quoted(sample) else csv.QUOTE_MINIMAL


def _widths(sample: str, separator: str) -> list[int]:
    """The number of fields of each row of a sample, without the last row if it may be cut."""
    quoting = _quoting(sample, separator)
    limit = csv.field_size_limit(2 * SAMPLE)
    try:
        rows = csv.reader(io.StringIO(sample, newline=""), delimiter=separator, quoting=quoting)
        widths = [len(row) for row in rows if row]
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(limit)
    return widths[:-1] if len(sample) >= SAMPLE and len(widths) > 1 else widths


FIELD = re.compile(r'("(?:[^"]|"")*"|[^"\t\r\n]*)(?:\t|\r\n|\n|\r|\Z)')


def is_quoted(sample: str) -> bool:
    """Whether quotes enclose fields between tabs, rather than belong to the texts.

    They enclose fields if every quote fits, and at least one pair encloses a line end, a tab, a quote, or the header.
    """
    place, needed = 0, sample.startswith('"')
    while place < len(sample):
        field = FIELD.match(sample, place)
        if field is None:
            # Only the last field of a sample may lack its end.
            return needed and len(sample) >= SAMPLE and sample[place] == '"' and '"\t' not in sample[place + 1 :]
        needed = needed or (field[1].startswith('"') and re.search(r'[\t\r\n"]', field[1][1:-1]) is not None)
        place = field.end()
    return needed


def _read_json(files: Sequence[Path]) -> Table:
    """A row for each object; nested values get dotted names."""
    kinds: dict[str, set[str]] = {}
    for file in files:
        for row in json_rows(file):
            for column, value in row.items():
                found = kinds.setdefault(column, set())
                if value is not None:
                    found.add(_kind_of(value))
    if not kinds:
        raise ValueError(f"expected rows, got none in {files[0]}")
    types = {column: _type_for(found) for column, found in kinds.items()}
    makers = {column: MAKERS[kind] for column, kind in types.items()}

    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            for row in json_rows(file):
                given = {column: row.get(column) for column in makers}
                yield {column: None if v is None else makers[column](v) for column, v in given.items()}

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
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= _flat(value, file, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _read_columns(files: Sequence[Path]) -> Table:
    """The rows of parquet or arrow files."""
    import datasets

    schemas = [_schema_of(file) for file in files]
    classes = [_class_names(schema) for schema in schemas]
    for file, found in zip(files, classes, strict=True):
        if found != classes[0]:
            raise ValueError(f"expected the classes {classes[0]} as in {files[0]}, got {found} in {file}")
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
    return {name: found.names for name, found in features.items() if isinstance(found, datasets.ClassLabel)}


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
