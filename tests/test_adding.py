"""The adding problem, against the sum of products."""

import doctest

import numpy as np
import pytest

import tasks.adding
from tasks.adding import Adding, generate
from tests.learning import learns, small_spec


@pytest.fixture(scope="module", params=[4, 65])
def task(request):
    task = Adding(request.param)
    task.prepare()
    return task


def test_worked_example():
    assert doctest.testmod(tasks.adding).failed == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_match_the_sum_of_products(task, split):
    batch = task.take(split, np.arange(1_000))
    assert batch.inputs.shape == (1_000, task.seq_len, 2)
    numbers, marks = batch.inputs[..., 0].astype(np.float64), batch.inputs[..., 1].astype(np.float64)
    assert batch.targets == pytest.approx((numbers * marks).sum(axis=1), abs=1e-6)


def test_one_position_is_marked_in_each_half(task):
    marks = task.whole("train").inputs[..., 1]
    half = task.seq_len // 2
    assert set(np.unique(marks)) == {0, 1}
    for part in (marks[:, :half], marks[:, half:]):
        assert (part.sum(axis=1) == 1).all()
        assert part.mean(axis=0) == pytest.approx(1 / part.shape[1], abs=0.01)


def test_numbers_are_uniform_and_the_sum_has_variance_one_sixth():
    inputs, targets = generate(np.random.default_rng(0), 20_000, seq_len=10)
    tenths = np.bincount((inputs[..., 0] * 10).astype(int).ravel(), minlength=10)
    assert tenths / tenths.sum() == pytest.approx(0.1, abs=0.003)
    assert targets.mean() == pytest.approx(1, abs=0.01)
    assert targets.var() == pytest.approx(1 / 6, abs=0.004)
    assert np.mean((targets - 1) ** 2) == pytest.approx(1 / 6, abs=0.004)


def test_batches_can_be_written_to(task):
    """torch wants that of an array it shares."""
    batch = task.whole("test")
    assert batch.inputs.flags.writeable
    assert batch.targets.flags.writeable


def test_baselines(task):
    scores = task.baselines()
    assert scores["mean of train"] == pytest.approx(0, abs=0.005)
    assert scores["first marked + 1/2"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_full_attention_learns_it():
    score, trivial = learns(small_spec("adding", 32, steps=150, batch_size=64))
    assert score > trivial + 0.3
