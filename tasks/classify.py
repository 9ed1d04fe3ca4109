"""Text classification on your own data: a file, a folder or a data set of the Hugging Face hub.

The tokens of a text are its bytes, or those of a tokenizer; an id is the byte or token + 1, and 0 is padding. Texts
longer than N are cut:

>>> ids, padding = padded([b"good", b"so bad"], limit=5, shift=1)
>>> print(ids)
[[104 112 112 101   0]
 [116 112  33  99  98]]
>>> print(padding.astype(int))
[[0 0 0 0 1]
 [0 0 0 0 0]]

If the data has no validation or test split, or the split has no classes, a tenth of train replaces the split, chosen by
a hash of the text. Of equal texts the task keeps one: in test, else in validation, else in train. It drops empty texts
and rows without a class. Its notes count all of this, and name each class that a split lacks.
"""

import hashlib
import importlib
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, OnProgress, Task, TaskDefaults, register
from tasks.baselines import hashed_ngrams, majority, some_rows
from tasks.cache import Row, Rows, Split, Table, byte_lengths, load_or_compute, padded
from tasks.labelled import Encode, LabelledRows, labelled_rows
from tasks.labels import shown
from tasks.sources import fingerprint, hub_problem, one_line

GENERATOR = 2  # raise it when the same data gives other rows
BYTES = 256
BASELINE_TOKENS = 40_000_000
MAX_NAMED = 20  # classes that are counted in a record by name


class LabelledText(Task):
    """Texts with one class each; `take` cuts them to the length, so one cache serves every length."""

    kind = "sequence"
    vocab_size: int

    dtype: type[np.generic] = np.uint8
    """The type of the ids, before 1 is added."""
    about: dict[str, Any]
    """Facts about the data, known after reading: classes, columns, and the rows left out."""

    def __init__(self, seq_len: int, config: Any = None) -> None:
        super().__init__(seq_len, config)
        self._read: LabelledRows | None = None

    @abstractmethod
    def read(self) -> LabelledRows:
        """The rows, from the source.

        Raises:
            ValueError: what is wrong with the data, in one line.
        """

    def build(self) -> Mapping[Split, Rows]:
        self._read = self.read()
        return {split: Rows(rows.count, self._some(split, rows.rows)) for split, rows in self._read.splits.items()}

    def _some(self, split: Split, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, at least one."""
        row = None
        for row in rows:
            yield row
        if row is None:
            assert self._read is not None
            why = "every row is empty, has no class, or is in another split too"
            if split in self._read.carved:
                why = f"no text fell into the tenth of train that replaces it: add more texts, or a {split} split"
            raise ValueError(f"{self.name}: expected at least one sample, got none for {split}; {why}")

    def _load(self, on_progress: OnProgress) -> Mapping[Split, Table]:
        tables = super()._load(on_progress)
        self.about = load_or_compute(f"{self.name}-{self.cache_key}", "about", self._describe)
        return tables

    def _describe(self) -> dict[str, Any]:
        if self._read is None:  # the process that built the tables ended before it wrote this
            for source in self.build().values():
                deque(source.rows, maxlen=0)
        assert self._read is not None
        return {
            "classes": self._read.classes,
            "columns": [self._read.text_column, self._read.label_column],
            "carved": self._read.carved,
            "unlabelled": self._read.unlabelled,
            "remarks": self._read.remarks,
            "left_out": {what: number for what, number in self._read.left_out.items() if number},
        }

    def lengths_of(self, split: Split) -> NDArray[np.int64]:
        """(size,) length of each sample before it is cut."""
        return byte_lengths(self.tables[split], "ids") // np.dtype(self.dtype).itemsize

    def sample_lengths(self, split: Split) -> NDArray[np.int64]:
        return np.minimum(self.lengths_of(split), self.seq_len)

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        ids, padding = padded(columns["ids"], self.seq_len, dtype=self.dtype, shift=1)
        return Batch(ids, np.array(columns["label"], np.int64), padding)

    @property
    def class_names(self) -> Sequence[str]:
        self.prepare()
        return [str(name) for name in self.about["classes"]]

    def encode(self, texts: Sequence[bytes]) -> list[bytes]:
        """The ids of texts, as the bytes of arrays of `dtype`."""
        return list(texts)

    def ids_of(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        return [np.frombuffer(ids, self.dtype)[: self.seq_len].astype(np.int64) + 1 for ids in self.encode(texts)]

    def baselines(self) -> dict[str, float]:
        """The most frequent class; logistic regression on words and pairs of words of the cut texts.

        If train or test has more than BASELINE_TOKENS, the regression reads a random part.
        """
        splits: tuple[Split, Split] = ("train", "test")
        labels = {split: self.labels(split) for split in splits}
        some = {split: some_rows(self.sample_lengths(split), BASELINE_TOKENS) for split in splits}
        texts = {split: list(map(self._words, self.tables[split][rows]["ids"])) for split, rows in some.items()}
        read = {split: labels[split][rows] for split, rows in some.items()}
        return {
            "majority": majority(labels["train"], labels["test"]),
            "hashed words": hashed_ngrams(texts["train"], read["train"], texts["test"], read["test"]),
        }

    def _words(self, ids: bytes) -> str:
        """A sample as text: its bytes as letters, or its tokens as numbers."""
        tokens = np.frombuffer(ids, self.dtype)[: self.seq_len]
        return tokens.tobytes().decode("latin-1") if self.dtype == np.uint8 else " ".join(map(str, tokens))

    def provenance(self) -> dict[str, str | int]:
        import datasets

        test = self.tables["test"]
        labels = self.labels("test")
        digest = hashlib.sha256(labels.tobytes())
        for ids in test["ids"]:
            digest.update(b"%d " % len(ids) + ids)
        counts = zip(self.about["classes"], np.bincount(labels, minlength=len(self.about["classes"])), strict=True)
        return {
            "generator": GENERATOR,
            "datasets": datasets.__version__,
            "text_column": self.about["columns"][0],
            "label_column": self.about["columns"][1],
            "classes": len(self.about["classes"]),
            "test_classes": ", ".join(f"{name} {count}" for name, count in list(counts)[:MAX_NAMED]),
            "test_sha256": digest.hexdigest(),
            **{f"{split}_samples": self.size(split) for split in SPLITS},
        }

    def notes(self) -> list[str]:
        cut = sum(np.count_nonzero(self.lengths_of(split) > self.seq_len) for split in SPLITS)
        carved, left_out = self.about["carved"], self.about["left_out"]
        notes = [*self.about["remarks"]]
        for split, share in carved.items():
            hidden = split in self.about["unlabelled"]
            why = f"no row of the {split} split has a class" if hidden else f"no {split} split in the data"
            notes.append(f"{why}: {share:.0%} of train replaces it")
        for split in SPLITS:
            counts = np.bincount(self.labels(split), minlength=len(self.about["classes"]))
            if absent := [name for name, count in zip(self.about["classes"], counts, strict=True) if not count]:
                notes.append(f"no row of {split} has the class{'es' if len(absent) > 1 else ''} {shown(absent)}")
        if left_out:
            notes.append("left out: " + ", ".join(f"{number:,} {what}" for what, number in sorted(left_out.items())))
        if cut:
            notes.append(f"{cut:,} of {sum(map(self.size, SPLITS)):,} texts are longer than {self.seq_len}: cut")
        return notes


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Source of the texts and their classes.

    Attributes:
        data: a csv, tsv, json, json lines, parquet or arrow file, a folder of these or of a folder of texts for each
            class, or a hub id (owner/name).
        text_column: column of the text; empty = text, sentence, review or a similar name, else the only text column.
        label_column: column of the class; empty = label, target, class, sentiment or a similar name.
        test_split: split to test on; empty = test or, if test has no classes, a tenth of train.
        tokenizer: a tokenizer.json, a folder with one, or a model of the hub; empty = bytes.
    """

    data: str = ""
    text_column: str = ""
    label_column: str = ""
    test_split: str = ""
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.text_column and self.text_column == self.label_column:
            raise ValueError(
                f"classify.text_column: expected a column other than classify.label_column, got {self.text_column!r}"
            )


@register
class Classify(LabelledText):
    """Text classification on your own data; see the module's docstring.

    Raises:
        ValueError: the config names no data.
    """

    name = "classify"
    summary = "classify texts of your own data"
    min_len = 16
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=1024,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=2e-3,
        conv_width=5,
        embedding_std=1.0,
        tokens_per_step=16_384,
    )
    config_type = ClassifyConfig
    own_data = True

    def __init__(self, seq_len: int, config: ClassifyConfig | None = None) -> None:
        super().__init__(seq_len, config)
        if not self.config.data:
            raise ValueError("classify.data: expected a file, a folder or a hub id, got nothing: pass --data")
        if self.config.tokenizer:
            self.dtype = np.int32

    @cached_property
    def n_classes(self) -> int:  # type: ignore[override]  # an attribute elsewhere
        """The number of classes in the data."""
        self.prepare()
        return len(self.about["classes"])

    @cached_property
    def vocab_size(self) -> int:  # type: ignore[override]
        """257 for bytes, else the number of the tokenizer's ids and 1 for padding."""
        self.prepare()
        return int(self.about["vocab_size"])

    def encode(self, texts: Sequence[bytes]) -> list[bytes]:
        return self._tokenizer[0](list(texts)) if self.config.tokenizer else list(texts)

    @cached_property
    def _tokenizer(self) -> tuple[Encode, int]:
        return open_tokenizer(self.config.tokenizer, self.name)

    @cached_property
    def cache_key(self) -> str:
        config = self.config
        parts = [fingerprint(config.data, self.name), config.text_column, config.label_column, config.test_split]
        if config.tokenizer:
            parts.append(fingerprint_of_tokenizer(config.tokenizer, self.name))
        return f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}-g{GENERATOR}"

    def read(self) -> LabelledRows:
        config = self.config
        return labelled_rows(
            config.data,
            self.name,
            text_column=config.text_column,
            label_column=config.label_column,
            test_split=config.test_split,
            encode=self.encode,
        )

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"vocab_size": 1 + (self._tokenizer[1] if self.config.tokenizer else BYTES)}

    def provenance(self) -> dict[str, str | int]:
        config = self.config
        return {"source": config.data, "tokenizer": config.tokenizer or "bytes", **super().provenance()}


def open_tokenizer(name: str, what: str) -> tuple[Encode, int]:
    """A function from texts to their ids (int32, as bytes), and the number of ids.

    Args:
        name: a tokenizer.json, a folder, or a model of the hub. `transformers` opens a model of the hub and a folder
            without a tokenizer.json. The function adds no special tokens and cuts nothing.
        what: the task's name, for messages.

    Raises:
        ValueError: the tokenizer, or the library that opens it, is missing.
    """
    file = tokenizer_file(name)
    library = "tokenizers" if file else "transformers"
    try:
        module: Any = importlib.import_module(library)
    except ImportError:
        raise ValueError(f"{what}: the tokenizer {name} needs {library}: pip install transformers") from None
    if file:
        with one_line(f"{what}: could not read the tokenizer {file}"):
            fast = module.Tokenizer.from_file(str(file))
        fast.no_truncation()
        fast.no_padding()

        def tokens_of(texts: list[str]) -> list[list[int]]:
            return [encoding.ids for encoding in fast.encode_batch(texts, add_special_tokens=False)]

        vocabulary = fast.get_vocab()
    else:
        folder = Path(name).expanduser()
        out_of_reach = "" if folder.is_dir() else hub_problem(name, "model", what)
        hint = f" (the Hugging Face hub is out of reach: {out_of_reach})" if out_of_reach else ""
        with one_line(f"{what}: could not open the tokenizer {name}{hint}"):
            opened = module.AutoTokenizer.from_pretrained(
                str(folder) if folder.is_dir() else name, local_files_only=bool(out_of_reach), trust_remote_code=False
            )

        def tokens_of(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = opened(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

        vocabulary = opened.get_vocab()

    def encode(texts: list[bytes]) -> list[bytes]:
        decoded = [text.decode("utf-8", "replace") for text in texts]
        return [np.array(ids, np.int32).tobytes() for ids in tokens_of(decoded)] if decoded else []

    return encode, 1 + max(vocabulary.values())


def tokenizer_file(name: str) -> Path | None:
    """The path of the tokenizer.json, if it is on this machine."""
    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    return file.resolve() if file.is_file() else None


def fingerprint_of_tokenizer(name: str, what: str) -> str:
    """A hash of a tokenizer.json; of a folder without one, the `fingerprint`; of a model of the hub, its name."""
    file = tokenizer_file(name)
    if file:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return fingerprint(name, what) if Path(name).expanduser().is_dir() else name
