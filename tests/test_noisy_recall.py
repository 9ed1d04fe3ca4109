"""Noisy recall, against a reader who writes the pairs down."""

import doctest
from itertools import pairwise

import numpy as np
import pytest

import tasks.noisy_recall
from tasks import IGNORE
from tasks.noisy_recall import HAY, NoisyRecall, NoisyRecallConfig, generate
from tests.learning import learns, small_spec

OPTIONS = [
    (32, NoisyRecallConfig(pairs=8, values=5)),
    (256, NoisyRecallConfig()),
    (131, NoisyRecallConfig(hay=0.2, keys=40)),
]


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda given: str(given[0]))
def task(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(NoisyRecall, "max_rows", {"train": 1_000, "validation": 300, "test": 300})
        task = NoisyRecall(*request.param)
        task.prepare()
        yield task


def read(task: NoisyRecall, inputs: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Key -> its value; key -> where it was last paired."""
    values, places = {}, {}
    for place, (token, behind) in enumerate(pairwise(inputs)):
        if token >= task.n_classes + HAY and behind < task.n_classes:
            assert values.setdefault(token, behind) == behind
            places[token] = place
    return values, places


def test_worked_example():
    assert doctest.testmod(tasks.noisy_recall).failed == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_match_the_reader(task, split):
    batch = task.whole(split)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        values, places = read(task, inputs)
        assert len(values) == task.config.pairs
        half = task.seq_len // 4 * 2
        assert max(places.values()) < half
        asked = range(half, task.seq_len, 2)
        assert targets == [values[token] if place in asked else IGNORE for place, token in enumerate(inputs)]
        rest = [token for place, token in enumerate(inputs[half:], start=half) if place not in asked]
        assert all(task.n_classes <= token < task.n_classes + HAY for token in rest)


def test_slices_say_how_far_back_a_key_was_last_paired(task):
    batch = task.whole("test")
    bins = [tuple(map(int, name.removesuffix(" back").split("–"))) for name in task.slice_names]
    assert (bins[0][0], bins[-1][1]) == (2, task.seq_len - 1)
    assert all(near == far + 1 for (_, far), (near, _) in pairwise(bins))
    for inputs, targets, parts in zip(
        batch.inputs.tolist(), batch.targets.tolist(), batch.slices.tolist(), strict=True
    ):
        _, places = read(task, inputs)
        for place, (token, target, part) in enumerate(zip(inputs, targets, parts, strict=True)):
            if target == IGNORE:
                assert part == 0
            else:
                near, far = bins[part]
                assert near <= place - places[token] <= far


@pytest.mark.parametrize("hay", [0.0, 0.2, 1.0])
def test_the_share_of_hay_is_of_the_slots_without_a_new_pair(hay):
    inputs, _ = generate(np.random.default_rng(0), 500, seq_len=256, n_pairs=8, n_values=64, n_keys=64, hay=hay)
    keys, values = inputs[:, 0:128:2], inputs[:, 1:128:2]
    paired = keys >= 64 + HAY
    assert np.array_equal(paired, values < 64)
    assert paired.sum(axis=1).min() >= 8
    assert paired.mean() == pytest.approx((8 + 56 * (1 - hay)) / 64, abs=0.01)


def test_neither_place_nor_order_nor_id_says_anything_of_an_answer():
    """Each pair is at every place as often, its value as often each, and every pair is asked everywhere as often."""
    rows, slots = 20_000, 16
    inputs, targets = generate(np.random.default_rng(0), rows, seq_len=64, n_pairs=4, n_values=6, n_keys=8)
    keys = inputs[:, 0 : 2 * slots : 2]
    paired = keys >= 6 + HAY
    assert paired.mean(axis=0) == pytest.approx(np.full(slots, 4 / slots), abs=0.02)
    values = inputs[:, 1 : 2 * slots : 2]
    for place in range(slots):
        counts = np.bincount(values[paired[:, place], place], minlength=6)
        assert counts / counts.sum() == pytest.approx(np.full(6, 1 / 6), abs=0.04)
    order = (np.cumsum(paired, axis=1) - 1)[paired].reshape(rows, 4)
    assert np.array_equal(order, np.tile(np.arange(4), (rows, 1)))
    said = keys[paired].reshape(rows, 4)
    for question in range(2 * slots, 64, 2):
        rank = (said == inputs[:, question, None]).argmax(axis=1)
        assert np.bincount(rank, minlength=4) / rows == pytest.approx(np.full(4, 1 / 4), abs=0.02)
        assert np.bincount(targets[:, question]) / rows == pytest.approx(np.full(6, 1 / 6), abs=0.02)


def test_all_lengths_share_the_ids_and_short_ones_hold_fewer_pairs():
    task = NoisyRecall(2048, NoisyRecallConfig(pairs=256))
    assert (task.n_keys, task.vocab_size, task.n_classes) == (256, 64 + 64 + 256, 64)
    for length, pairs in [(32, 4), (128, 16), (512, 64), (2048, 256)]:
        inputs, _ = task.draw(np.random.default_rng(0), 50, length)
        keys = inputs[:, : length // 2 : 2]
        assert ((keys >= 128).sum(axis=1) == pairs).all()
        assert inputs.max() < task.vocab_size
    assert np.unique(inputs[inputs >= 128]).tolist() == list(range(128, 384))


@pytest.mark.parametrize(
    ("seq_len", "options", "message"),
    [
        (64, {"pairs": 17}, "expected pairs <= seq_len / 4 = 16, got 17"),
        (64, {"pairs": 1}, r"expected 2 <= noisy_recall\.pairs <= \d+, got 1$"),
        (64, {"values": 1}, r"expected 2 <= noisy_recall\.values <= \d+, got 1$"),
        (64, {"values": 20_000}, r"expected 2 <= noisy_recall\.values <= 8192, got 20000$"),
        (64, {"keys": 0}, r"expected 2 <= noisy_recall\.keys <= \d+, got 0$"),
        (64, {"hay": 1.5}, r"expected 0 <= noisy_recall\.hay <= 1, a share, got 1\.5$"),
        (64, {"hay": float("nan")}, r"got nan$"),
    ],
)
def test_impossible_options_are_refused_in_one_line(seq_len, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        NoisyRecall(seq_len, NoisyRecallConfig(**options))
    assert "\n" not in str(raised.value)


def test_options_are_part_of_the_cache_key():
    keys = [
        NoisyRecall(64, NoisyRecallConfig(**options)).cache_key
        for options in ({}, {"pairs": 8}, {"values": 8}, {"keys": 128}, {"hay": 0.5})
    ]
    assert len(set(keys)) == len(keys)


def test_the_largest_ids_fit_where_they_are_stored():
    task = NoisyRecall(65_536, NoisyRecallConfig(pairs=16_384, values=8192))
    inputs, targets = task.draw(np.random.default_rng(0), 1, 65_536)
    assert inputs.min() >= 0
    assert inputs.max() == task.vocab_size - 1
    assert targets.max() < 8192


def test_baselines_match_the_reader(task):
    right, asked = np.zeros(2), 0
    batch = task.whole("test")
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        answers = [target for target in targets if target != IGNORE]
        said = [token for token in inputs if token < task.n_classes]
        guesses = said[-1], min(set(said), key=lambda value: (-said.count(value), value))
        right += [answers.count(guess) for guess in guesses]
        asked += len(answers)
    scores = task.baselines()
    assert scores["most frequent value"] < 2 / task.n_classes
    assert [scores["last value"], scores["most frequent of the sample"]] == pytest.approx(right / asked)


@pytest.mark.slow
def test_full_attention_learns_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(NoisyRecall, "max_rows", {"train": 4_000, "validation": 200, "test": 200})
    score, trivial = learns(small_spec("noisy_recall", 32, {"pairs": 4, "values": 16, "keys": 16}, steps=120))
    assert score > trivial + 0.2
