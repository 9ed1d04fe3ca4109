"""Arrow tables held by `datasets`, built once and kept on disk.

The folder is `$ATTENTION_ZOO_CACHE`, or `~/.cache/attention-zoo`.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Columns: TypeAlias = dict[str, list[str] | list[bytes] | NDArray[np.int16]]
"""Column name -> one entry per sample."""
Table: TypeAlias = Any
"""A `datasets.Dataset`; imported where it is used, which takes a second."""
Split: TypeAlias = Literal["train", "validation", "test"]


def load_or_build(key: str, build: Callable[[], Mapping[Split, Columns]]) -> Mapping[Split, Table]:
    """The `DatasetDict` cached under `key`; built and saved first where it is missing or unreadable.

    It is built in a folder of its own and moved into place in one step: an interrupted build leaves
    nothing that could pass for whole.
    """
    import datasets

    datasets.disable_progress_bars()
    root = Path(os.environ.get("ATTENTION_ZOO_CACHE") or Path.home() / ".cache" / "attention-zoo")
    folder = root / key
    if folder.exists():
        try:
            return _load(folder)
        except Exception as error:  # whatever `datasets` and Arrow raise on a damaged folder
            warnings.warn(f"rebuilding the unreadable cache {folder}: {error}", stacklevel=2)
            shutil.rmtree(folder)

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=root, ignore_cleanup_errors=True) as scratch:
        unfinished = Path(scratch) / key
        splits = {split: datasets.Dataset.from_dict(columns) for split, columns in build().items()}
        datasets.DatasetDict(splits).save_to_disk(str(unfinished))
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process has moved the same data into place first.
    return _load(folder)


def _load(folder: Path) -> Mapping[Split, Table]:
    import datasets

    loaded: Mapping[Split, Table] = datasets.load_from_disk(str(folder))
    return loaded


def matrix(table: Table, column: str) -> NDArray[np.int16]:
    """A column of equally long lists as (rows, length): Arrow's own buffer, no Python per sample."""
    values: NDArray[np.int16] = table.data.column(column).combine_chunks().flatten().to_numpy()
    return values.reshape(len(table), -1)
