"""Public and local data through `datasets`: a path or a hub id in, splits out; and texts with a class each.

No code that comes with data is run. A text is its bytes, whatever they are: the columns of a csv or tsv arrive as
bytes, as they stand in the file, and a column of strings or bytes of any other format is read as bytes.

Where a data set has no test or validation split, it is carved from train by a seeded hash of each text, so that
the same text always lands in the same split:

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
"""Builders of `datasets` whose data has columns; "cache" opens what was fetched from the hub before."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT = 5.0  # seconds
SEED = b"splits"
TENTH = 0.1
BATCH = 1_000  # rows in memory at a time
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
MAX_LISTED = 20  # columns that a message names
TEXT_TYPES = {"string", "large_string", "binary", "large_binary"}
TEXT_COLUMNS = (
    *("text", "sentence", "content", "review", "comment", "body", "tweet", "message", "document", "utterance"),
    *("review_text", "comment_text", "reviewtext", "question", "query", "title", "headline", "description"),
)
LABEL_COLUMNS = (
    *("label", "labels", "target", "class", "sentiment", "category", "coarse_label", "topic", "intent", "emotion"),
    *("classes", "targets", "polarity", "label_name", "class_name", "y"),
)
"""Found by these names, the earlier first, whatever their case and the spaces around them."""
NO_TEXTS = {"", "id", "idx", "index", "unnamed: 0", "guid", "uuid"}
"""Columns that number the rows."""

Encode = Callable[[list[bytes]], list[bytes]]
"""Texts -> the ids of each, an array as its bytes."""


def open_splits(data: str, what: str) -> Mapping[str, Table]:
    """The splits of a data set, by name, each a `datasets.Dataset`.

    Args:
        data: a csv, tsv, json, json lines, parquet or arrow file, the text ones packed or not; a folder of such
            files, of a folder of texts for each class, a folder written by `save_to_disk`, or a copy of a data set of
            the Hugging Face hub; else a hub id, "owner/name". Where a data set has several configurations, one is
            named behind a colon: "owner/name:config", "folder:config".
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
    splits = named_splits(opened)
    if len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise ValueError(f"{what}: expected a split called train in {data}, got {', '.join(splits)}")
    return splits


def named_splits(opened: Mapping[str, Table]) -> dict[str, Table]:
    """The same splits under the names used here; one that goes by another name gives way to one that has it.

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
    """A name for the data as it is now, fit for a folder: of a hub id, or of names, sizes and times of the files.

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
    """The files that the data of a folder may depend on."""
    if _is_repository(folder) or not (splits := files_by_split(folder)):
        return files_below(folder)
    return [file for files in splits.values() for file in files]


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
    """Whether `datasets` knows better what a folder holds: from its README, or as it holds pictures."""
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
    """A folder, or a data set of the hub: its README may say which files make up which split."""
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
            f"{what}: no file or folder {name!r} here, and the Hugging Face hub cannot be reached (tried "
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
            f"{what}: no file or folder {name!r} here, and no public {kind} of that name on the Hugging Face hub"
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
        text_column, label_column: where they were found in train.
        carved: share of train that each split was made from which the data does not have.
        unlabelled: those of them that are there, but in which no row has a class.
        remarks: what else the user should know of the splits and classes, in words.
        left_out: how many rows were "empty", "without a class" or "duplicate"; whole once all splits are read.
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
    """The texts of a data set with a class each, in three splits without duplicates.

    A split without a class in any row counts as not there.

    Args:
        data, what: as for `open_splits`.
        text_column: "" = the column called text, sentence, content, review or the like; else the only one of strings
            or bytes.
        label_column: "" = the one called label, labels, target, class, sentiment or the like.
        encode: texts to ids; a text without ids counts as empty.
        test_split: the split that serves as test; "" = test.

    Raises:
        ValueError: as `open_splits`; a missing column; labels that are no classes, or only one class.
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
        """The rows of a split of the source whose text is dealt between low and high."""
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
            found.left_out["duplicate"] += 1  # until `unique` sees it come through
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
    """In [0, 1), the same for a text on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=6, key=SEED).digest(), "big") / 2**48


def _flat(table: Table) -> Table:
    """With a column under a dotted name for each part of a nested one."""
    return table.flatten() if any(isinstance(feature, dict) for feature in table.features.values()) else table


def _different(table: Table, column: str) -> list[Any]:
    """The different values of a column of labels."""
    return [None] if table.features[column].dtype == "null" else list(table.unique(column))


def column_of(features: Mapping[str, Any], name: str) -> str:
    """The column of that name, or else the only one that differs in case and outer spaces alone; "" for none.

    Of nested columns the last part is a name too, where no other column has it.
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
    """The columns of a split that train calls so; "" as that of the class where the split has all but that.

    Raises:
        ValueError: a missing column; labels that are no classes.
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
    """Names of the columns of the text and of the class, checked; "" = to be found, as `labelled_rows` says.

    Raises:
        ValueError: naming the columns there.
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
    """Labels are no classes where most rows have one of their own."""
    rows, names = sum(map(len, sources.values())), len(classes.names)
    if names > rows / 2:
        raise ValueError(
            f"{what}: expected classes in the column {column!r}, got {names} different values in {rows} rows"
        )
