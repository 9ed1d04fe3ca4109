"""Selective copy, against a reader that goes through the text once."""

import doctest
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest

import tasks.selective_copy
from tasks import IGNORE
from tasks.selective_copy import BLANK, MARKER, SYMBOLS, SelectiveCopy, generate
from tests.learning import learns, small_spec


@pytest.fixture(scope="module", params=[48, 64, 259])
def task(request):
    task = SelectiveCopy(request.param)
    task.prepare()
    return task


def solve(inputs: list[int]) -> list[int]:
    """The targets of one sequence, from its inputs alone."""
    symbols = iter([token for token in inputs if token not in (BLANK, MARKER)])
    return [next(symbols) if token == MARKER else IGNORE for token in inputs]


def test_worked_example():
    assert doctest.testmod(tasks.selective_copy).failed == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_match_the_solver(task, split):
    batch = task.take(split, np.arange(1_000))
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert solve(inputs) == targets


def test_text_comes_first_and_the_markers_after_it(task):
    inputs = task.whole("test").inputs
    n = task.seq_len // 16
    text, rest = inputs[:, :-n], inputs[:, -n:]
    assert (rest == MARKER).all()
    assert ((text < SYMBOLS).sum(axis=1) == n).all()
    assert (text[text >= SYMBOLS] == BLANK).all()


def test_every_place_and_every_symbol_is_as_likely_as_any_other():
    inputs, _ = generate(np.random.default_rng(0), 40_000, seq_len=20, n_copy=3)
    text = inputs[:, :17]
    assert np.abs((text < SYMBOLS).mean(axis=0) - 3 / 17).max() < 0.01
    pairs = Counter(tuple(places) for places in np.nonzero(text < SYMBOLS)[1].reshape(-1, 3)[:, ::2].tolist())
    assert pairs[0, 16] / 40_000 == pytest.approx(15 / 680, abs=0.003)  # C(17, 3) sets of places
    assert pairs[14, 16] / 40_000 == pytest.approx(1 / 680, abs=0.001)
    symbols = text[text < SYMBOLS].reshape(-1, 3)
    for rank in range(3):
        assert np.abs(np.bincount(symbols[:, rank], minlength=SYMBOLS) / 40_000 - 1 / SYMBOLS).max() < 0.006


def test_neighbours_of_a_marker_do_not_give_its_answer_away(task):
    """The best a table could do that knows the two tokens on each side, as the convolution does."""
    assert task.defaults.conv_width == 5
    batch = task.whole("test")
    half = len(batch.inputs) // 2
    framed = np.pad(batch.inputs, ((0, 0), (2, 2)), constant_values=-1)
    rows, columns = np.nonzero(batch.targets != IGNORE)
    known = defaultdict(Counter)
    right = []
    for row, column in zip(rows, columns, strict=True):
        window, answer = tuple(framed[row, column : column + 5]), batch.targets[row, column]
        if row < half:
            known[window][answer] += 1
        else:
            right.append(known[window].most_common(1)[0][0] == answer if window in known else False)
    assert np.mean(right) < 1 / SYMBOLS + 0.02


def test_baselines_match_a_reader(task):
    right = Counter()
    batch = task.whole("test")
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        answers = [answer for answer in targets if answer != IGNORE]
        n, length = len(answers), len(inputs) - len(answers)
        symbols = [(place, token) for place, token in enumerate(inputs, start=1) if token < SYMBOLS]
        counts = Counter(token for _, token in symbols)
        commonest = min(counts, key=lambda token: (-counts[token], token))
        for rank, answer in enumerate(answers, start=1):
            expected = rank * (length + 1) / (n + 1)
            nearest = min(symbols, key=lambda symbol: abs(symbol[0] - expected))[1]
            right["text"] += answer == commonest
            right["place"] += answer == nearest
    scores, asked = task.baselines(), int((batch.targets != IGNORE).sum())
    assert scores["most frequent symbol"] == pytest.approx(1 / SYMBOLS, abs=0.02)
    assert scores["most frequent of the text"] == pytest.approx(right["text"] / asked)
    assert scores["nearest to its expected place"] == pytest.approx(right["place"] / asked, abs=0.002)


@pytest.mark.parametrize(("seq_len", "n_copy"), [(48, 3), (63, 3), (256, 16), (65_536, 4096)])
def test_symbols_to_copy_grow_with_the_length(seq_len, n_copy):
    assert SelectiveCopy(seq_len).n_copy == n_copy


def test_samples_are_drawn_as_they_are_read(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        SelectiveCopy,
        "draw",
        lambda task, rng, rows, seq_len: drawn.append(rows) or generate(rng, rows, seq_len=seq_len, n_copy=task.n_copy),
    )
    rows = SelectiveCopy(65_536).build()["train"].rows
    assert drawn == []
    list(islice(rows, 17))
    assert drawn == [16, 16]


def test_samples_met_before_are_dropped(monkeypatch):
    monkeypatch.setattr(SelectiveCopy, "max_rows", {"train": 500, "validation": 40, "test": 30})

    def repeating(task, _, rows, seq_len):
        inputs, targets = generate(np.random.default_rng(0), 500, seq_len=64, n_copy=4)
        return inputs[:rows], targets[:rows]

    monkeypatch.setattr(SelectiveCopy, "draw", repeating)
    sizes = {split: len(list(source.rows)) for split, source in SelectiveCopy(64).build().items()}
    assert sizes == {"test": 30, "validation": 40 - 30, "train": 500 - 40}


@pytest.mark.long
def test_full_attention_learns_it():
    score, trivial = learns(small_spec("selective_copy", 48, steps=120, batch_size=64))
    assert score > trivial + 0.1
