"""State tracking, against things that are moved about one permutation after the other."""

import doctest
from itertools import permutations

import numpy as np
import pytest

import tasks.state_tracking
from tasks.state_tracking import StateTracking, StateTrackingConfig, generate, products, slice_of


def drawn(elements: int, rows: int = 300, seq_len: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return generate(np.random.default_rng(elements), rows, seq_len=seq_len, elements=elements)


def test_worked_example():
    assert doctest.testmod(tasks.state_tracking) == (0, 4)


@pytest.mark.parametrize("elements", [2, 3, 5])
def test_targets_say_where_each_thing_has_gone(elements):
    moves = list(permutations(range(elements)))
    for inputs, targets in zip(*drawn(elements), strict=True):
        where = list(range(elements))  # of each thing
        for token, target in zip(inputs, targets, strict=True):
            where = [moves[token][place] for place in where]
            assert moves[target] == tuple(where)


def test_two_things_are_parity():
    inputs, targets = drawn(2)
    assert np.array_equal(targets, inputs.cumsum(axis=1) % 2)


@pytest.mark.parametrize("elements", [2, 3, 5])
def test_permutations_form_a_group(elements):
    after = products(elements)
    n = len(after)
    assert (after[0] == np.arange(n)).all()
    assert (after[:, 0] == np.arange(n)).all()
    for line in (*after, *after.T):
        assert sorted(line) == list(range(n))
    a, b, c = np.random.default_rng(0).integers(n, size=(3, 500))
    assert np.array_equal(after[after[a, b], c], after[a, after[b, c]])
    assert np.array_equal(after, after.T) == (elements == 2)  # from three things on, order counts


@pytest.mark.parametrize("elements", [2, 3])
def test_no_token_gives_a_product_away_but_the_first(elements):
    inputs, targets = drawn(elements, rows=20_000, seq_len=12)
    n = len(products(elements))
    assert np.array_equal(inputs[:, 0], targets[:, 0])
    for asked in range(1, 12):
        for place in range(12):
            joint = np.bincount(inputs[:, place] * n + targets[:, asked], minlength=n * n) / 20_000
            assert np.abs(joint - 1 / n**2).max() < 0.015


def test_slices_double():
    positions = np.arange(1, 101)
    expected = [0 if p <= 8 else 1 if p <= 16 else 2 if p <= 32 else 3 if p <= 64 else 4 for p in positions]
    assert slice_of(positions).tolist() == expected
    assert StateTracking(100).slice_names == (
        "positions 1–8",
        "positions 9–16",
        "positions 17–32",
        "positions 33–64",
        "positions 65–100",
    )
    assert StateTracking(64).slice_names[-1] == "positions 33–64"
    batch = StateTracking(100).to_batch(*drawn(5, rows=2, seq_len=100))
    assert batch.slices.tolist() == [expected] * 2


def test_training_goes_down_to_the_first_slice():
    batch = next(StateTracking(24).train_batches(4, 8, 0))
    assert (batch.inputs.shape, batch.slices.max()) == ((4, 8), 0)


def test_baselines_match_a_reader(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(StateTracking, "max_rows", {"train": 500, "validation": 200, "test": 500})
    task = StateTracking(24, StateTrackingConfig(elements=3))
    moves, right = list(permutations(range(3))), []
    batch = task.whole("test")
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        for place, target in enumerate(targets):
            where = [0, 1, 2]
            for token in inputs[max(0, place - 3) : place + 1]:
                where = [moves[token][at] for at in where]
            right.append(moves[target] == tuple(where))
    scores = task.baselines()
    assert scores["product of the last 4"] == pytest.approx(np.mean(right))
    assert scores["product of the last 4"] == pytest.approx(4 / 24 + 20 / 24 / 6, abs=0.02)
    assert scores["last token"] == pytest.approx(1 / 24 + 23 / 24 / 6, abs=0.02)
    assert scores["most frequent product"] == pytest.approx(1 / 6, abs=0.02)


def test_other_numbers_of_things_are_refused():
    with pytest.raises(ValueError, match=r"expected state_tracking\.elements among 2, 3, 5, got 4"):
        StateTrackingConfig(elements=4)
    assert {StateTracking(64, StateTrackingConfig(elements=n)).n_classes for n in (2, 3, 5)} == {2, 6, 120}
    assert len({StateTracking(64, StateTrackingConfig(elements=n)).cache_key for n in (2, 3, 5)}) == 3


def test_it_is_for_causal_encoders_alone():
    assert StateTracking.causal
    assert StateTracking.causal_only
