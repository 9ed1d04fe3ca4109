"""The data files of a folder: their formats, and the splits that their names mean.

A word in the name of a file, or else of a folder around it, names the split:

>>> [split_of(Path(name)) for name in ("labeledTrainData.tsv", "dev/part-0.csv", "latest.csv")]
['train', 'validation', '']

Text files may be compressed with gzip, bzip2 or zstd.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tasks.cache import folder_of

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
    kind = READERS.get(suffix_of(path), "")
    return "" if kind in ("parquet", "arrow") and path.suffix.lower() in PACKED else kind


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
    files = []
    for here, folders, names in os.walk(folder, followlinks=True):
        place, written = Path(here), set(PACKAGES)
        if _is_results(place, names):
            written |= OURS if place == folder else {*folders, *names}
        for name in folders.copy():
            inside = (place / name).resolve()
            if name.startswith((".", "__")) or name in written or inside in seen:
                folders.remove(name)
            seen.add(inside)
        files += [place / name for name in names if not name.startswith(".") and name not in written]
    return sorted(file for file in files if file.is_file())


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
