"""Retrieval: what arrives from LRA's files, what is left out of them, and what a pair costs."""

import doctest
import os
import random
import re
import string
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tasks.retrieval
from compare.runs.measure import saved_bytes
from compare.runs.score import Tally
from compare.runs.train import Trainer
from tasks.base import ACCURACY
from tasks.retrieval import BUCKETS, FILES, Retrieval, RetrievalConfig, overlap, pieces
from tests.learning import learns, small_spec

AWKWARD = [
    (b"1.0", b'a stray " quote', b'"one" more'),
    (b"0", b"NA", b"null"),
    (b"1", b" spaces \r around ", b"\x00 zero \xff\xfe and no UTF-8 \xc3"),
    (b"0.0", b"caf\xc3\xa9", b"#x, ;y 'z' \\t \\"),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder: Path, split: str, pairs, end: bytes = b"\n") -> Path:
    file = folder / FILES[split]
    file.write_bytes(b"".join(b"\t".join((pair[0], b"P1", b"P2", *pair[1:])) + end for pair in pairs))
    return file


def filler(split: str, n: int = 4):
    return [(b"%d" % (i % 2), f"{split} one {i}".encode(), f"{split} two {i}".encode()) for i in range(n)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three small sound files."""
    for split in FILES:
        write(tmp_path, split, filler(split))
    return tmp_path


def opened(folder: Path, seq_len: int = 64) -> Retrieval:
    return Retrieval(seq_len, RetrievalConfig(data=str(folder)))


def texts_of(task: Retrieval, split: str):
    """(label, first, second) as the batch has them."""
    batch = task.whole(split)
    padding = np.zeros(batch.inputs.shape, bool) if batch.padding is None else batch.padding
    for label, pair, hidden in zip(batch.targets, batch.inputs, padding, strict=True):
        assert (pair[hidden] == 0).all()
        yield label, *((ids[~pad] - 1).astype(np.uint8).tobytes() for ids, pad in zip(pair, hidden, strict=True))


def test_worked_example():
    assert doctest.testmod(tasks.retrieval).failed == 0


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
@pytest.mark.parametrize("split", FILES)
def test_texts_arrive_byte_for_byte(folder, split, end):
    write(folder, split, AWKWARD, end)
    expected = [(int(float(label)), first, second) for label, first, second in AWKWARD]
    assert list(texts_of(opened(folder), split)) == expected
    assert opened(folder).notes() == []


def test_the_last_line_needs_no_end(folder):
    file = write(folder, "test", AWKWARD)
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert len(list(texts_of(opened(folder), "test"))) == len(AWKWARD)


def test_texts_are_cut_at_the_length_and_counted(folder):
    long = string.ascii_letters.encode() * 3
    cut = long[:64]
    write(folder, "validation", [(b"1", long, b"a"), (b"0", b"brief", long), (b"0", b"b", b"c"), (b"1", long, long)])
    task = opened(folder)
    expected = [(cut, b"a"), (b"brief", cut), (b"b", b"c"), (cut, cut)]
    assert [pair[1:] for pair in texts_of(task, "validation")] == expected
    assert task.sample_lengths("validation").tolist() == [64, 64, 1, 64]
    assert task.notes() == ["3 of 12 pairs: a text cut at 64 bytes"]


def test_empty_and_repeated_pairs_are_left_out_and_counted(folder):
    test = filler("test")
    (_, first, second), (_, third, fourth) = test[:2]
    write(folder, "test", [*test, (b"1", b"", second), (b"0", first, b""), test[0]])
    write(folder, "train", [*filler("train"), (b"1", second, first), (b"0", third, fourth), (b"1", first, fourth)])
    task = opened(folder)
    assert [pair[1:] for pair in texts_of(task, "test")] == [pair[1:] for pair in test]
    assert [pair[1:] for pair in texts_of(task, "train")] == [*(p[1:] for p in filler("train")), (first, fourth)]
    assert task.notes() == [
        "2 of 18 pairs: left out, a text is empty",
        "3 of 18 pairs: left out, equal to an earlier pair",
    ]


def test_pairs_the_same_after_the_cut_are_repeats(folder):
    write(folder, "train", [*filler("train"), (b"1", b"x" * 64 + b"y", b"z"), (b"0", b"x" * 65, b"z")])
    assert opened(folder).size("train") == 5
    assert opened(folder, 65).size("train") == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1.0\tP1\tP2\tonly one", r"expected 5 columns \(label, id1, id2, text1, text2\), tab separated, got 4"),
        (b"1.0\tP1\tP2\tone\ttwo\tthree", "expected 5 columns .*, got 6"),
        (b"2\tP1\tP2\tone\ttwo", "expected a label among 0, 0.0, 1, 1.0, got '2'"),
        (b"label\tid1\tid2\ttext1\ttext2", "expected a label among .*, got 'label'"),
        (b"\xff\tP1\tP2\tone\ttwo", "expected a label among .*, got '\xff'"),
    ],
)
@pytest.mark.parametrize("split", FILES)
def test_a_malformed_line_is_named(folder, split, line, message):
    with (folder / FILES[split]).open("ab") as file:
        file.write(line + b"\n")
    where = re.escape(str(folder / FILES[split]))
    with pytest.raises(ValueError, match=f"^retrieval: {where}, line 5: {message}$"):
        opened(folder).prepare()


@pytest.mark.parametrize(("pairs", "got"), [([], "no pairs"), (filler("x")[::2], "only pairs labelled 0")])
def test_a_file_without_both_labels_is_refused(folder, pairs, got):
    write(folder, "validation", pairs)
    with pytest.raises(ValueError, match=rf"eval.tsv: expected pairs labelled 0 and pairs labelled 1, got {got}$"):
        opened(folder).prepare()


def test_missing_data_is_told_with_where_it_comes_from(folder):
    source = r"storage.googleapis.com/long-range-arena/lra_release.gz and pass --data lra_release/lra_release/tsv_data$"
    for data, got in (("", "got none"), ("/no/such", "got --data /no/such"), (folder / FILES["test"], "not a folder")):
        with pytest.raises(ValueError, match=f"^retrieval: expected a folder.*{got}.*{source}"):
            opened(data).prepare()
    (folder / FILES["validation"]).unlink()
    with pytest.raises(ValueError, match=f"expected new_aan_pairs.eval.tsv in .*, got {FILES['test']}, "):
        opened(folder).prepare()


def test_a_changed_file_is_read_again(folder):
    assert next(texts_of(opened(folder), "test"))[1] == b"test one 0"
    file = folder / FILES["test"]
    file.write_bytes(file.read_bytes().replace(b"test one 0", b"text one 0"))
    os.utime(file, ns=(0, 0))
    assert next(texts_of(opened(folder), "test"))[1] == b"text one 0"


def test_provenance_names_the_files(folder):
    before = opened(folder).provenance()
    assert before["train_samples"] == 4
    assert before["train_positives"] == 2
    write(folder, "train", filler("other"))
    after = opened(folder).provenance()
    assert {name for name in before if before[name] != after[name]} == {"train_sha256"}


@pytest.mark.parametrize("text", [b"a", b"abc", b"abcd", b"to be, or not to be: \xff\xfe\x00!"])
def test_pieces_are_the_grams_and_words(text):
    grams = {text[i : i + 4] for i in range(len(text) - 3)}
    words = set(re.split(rb"[^a-z]+", text)) - {b""}
    assert pieces(text).sum(1).tolist() == [len(grams), len(words)]


def test_overlap_weighs_what_is_common():
    weights = np.ones((2, BUCKETS))
    weights[1] = np.where(pieces(b"rare")[1], 8, 1)
    _, words, longer = overlap(weights, b"rare one", b"rare two b")
    assert words == pytest.approx(8 / (8 + 1 + 1 + 1))
    assert longer == pytest.approx(0.2)
    assert overlap(weights, b"?", b"??")[:2].tolist() == [0, 0]


def write_topics(folder: Path, *, related: bool) -> None:
    """Texts in 12 of 200 words; the two of a positive pair in the same 12, if ``related``."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(200)]
    for split, size in (("train", 600), ("validation", 40), ("test", 400)):
        pairs = []
        for number in range(size):
            label = number % 2
            one, other = rng.sample(words, 12), rng.sample(words, 12)
            topics = (one, one) if related and label else (one, other)
            pairs.append((b"%d" % label, *(" ".join(rng.choices(topic, k=12)).encode() for topic in topics)))
        write(folder, split, pairs)


@pytest.mark.parametrize(("related", "low", "high"), [(True, 0.9, 1.0), (False, 0.4, 0.6)])
def test_overlap_baseline_finds_what_there_is(tmp_path, related, low, high):
    write_topics(tmp_path, related=related)
    scores = opened(tmp_path, 80).baselines()
    assert scores["majority"] == 0.5
    assert low <= scores["overlap"] <= high
    assert list(scores.values()) == sorted(scores.values())


def test_memory_of_both_towers_counts():
    """A pair keeps what two samples of a one-text task keep, apart from the head."""
    spec = small_spec("retrieval", 64, steps=1, batch_size=8)

    def kept(kind: str, shape: tuple[int, ...]) -> int:
        asked = SimpleNamespace(kind=kind, vocab_size=257, n_features=None, n_classes=2, metric=ACCURACY)
        trainer = Trainer(spec, asked)
        batch = torch.ones(shape, dtype=torch.int64), torch.zeros(shape[0], dtype=torch.int64), None
        return saved_bytes(lambda: Tally(ACCURACY).add(*trainer.forward(batch)), trainer.model)

    assert kept("pair", (8, 2, 64)) == pytest.approx(kept("sequence", (16, 64)), rel=0.02)
    assert kept("pair", (8, 2, 64)) > 1.9 * kept("sequence", (8, 64))


@pytest.mark.long
def test_a_small_model_learns(tmp_path):
    """Which of four letters two texts have most of."""
    rng = random.Random(0)
    for split, size in (("train", 1000), ("validation", 40), ("test", 400)):
        pairs = []
        for number in range(size):
            one, other = rng.sample("abcd", 2)
            topics = (one, other if number % 2 == 0 else one)
            texts = ("".join(rng.choices("abcd" + topic * 3, k=rng.randint(40, 64))).encode() for topic in topics)
            pairs.append((b"%d" % (number % 2), *texts))
        write(tmp_path, split, pairs)
    score, _ = learns(small_spec("retrieval", 64, {"data": str(tmp_path)}, steps=100))
    assert score > 0.9
