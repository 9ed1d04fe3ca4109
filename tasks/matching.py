"""Matching: do two chunks of source come from one file?

LRA's retrieval (arXiv 2011.04006, here `retrieval`) on text that every machine has: the standard library of the running
Python, as in `bytes`. A text is a file from its first statement on, without opening comments and docstring:

>>> body(b"# Copyright 2001\\n'Heaps.'\\n\\nimport operator\\n")
b'import operator\\n'

Two chunks of N bytes come from one file, without overlap (label 1), or from two files of one package (label 0). N = 4:

>>> lower, upper = b"abcdefghijklmnop", b"ABCDEFGHIJKLMNOP"
>>> rng = np.random.default_rng(0)
>>> chunks(rng, lower, lower, seq_len=4)
(b'cdef', b'jklm')
>>> chunks(rng, lower, upper, seq_len=4)
(b'LMNO', b'abcd')

Neither a chunk alone, nor its position in the file, nor its file reveals the label: a file is equally frequent under
both labels, all chunks have N bytes, and both labels draw the relative position of a chunk in its file in the same way.
Texts of less than 2 N bytes are dropped. The hash of the path assigns whole files to the splits, 80 / 10 / 10 %.

An id is its byte + 1; 0 is padding, which this task never has.
"""

import io
import platform
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import PurePosixPath

import numpy as np

from tasks.base import SPLITS, Batch, TaskDefaults, register
from tasks.bytes import rank, read_corpus, sha256_of
from tasks.cache import Rows, Split
from tasks.retrieval import Pair, PairTask, fresh_rows

GENERATOR = 1  # raise it when the same corpus gives other pairs
SEED = 201104006
EVAL_SAMPLES = 2_000
INTRODUCTION = (tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.STRING, tokenize.NEWLINE)


def body(source: bytes) -> bytes:
    """A file from its first statement on, without opening comments and docstring."""
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    first = next(token for token in tokens if token.type not in INTRODUCTION)
    return b"".join(io.BytesIO(source).readlines()[first.start[0] - 1 :])


def neighbours(names: Iterable[str]) -> dict[str, list[str]]:
    """Each file -> the other files of its package.

    Top-level modules form one package, together with files that are alone in their folder. A file without others in its
    package is dropped.
    """
    packages = defaultdict(list)
    for name in names:
        packages[PurePosixPath(name).parent].append(name)
    top = PurePosixPath()
    for package in [package for package, members in packages.items() if package != top and len(members) == 1]:
        packages[top] += packages.pop(package)
    mates = {name: [other for other in members if other != name] for members in packages.values() for name in members}
    return {name: others for name, others in mates.items() if others}


def chunks(rng: np.random.Generator, early: bytes, late: bytes, *, seq_len: int) -> tuple[bytes, bytes]:
    """A chunk of each text, (seq_len,) bytes, in random order; each text has at least twice as many bytes.

    The chunk of ``early`` leaves room for a chunk after it, the chunk of ``late`` for one before it: two chunks of the
    same text never overlap. Their relative positions in the remaining room do not depend on the texts.
    """
    places = np.sort(rng.random(2))
    start, end = (int(place * (len(text) - 2 * seq_len + 1)) for place, text in zip(places, (early, late), strict=True))
    one, other = early[start : start + seq_len], late[end + seq_len : end + 2 * seq_len]
    return (one, other) if rng.random() < 0.5 else (other, one)


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """The number of pairs.

    Attributes:
        samples: pairs in train; validation and test have 2,000 each.
    """

    samples: int = 20_000

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"expected matching.samples >= 2, one pair of each label, got {self.samples}")


@register
class Matching(PairTask):
    """Chunks of one file or of two; see the module's docstring."""

    name = "matching"
    summary = "do two chunks come from one file of Python's standard library?"
    min_len = 64
    max_len = 8192
    config_type = MatchingConfig
    defaults = TaskDefaults(
        seq_len=512,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=2e-3,
        conv_width=5,
        embedding_std=1.0,
        tokens_per_step=8192,
    )

    @cached_property
    def corpus(self) -> dict[str, bytes]:
        """Path -> contents of every file."""
        return read_corpus()

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """Path -> text of every file."""
        return {name: body(data) for name, data in self.corpus.items()}

    @property
    def files(self) -> dict[Split, dict[str, list[str]]]:
        """The files of each split that are long enough for two chunks, each with the other files of its package."""
        dealt: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for name, text in self.texts.items():
            if len(text) >= 2 * self.seq_len:
                split: Split = "test" if rank(name) < 0.1 else "validation" if rank(name) < 0.2 else "train"
                dealt[split].append(name)
        return {split: neighbours(names) for split, names in dealt.items()}

    @cached_property
    def corpus_sha256(self) -> str:
        """Of the files as they are."""
        return sha256_of(self.corpus)

    @property
    def cache_key(self) -> str:
        return f"{self.seq_len}-{self.config.samples}-{self.corpus_sha256[:16]}-g{GENERATOR}"

    def build(self) -> dict[Split, Rows]:
        seen: set[bytes] = set()
        files, built = self.files, dict[Split, Rows]()
        for stream, split in enumerate(reversed(SPLITS), start=1):
            if not files[split]:
                raise ValueError(
                    f"matching: expected two files of {2 * self.seq_len:,} bytes or more for {split} in the standard"
                    f" library, got fewer among {len(self.texts)} files: choose a shorter seq_len"
                )
            count = self.config.samples if split == "train" else EVAL_SAMPLES
            rng = np.random.default_rng([SEED, stream])
            labels = [fresh_rows(self._pairs(rng, files[split], label, self.seq_len), seen) for label in (0, 1)]
            built[split] = Rows(count, islice(map(next, cycle(labels)), count))
        return built

    @property
    def shortest_train(self) -> int:
        return self.min_len

    def _train(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Iterator[Batch]:
        """At shorter lengths every batch has new pairs, from the same files."""
        if seq_len == self.seq_len:
            yield from super()._train(rng, batch_size, seq_len)
        files = self.files["train"]
        pairs = [self._pairs(rng, files, label, seq_len) for label in (0, 1)]
        while True:
            yield self._to_batch(*zip(*(next(pairs[label]) for label in rng.integers(2, size=batch_size)), strict=True))

    def _pairs(self, rng: np.random.Generator, files: dict[str, list[str]], label: int, seq_len: int) -> Iterator[Pair]:
        """An endless stream of pairs of one label."""
        names = list(files)
        while True:
            early = late = names[rng.integers(len(names))]
            if label == 0:
                late = files[early][rng.integers(len(files[early]))]
            yield label, *chunks(rng, self.texts[early], self.texts[late], seq_len=seq_len)

    def provenance(self) -> dict[str, str | int]:
        return {
            "generator": GENERATOR,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "corpus_sha256": self.corpus_sha256,
            **{f"{split}_files": len(names) for split, names in self.files.items()},
            **self.sizes(),
        }

    def notes(self) -> list[str]:
        left_out = len(self.texts) - sum(map(len, self.files.values()))
        return [f"{left_out} of {len(self.texts)} files left out, most too short for two chunks"] if left_out else []
