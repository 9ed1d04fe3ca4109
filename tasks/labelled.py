"""Texts with one class each, in three splits without duplicates.

A text is its bytes: the columns of a csv or tsv hold the bytes of the file, and a column of strings or bytes of any
other format is read as bytes.

If a data set has no test or validation split, a tenth of train replaces it, chosen by a seeded hash of each text, so
that the same text is always in the same split:

>>> [deal(text) < TENTH for text in (b"Good.", b"Bad.", b"Bad.")]
[True, False, False]

`sources.py` opens the data set, `labels.py` names the classes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.base import SPLITS
from tasks.cache import Row, Rows, Split, Table, fresh
from tasks.folders import SPLIT_WORDS
from tasks.labels import Classes, name_classes
from tasks.sources import one_line, open_splits

SEED = b"splits"
TENTH = 0.1
BATCH = 1_000  # rows in memory at a time
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
        chosen_split = SPLIT_WORDS.get(test_split.lower(), test_split)
        if chosen_split not in opened or chosen_split == "train":
            others = ", ".join(name for name in opened if name != "train") or "it has train only"
            raise ValueError(f"{what}: expected a test_split of the data ({others}), got {test_split!r}")
        sources["test"] = _flat(opened[chosen_split])
        if chosen_split == "validation":
            del sources["validation"]
        remarks.append(f"the test scores are those of the {chosen_split} split, as requested")
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
    dataset = LabelledRows({}, classes.names, text_column, label_column, {}, unlabelled, remarks + classes.remarks)
    number = {name: index for index, name in enumerate(classes.names)}
    seen: set[bytes] = set()

    def read(split: Split, low: float, high: float) -> Iterator[Row]:
        """The rows of a split of the source with low <= `deal` of the text < high."""
        text, label = columns[split]
        for batch in sources[split].select_columns([text, label]).with_format("arrow").iter(BATCH):
            texts = [stored or b"" for stored in batch.column(text).cast("binary").to_pylist()]
            dealt = [low <= deal(text) < high for text in texts]
            names = [classes.of(split, stored) for stored in batch.column(label).to_pylist()]
            inside = [(text, name) for text, name, mine in zip(texts, names, dealt, strict=True) if mine]
            for ids, (_, name) in zip(encode([text for text, _ in inside]), inside, strict=True):
                if not ids:
                    dataset.left_out["empty"] += 1
                elif not name:
                    dataset.left_out["without a class"] += 1
                else:
                    yield {"ids": ids, "label": number[name]}

    def unique(rows: Iterator[Row]) -> Iterator[Row]:
        for row in fresh(count(rows), "ids", seen):
            dataset.left_out["duplicate"] -= 1
            yield row

    def count(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            dataset.left_out["duplicate"] += 1  # `unique` takes 1 off for each row that `fresh` lets through
            yield row

    low = 0.0
    for split in reversed(SPLITS):
        source, start, end = split, 0.0, 1.0
        if split == "train":
            start = low
        elif split not in sources:
            source, start, end = "train", low, low + TENTH
            low, dataset.carved[split] = end, TENTH
        dataset.splits[split] = Rows(round(len(sources[source]) * (end - start)), unique(read(source, start, end)))
    return dataset


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
    for alike in (plain, {column: folded.rpartition(".")[2] for column, folded in plain.items()}):
        if wanted and len(named := [column for column, folded in alike.items() if folded == wanted]) == 1:
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
        _check_there(features, column, what)
    text, label = column_of(features, text_column), column_of(features, label_column)
    if not label_column:
        named = [column_of(features, name) for name in LABEL_COLUMNS]
        label = next((column for column in named if column and not (text_column and column == text)), "")
    if not label:
        raise ValueError(f"{what}: expected a column of the class, named by --label-column, got none; columns: {there}")
    text = pick_text_column(features, text_column, what, label)
    _check_labels(features[label], repr(label), what)
    return text, label


def pick_text_column(features: Mapping[str, Any], text_column: str, what: str, label: str = "") -> str:
    """The checked name of the column of the text; "" = chosen as in `labelled_rows`. label: the column of the class.

    Raises:
        ValueError: a missing or unsuitable column; the message lists the columns.
    """
    there = _listed(features)
    _check_there(features, text_column, what)
    text = column_of(features, text_column)
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
    return text


def _check_there(features: Mapping[str, Any], column: str, what: str) -> None:
    if column and not column_of(features, column):
        raise ValueError(f"{what}: expected a column {column!r}, got the columns {_listed(features)}")


def _check_count(classes: Classes, sources: Mapping[Split, Table], column: str, what: str) -> None:
    """Raises a ValueError if there are more classes than half the rows."""
    rows, names = sum(map(len, sources.values())), len(classes.names)
    if names > rows / 2:
        raise ValueError(
            f"{what}: expected classes in the column {column!r}, got {names} different values in {rows} rows"
        )
