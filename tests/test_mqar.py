"""Multi-query associative recall, against a solver that reads the sequence as one would by hand."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.mqar
from tasks import IGNORE
from tasks.mqar import Mqar, distinct, generate


@pytest.fixture(scope="module", params=[32, 64, 257])
def task(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = Mqar(request.param)
        task.prepare()
        yield task


def solve(inputs: list[int], n_pairs: int) -> list[int]:
    """The targets of one sequence, from its inputs alone."""
    context, rest = inputs[: 2 * n_pairs], inputs[2 * n_pairs :]
    value_of = dict(zip(context[::2], context[1::2], strict=True))
    return [IGNORE] * len(context) + [value_of.get(token, IGNORE) for token in rest]


def test_worked_example():
    assert doctest.testmod(tasks.mqar).failed == 0


@pytest.mark.parametrize("split", ["validation", "test"])
def test_targets_match_the_solver(task, split):
    whole = task.whole(split)
    for inputs, targets in zip(whole.inputs.tolist(), whole.targets.tolist(), strict=True):
        assert solve(inputs, task.n_pairs) == targets


def test_training_targets_match_the_solver(task):
    batch = next(task.train_batches(500, task.seq_len, 0))
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert solve(inputs, task.n_pairs) == targets


@settings(max_examples=50, deadline=None)
@given(n_pairs=st.integers(1, 9), spare=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_every_key_is_asked_once_and_no_value_comes_after_the_context(n_pairs, spare, seed):
    seq_len, vocab_size = 4 * n_pairs + spare, 64
    rng = np.random.default_rng(seed)
    inputs, targets = generate(rng, 20, seq_len=seq_len, n_pairs=n_pairs, vocab_size=vocab_size)
    context, rest = inputs[:, : 2 * n_pairs], inputs[:, 2 * n_pairs :]
    keys, values = np.sort(context[:, ::2]), np.sort(context[:, 1::2])
    for ids in (keys, values):
        assert (np.diff(ids) > 0).all()
    assert 1 <= keys.min() <= keys.max() < vocab_size // 2 <= values.min() <= values.max() < vocab_size
    assert rest.max() < vocab_size // 2
    assert (rest[:, 1::2] == 0).all()
    assert np.array_equal(np.sort(rest)[:, -n_pairs:], keys)
    assert ((rest != 0) == (targets[:, 2 * n_pairs :] != IGNORE)).all()
    assert (targets[:, : 2 * n_pairs] == IGNORE).all()


def test_draws_without_replacement_match_numpy_choice():
    weights = np.arange(1, 7, dtype=np.float32) ** -0.99
    rng = np.random.default_rng(0)
    ours = distinct(rng, 6_000, 3, weights)
    p = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    theirs = np.array([rng.choice(6, size=3, replace=False, p=p) for _ in range(6_000)])
    for drawn in range(3):
        one, other = (np.bincount(draws[:, drawn], minlength=6) / 6_000 for draws in (ours, theirs))
        assert np.abs(one - other).max() < 0.04


def test_queries_crowd_after_the_context(task):
    rest = task.whole("test").inputs[:, 2 * task.n_pairs :: 2]
    share = (rest != 0).mean(axis=0)
    assert share[0] > 2 * share[-len(share) // 4 :].mean()
    quarters = [part.mean() for part in np.array_split(share, 4)]
    assert quarters[0] > quarters[1] > quarters[3]


def test_samples_met_before_are_dropped(monkeypatch):
    monkeypatch.setattr(Mqar, "max_rows", {"train": 500, "validation": 40, "test": 30})

    def repeating(_, rows, **kwargs):
        inputs, targets = generate(np.random.default_rng(0), 500, **kwargs)
        return inputs[:rows], targets[:rows]

    monkeypatch.setattr(tasks.mqar, "generate", repeating)
    sizes = {split: len(list(source.rows)) for split, source in Mqar(64).build().items()}
    assert sizes == {"test": 30, "validation": 40 - 30, "train": 500 - 40}


@pytest.mark.parametrize(
    ("seq_len", "n_pairs", "vocab_size"), [(32, 2, 128), (512, 32, 128), (528, 33, 256), (65_536, 4096, 16_384)]
)
def test_vocabulary_grows_with_the_pairs(seq_len, n_pairs, vocab_size):
    task = Mqar(seq_len)
    assert (task.n_pairs, task.vocab_size, task.n_classes) == (n_pairs, vocab_size, vocab_size)


def test_baselines_stay_near_chance(task):
    scores = task.baselines()
    assert scores["most frequent value"] < 4 / task.vocab_size
    assert scores["last value"] == pytest.approx(1 / task.n_pairs)
    assert scores["values in order"] < 2 / task.n_pairs
