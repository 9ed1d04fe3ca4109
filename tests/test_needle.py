"""Needle in a haystack, against a reader that searches for the key."""

import doctest
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import tasks.needle
from tasks import IGNORE
from tasks.needle import GAP, HAY, KEYS, NEEDLES, Needle, generate
from tests.learning import learns


@pytest.fixture(scope="module", params=[32, 128, 301])
def task(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = Needle(request.param)
        task.prepare()
        yield task


def solve(inputs: list[int]) -> int:
    """The answer at the last token."""
    return inputs[inputs.index(inputs[-1]) + 1]


def needles(inputs: list[int]) -> dict[int, tuple[int, int]]:
    """Key -> its place and its value."""
    return {token: (place, inputs[place + 1]) for place, token in enumerate(inputs[:-1]) if token >= HAY}


def test_worked_example():
    assert doctest.testmod(tasks.needle).failed == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_match_the_solver(task, split):
    batch = task.take(split, np.arange(1_000))
    assert (batch.targets[:, :-1] == IGNORE).all()
    assert [solve(inputs) for inputs in batch.inputs.tolist()] == batch.targets[:, -1].tolist()


def test_there_are_four_needles_and_none_near_the_question(task):
    for inputs in task.whole("test").inputs.tolist():
        found = needles(inputs)
        assert len(found) == sum(token >= HAY for token in inputs[:-1]) == NEEDLES
        assert len({value for _, value in found.values()}) == NEEDLES
        assert max(value for _, value in found.values()) < HAY
        assert inputs[-1] in found
        assert all(token < HAY for token in inputs[-1 - GAP : -1])
        assert max(place for place, _ in found.values()) + 1 < len(inputs) - 1 - GAP


def test_slices_say_how_far_back_the_needle_is(task):
    batch = task.whole("test")
    assert (batch.slices[:, :-1] == 0).all()
    bounds = [tuple(map(int, name.removesuffix(" back").split("–"))) for name in task.slice_names]
    assert bounds[0][0] == GAP + 1
    assert bounds[-1][1] in (task.seq_len - 1, task.seq_len - 2)  # a token is left over where the rest is odd
    assert all(near == far + 1 for (_, far), (near, _) in pairwise(bounds))
    for inputs, part in zip(batch.inputs.tolist(), batch.slices[:, -1], strict=True):
        place, _ = needles(inputs)[inputs[-1]]
        near, far = bounds[part]
        assert near <= task.seq_len - 1 - (place + 1) < task.seq_len - 1 - place <= far


def test_bins_are_alike(task):
    parts = task.whole("train").slices[:, -1]
    widths = np.array([1 + far - near for near, far in (map(int, name[:-5].split("–")) for name in task.slice_names)])
    assert np.ptp(widths) <= 2
    assert np.bincount(parts) / len(parts) == pytest.approx(widths / widths.sum(), abs=0.01)


def test_nothing_but_the_key_tells_which_needle_is_meant():
    inputs, targets = generate(np.random.default_rng(0), 20_000, seq_len=64)
    ranks, of_keys, of_values = Counter(), [], []
    for row, answer in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
        found = needles(row)
        ranks[list(found).index(row[-1])] += 1
        of_keys.append(sorted(found).index(row[-1]))
        of_values.append(sorted(value for _, value in found.values()).index(answer))
    for seen in (ranks, Counter(of_keys), Counter(of_values)):
        assert [seen[rank] / 20_000 for rank in range(NEEDLES)] == pytest.approx([1 / NEEDLES] * NEEDLES, abs=0.015)
    assert abs(np.corrcoef(inputs[:, -1], targets[:, -1])[0, 1]) < 0.03
    place = (inputs[:, :-1] == inputs[:, -1:]).argmax(axis=1)
    assert abs(np.corrcoef(inputs[:, -1], place)[0, 1]) < 0.03
    assert abs(np.corrcoef(targets[:, -1], place)[0, 1]) < 0.03
    assert np.bincount(inputs[:, -1], minlength=HAY + KEYS)[HAY:] / 20_000 == pytest.approx(1 / KEYS, abs=0.007)
    assert np.bincount(targets[:, -1], minlength=HAY) / 20_000 == pytest.approx(1 / HAY, abs=0.005)


def test_the_answer_is_not_commoner_elsewhere_than_chance():
    inputs, targets = generate(np.random.default_rng(1), 20_000, seq_len=64)
    same = inputs[:, :-1] == targets[:, -1:]
    near = same[:, -GAP:].mean()
    assert near == pytest.approx(1 / HAY, abs=0.003)
    hay = 64 - 1 - 2 * NEEDLES
    assert same.sum(axis=1).mean() == pytest.approx(1 + hay / HAY, abs=0.03)


def test_baselines(task):
    scores = task.baselines()
    answers = task.whole("test").targets[:, -1].tolist()
    last = [list(needles(inputs).values())[-1][1] for inputs in task.whole("test").inputs.tolist()]
    assert scores["value of the last needle"] == pytest.approx(np.mean(np.equal(last, answers)))
    assert scores["value of the last needle"] == pytest.approx(1 / NEEDLES, abs=0.04)
    assert scores["most frequent value"] < 3 / HAY


@pytest.mark.slow
def test_full_attention_learns_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    score, trivial = learns("needle", 32, steps=600, batch_size=128)
    assert score > trivial + 0.3
