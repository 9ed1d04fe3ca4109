"""Public and local data through `datasets`: a path or a hub id in, splits out; and texts with a class each.

No code that comes with data is run. A text is its bytes, whatever they are: the columns of a csv or tsv arrive as
bytes, as they stand in the file, and a column of strings or bytes of any other format is read as bytes.

Where a data set has no test or validation split, it is carved from train by a seeded hash of each text, so that
the same text always lands in the same split:

>>> [deal(text) < TENTH for text in (b"Good.", b"Bad.", b"Bad.")]
[True, False, False]

Classes that are not named by the data set are numbered in the order of their names, numbers by their value:

>>> in_order({"10", "9", "-1"}), in_order({"pos", "neg", "10"})
(['-1', '9', '10'], ['10', 'neg', 'pos'])
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.base import SPLITS
from tasks.cache import Row, Rows, Split, Table, fresh

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Suffix of a file -> the builder of `datasets` that reads it."""
BUILDERS = {*READERS.values(), "imagefolder", "cache"}
"""Those whose data has columns; "cache" opens what was fetched from the hub before."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT = 5.0  # seconds
OTHER_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}
SEED = b"splits"
TENTH = 0.1
BATCH = 1_000  # rows in memory at a time
TEXT_TYPES = {"string", "large_string", "binary", "large_binary"}
TEXT_COLUMNS = ("text", "sentence", "content")
LABEL_COLUMNS = ("label", "labels", "target", "class")

Encode = Callable[[list[bytes]], list[bytes]]
"""Texts -> the ids of each, an array as its bytes."""


def open_splits(data: str, what: str) -> Mapping[str, Table]:
    """The splits of a data set, by name, each a `datasets.Dataset`.

    Args:
        data: a csv, tsv, json, json lines, parquet or arrow file; a folder of such files, a folder written by
            `save_to_disk`, or a copy of a data set of the Hugging Face hub; else a hub id, "owner/name". Where a
            data set has several configurations, one is named behind a colon: "owner/name:config", "folder:config".
        what: who asks, for the messages.

    Returns:
        "train", "validation" and "test", or those of them that are there, and whatever else there is. A data set
        of one split is "train".

    Raises:
        ValueError: what is wrong, in one line: nothing there, not readable, or the hub out of reach.
    """
    place, config = split_config(data)
    path = find(place, what)
    if path is None:
        opened = _from_hub(place, config, what)
    else:
        with one_line(f"{what}: could not read {data}"):
            opened = _from_disk(path, config)
    splits = {OTHER_NAMES.get(str(name), str(name)): table for name, table in opened.items()}
    if len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise ValueError(f"{what}: expected a split called train in {data}, got {', '.join(splits)}")
    return splits


def split_config(data: str) -> tuple[str, str | None]:
    """The place of a data set, and the configuration named behind a colon, if any.

    >>> split_config("nyu-mll/glue:sst2"), split_config("stanfordnlp/imdb")
    (('nyu-mll/glue', 'sst2'), ('stanfordnlp/imdb', None))
    """
    place, colon, config = data.rpartition(":")
    if not colon or Path(data).expanduser().exists():
        return data, None
    return (place, config) if HUB_ID.fullmatch(place) or Path(place).expanduser().is_dir() else (data, None)


def find(data: str, what: str) -> Path | None:
    """The file or folder of that name; None where it is none and reads as a hub id.

    Raises:
        ValueError: where it is neither, or a file of a format that is not read.
    """
    path = Path(data).expanduser()
    known = ", ".join(suffix[1:] for suffix in READERS)
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"{what}: expected a file among {known}, or a folder of such, got {data}")
        return path.resolve()
    if HUB_ID.fullmatch(data) and path.suffix.lower() not in READERS:
        return None
    raise ValueError(
        f"{what}: expected a file ({known}), a folder, or a hub id (owner/name), got {data!r}, "
        "which is no file or folder here and does not read as a hub id"
    )


def fingerprint(data: str, what: str) -> str:
    """A name for the data as it is now, fit for a folder: of a hub id, or of names, sizes and times of the files.

    Raises:
        ValueError: as `find`.
    """
    place, config = split_config(data)
    path = find(place, what)
    if path is None:
        return re.sub("[/:]", "--", data)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256((config or "").encode())
    for file in files:
        if not any(part.startswith(".") for part in file.relative_to(path).parts):
            stat = file.stat()
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


@contextmanager
def one_line(problem: str) -> Iterator[None]:
    """Whatever is raised as a ValueError of one line, after ``problem``; `datasets` itself prints nothing meanwhile."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # whatever `datasets`, pandas and Arrow raise on what they cannot read
        raise ValueError(f"{problem}: {reason(error)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def reason(error: BaseException) -> str:
    """What was first raised, in one line."""
    while error.__cause__:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}".removesuffix(": ")


def _from_disk(path: Path, config: str | None) -> Mapping[str, Table]:
    import datasets

    if path.is_file():
        reader = READERS[path.suffix.lower()]
        if reader == "csv":
            return _from_csv({"train": [str(path)]}, "\t" if path.suffix.lower() == ".tsv" else ",")
        files = {"train": _escape(str(path))}
        loaded: Mapping[str, Table] = datasets.load_dataset(reader, data_files=files)
        return loaded
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    return _from_repository(str(path), config)


def _from_repository(source: str, config: str | None) -> Mapping[str, Table]:
    """A folder, or a data set of the hub: its README may say which files make up which split."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError
    from datasets.packaged_modules.csv.csv import CsvConfig

    kinds = ", ".join(suffix[1:] for suffix in READERS)
    try:
        builder = datasets.load_dataset_builder(source, config)
    except (DataFilesNotFoundError, EmptyDatasetError):
        raise ValueError(f"expected files with columns ({kinds}), got others only, or none") from None
    except ValueError:
        known = datasets.get_dataset_config_names(source)
        if config in known or (config is None and len(known) < 2):
            raise
        got = "none" if config is None else repr(config)
        raise ValueError(
            f"expected one of its configurations behind a colon ({source}:{known[0]}), got {got}; "
            f"there are {', '.join(known)}"
        ) from None
    if type(builder).__module__.rpartition(".")[2] not in BUILDERS:
        raise ValueError(f"expected files with columns ({kinds}), got others only, or none")
    if isinstance(builder.config, CsvConfig):
        files = datasets.DownloadManager().download({str(k): list(v) for k, v in builder.config.data_files.items()})
        return _from_csv(files, builder.config.sep)
    builder.download_and_prepare()
    prepared: Mapping[str, Table] = builder.as_dataset()
    return prepared


def _from_csv(files: dict[str, list[str]], separator: str) -> Mapping[str, Table]:
    """Columns of bytes, with nothing guessed: "NA" and "01" are texts. Quotes are special except between tabs."""
    import csv

    import datasets

    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    first, *others = (file for split in files.values() for file in split)
    names, line_end = _read_header(first, separator, quoting)
    for file in others:
        if (found := _read_header(file, separator, quoting)[0]) != names:
            raise ValueError(f"expected the columns {', '.join(names)} as in {first}, got {', '.join(found)} in {file}")
    loaded: Mapping[str, Table] = datasets.load_dataset(
        "csv",
        data_files={split: [_escape(file) for file in found] for split, found in files.items()},
        sep=separator,
        quoting=quoting,
        header=0,
        column_names=names,
        encoding="latin-1",  # each byte a letter, and back
        converters=dict.fromkeys(names, _to_bytes),
        na_filter=False,
        lineterminator=line_end,
        chunksize=BATCH,
    )
    return loaded


def _read_header(file: str, separator: str, quoting: int) -> tuple[list[str], str | None]:
    """Names of the columns; and "\\n" where that alone ends a line, so that a "\\r" in a text does not."""
    import pandas as pd  # type: ignore[import-untyped]

    with open(file, "rb") as raw:
        line_end = re.search(rb"\r?\n$", raw.readline())
        raw.seek(0)
        if any(b"\0" in block for block in iter(lambda: raw.read(2**20), b"")):
            raise ValueError(f"expected text, got zero bytes in {file}: unpack it, or save it as UTF-8")
    try:
        head = pd.read_csv(
            file, sep=separator, quoting=quoting, header=None, nrows=2, encoding="latin-1", dtype=str, na_filter=False
        )
    except pd.errors.EmptyDataError:
        raise ValueError(f"expected a header and rows, got the empty file {file}") from None
    if len(head) < 2:
        raise ValueError(f"expected rows below the header of {file}, got none")
    names = [_to_bytes(name).decode("utf-8-sig", "replace").strip('"') for name in head.iloc[0]]
    if len(set(names)) < len(names):
        raise ValueError(f"expected columns of different names in {file}, got {', '.join(names)}")
    return names, "\n" if line_end and line_end[0] == b"\n" else None


def _to_bytes(letters: str) -> bytes:
    return letters.encode("latin-1")


def _escape(path: str) -> str:
    """A path that `datasets` does not take for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _from_hub(name: str, config: str | None, what: str) -> Mapping[str, Table]:
    """From the hub; where that cannot be reached, what `datasets` has kept of the same data set."""
    import datasets

    out_of_reach = hub_problem(name, "dataset", what)
    if not out_of_reach:
        with one_line(f"{what}: could not read {name} from the Hugging Face hub"):
            return _from_repository(name, config)
    online = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        with one_line(""):
            return _from_repository(name, config)
    except ValueError:
        raise ValueError(
            f"{what}: no file or folder {name!r} here, and no way to {name} on the Hugging Face hub (tried "
            f"{datasets.config.HF_ENDPOINT}/datasets/{name}: {out_of_reach}); on a machine with a network: "
            f"hf download --repo-type dataset {name} --local-dir {name.split('/')[1]}; then pass its folder: "
            f"--data {name.split('/')[1]}"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = online


def hub_problem(name: str, kind: str, what: str) -> str:
    """Why the hub cannot be reached now, found in seconds; "" where it can. kind: "dataset" or "model".

    Raises:
        ValueError: where the hub says that it has nothing of that name.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).repo_info(name, repo_type=kind, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{what}: no file or folder {name!r} here, "
            f"and no {kind} of that name on the Hugging Face hub, or only a private one"
        ) from None
    except Exception as error:  # no network, a proxy's page, a server's error
        return reason(error)
    return ""


@dataclass
class LabelledRows:
    """Texts and classes of three splits, read as they are asked for.

    Attributes:
        splits: rows of "ids", bytes that are never empty, and "label", the number of the class; no ids twice.
        classes: name of each class.
        text_column, label_column: where they were found.
        carved: share of train that each split was made from which the data does not have.
        left_out: how many rows were "empty", "without a class" or "duplicate"; whole once all splits are read.
    """

    splits: dict[Split, Rows]
    classes: list[str]
    text_column: str
    label_column: str
    carved: dict[str, float]
    left_out: Counter[str] = field(default_factory=Counter)


def labelled_rows(data: str, what: str, *, text_column: str, label_column: str, encode: Encode) -> LabelledRows:
    """The texts of a data set with a class each, in three splits without duplicates.

    Args:
        data, what: as for `open_splits`.
        text_column: "" = the column called text, sentence or content; else the only one of strings or bytes.
        label_column: "" = the one called label, labels, target or class.
        encode: texts to ids; a text without ids counts as empty.

    Raises:
        ValueError: as `open_splits`; a missing column; labels that are no classes, or only one class.
    """
    opened = open_splits(data, what)
    sources = {split: opened[split] for split in SPLITS if split in opened}
    text_column, label_column = pick_columns(sources["train"].features, text_column, label_column, what)
    for split, table in sources.items():
        for column in {text_column, label_column} - set(table.column_names):
            raise ValueError(
                f"{what}: expected a column {column!r} in {split} as in train, got {', '.join(table.column_names)}"
            )
    name_of = _namer(sources["train"].features[label_column])
    classes = _classes(sources, label_column, name_of, what)
    found = LabelledRows({}, classes, text_column, label_column, {})
    number = {name: index for index, name in enumerate(classes)}
    seen: set[bytes] = set()

    def read(table: Table, low: float, high: float) -> Iterator[Row]:
        """The rows whose text is dealt between low and high."""
        for batch in table.select_columns([text_column, label_column]).with_format("arrow").iter(BATCH):
            texts = [text or b"" for text in batch.column(text_column).cast("binary").to_pylist()]
            dealt = [low <= deal(text) < high for text in texts]
            names = [name_of(label) for label in batch.column(label_column).to_pylist()]
            inside = [(text, name) for text, name, mine in zip(texts, names, dealt, strict=True) if mine]
            for ids, (_, name) in zip(encode([text for text, _ in inside]), inside, strict=True):
                if not ids:
                    found.left_out["empty"] += 1
                elif not name:
                    found.left_out["without a class"] += 1
                else:
                    yield {"ids": ids, "label": number[name]}

    def unique(rows: Iterator[Row]) -> Iterator[Row]:
        for row in fresh(count(rows), "ids", seen):
            found.left_out["duplicate"] -= 1
            yield row

    def count(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            found.left_out["duplicate"] += 1  # until `unique` sees it come through
            yield row

    low = 0.0
    for split in reversed(SPLITS):
        table, start, end = sources.get(split), 0.0, 1.0
        if split == "train":
            start = low
        elif table is None:
            table, start, end = sources["train"], low, low + TENTH
            low, found.carved[split] = end, TENTH
        found.splits[split] = Rows(round(len(table) * (end - start)), unique(read(table, start, end)))
    return found


def deal(text: bytes) -> float:
    """In [0, 1), the same for a text on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=6, key=SEED).digest(), "big") / 2**48


def pick_columns(features: Mapping[str, Any], text_column: str, label_column: str, what: str) -> tuple[str, str]:
    """Names of the columns of the text and of the class, checked; "" = to be found, as `labelled_rows` says.

    Raises:
        ValueError: naming the columns there.
    """
    there = ", ".join(features)
    for column in (text_column, label_column):
        if column and column not in features:
            raise ValueError(f"{what}: expected a column {column!r}, got the columns {there}")
    label = label_column or next((name for name in LABEL_COLUMNS if name in features and name != text_column), "")
    if not label:
        raise ValueError(f"{what}: expected the column of the class (--label-column), got none; columns: {there}")
    texts = [name for name in features if name != label and getattr(features[name], "dtype", "") in TEXT_TYPES]
    text = text_column or next((name for name in TEXT_COLUMNS if name in texts), texts[0] if len(texts) == 1 else "")
    if not text:
        raise ValueError(f"{what}: expected the column of the text (--text-column), got none; columns: {there}")
    if text not in texts:
        other = "the column of the class" if text == label else f"of {features[text]}"
        raise ValueError(f"{what}: expected a column of strings or bytes, got {text!r}, {other}; columns: {there}")
    if not isinstance(getattr(features[label], "dtype", None), str) or features[label].dtype in ("dict", "list"):
        raise ValueError(f"{what}: expected one class a row in the column {label!r}, got {features[label]}")
    return text, label


def _namer(feature: Any) -> Callable[[Any], str]:
    """A function from a label as stored to the name of its class, "" for none."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return lambda label: feature.names[label] if label is not None and label >= 0 else ""

    def name_of(label: Any) -> str:
        if isinstance(label, bytes):
            label = label.decode("utf-8", "backslashreplace")
        missing = label is None or label != label  # NaN
        return "" if missing else str(label).strip()

    return name_of


def _classes(sources: Mapping[Split, Table], column: str, name_of: Callable[[Any], str], what: str) -> list[str]:
    """The names of the classes, in order."""
    import datasets

    feature = sources["train"].features[column]
    found = {name_of(label) for table in sources.values() for label in table.unique(column)} - {""}
    labelled = sum(map(len, sources.values()))
    if len(found) < 2:
        got = ", ".join(map(repr, found)) or "none"
        raise ValueError(f"{what}: expected at least two classes in the column {column!r}, got {got}")
    if len(found) > labelled / 2:
        raise ValueError(
            f"{what}: expected classes in the column {column!r}, got {len(found)} different values in {labelled} rows"
        )
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else in_order(found)


def in_order(names: set[str]) -> list[str]:
    """Sorted: by value where all are numbers, else as text."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)
