# Longer than 400 lines: generator, reader and baselines share the symbols and the arithmetic of expressions.
"""ListOps: the value of a nested expression of list operations on single digits.

Nangia & Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning" (arXiv 1804.06028), in the long form of
Long Range Arena (Tay et al., arXiv 2011.04006; google-research/long-range-arena, lra_benchmarks/data/listops.py).
MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10) take two to ten arguments. Each argument is a digit
or, with probability 1/4 down to the ninth level, another expression. An operator and its bracket are one symbol:

>>> ids, label = generate(np.random.default_rng(3), 40, seq_len=16, min_len=10)[0]
>>> decode(ids), label
('[SM [MED 7 4 3 4 4 2 ] 0 0 ]', 4)

Long Range Arena's files have parentheses around every step; the reader drops them, as Long Range Arena does:

>>> list(encode("( ( ( [MED 1 ) ( ( ( [MAX 8 ) 3 ) ] ) ) ] )"))
[13, 2, 12, 9, 4, 15, 15]

The root is an operator, and min_len < length < seq_len (500 and 2000 in Long Range Arena): the generator draws trees
until enough of them fit. It grows many trees at a time, level by level, and drops a tree as soon as it outgrows
seq_len; the distribution of the trees that fit is the same as without early dropping.

How to read an accuracy at length 2000: the most frequent class is right in 17 % of the samples, a guess from the
operator at the root in 36 %, a guess from this operator and its own digits in 49 %. The results in Long Range Arena's
table are near the first two of these baselines: 37.3 Reformer, 37.0 Synthesizer, 36.4 Transformer, 36.1 BigBird, 35.7
Linformer, 35.6 Longformer (and 33.7 Sinkhorn), but 18.0 Performer, 17.1 Sparse, 16.1 Linear, 15.8 Local.

Departures from Long Range Arena, whose generator has no seed:
- Beyond seq_len 2000, trees may be deeper, by log(seq_len / 2000) / log(1.5) levels, since one level makes them 1.5
  times as long: almost no tree with ten levels is longer than 8000.
- With short trees and many samples, the generator draws the same tree often. The first of the splits test, validation
  and train that draws a tree keeps it, once; Long Range Arena divides the set of all drawn trees among the splits.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task, TaskDefaults, register
from tasks.cache import Row, Rows, Split, byte_lengths, fresh, padded
from tasks.parallel import in_parallel

GENERATOR = 1  # raise it when the same arguments or files give something else
SEED = 180406028
NESTED = 0.25  # P(an argument is an expression)
ARITIES = range(2, 11)
LEVELS, LEVELS_FOR = 10, 2000
EVAL_SAMPLES = 2000
CHUNK_TOKENS = 2**21  # tokens of the trees that grow at a time
ONE_CORE_TOKENS = 2**24  # smaller splits take less time than starting other processes

OPERATORS = ["[MIN", "[MAX", "[MED", "[SM"]
SYMBOLS = ["", *map(str, range(10)), *OPERATORS, "]"]
"""By id; 0 is padding."""
ID_OF = {symbol: number for number, symbol in enumerate(SYMBOLS) if symbol}
DIGIT, OPERATOR, CLOSE = ID_OF["0"], ID_OF["[MIN"], ID_OF["]"]

FILES: dict[Split, str] = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
SOURCE, TARGET = "Source", "Target"
LADDER = ("majority class", "root operator", "root operator and its digits")

Ints = NDArray[np.int64]


def encode(text: str) -> bytes:
    """The ids of an expression with spaces or parentheses between its symbols, a byte each.

    Raises:
        ValueError: a symbol that ListOps does not have, or no symbol at all.
    """
    symbols = text.replace("(", " ").replace(")", " ").split()
    if not symbols:
        raise ValueError("expected an expression, got none")
    try:
        return bytes([ID_OF[symbol] for symbol in symbols])
    except KeyError as error:
        unknown = str(error.args[0])[:20]
        raise ValueError(f"expected digits, {', '.join(OPERATORS)} and ], got {unknown!r}") from None


def decode(ids: bytes) -> str:
    """The expression of these ids, with a space between its symbols."""
    return " ".join(SYMBOLS[number] for number in ids)


def levels_for(seq_len: int) -> int:
    """The maximal depth of a tree, its root included."""
    children = NESTED * (ARITIES[0] + ARITIES[-1]) / 2
    return LEVELS + max(0, round(math.log(seq_len / LEVELS_FOR, children)))


def before(sizes: Ints) -> Ints:
    """The start of each of these neighbouring spans."""
    return np.cumsum(sizes) - sizes


def grow(rng: np.random.Generator, roots: int, *, seq_len: int, min_len: int) -> list[Ints]:
    """Draw ``roots`` trees, and keep those that fit.

    Returns:
        Level by level from the root, the number of arguments of each node, 0 for a digit; nodes are in the order of
        their parents.
    """
    depth = levels_for(seq_len)
    tree, arity = np.arange(roots), rng.integers(ARITIES.start, ARITIES.stop, roots)
    lengths = np.ones(roots, np.int64)
    levels = [(tree, arity)]
    for level in range(2, depth + 1):
        # An expression adds its bracket and at least one symbol for each argument.
        lengths += np.bincount(tree, arity + (arity > 0), roots).astype(np.int64)
        tree = np.repeat(tree, np.where(lengths[tree] < seq_len, arity, 0))
        nested = (rng.random(len(tree)) < NESTED) & (level < depth)
        arity = np.where(nested, rng.integers(ARITIES.start, ARITIES.stop, len(tree)), 0)
        levels.append((tree, arity))
    fits = (min_len < lengths) & (lengths < seq_len)
    return [arity[fits[tree]] for tree, arity in levels]


def apply(operators: Ints, values: Ints, arity: Ints) -> Ints:
    """The value of each operator; ``values`` holds the arguments of one operator after those of another."""
    first = before(arity)
    ordered = np.sort(10 * np.repeat(np.arange(len(arity)), arity) + values) % 10  # within each operator
    smallest, largest = ordered[first], ordered[first + arity - 1]
    median = (ordered[first + (arity - 1) // 2] + ordered[first + arity // 2]) // 2
    return np.choose(operators, [smallest, largest, median, np.add.reduceat(values, first) % 10])


def generate(rng: np.random.Generator, roots: int, *, seq_len: int, min_len: int) -> list[tuple[bytes, int]]:
    """Ids and value of each of ``roots`` trees with min_len < length < seq_len."""
    levels = grow(rng, roots, seq_len=seq_len, min_len=min_len)
    if not len(levels[0]):
        return []

    # Upwards: the symbol of each node, its value, and the number of symbols that it spans.
    nodes: list[tuple[Ints, Ints, Ints]] = []
    values = spans = np.empty(0, np.int64)
    for arity in reversed(levels):
        below_values, below_spans = values, spans
        values, spans = rng.integers(10, size=len(arity)), np.ones(len(arity), np.int64)
        symbols = DIGIT + values
        inner = arity > 0
        if inner.any():
            operators = rng.integers(len(OPERATORS), size=np.count_nonzero(inner))
            symbols[inner] = OPERATOR + operators
            values[inner] = apply(operators, below_values, arity[inner])
            spans[inner] = 2 + np.add.reduceat(below_spans, before(arity[inner]))
        nodes.append((arity, symbols, spans))

    # Downwards: the start of each node in the text of all trees.
    ends = np.cumsum(spans)
    ids = np.empty(ends[-1], np.uint8)
    starts, arguments = np.array([-1]), np.array([len(spans)])  # as if one more node held the roots
    for arity, symbols, widths in reversed(nodes):
        offsets = before(widths)
        starts = offsets + np.repeat(starts + 1 - offsets[before(arguments)], arguments)
        ids[starts] = symbols
        inner = arity > 0
        starts, arguments = starts[inner], arity[inner]
        ids[starts + widths[inner] - 1] = CLOSE
    text = ids.tobytes()
    samples = zip(ends.tolist(), spans.tolist(), values.tolist(), strict=True)
    return [(text[end - span : end], value) for end, span, value in samples]


def generate_chunk(seq_len: int, min_len: int, stream: int, number: int) -> list[tuple[bytes, int]]:
    """One chunk of an endless stream of samples."""
    rng = np.random.default_rng([SEED, stream, number])
    return generate(rng, CHUNK_TOKENS // seq_len, seq_len=seq_len, min_len=min_len)


def read(path: Path) -> Iterator[tuple[bytes, int]]:
    """Ids and class of each line of a file of Long Range Arena.

    Raises:
        ValueError: the fault, and the number of its line.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        header = next(lines, "")
        columns = header.rstrip("\n").split("\t")
        if not header:
            raise ValueError(f"{path}: expected the columns {SOURCE} and {TARGET}, got an empty file")
        if not {SOURCE, TARGET} <= set(columns):
            names = ", ".join(column[:20] for column in columns[:10])
            raise ValueError(f"{path}: expected the columns {SOURCE} and {TARGET}, separated by tabs, got {names}")
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            cells = line.rstrip("\n").split("\t")
            if len(cells) != len(columns):
                raise ValueError(f"{path}, line {number}: expected {len(columns)} columns, got {len(cells)}")
            row = dict(zip(columns, cells, strict=True))
            label = row[TARGET].strip()
            if label not in ID_OF or ID_OF[label] >= OPERATOR:
                raise ValueError(f"{path}, line {number}: expected a {TARGET} from 0 to 9, got {label[:20]!r}")
            try:
                ids = encode(row[SOURCE])
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield ids, int(label)


def inspect(path: Path) -> tuple[str, int]:
    """The sha256 of a file and the number of its samples."""
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            lines += bool(line.strip())
    return digest.hexdigest(), max(0, lines - 1)


def root_keys(rows: list[bytes]) -> Ints:
    """(3, rows) keys of the baselines: 0; the operator at the root; the operator with its value over its own digits."""
    lengths = np.array([len(row) for row in rows])
    ids = np.frombuffer(b"".join(rows), np.uint8)
    row, first = np.repeat(np.arange(len(rows)), lengths), before(lengths)
    opened, closed = (ids >= OPERATOR) & (ids < CLOSE), ids == CLOSE
    depth = np.cumsum(opened.astype(np.int64) - closed)
    depth -= (depth - opened)[first][row]  # brackets that earlier rows leave open because they are cut
    own = (ids < OPERATOR) & (depth == 1) & opened[first][row]
    counts = np.bincount(row[own], minlength=len(rows))
    some = counts > 0
    root = ids[first].astype(np.int64)
    made = np.full(len(rows), 10)
    made[some] = apply(root[some] - OPERATOR, ids[own].astype(np.int64) - DIGIT, counts[some])
    return np.stack([np.zeros_like(root), root, 11 * root + made])


def most_frequent(keys: Ints, labels: Ints, new_keys: Ints, otherwise: Ints) -> Ints:
    """The most frequent label of each key in ``new_keys``; ``otherwise`` for a key that is not in ``keys``."""
    known, index = np.unique(keys, return_inverse=True)
    best = np.bincount(10 * index + labels, minlength=10 * len(known)).reshape(-1, 10).argmax(axis=1)
    place = np.minimum(np.searchsorted(known, new_keys), len(known) - 1)
    return np.where(known[place] == new_keys, best[place], otherwise)


@dataclass(frozen=True, kw_only=True)
class ListopsConfig:
    """The set of expressions.

    Attributes:
        samples: training samples; validation and test have an eighth of that each, at most 2000.
        min_len: every expression is longer than this; 0 = seq_len // 4.
        data: folder with Long Range Arena's basic_train.tsv, basic_val.tsv and basic_test.tsv; empty: generate.
    """

    samples: int = 96_000
    min_len: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"expected listops.samples >= 1, got {self.samples}")
        if self.min_len < 0:
            raise ValueError(f"expected listops.min_len >= 0, got {self.min_len}")
        if self.data:
            if (self.samples, self.min_len) != (ListopsConfig.samples, ListopsConfig.min_len):
                raise ValueError("listops.data cannot be combined with listops.samples or listops.min_len: drop them")
            missing = [name for name in FILES.values() if not self.file(name).is_file()]
            if missing:
                raise ValueError(
                    f"expected {', '.join(FILES.values())} in the folder listops.data={self.data}, "
                    f"but {', '.join(missing)} missing"
                )

    def file(self, name: str) -> Path:
        """A file of the folder ``data``; ~ is the home folder."""
        return Path(self.data).expanduser() / name


@register
class Listops(Task):
    """Nested list operations on digits; see the module's docstring."""

    name = "listops"
    fixed_places = "the operator at the root comes first; a baseline scores a guess from it alone"
    kind = "sequence"
    summary = "the value of a nested expression of MIN, MAX, MED and SM (Long Range Arena)"
    min_len = 16
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=2000,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=1e-3,
        conv_width=None,
        embedding_std=1.0,
        tokens_per_step=16_000,
    )
    config_type = ListopsConfig

    vocab_size = len(SYMBOLS)
    n_classes = 10

    config: ListopsConfig

    def __init__(self, seq_len: int, config: ListopsConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.longer_than = self.config.min_len or seq_len // 4
        if self.longer_than > seq_len - 2:
            raise ValueError(f"expected listops.min_len <= {seq_len - 2} at seq_len {seq_len}, got {self.longer_than}")

    @property
    def cache_key(self) -> str:
        if self.config.data:
            files = hashlib.sha256("".join(digest for digest, _ in self.files.values()).encode()).hexdigest()
            return f"{self.seq_len}-{files[:16]}-g{GENERATOR}"
        return f"{self.seq_len}-{self.longer_than}-{self.config.samples}-g{GENERATOR}"

    @cached_property
    def files(self) -> dict[Split, tuple[str, int]]:
        """The sha256 of each file of ``data`` and the number of its samples."""
        return {split: inspect(self.config.file(name)) for split, name in FILES.items()}

    def build(self) -> dict[Split, Rows]:
        seen: set[bytes] = set()
        built: dict[Split, Rows] = {}
        for stream, split in enumerate(reversed(SPLITS), start=1):
            if self.config.data:
                built[split] = Rows(self.files[split][1], fresh(self._read(split), "ids", seen))
            else:
                samples = self.config.samples
                count = samples if split == "train" else min(EVAL_SAMPLES, max(1, samples // 8))
                built[split] = Rows(count, itertools.islice(fresh(self._generate(stream, count), "ids", seen), count))
        return built

    def _read(self, split: Split) -> Iterator[Row]:
        for ids, label in read(self.config.file(FILES[split])):
            yield {"ids": ids[: self.seq_len], "label": label, "length": len(ids)}

    def _generate(self, stream: int, count: int) -> Iterator[Row]:
        """An endless stream of rows."""
        make = partial(generate_chunk, self.seq_len, self.longer_than, stream)
        few = count * self.seq_len <= ONE_CORE_TOKENS
        for chunk in map(make, itertools.count()) if few else in_parallel(make, itertools.count()):
            for ids, label in chunk:
                yield {"ids": ids, "label": label}

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        return self._to_batch(columns["ids"], columns["label"])

    def _to_batch(self, expressions: Sequence[bytes], values: Sequence[int]) -> Batch:
        inputs, padding = padded(list(expressions), self.seq_len)
        return Batch(inputs, np.array(values, np.int64), padding)

    @property
    def shortest_train(self) -> int:
        """Files have no shorter expressions."""
        return self.seq_len if self.config.data else self.min_len

    def _train(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> Iterator[Batch]:
        """At shorter lengths every batch has new expressions, with all lengths in proportion."""
        if seq_len == self.seq_len:
            yield from super()._train(rng, batch_size, seq_len)
        roots, longer_than = CHUNK_TOKENS // self.seq_len, min(self.longer_than * seq_len // self.seq_len, seq_len - 2)
        drawn = (
            sample for _ in itertools.count() for sample in generate(rng, roots, seq_len=seq_len, min_len=longer_than)
        )
        while True:
            yield self._to_batch(*zip(*itertools.islice(drawn, batch_size), strict=True))

    def sample_lengths(self, split: Split) -> NDArray[np.int64]:
        return byte_lengths(self.tables[split], "ids")

    def baselines(self) -> dict[str, float]:
        """The most frequent class of train: among all samples; for the operator at the root; for this operator and the
        value of its own digits. If train has no sample with that operator and value, the operator alone decides.
        """

        def keys_and_labels(split: Split) -> tuple[Ints, Ints]:
            parts = [(root_keys(batch["ids"]), batch["label"]) for batch in self.tables[split].iter(1000)]
            return np.concatenate([keys for keys, _ in parts], axis=1), np.concatenate([labels for _, labels in parts])

        (train, labels), (test, answers) = keys_and_labels("train"), keys_and_labels("test")
        scores = {}
        guess = np.zeros_like(answers)
        for name, train_keys, test_keys in zip(LADDER, train, test, strict=True):
            guess = most_frequent(train_keys, labels, test_keys, guess)
            scores[name] = float(np.mean(guess == answers))
        return scores

    def provenance(self) -> dict[str, str | int]:
        test = hashlib.sha256()
        balance = np.zeros(self.n_classes, np.int64)
        for batch in self.tables["test"].iter(1000):
            test.update(b"".join(batch["ids"]) + bytes(batch["label"]))
            balance += np.bincount(batch["label"], minlength=self.n_classes)
        source: dict[str, str | int]
        if self.config.data:
            source = {f"{split}_file_sha256": digest for split, (digest, _) in self.files.items()}
        else:
            source = {
                "generator": GENERATOR,
                "numpy": np.__version__,
                "longer_than": self.longer_than,
                "levels": levels_for(self.seq_len),
            }
        return {
            **source,
            **{f"{split}_samples": self.size(split) for split in SPLITS},
            **{f"test_label_{label}": int(number) for label, number in enumerate(balance)},
            "test_sha256": test.hexdigest(),
        }

    def notes(self) -> list[str]:
        """The number of dropped and of cut samples of the files in ``data``."""
        if not self.config.data:
            return []
        lines, kept = sum(samples for _, samples in self.files.values()), sum(map(self.size, SPLITS))
        tables = [self.tables[split] for split in SPLITS]
        cut = sum(length > self.seq_len for table in tables for batch in table.iter(1000) for length in batch["length"])
        notes = []
        if lines > kept:
            notes.append(
                f"{lines - kept:,} of {lines:,} samples dropped: their first {self.seq_len:,} symbols equal those of "
                "an earlier sample of the same split, or of a sample of test or validation"
            )
        if cut:
            notes.append(f"{cut:,} of {kept:,} samples cut to their first {self.seq_len:,} symbols")
        return notes
