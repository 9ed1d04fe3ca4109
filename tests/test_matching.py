"""Matching: that the labels are right, and that nothing but the match of two chunks tells them."""

import ast
import doctest
import re
from collections import Counter

import numpy as np
import pytest

import tasks.matching
from compare.runs.data import make_task
from compare.runs.train import Trainer
from tasks.bytes import read_corpus
from tasks.matching import Matching, MatchingConfig, body, chunks, neighbours
from tests.learning import learns, small_spec

N = 128
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def task():
    task = Matching(N, MatchingConfig(samples=4000))
    task.prepare()
    return task


@pytest.fixture(scope="module")
def corpus():
    return read_corpus()


def texts_of(task, split):
    """(label, first, second) as the batch has them."""
    batch = task.whole(split)
    assert batch.padding is None
    for label, pair in zip(batch.targets, batch.inputs, strict=True):
        yield label, *((ids - 1).astype(np.uint8).tobytes() for ids in pair)


def places(text: bytes, chunk: bytes) -> list[int]:
    """Every place of a chunk in a text."""
    found = []
    at = text.find(chunk)
    while at >= 0:
        found.append(at)
        at = text.find(chunk, at + 1)
    return found


def is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_worked_example():
    assert doctest.testmod(tasks.matching).failed == 0


@pytest.mark.parametrize(
    ("introduction", "rest"),
    [
        (b'#!/usr/bin/env python\n# -*- coding: latin-1 -*-\n# Licence \xe9\n\n"""Doc\n\nstring."""\n', b"import os\n"),
        (b"r'''Doc \\\n'''\n# more\n\n", b"def f():\n    'inner'\n    # comment\n"),
        (b"\n\n# one\n\n# two\n", b"x = 'a string'\n"),
        (b'# one\r\n"""Doc."""\r\n\r\n', b"import a\r\nimport b\r\n"),
        (b'"Doc" \\\n  "string"\n', b"@decorated\nclass A: pass"),
        (b"\xef\xbb\xbf# with a mark\n", b"import a\n"),
        (b"# nothing\n'but words'\n", b""),
        (b"", b"import a\n"),
        (b"", b""),
    ],
)
def test_what_introduces_a_file_is_left_out(introduction, rest):
    assert body(introduction + rest) == rest


def test_every_text_is_the_end_of_its_file_from_a_statement_on(task, corpus):
    """From where the parser, which read the file whole, says that it is."""
    assert task.texts.keys() == corpus.keys()
    for name in list(corpus)[::10]:
        statements = [node for node in ast.parse(corpus[name]).body if not is_string(node)]
        line = min(node.lineno for node in (statements[0], *getattr(statements[0], "decorator_list", [])))
        assert corpus[name].split(b"\n", line - 1)[-1] == task.texts[name]
    assert not any(b"Licensed to PSF" in text[:500] for text in task.texts.values())


def test_neighbours_are_the_files_of_the_package():
    found = neighbours(["a.py", "json/b.py", "json/c.py", "json/d.py", "xml/e.py", "xml/dom/f.py", "xml/dom/g.py"])
    assert found == {
        "a.py": ["xml/e.py"],
        "xml/e.py": ["a.py"],
        "json/b.py": ["json/c.py", "json/d.py"],
        "json/c.py": ["json/b.py", "json/d.py"],
        "json/d.py": ["json/b.py", "json/c.py"],
        "xml/dom/f.py": ["xml/dom/g.py"],
        "xml/dom/g.py": ["xml/dom/f.py"],
    }
    assert neighbours(["json/a.py", "xml/b.py", "c.py"]).keys() == {"json/a.py", "xml/b.py", "c.py"}
    assert neighbours(["json/a.py", "json/b.py", "c.py"]).keys() == {"json/a.py", "json/b.py"}
    assert neighbours(["a.py"]) == neighbours([]) == {}


@pytest.mark.parametrize("lengths", [(16, 16), (17, 40), (40, 17), (200, 200)])
def test_chunks_leave_room_for_each_other(lengths):
    early, late = (np.arange(length, dtype=np.uint8).tobytes() for length in lengths)
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(4000):
        one, other = chunks(rng, early, late, seq_len=8)
        assert len(one) == len(other) == 8
        for text in (one, other):
            assert np.diff(np.frombuffer(text, np.uint8)).tolist() == [1] * 7
        starts.append((one[0], other[0]))
    first, second = np.array(starts).T
    if early == late:
        assert (abs(first - second) >= 8).all()
    assert max(first.max(), second.max()) == max(lengths[0] - 16, lengths[1] - 8)
    assert min(first.min(), second.min()) == 0
    assert np.mean(first) == pytest.approx(np.mean(second), rel=0.1)  # in random order


def test_places_in_two_files_are_drawn_like_those_in_one():
    """In the room that the other chunk leaves, both places together; the texts' bytes are the places."""
    short, long = np.arange(60, dtype=np.uint8), np.arange(60, 250, dtype=np.uint8)

    def grid(early, late):
        rng, found = np.random.default_rng(0), np.zeros((4, 4))
        for _ in range(10_000):
            pair = [chunk[0] for chunk in chunks(rng, early.tobytes(), late.tobytes(), seq_len=8)]
            cell = []
            for place, other in (pair, pair[::-1]):
                text = early if place in early and (early is not late or place < other) else late
                at = place - text[0] - (8 if text is late and (early is not late or place > other) else 0)
                cell.append(4 * int(at) // (len(text) - 15))
            found[tuple(cell)] += 1
        return found / found.sum()

    for one, other in ((short, long), (long, short), (long, long)):
        assert grid(one, other) == pytest.approx(grid(short, short), abs=0.03)


def test_every_label_is_right(task):
    """Found by searching all texts of the split for the chunks."""
    for split in ("validation", "test"):
        files = task.files[split]
        for label, *pair in list(texts_of(task, split))[:400]:
            holders = [{name for name in files if chunk in task.texts[name]} for chunk in pair]
            assert all(holders)
            if label == 1:
                both = holders[0] & holders[1]
                apart = [
                    abs(one - other) >= N
                    for name in both
                    for one in places(task.texts[name], pair[0])
                    for other in places(task.texts[name], pair[1])
                ]
                assert any(apart)
            else:
                assert any(other in files[name] for name in holders[0] for other in holders[1])


def test_splits_share_no_file(task):
    names = [set(task.files[split]) for split in SPLITS]
    assert len(set.union(*names)) == sum(map(len, names))
    assert [len(files) / len(set.union(*names)) for files in names] == pytest.approx([0.8, 0.1, 0.1], abs=0.05)
    for files in task.files.values():
        assert all(name not in others and set(others) <= files.keys() for name, others in files.items())


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced(task, split):
    assert task.provenance()[f"{split}_positives"] * 2 == task.size(split)
    assert task.labels(split).mean() == 0.5


def test_an_odd_number_of_pairs_has_one_more_of_a_label():
    task = Matching(64, MatchingConfig(samples=7))
    assert np.bincount(task.labels("train")).tolist() == [4, 3]


@pytest.fixture(scope="module")
def traced(task):
    """Pairs of train whose chunks say which file they are of: (label, path, path) of each, and the task."""
    traced = Matching(N, MatchingConfig(samples=10_000))
    names = list(task.texts)
    traced.texts = {
        name: b"".join(b"<%04d:%06d>" % (number, at) for at in range(1 + len(task.texts[name]) // 13))
        for number, name in enumerate(names)
    }
    found = []
    for row in traced.build()["train"].rows:
        files = (names[int(re.search(rb"<(\d{4}):", row[tower])[1])] for tower in ("first", "second"))
        found.append((row["label"], *files))
    return traced, found


def test_files_are_one_or_two_of_a_package(traced):
    task, found = traced
    files = task.files["train"]
    for label, one, other in found:
        assert one == other if label else other in files[one]


def test_files_come_as_often_in_pairs_of_either_label(traced):
    task, found = traced
    for tower in (1, 2):
        often = [Counter(pair[tower] for pair in found if pair[0] == label) for label in (0, 1)]
        counts = np.array([[counter[name] for name in task.files["train"]] for counter in often])
        assert counts.sum(axis=1).tolist() == [5000, 5000]
        spread = (counts[0] - counts[1]) ** 2 / counts.sum(axis=0)
        assert spread.mean() == pytest.approx(1, abs=0.3)  # as of two draws from the same files


def test_one_chunk_alone_does_not_tell_the_label(task):
    """Logistic regression on the bytes of both chunks, without any comparison of the two."""
    from sklearn.linear_model import LogisticRegression

    def counts(split):
        batch = task.whole(split)
        return np.array([[np.bincount(ids, minlength=257) for ids in pair] for pair in batch.inputs]).reshape(-1, 514)

    model = LogisticRegression(max_iter=500).fit(counts("train") / N, task.labels("train"))
    assert model.score(counts("test") / N, task.labels("test")) == pytest.approx(0.5, abs=0.05)


def test_overlap_tells_some(task):
    scores = task.baselines()
    assert scores["majority"] == 0.5
    assert 0.55 < scores["overlap"] < 0.9


def test_the_corpus_decides_the_cache_key(task, monkeypatch):
    other = Matching(N, MatchingConfig(samples=4000))
    other.corpus = task.corpus | {"argparse.py": b"x"}
    assert other.cache_key != task.cache_key
    assert Matching(N, MatchingConfig(samples=4002)).cache_key != task.cache_key


def test_bad_input_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^expected matching.samples >= 2, .*, got 1$"):
        MatchingConfig(samples=1)
    monkeypatch.setattr(tasks.matching, "read_corpus", lambda: {"a.py": b"x = 1\n" * 500})
    with pytest.raises(ValueError, match=r"^matching: expected two files of 128 bytes .* among 1 files: choose "):
        Matching(64).prepare()


def test_short_files_are_left_out_and_counted(task):
    task = Matching(8192)
    kept = [len(task.texts[name]) for files in task.files.values() for name in files]
    assert min(kept) >= 2 * 8192
    assert task.notes() == [
        f"{len(task.texts) - len(kept)} of {len(task.texts)} files left out, most too short for two chunks"
    ]


@pytest.mark.long
def test_a_small_model_can_fit():
    """New files take minutes to learn anything of; 32 pairs by heart take seconds."""
    spec = small_spec("matching", 64, {"samples": 32}, steps=60)
    trained = Trainer(spec, make_task(spec)).train(lambda done, loss: None)
    assert trained["curve"][0]["train_score"] < 0.8
    assert trained["curve"][-1]["train_score"] == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_small_model_beats_chance_on_new_files():
    """55.7 % after 500 steps, four minutes on 2 cores; by chance it would have 50 ± 2.2 %."""
    score, _ = learns(small_spec("matching", 512, steps=500, batch_size=16))
    assert score > 0.53
