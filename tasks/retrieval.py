"""Retrieval: does one of two papers cite the other? The model encodes each paper alone, byte by byte.

Tay et al., "Long Range Arena" (arXiv 2011.04006), on pairs of papers of the ACL Anthology Network. The task reads the
files of LRA's release: one pair a line, separated by tabs; quotes are ordinary characters:

>>> label, first, second = parse(b'1.0\\tP05-1\\tW06-2\\tWe say "parse".\\tThey say "parse"', "line 1")
>>> print(label, first, second)
1 b'We say "parse".' b'They say "parse"'

An id is its byte + 1, 0 is padding. A baseline measures how much two texts share, with a larger weight on rarer pieces;
identical texts score 1:

>>> even = np.ones((2, BUCKETS))
>>> print(overlap(even, first, second).round(2))  # byte 4-grams, words, difference in length
[0.56 0.5  0.06]

Departures from LRA: the task drops pairs with an empty text, and pairs that repeat an earlier pair of the same split,
or a pair of test or validation, in either order.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Row, Rows, Split, byte_lengths, fresh, padded

GENERATOR = 1  # raise it when the same files give other rows
FILES: dict[Split, str] = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
COLUMNS = ("label", "id1", "id2", "text1", "text2")
LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
SOURCE = (
    "unpack https://storage.googleapis.com/long-range-arena/lra_release.gz"
    " and pass --data lra_release/lra_release/tsv_data"
)
SAMPLE = 2**20  # bytes at the start of a file that the number of its lines is estimated from
BUCKETS = 2**16
MAX_FITTED = 5_000

Pair = tuple[int, bytes, bytes]
"""A label and two texts."""


def fresh_rows(pairs: Iterable[Pair], seen: set[bytes]) -> Iterator[Row]:
    """A row for each new pair of texts: not in ``seen`` and not among earlier pairs, in either order."""
    rows: Iterator[Row] = (
        {"label": label, "first": first, "second": second, "both": b"\t".join(sorted((first, second)))}
        for label, first, second in pairs
    )
    for row in fresh(rows, "both", seen):
        del row["both"]
        yield row


def pieces(text: bytes) -> NDArray[np.bool_]:
    """(2, BUCKETS) whether a text has the byte 4-grams, and the words, of each hash bucket."""
    marks = np.zeros((2, BUCKETS), np.bool_)
    codes = np.frombuffer(text, np.uint8).astype(np.uint32)
    grams = codes[:-3] | codes[1:-2] << 8 | codes[2:-1] << 16 | codes[3:] << 24
    marks[0, grams * np.uint32(2_654_435_761) >> 16] = True
    marks[1, [zlib.crc32(word) % BUCKETS for word in set(re.findall(rb"\w+", text))]] = True
    return marks


def overlap(weights: NDArray[np.float64], first: bytes, second: bytes) -> NDArray[np.float64]:
    """(3,) of the 4-grams and of the words in either text, the share in both; and the relative difference in length.

    weights: (2, BUCKETS) the weight of each piece.
    """
    one, other = pieces(first), pieces(second)
    common, either = (weights * (one & other)).sum(1), (weights * (one | other)).sum(1)
    shares = np.divide(common, either, out=np.zeros(2), where=either > 0)
    return np.append(shares, abs(len(first) - len(second)) / max(len(first), len(second)))


class PairTask(Task):
    """A yes-or-no question about two texts, from rows of ``label``, ``first`` and ``second``."""

    kind = "pair"
    vocab_size = 257
    n_classes = 2

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        return self._to_batch(columns["label"], columns["first"], columns["second"])

    def _to_batch(self, labels: Sequence[int], first: Sequence[bytes], second: Sequence[bytes]) -> Batch:
        texts = [text for pair in zip(first, second, strict=True) for text in pair]
        ids, padding = padded(texts, self.seq_len, shift=1)
        shape = (len(labels), 2, ids.shape[1])
        return Batch(
            inputs=ids.reshape(shape),
            targets=np.array(labels, np.int64),
            padding=None if padding is None else padding.reshape(shape),
        )

    def _texts(self, split: Split, rows: NDArray[np.int64]) -> Iterator[tuple[bytes, bytes]]:
        """The texts of these samples, read a few at a time."""
        for start in range(0, len(rows), 100):
            columns = self.tables[split][rows[start : start + 100]]
            yield from zip(columns["first"], columns["second"], strict=True)

    def baselines(self) -> dict[str, float]:
        """The more frequent label; logistic regression on the `overlap` of the texts, which weights rare pieces more.

        The weights and the regression are fitted on at most 5,000 pairs of train.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        train, test = self.labels("train"), self.labels("test")
        fitted = np.sort(np.random.default_rng(0).permutation(len(train))[:MAX_FITTED])
        holding = np.zeros((2, BUCKETS))
        for pair in self._texts("train", fitted):
            for text in pair:
                holding += pieces(text)
        weights = np.log((1 + 2 * len(fitted)) / (1 + holding))

        def features(split: Split, rows: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.array([overlap(weights, *pair) for pair in self._texts(split, rows)])

        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(features("train", fitted), train[fitted])
        guesses = model.predict(features("test", np.arange(len(test))))
        return {"majority": majority(train, test), "overlap": float(np.mean(guesses == test))}

    def sizes(self) -> dict[str, int]:
        """The number of samples of each split, and of those with label 1."""
        counted = {split: self.labels(split) for split in SPLITS}
        samples = {f"{split}_samples": len(labels) for split, labels in counted.items()}
        return samples | {f"{split}_positives": int(labels.sum()) for split, labels in counted.items()}


def parse(line: bytes, where: str) -> Pair:
    """Label and texts of a line without its line end.

    Raises:
        ValueError: the fault, and ``where`` it is.
    """
    columns = line.split(b"\t")
    if len(columns) != len(COLUMNS):
        expected = f"{len(COLUMNS)} columns ({', '.join(COLUMNS)}), tab separated"
        raise ValueError(f"retrieval: {where}: expected {expected}, got {len(columns)}")
    if columns[0] not in LABELS:
        known = ", ".join(label.decode() for label in LABELS)
        raise ValueError(f"retrieval: {where}: expected a label among {known}, got {columns[0].decode('latin-1')!r}")
    return LABELS[columns[0]], columns[3], columns[4]


def read_pairs(file: Path) -> Iterator[Pair]:
    r"""Every pair of a file, its texts byte for byte; a line ends in \n or \r\n, and blank lines are skipped.

    A CSV reader would read a line that is too short as a pair with an empty text.

    Raises:
        ValueError: a malformed line, or pairs of one label only.
    """
    labels = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if text := line.removesuffix(b"\n").removesuffix(b"\r"):
                pair = parse(text, f"{file}, line {number}")
                labels.add(pair[0])
                yield pair
    if len(labels) < 2:
        got = f"only pairs labelled {min(labels)}" if labels else "no pairs"
        raise ValueError(f"retrieval: {file}: expected pairs labelled 0 and pairs labelled 1, got {got}")


def estimate_lines(file: Path) -> int:
    """The approximate number of lines of a file, estimated from its first megabyte."""
    with file.open("rb") as opened:
        start = opened.read(SAMPLE)
    return file.stat().st_size * start.count(b"\n") // max(1, len(start))


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Source of the pairs.

    Attributes:
        data: the folder of LRA's three files; required.
    """

    data: str = ""


@register
class Retrieval(PairTask):
    """LRA's retrieval; see the module's docstring."""

    name = "retrieval"
    summary = "does one of two papers cite the other? (LRA; from --data)"
    min_len = 64
    max_len = 65_536
    own_data = True
    config_type = RetrievalConfig
    defaults = TaskDefaults(
        seq_len=4000,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=1e-3,
        conv_width=5,
        embedding_std=1.0,
        tokens_per_step=8192,
    )

    @property
    def files(self) -> dict[Split, Path]:
        """The file of each split.

        Raises:
            ValueError: the folder or one of its files is missing.
        """
        if not self.config.data:
            raise ValueError(f"retrieval: expected a folder with {', '.join(FILES.values())}, got none; {SOURCE}")
        folder = Path(self.config.data).expanduser()
        if not folder.is_dir():
            raise ValueError(f"retrieval: expected a folder, got --data {folder}, which is not a folder; {SOURCE}")
        there = sorted(path.name for path in folder.iterdir())
        missing = [name for name in FILES.values() if name not in there]
        if missing:
            shown = ", ".join(there[:10] + ["…"] * (len(there) > 10)) or "nothing"
            raise ValueError(f"retrieval: expected {', '.join(missing)} in {folder}, got {shown}; {SOURCE}")
        return {split: (folder / name).resolve() for split, name in FILES.items()}

    @property
    def cache_key(self) -> str:
        digest = hashlib.sha256()
        for path in self.files.values():
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return f"{self.seq_len}-{digest.hexdigest()[:16]}-g{GENERATOR}"

    def build(self) -> dict[Split, Rows]:
        seen: set[bytes] = set()
        files = self.files
        return {
            split: Rows(estimate_lines(files[split]), fresh_rows(self._cut(files[split]), seen))
            for split in reversed(SPLITS)
        }

    def _cut(self, file: Path) -> Iterator[Pair]:
        """The pairs of a file without an empty text; texts are cut at N bytes."""
        for label, first, second in read_pairs(file):
            if first and second:
                yield label, first[: self.seq_len], second[: self.seq_len]

    def sample_lengths(self, split: Split) -> NDArray[np.int64]:
        """(size,) bytes in the longer of the two texts."""
        table = self.tables[split]
        return np.maximum(byte_lengths(table, "first"), byte_lengths(table, "second"))

    def provenance(self) -> dict[str, str | int]:
        hashes = {}
        for split, path in self.files.items():
            with path.open("rb") as file:
                hashes[f"{split}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        return {"generator": GENERATOR, **hashes, **self.sizes()}

    def notes(self) -> list[str]:
        read = empty = cut = 0
        for file in self.files.values():
            for _, first, second in read_pairs(file):
                read += 1
                empty += not (first and second)
                cut += max(len(first), len(second)) > self.seq_len
        again = read - empty - sum(self.size(split) for split in SPLITS)
        counts = {
            f"a text cut at {self.seq_len:,} bytes": cut,
            "left out, a text is empty": empty,
            "left out, equal to an earlier pair": again,
        }
        return [f"{count:,} of {read:,} pairs: {what}" for what, count in counts.items() if count]
