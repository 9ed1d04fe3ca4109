"""Duplicate, against a reader that looks half the length back."""

import doctest

import numpy as np
import pytest

import tasks.duplicate
from tasks import IGNORE
from tasks.duplicate import HIDDEN, SYMBOLS, Duplicate, generate
from tests.learning import learns, small_spec


@pytest.fixture(scope="module", params=[16, 130])
def task(request):
    task = Duplicate(request.param)
    task.prepare()
    return task


def test_worked_example():
    assert doctest.testmod(tasks.duplicate).failed == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_stand_half_the_length_back(task, split):
    half = task.seq_len // 2
    batch = task.take(split, np.arange(1_000))
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        word = inputs[1:half]
        assert inputs == [0, *word, 0, *[HIDDEN] * (half - 1)]
        assert targets == [IGNORE] * (half + 1) + word
        assert all(1 <= symbol <= SYMBOLS for symbol in word)


def test_every_symbol_is_as_likely_everywhere():
    inputs, _ = generate(np.random.default_rng(0), 20_000, seq_len=16)
    for column in inputs[:, 1:8].T:
        assert np.bincount(column, minlength=HIDDEN)[1:] / 20_000 == pytest.approx(1 / SYMBOLS, abs=0.004)
    assert np.abs(np.corrcoef(inputs[:, 1:8].T) - np.eye(7)).max() < 0.03


def test_an_odd_length_is_refused():
    with pytest.raises(ValueError, match="duplicate: expected an even seq_len, for two equal halves, got 65"):
        Duplicate(65)


def test_baselines_match_counts(task):
    scores = task.baselines()
    right = total = 0
    for inputs in task.whole("test").inputs.tolist():
        word = inputs[1 : task.seq_len // 2]
        right, total = right + max(map(word.count, word)), total + len(word)
    assert scores["most frequent of w"] == pytest.approx(right / total)
    assert scores["most frequent symbol"] == pytest.approx(1 / SYMBOLS, abs=0.005)


@pytest.mark.long
def test_full_attention_learns_it():
    score, trivial = learns(small_spec("duplicate", 32, steps=80, batch_size=64))
    assert score > trivial + 0.5
