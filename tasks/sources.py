"""Public and local data through `datasets`: splits from a path or a hub id, and texts with one class each.

Code that comes with data never runs. A text is its bytes: the columns of a csv or tsv hold the bytes of the file, and a
column of strings or bytes of any other format is read as bytes.

If a data set has no test or validation split, a tenth of train replaces it, chosen by a seeded hash of each text, so
that the same text is always in the same split:

>>> [deal(text) < TENTH for text in (b"Good.", b"Bad.", b"Bad.")]
[True, False, False]

`files.py` reads files, `labels.py` names the classes.
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
from tasks.files import (
    READERS,
    SPLIT_WORDS,
    VERSION,
    files_below,
    files_by_split,
    format_of,
    known_formats,
    read_files,
    read_texts,
    suffix_of,
    texts_by_split,
)
from tasks.labels import Classes, name_classes

BUILDERS = {*READERS.values(), "imagefolder", "cache"}
"""Builders of `datasets` whose data has columns; "cache" opens an earlier download from the hub."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT = 5.0  # seconds
SEED = b"splits"
TENTH = 0.1
BATCH = 1_000  # rows in memory at a time
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
MAX_LISTED = 20  # columns named in a message
TEXT_TYPES = {"string", "large_string", "binary", "large_binary"}
TEXT_COLUMNS = (
    *("text", "sentence", "content", "review", "comment", "body", "tweet", "message", "document", "utterance"),
    *("review_text", "comment_text", "reviewtext", "question", "query", "title", "headline", "description"),
)
LABEL_COLUMNS = (
    *("label", "labels", "target", "class", "sentiment", "category", "coarse_label", "topic", "intent", "emotion"),
    *("classes", "targets", "polarity", "label_name", "class_name", "y"),
)
"""Names of the columns of text and class, the preferred first; case and outer spaces do not count."""
NO_TEXTS = {"", "id", "idx", "index", "unnamed: 0", "guid", "uuid"}
"""Names of columns that number the rows."""

Encode = Callable[[list[bytes]], list[bytes]]
"""Texts -> the ids of each text, as the bytes of an array."""


def open_splits(data: str, what: str) -> Mapping[str, Table]:
    """The splits of a data set, by name, each a `datasets.Dataset`.

    Args:
        data: a csv, tsv, json, json lines, parquet or arrow file (text files may be compressed); a folder of such
            files, a folder with one folder of texts for each class, a folder written by `save_to_disk`, or a copy of a
            data set of the Hugging Face hub; else a hub id, "owner/name". A colon precedes the name of a configuration:
            "owner/name:config", "folder:config".
        what: the task's name, for messages.

    Returns:
        "train" and, if the data has them, "validation", "test" and further splits. A data set with one split returns
        it as "train".

    Raises:
        ValueError: the data is missing or unreadable, or the hub cannot be reached; in one line.
    """
    place, config = split_config(data)
    path = find(place, what)
    if path is None:
        opened = _from_hub(place, config, what)
    else:
        with one_line(f"{what}: could not read {data}"):
            opened = _from_disk(path, config)
    splits = named_splits(opened)
    if len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise ValueError(f"{what}: expected a split called train in {data}, got {', '.join(splits)}")
    return splits


def named_splits(opened: Mapping[str, Table]) -> dict[str, Table]:
    """The splits under the names of this project; a split that already has such a name takes precedence.

    >>> named_splits({"train": 1, "dev": 2, "eval": 3}), named_splits({"Train": 1, "eval": 2, "test": 3})
    ({'train': 1, 'validation': 2, 'test': 3}, {'train': 1, 'validation': 2, 'test': 3})
    """
    names = [str(name) for name in opened]
    known = {name: SPLIT_WORDS.get(name.lower(), name) for name in names}
    free = "validation" if "test" in known.values() and "validation" not in known.values() else "test"
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name not in SPLITS, known[name] == "eval")):
        meant = free if known[name] == "eval" else known[name]
        found[name] = name if meant in found.values() else meant
    return {found[str(name)]: table for name, table in opened.items()}


def split_config(data: str) -> tuple[str, str | None]:
    """The place of a data set, and the configuration after a colon, if any.

    >>> split_config("nyu-mll/glue:sst2"), split_config("stanfordnlp/imdb")
    (('nyu-mll/glue', 'sst2'), ('stanfordnlp/imdb', None))
    """
    place, colon, config = data.rpartition(":")
    if not colon or Path(data).expanduser().exists():
        return data, None
    return (place, config) if HUB_ID.fullmatch(place) or Path(place).expanduser().is_dir() else (data, None)


def find(data: str, what: str) -> Path | None:
    """The file or folder called ``data``; None for a hub id.

    Raises:
        ValueError: neither a file or folder nor a hub id, or a file of an unknown format.
    """
    path = Path(data).expanduser()
    known = known_formats()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        if not format_of(path):
            raise ValueError(f"{what}: expected a file among {known}, or a folder of such, got {data}")
        return path.resolve()
    if HUB_ID.fullmatch(data) and suffix_of(path) not in READERS:
        return None
    raise ValueError(
        f"{what}: expected a file ({known}), a folder, or a hub id (owner/name), got {data!r}, "
        "which is not a file, a folder or a hub id"
    )


def fingerprint(data: str, what: str) -> str:
    """A folder name for the current state of the data: from the hub id, or from names, sizes and times of the files.

    Raises:
        ValueError: as `find`.
    """
    place, config = split_config(data)
    path = find(place, what)
    if path is None:
        return re.sub("[/:]", "--", data)
    digest = hashlib.sha256(f"{VERSION} {config or ''}".encode())
    for file in [path] if path.is_file() else _files_used(path):
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _files_used(folder: Path) -> list[Path]:
    """The files that the data in a folder may depend on."""
    if _is_repository(folder) or not (splits := files_by_split(folder)):
        return files_below(folder)
    return [file for files in splits.values() for file in files]


@contextmanager
def one_line(problem: str) -> Iterator[None]:
    """Turn any exception into a ValueError of one line that starts with ``problem``; `datasets` prints nothing."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # any exception that `datasets`, pandas and Arrow raise on unreadable data
        raise ValueError(f"{problem}: {reason(error)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def reason(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}".removesuffix(": ")


def _from_disk(path: Path, config: str | None) -> Mapping[str, Table]:
    import datasets

    if path.is_file():
        return {"train": read_files([path], format_of(path))}
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if saved_splits := sorted(path.glob("*/state.json")):
        return {file.parent.name: datasets.load_from_disk(str(file.parent)) for file in saved_splits}
    if not _is_repository(path) and config is None:
        if splits := files_by_split(path):
            return {split: read_files(files, format_of(files[0])) for split, files in splits.items()}
        if texts := texts_by_split(path):
            return {split: read_texts(files) for split, files in texts.items()}
    return _from_repository(str(path), config)


def _is_repository(folder: Path) -> bool:
    """Whether `datasets` should read a folder itself: its README declares data, or it mostly holds pictures."""
    readme = folder / "README.md"
    if readme.is_file() and re.match(
        rb"---\s.*^(configs|dataset_info):", readme.read_bytes(), re.DOTALL | re.MULTILINE
    ):
        return True
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return True
    files = files_below(folder)
    pictures = sum(file.suffix.lower() in PICTURES for file in files)
    return pictures > sum(bool(format_of(file)) for file in files)


def _from_repository(source: str, config: str | None) -> Mapping[str, Table]:
    """The splits of a folder or a hub data set whose README may assign files to splits."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    kinds = f"expected files with columns ({known_formats()}) or a folder for each class, got none of these"
    try:
        builder = datasets.load_dataset_builder(source, config)
    except (DataFilesNotFoundError, EmptyDatasetError):
        raise ValueError(kinds) from None
    except ValueError:
        known = datasets.get_dataset_config_names(source)
        if config in known or (config is None and len(known) < 2):
            raise
        got = "none" if config is None else repr(config)
        raise ValueError(
            f"expected a configuration after a colon ({source}:{known[0]}), got {got}; the data has {', '.join(known)}"
        ) from None
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in BUILDERS:
        raise ValueError(kinds)
    files = builder.config.data_files
    if files and (kind in ("csv", "json") or (kind in ("parquet", "arrow") and builder.info.features is None)):
        downloaded = datasets.DownloadManager().download({str(split): list(named) for split, named in files.items()})
        return {split: read_files(list(map(Path, found)), kind) for split, found in downloaded.items()}
    builder.download_and_prepare()
    prepared: Mapping[str, Table] = builder.as_dataset()
    return prepared


def _from_hub(name: str, config: str | None, what: str) -> Mapping[str, Table]:
    """The splits from the hub or, if it cannot be reached, from the cache of `datasets`."""
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
            f"{what}: no file or folder {name!r} here, and the Hugging Face hub cannot be reached (tried "
            f"{datasets.config.HF_ENDPOINT}/datasets/{name}: {out_of_reach}); on a machine with a network: "
            f"hf download --repo-type dataset {name} --local-dir {name.split('/')[1]}; then pass its folder: "
            f"--data {name.split('/')[1]}"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = online


def hub_problem(name: str, kind: str, what: str) -> str:
    """Why the hub cannot be reached, found within seconds; "" if it can. kind: "dataset" or "model".

    Raises:
        ValueError: the hub has no public repository of that name.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).repo_info(name, repo_type=kind, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{what}: no file or folder {name!r} here, and no public {kind} of that name on the Hugging Face hub"
        ) from None
    except Exception as error:  # no network, a proxy's page, a server's error
        return reason(error)
    return ""


@dataclass
class LabelledRows:
    """Texts and classes of three splits, read lazily.

    Attributes:
        splits: rows of "ids", bytes that are never empty, and "label", the number of the class; no two rows share ids.
        classes: name of each class.
        text_column, label_column: names of the columns in train.
        carved: split missing from the data -> share of train that replaces it.
        unlabelled: splits of the data that train replaces because no row has a class.
        remarks: further sentences for the user about splits and classes.
        left_out: numbers of dropped rows: "empty", "without a class", "duplicate"; final after all splits are read.
    """

    splits: dict[Split, Rows]
    classes: list[str]
    text_column: str
    label_column: str
    carved: dict[str, float]
    unlabelled: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def labelled_rows(
    data: str, what: str, *, text_column: str, label_column: str, encode: Encode, test_split: str = ""
) -> LabelledRows:
    """The texts of a data set with one class each, in three splits without duplicates.

    A split in which no row has a class counts as missing.

    Args:
        data, what: as for `open_splits`.
        text_column: "" = the column called text, sentence, content, review or a similar name; else the only column of
            strings or bytes.
        label_column: "" = the column called label, labels, target, class, sentiment or a similar name.
        encode: texts to ids; a text without ids counts as empty.
        test_split: the split to test on; "" = test.

    Raises:
        ValueError: as `open_splits`; a missing column; labels that are not classes; fewer than two classes.
    """
    opened = open_splits(data, what)
    sources = {split: _flat(opened[split]) for split in SPLITS if split in opened}
    remarks = []
    if test_split:
        asked = SPLIT_WORDS.get(test_split.lower(), test_split)
        if asked not in opened or asked == "train":
            others = ", ".join(name for name in opened if name != "train") or "none (the data has train only)"
            raise ValueError(f"{what}: expected test_split among {others}, got {test_split!r}")
        sources["test"] = _flat(opened[asked])
        if asked == "validation":
            del sources["validation"]
        remarks.append(f"the test scores are those of the {asked} split, as requested")
    text_column, label_column = pick_columns(sources["train"].features, text_column, label_column, what)
    columns = {split: _columns_of(split, sources, text_column, label_column, what) for split in sources}
    labelled = {split: names for split, names in columns.items() if names[1]}
    with one_line(f"{what}: {data}"):
        classes = name_classes(
            {split: (sources[split].features[c], _different(sources[split], c)) for split, (_, c) in labelled.items()},
            label_column,
        )
    unlabelled: list[str] = []
    for split in set(sources) - set(labelled) | set(classes.unlabelled):
        if test_split and split == "test":
            raise ValueError(f"{what}: expected classes in the test_split {test_split}, got none")
        unlabelled.append(split)
        del sources[split]
    _check_count(classes, sources, label_column, what)
    found = LabelledRows({}, classes.names, text_column, label_column, {}, unlabelled, remarks + classes.remarks)
    number = {name: index for index, name in enumerate(classes.names)}
    seen: set[bytes] = set()

    def read(split: Split, low: float, high: float) -> Iterator[Row]:
        """The rows of a split of the source with low <= `deal` of the text < high."""
        text, label = columns[split]
        for batch in sources[split].select_columns([text, label]).with_format("arrow").iter(BATCH):
            texts = [found or b"" for found in batch.column(text).cast("binary").to_pylist()]
            dealt = [low <= deal(text) < high for text in texts]
            names = [classes.of(split, stored) for stored in batch.column(label).to_pylist()]
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
            found.left_out["duplicate"] += 1  # `unique` takes 1 off for each row that `fresh` lets through
            yield row

    low = 0.0
    for split in reversed(SPLITS):
        source, start, end = split, 0.0, 1.0
        if split == "train":
            start = low
        elif split not in sources:
            source, start, end = "train", low, low + TENTH
            low, found.carved[split] = end, TENTH
        found.splits[split] = Rows(round(len(sources[source]) * (end - start)), unique(read(source, start, end)))
    return found


def deal(text: bytes) -> float:
    """A number in [0, 1), the same for a text on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=6, key=SEED).digest(), "big") / 2**48


def _flat(table: Table) -> Table:
    """The table with nested columns split into columns with dotted names."""
    return table.flatten() if any(isinstance(feature, dict) for feature in table.features.values()) else table


def _different(table: Table, column: str) -> list[Any]:
    """The distinct values of a column of labels."""
    return [None] if table.features[column].dtype == "null" else list(table.unique(column))


def column_of(features: Mapping[str, Any], name: str) -> str:
    """The column called ``name``, or else the only one whose name differs only in case and outer spaces; "" for none.

    The last part of a dotted name also counts, if it is the last part of one column only.
    """
    if name and name in features:
        return name
    wanted = name.strip().casefold()
    plain = {column: column.strip().casefold() for column in features}
    for alike in (plain, {column: found.rpartition(".")[2] for column, found in plain.items()}):
        if wanted and len(named := [column for column, found in alike.items() if found == wanted]) == 1:
            return named[0]
    return ""


def _listed(features: Mapping[str, Any]) -> str:
    more = f" and {len(features) - MAX_LISTED:,} more" if len(features) > MAX_LISTED else ""
    return ", ".join(list(features)[:MAX_LISTED]) + more


def _columns_of(
    split: Split, sources: Mapping[Split, Table], text_column: str, label_column: str, what: str
) -> tuple[str, str]:
    """The columns of a split with the names in train; "" for the class if the split lacks only that column.

    Raises:
        ValueError: a missing column; labels that are not classes.
    """
    features, trained = sources[split].features, sources["train"].features
    text, label = column_of(features, text_column), column_of(features, label_column)
    there = _listed(features)
    if not text:
        raise ValueError(f"{what}: expected a column {text_column!r} in {split} as in train, got {there}")
    if getattr(features[text], "dtype", "") not in TEXT_TYPES:
        raise ValueError(f"{what}: expected strings or bytes in the column {text!r} of {split}, got {features[text]}")
    if label:
        _check_labels(features[label], f"{label!r} of {split}", what)
    elif others := [name for name in features if not column_of(trained, name)]:
        raise ValueError(
            f"{what}: expected the columns {_listed(trained)} as in train, got {there} in {split}: "
            f"rename the column of the class ({' or '.join(others)}) to {label_column!r}"
        )
    return text, label


def _check_labels(feature: Any, where: str, what: str) -> None:
    if not isinstance(getattr(feature, "dtype", None), str) or feature.dtype in ("dict", "list"):
        raise ValueError(f"{what}: expected one class in each row of the column {where}, got {feature}")


def pick_columns(features: Mapping[str, Any], text_column: str, label_column: str, what: str) -> tuple[str, str]:
    """The checked names of the columns of text and class; "" = chosen as in `labelled_rows`.

    Raises:
        ValueError: a missing or unsuitable column; the message lists the columns.
    """
    there = _listed(features)
    for column in (text_column, label_column):
        if column and not column_of(features, column):
            raise ValueError(f"{what}: expected a column {column!r}, got the columns {there}")
    text, label = column_of(features, text_column), column_of(features, label_column)
    if not label_column:
        named = [column_of(features, name) for name in LABEL_COLUMNS]
        label = next((column for column in named if column and not (text_column and column == text)), "")
    if not label:
        raise ValueError(f"{what}: expected a column of the class, named by --label-column, got none; columns: {there}")
    texts = [name for name in features if name != label and getattr(features[name], "dtype", "") in TEXT_TYPES]
    if not text_column:
        named = [column_of(features, name) for name in TEXT_COLUMNS]
        free = [name for name in texts if name.strip().casefold() not in NO_TEXTS]
        text = next((column for column in named if column and column in texts), free[0] if len(free) == 1 else "")
    if not text:
        raise ValueError(f"{what}: expected a column of the text, named by --text-column, got none; columns: {there}")
    if text not in texts:
        other = "the column of the class" if text == label else f"of {features[text]}"
        raise ValueError(f"{what}: expected a column of strings or bytes, got {text!r}, {other}; columns: {there}")
    _check_labels(features[label], repr(label), what)
    return text, label


def _check_count(classes: Classes, sources: Mapping[Split, Table], column: str, what: str) -> None:
    """Raises a ValueError if there are more classes than half the rows."""
    rows, names = sum(map(len, sources.values())), len(classes.names)
    if names > rows / 2:
        raise ValueError(
            f"{what}: expected classes in the column {column!r}, got {names} different values in {rows} rows"
        )
