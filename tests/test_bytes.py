"""Masked bytes of the standard library: what is peculiar to the corpus and the mask."""

import doctest
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import tasks.bytes
from tasks import IGNORE
from tasks.bytes import MASK, MAX_EVAL_FILE, MAX_TOKENS, PAD, SEPARATOR, Bytes, encode, mask, most_frequent, read_corpus


@pytest.fixture(scope="module")
def task():
    task = Bytes(1024)
    task.prepare()
    return task


@pytest.fixture(scope="module")
def corpus():
    return read_corpus()


def restore(batch) -> bytes:
    """The text a batch hides, without its padding."""
    ids = np.where(batch.targets == IGNORE, batch.inputs, batch.targets)
    return (ids[ids != PAD] - 1).astype(np.uint8).tobytes()


def test_worked_example():
    assert doctest.testmod(tasks.bytes).failed == 0


def test_corpus_is_the_library_without_tests_and_copies(corpus):
    root = Path(sysconfig.get_path("stdlib"))
    assert len(corpus) > 200
    assert list(corpus) == sorted(corpus)
    assert {"argparse.py", "json/decoder.py"} <= corpus.keys()
    assert len(set(corpus.values())) == len(corpus)
    for name, data in corpus.items():
        assert {"test", "tests", "site-packages", "encodings"}.isdisjoint(name.split("/"))
        assert len(data) >= 2048
        assert SEPARATOR not in data
        assert (root / name).read_bytes() == data


def test_copies_links_and_short_files_are_left_out(tmp_path, monkeypatch):
    text = b"x = 1\n" * 500
    for name in ("b.py", "a.py", "pkg/c.py", "pkg/tests/d.py", "test/e.py", "_sysconfigdata_x.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(text if name in ("a.py", "b.py") else text + name.encode())
    (tmp_path / "short.py").write_bytes(b"x = 1\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "pkg/tests/d.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert list(read_corpus()) == ["a.py", "pkg/c.py"]


def test_splits_share_no_file(task, corpus):
    tables = task.tables
    paths = {split: set(table["path"][:]) for split, table in tables.items()}
    assert sum(map(len, paths.values())) == len(set.union(*paths.values()))
    data = [entry for table in tables.values() for entry in table["data"][:]]
    assert len(set(data)) == len(data)
    assert len(paths["train"]) / len(corpus) == pytest.approx(0.9, abs=0.05)
    for split, table in tables.items():
        kept = None if split == "train" else MAX_EVAL_FILE
        assert all(corpus[path][:kept] == entry for path, entry in zip(table["path"][:], table["data"][:], strict=True))
        assert task.provenance()[f"{split}_files"] == len(table)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_windows_spell_out_the_start_of_files(task, corpus, split):
    text = restore(task.whole(split))
    assert MAX_TOKENS[split] // 2 < len(text) <= MAX_TOKENS[split]
    starts = {data[:MAX_EVAL_FILE] for data in corpus.values()}
    assert all(data in starts for data in text.split(SEPARATOR))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_the_last_window_is_padded_on_the_right(task, split):
    whole = task.whole(split)
    assert whole.padding is not None
    assert not whole.padding[:-1].any()
    assert (np.diff(whole.padding[-1].astype(int)) >= 0).all()
    assert np.array_equal(whole.padding, whole.inputs == PAD)


def test_training_windows_are_of_the_training_files(task):
    stream = task.streams["train"].tobytes()
    batch = next(task.train_batches(4, 300, 0))
    text = restore(batch)
    assert all(text[row * 300 : (row + 1) * 300] in stream for row in range(4))
    assert batch.padding is None


def test_hidden_positions_show_the_mask_and_others_themselves():
    ids = np.pad(encode(b"def f(x): return x"), (0, 6))[None].repeat(50, axis=0)
    batch = mask(ids, np.random.default_rng(0))
    hidden = batch.targets != IGNORE
    assert np.array_equal(hidden, batch.inputs == MASK)
    assert np.array_equal(np.where(hidden, batch.targets, batch.inputs), ids)
    assert np.array_equal(batch.padding, ids == PAD)
    assert hidden.any(axis=1).all()


def test_mask_rate(task):
    batch = next(task.train_batches(64, 1024, 0))
    assert np.mean(batch.targets != IGNORE) == pytest.approx(0.15, abs=0.01)


def test_one_position_at_least_is_hidden_in_every_row():
    ids = np.ones((1000, 16), np.int64)
    ids[:500, 1:] = PAD
    hidden = mask(ids, np.random.default_rng(0)).targets != IGNORE
    assert hidden.any(axis=1).all()
    assert np.array_equal(hidden[:500].sum(axis=1), np.ones(500))


def test_most_frequent_prefers_the_higher_count():
    context = np.array([3, 3, 3, 5, 5, 5, 5], np.int32)
    ids = np.array([9, 7, 9, 8, 2, 2, 2], np.int32)
    assert most_frequent(context, ids, 7).tolist() == [PAD, PAD, PAD, 9, PAD, 2, PAD]


def test_neighbours_baseline_matches_counting_by_hand():
    task = Bytes(16)
    train, test = b"abcabcabdabcxbcabc" * 3, b"abcabdabcabcabdabcxbcab" * 9
    task.streams = {split: np.frombuffer(text, np.uint8) for split, text in (("train", train), ("test", test))}

    def most_common(matches):
        counted = [train[i] for i in range(1, len(train) - 1) if matches(i)]
        return max(set(counted), key=counted.count) + 1 if counted else None

    def guess(row, i):
        left = row[i - 1] - 1 if i > 0 and row[i - 1] not in (PAD, MASK) else None
        right = row[i + 1] - 1 if i < len(row) - 1 and row[i + 1] not in (PAD, MASK) else None
        return (
            most_common(lambda t: train[t - 1] == left and train[t + 1] == right)
            or most_common(lambda t: train[t - 1] == left)
            or most_common(lambda t: train[t + 1] == right)
            or most_common(lambda _: True)
        )

    whole = task.whole("test")
    hits = [
        guess(row.tolist(), i) == answers[i]
        for row, answers in zip(whole.inputs, whole.targets, strict=True)
        for i in np.nonzero(answers != IGNORE)[0]
    ]
    assert task.baselines()["neighbours"] == pytest.approx(np.mean(hits))


def test_baselines_are_those_of_source_code(task):
    scores = task.baselines()
    assert 0.1 < scores["unigram"] < 0.4
    assert scores["unigram"] + 0.1 < scores["neighbours"] < 0.7
