"""The text of a file and the layout of a csv or tsv: encoding, separator and quotes.

The separator of a csv or tsv comes from the contents. Between tabs, quotes are special only if the file uses them so:

>>> separator_of("text;label\\na, b;1\\nc, d;0\\n", ",", "reviews.csv")
';'
>>> is_quoted('"a\\nb"\\t1\\n'), is_quoted('say "a"\\t1\\n')
(True, False)
"""

import bz2
import csv
import gzip
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from tasks.folders import suffix_of

SAMPLE = 2**20  # characters at the start of a file that the separator is detected from
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


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


def as_bytes(letters: str, encoding: str) -> bytes:
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


def layout_of(file: Path) -> Layout:
    """The layout of a file, detected from its start.

    Raises:
        ValueError: no text, no rows, or an ambiguous layout, in one line.
    """
    import pandas as pd  # type: ignore[import-untyped]

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
    columns = tuple(letters_of(as_bytes(name, encoding)).strip() for name in head.iloc[0])
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
