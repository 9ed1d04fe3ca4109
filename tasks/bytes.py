"""Masked bytes: restore the hidden 15 % of the bytes of Python source.

The corpus is the standard library of the running Python: real text on every machine, without a download. An id is
its byte + 1; 0 is padding, and 257 replaces a hidden byte:

>>> ids = encode(b"import re")[None]
>>> print(ids[0])
[106 110 113 112 115 117  33 115 102]
>>> batch = mask(ids, np.random.default_rng(2))
>>> print(batch.inputs[0])
[106 110 113 257 115 117  33 257 102]
>>> print(np.where(batch.targets[0] == IGNORE, 0, batch.targets[0]))  # 0 for "not asked", to line up
[  0   0   0 112   0   0   0 115   0]

The text is real, but the task does not test long distances: in minutes a model learns to use nearby bytes, and a
short convolution sees these without attention.

A seeded hash of the path assigns whole files to the splits: *.py of 2 kB or more, no links, no tests, no exact
copies. A split is one stream: its files in the order of the hash, with a zero byte between them. Training windows start
anywhere; validation and test are consecutive windows, the last one padded. Validation has at most 2^16 bytes and
test 2^18: the first 2^14 bytes of each file, in order, as long as they fit, so that no long file dominates a split.
"""

import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tasks.base import IGNORE, SPLITS, Batch, NoConfig, Task, TaskDefaults, register
from tasks.cache import Rows, Split

GENERATOR = 2  # raise it when the same corpus is split in another way
SEED = 0
MASK_RATE = 0.15
SEPARATOR = b"\0"
PAD, MASK = 0, 257
HIDDEN = b"[MASK]"  # in new texts
MAX_TOKENS = {"validation": 2**16, "test": 2**18}
MIN_FILE, MAX_EVAL_FILE = 2_048, 2**14
LEFT_OUT = re.compile(
    r"(tests?|idle_test|site-packages|dist-packages)$"  # not the library itself
    r"|config-|_sysconfigdata"  # made when Python was built, for one machine
    r"|encodings$"  # mostly tables from one template, so near copies would fall into several splits
)


def read_corpus() -> dict[str, bytes]:
    """Relative path -> contents, in the order of the paths; only the first of files with the same contents."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not LEFT_OUT.match(name)]
        paths += [Path(folder, name) for name in names if name.endswith(".py") and not LEFT_OUT.match(name)]
    first: dict[bytes, str] = {}
    for path in sorted(paths, key=Path.as_posix):
        if not path.is_symlink() and path.stat().st_size >= MIN_FILE:
            first.setdefault(path.read_bytes(), path.relative_to(root).as_posix())
    return {name: data for data, name in first.items()}


def sha256_of(files: dict[str, bytes]) -> str:
    """The SHA-256 of the paths and contents of all files."""
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(b"%d %s %d " % (len(name), name.encode(), len(data)) + data)
    return digest.hexdigest()


def deal(corpus: dict[str, bytes]) -> dict[Split, dict[str, bytes]]:
    """The files of each split, about 90 / 5 / 5 % of all, in the order of a seeded hash of their path."""
    splits: dict[Split, dict[str, bytes]] = {split: {} for split in SPLITS}
    room = dict(MAX_TOKENS)
    for name in sorted(corpus, key=rank):
        split: Split = "test" if rank(name) < 0.05 else "validation" if rank(name) < 0.10 else "train"
        data = corpus[name]
        if split != "train":
            data = data[:MAX_EVAL_FILE]
            if len(data) + len(SEPARATOR) > room[split]:
                continue
            room[split] -= len(data) + len(SEPARATOR)
        splits[split][name] = data
    return splits


def rank(name: str) -> float:
    """A number in [0, 1), the same for a path on every machine and in every version of Python."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:{name}".encode()).digest()[:6]) / 2**48


def encode(text: bytes) -> NDArray[np.int64]:
    """The ids of a text, (N,)."""
    return np.frombuffer(text, np.uint8).astype(np.int64) + 1


def mask(ids: NDArray[np.int64], rng: np.random.Generator) -> Batch:
    """Hide each real token with probability 0.15, and at least one in each row of ids (B, N)."""
    padding = ids == PAD
    lot = np.where(padding, np.inf, rng.random(ids.shape))
    hidden = lot <= np.maximum(MASK_RATE, lot.min(axis=1, keepdims=True))
    return Batch(
        inputs=np.where(hidden, MASK, ids),
        targets=np.where(hidden, ids, IGNORE),
        padding=padding if padding.any() else None,
    )


def most_frequent(context: NDArray[np.int32], ids: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """(size,) the most frequent id after each context, `PAD` for an unseen context; context, ids: (N,)."""
    pairs, counts = np.unique(context * MASK + ids, return_counts=True)
    ascending = pairs[np.argsort(counts, kind="stable")]
    table = np.full(size, PAD, np.int64)
    table[ascending // MASK] = ascending % MASK  # of several ids for a context the last, the most frequent, stays
    return table


class Corpus(Task):
    """The base of tasks on Python's standard library: the files of each split, and their streams."""

    kind = "token"
    min_len = 16
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=8192,
        d_model=128,
        n_heads=4,
        n_layers=2,
        lr=4e-3,
        conv_width=5,
        embedding_std=1.0,
        tokens_per_step=8192,
        lr_schedule="constant-then-linear",
        length_schedule="from-16th",
    )

    @cached_property
    def corpus_sha256(self) -> str:
        """Of all files, whatever their split."""
        return sha256_of(read_corpus())

    @property
    def cache_key(self) -> str:
        return f"{self.corpus_sha256[:16]}-g{GENERATOR}"

    def build(self) -> dict[Split, Rows]:
        dealt = deal(read_corpus())
        return {
            split: Rows(len(files), ({"path": path, "data": data} for path, data in files.items()))
            for split, files in dealt.items()
        }

    @cached_property
    def streams(self) -> dict[Split, NDArray[np.uint8]]:
        """The bytes of each split, (N,): its files in order, a zero byte between them."""
        return {
            split: np.frombuffer(SEPARATOR.join(table["data"][:]), np.uint8) for split, table in self.tables.items()
        }

    @property
    def shortest_train(self) -> int:
        return self.min_len

    def size(self, split: Split) -> int:
        """The number of consecutive windows."""
        return -(-len(self.streams[split]) // self.seq_len)

    def provenance(self) -> dict[str, str | int]:
        tokens = {f"{split}_tokens": len(stream) for split, stream in self.streams.items()}
        files = {
            f"{split}_files": 1 + int(np.count_nonzero(stream == SEPARATOR[0]))
            for split, stream in self.streams.items()
        }
        return {
            "generator": GENERATOR,
            "python": platform.python_version(),
            "corpus_sha256": self.corpus_sha256,
            **files,
            **tokens,
        }


@register
class Bytes(Corpus):
    """Masked bytes of Python's standard library; see the module's docstring."""

    name = "bytes"
    causal_form = "next_byte"
    summary = "restore the hidden 15 % of the bytes of Python's standard library, mostly from nearby bytes"
    vocab_size = 258
    n_classes = 257  # `MASK` is never an answer

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self._masked: dict[Split, Batch] = {}

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        """Hides the same bytes on every call."""
        if split not in self._masked:
            stream = self.streams[split]
            ids = np.full((self.size(split), self.seq_len), PAD, np.int64)
            ids.flat[: len(stream)] = stream.astype(np.int64) + 1
            self._masked[split] = mask(ids, np.random.default_rng([SEED, SPLITS.index(split)]))
        inputs, targets = self._masked[split].inputs[rows], self._masked[split].targets[rows]
        padding = inputs == PAD
        return Batch(inputs, targets, padding if padding.any() else None)

    def ids_of(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        """Each ``[MASK]`` in a text hides one byte."""
        return [self._hidden(text)[: self.seq_len] for text in texts]

    def _hidden(self, text: bytes) -> NDArray[np.int64]:
        first, *others = map(encode, text.split(HIDDEN))
        return np.concatenate([first, *(part for other in others for part in (np.array([MASK]), other))])

    def hidden(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.equal(ids, MASK)

    def filled(self, text: bytes, answers: NDArray[np.int64]) -> bytes:
        first, *others = text.split(HIDDEN)
        found = [bytes([max(answer, 1) - 1]) for answer in answers] + [HIDDEN] * (len(others) - len(answers))
        return first + b"".join(answer + other for answer, other in zip(found, others, strict=True))

    def _train(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Iterator[Batch]:
        """Windows start anywhere; each window hides other bytes."""
        windows = sliding_window_view(self.streams["train"], seq_len)
        while True:
            rows = rng.integers(len(windows), size=batch_size)
            yield mask(windows[rows].astype(np.int64) + 1, rng)

    def baselines(self) -> dict[str, float]:
        """The most frequent byte; the most frequent byte between the same two neighbours.

        If the pair of neighbours is not in train, or one neighbour is hidden, the left neighbour alone decides, then
        the right neighbour alone, then the most frequent byte.
        """
        train = self.streams["train"].astype(np.int32) + 1
        left, middle, right = train[:-2], train[1:-1], train[2:]
        unigram = int(np.bincount(middle).argmax())
        by_both = most_frequent(left * self.vocab_size + right, middle, self.vocab_size**2)
        by_left = most_frequent(left, middle, self.vocab_size)
        by_right = most_frequent(right, middle, self.vocab_size)

        test = self.whole("test")
        rows, columns = np.nonzero(test.targets != IGNORE)
        answers = test.targets[rows, columns]
        framed = np.pad(test.inputs, ((0, 0), (1, 1)), constant_values=PAD)
        before, after = framed[rows, columns], framed[rows, columns + 2]
        guesses = by_both[before * self.vocab_size + after]
        for backed_off in (by_left[before], by_right[after], unigram):
            guesses = np.where(guesses == PAD, backed_off, guesses)
        return {"unigram": float(np.mean(answers == unigram)), "neighbours": float(np.mean(answers == guesses))}
