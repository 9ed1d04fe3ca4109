"""Public and local data through `datasets`: the splits of a file, a folder or a hub id.

Code that comes with data never runs. `folders.py` finds files, `files.py` reads them.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.base import SPLITS
from tasks.cache import Table
from tasks.files import VERSION, read_files, read_texts
from tasks.folders import (
    READERS,
    SPLIT_WORDS,
    files_below,
    files_by_split,
    format_of,
    known_formats,
    suffix_of,
    texts_by_split,
)

BUILDERS = {*READERS.values(), "imagefolder", "cache"}
"""Builders of `datasets` whose data has columns; "cache" opens an earlier download from the hub."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT = 5.0  # seconds
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}


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
    new_names: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name not in SPLITS, known[name] == "eval")):
        meant = free if known[name] == "eval" else known[name]
        new_names[name] = name if meant in new_names.values() else meant
    return {new_names[str(name)]: table for name, table in opened.items()}


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
        return {split: read_files(list(map(Path, paths)), kind) for split, paths in downloaded.items()}
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
