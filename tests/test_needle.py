"""Needle in a haystack, against a search for the key."""

import doctest
from itertools import pairwise

import numpy as np
import pytest

import tasks.needle
from tasks import IGNORE
from tasks.needle import GAP, HAY, KEYS, NEEDLES, VALUES, Needle, generate
from tests.learning import learns, small_spec


@pytest.fixture(scope="module", params=[32, 101])
def task(request):
    task = Needle(request.param)
    task.prepare()
    return task


def needles(inputs: list[int]) -> dict[int, tuple[int, int]]:
    """Key -> its place and its value."""
    text = inputs[:-NEEDLES]
    return {token: (place, text[place + 1]) for place, token in enumerate(text) if token >= VALUES + HAY}


def bounds(task: Needle) -> list[tuple[int, int]]:
    return [tuple(map(int, name.removesuffix(" back").split("–"))) for name in task.slice_names]


def test_worked_example():
    assert doctest.testmod(tasks.needle).failed == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_match_a_search(task, split):
    batch = task.take(split, np.arange(1_000))
    assert (batch.targets[:, :-NEEDLES] == IGNORE).all()
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert [inputs[inputs.index(key) + 1] for key in inputs[-NEEDLES:]] == targets[-NEEDLES:]


def test_there_are_four_needles_and_none_near_the_questions(task):
    for inputs in task.whole("test").inputs.tolist():
        found, text = needles(inputs), inputs[:-NEEDLES]
        values = {value for _, value in found.values()}
        assert sorted(found) == sorted(inputs[-NEEDLES:])
        assert len(found) == len(values) == NEEDLES
        assert max(values) < VALUES
        assert sum(VALUES <= token < VALUES + HAY for token in text) == len(text) - 2 * NEEDLES
        assert all(VALUES <= token < VALUES + HAY for token in text[-GAP:])


def test_slices_say_how_far_back_a_needle_is(task):
    batch = task.whole("test")
    assert (batch.slices[:, :-NEEDLES] == 0).all()
    bins, question = bounds(task), task.seq_len - NEEDLES
    assert bins[0][0] == GAP + 1
    assert bins[-1][1] in (question, question - 1)  # where the length is odd, the first token is always hay
    assert all(near == far + 1 for (_, far), (near, _) in pairwise(bins))
    for inputs, slices in zip(batch.inputs.tolist(), batch.slices.tolist(), strict=True):
        for key, part in zip(inputs[-NEEDLES:], slices[-NEEDLES:], strict=True):
            place, _ = needles(inputs)[key]
            near, far = bins[part]
            assert near <= question - (place + 1) < question - place <= far


def test_bins_are_alike(task):
    parts = task.whole("train").slices[:, -NEEDLES:].ravel()
    widths = np.array([1 + far - near for near, far in bounds(task)])
    assert np.ptp(widths) <= 2
    assert np.bincount(parts) / len(parts) == pytest.approx(widths / widths.sum(), abs=0.01)


def test_nothing_but_the_key_tells_which_needle_is_meant():
    rows = 20_000
    inputs, targets = generate(np.random.default_rng(0), rows, seq_len=64)
    text, keys, values = inputs[:, :-NEEDLES], inputs[:, -NEEDLES:], targets[:, -NEEDLES:]
    places = (text[:, None] == keys[..., None]).argmax(axis=-1)
    facts = np.concatenate([keys, values, places], axis=1)
    unrelated = np.corrcoef(facts.T) - np.eye(3 * NEEDLES)
    for start in range(
        0, 3 * NEEDLES, NEEDLES
    ):  # those of one kind differ, which gives them a correlation of their own
        unrelated[start : start + NEEDLES, start : start + NEEDLES] = 0
    assert np.abs(unrelated).max() < 0.03
    for order in (np.argsort(keys), np.argsort(values), np.argsort(places)):
        for question in range(NEEDLES):
            share = np.bincount(order[:, question], minlength=NEEDLES) / rows
            assert share == pytest.approx(1 / NEEDLES, abs=0.015)
    assert np.bincount(keys.ravel())[VALUES + HAY :] / keys.size == pytest.approx(1 / KEYS, abs=0.003)
    assert np.bincount(values.ravel()) / values.size == pytest.approx(1 / VALUES, abs=0.003)


def test_baselines_match_a_search(task):
    scores, batch = task.baselines(), task.whole("test")
    last = [list(needles(inputs).values())[-1][1] for inputs in batch.inputs.tolist()]
    right = [value in answers for value, answers in zip(last, batch.targets[:, -NEEDLES:].tolist(), strict=True)]
    assert scores["nearest value"] == pytest.approx(np.mean(right) / NEEDLES)
    assert scores["nearest value"] == 1 / NEEDLES
    assert scores["most frequent value"] == pytest.approx(1 / VALUES, abs=0.01)


@pytest.mark.long
def test_full_attention_learns_it():
    score, trivial = learns(small_spec("needle", 32, steps=100, batch_size=64))
    assert score > trivial + 0.5
