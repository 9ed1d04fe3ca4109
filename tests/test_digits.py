"""The digits that scikit-learn brings along: nothing lost, nothing mixed up."""

import doctest
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from sklearn.datasets import load_digits

import tasks.digits
from tasks import Task
from tasks.base import SPLITS
from tasks.digits import Digits, DigitsConfig, deal
from tests.learning import learns, small_spec


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=[1, 2, 4])
def scaled(request) -> tuple[int, Task]:
    return request.param, Digits(64 * request.param**2)


def test_worked_example():
    assert doctest.testmod(tasks.digits) == (0, 4)


def test_splits_are_all_digits_with_their_labels(scaled):
    scale, task = scaled
    digits = load_digits()
    given = {(np.kron(image, np.ones((scale, scale))) + 1).tobytes() for image in digits.images}
    assert len(given) == len(digits.images) == 1797
    label_of = {image.tobytes(): label for image, label in zip(digits.images, digits.target, strict=True)}
    met = set()
    for split in SPLITS:
        whole = task.whole(split)
        for ids, target in zip(whole.inputs, whole.targets, strict=True):
            picture = ids.reshape(8 * scale, 8 * scale).astype(float)
            assert label_of[(picture[::scale, ::scale] - 1).tobytes()] == target
            met.add(picture.tobytes())
    assert met == given


def test_splits_hold_the_same_share_of_each_class():
    labels = load_digits().target
    dealt = deal(labels)
    assert {split: len(samples) for split, samples in dealt.items()} == {"test": 269, "validation": 269, "train": 1259}
    assert sorted(chain.from_iterable(dealt.values())) == list(range(1797))
    for samples in (dealt["test"], dealt["validation"]):
        shares = np.bincount(labels[samples]) / np.bincount(labels)
        assert np.abs(shares - 0.15).max() < 0.005
        assert samples == sorted(samples)
        assert np.corrcoef(samples, np.arange(len(samples)))[0, 1] > 0.99  # from all over the data


def test_lengths_share_one_cache(monkeypatch):
    Digits(64).prepare()
    monkeypatch.setattr(Digits, "build", lambda _: pytest.fail("built again"))
    assert Digits(1024).size("test") == Digits(64).size("test")


def test_copies_are_dropped_from_train_first(monkeypatch):
    images, labels = tasks.digits.load()
    dealt = deal(labels)
    images[dealt["train"][3]] = images[dealt["validation"][5]] = images[dealt["test"][7]]
    images[dealt["train"][9]] = images[dealt["train"][8]]
    monkeypatch.setattr(tasks.digits, "load", lambda: (images, labels))
    sizes = {split: len(list(source.rows)) for split, source in Digits(64).build().items()}
    assert sizes == {"test": len(dealt["test"]), "validation": len(dealt["validation"]) - 1, "train": 1259 - 2}


def test_a_length_between_is_refused():
    with pytest.raises(ValueError, match=r"^digits: expected seq_len among 4, 16, 64, 256, 1024, got 128$"):
        Digits(128)


def test_patches_are_those_of_the_picture():
    task = Digits(16, DigitsConfig(patch=2))
    assert (task.vocab_size, task.n_features) == (None, 4)
    whole, pixels = task.whole("test"), Digits(64).whole("test")
    assert whole.inputs.shape[1:] == (16, 4)
    picture = pixels.inputs[0].reshape(8, 8) - 1
    np.testing.assert_allclose(whole.inputs[0, 5], picture[2:4, 2:4].flatten() / 8 - 1)
    repeated = Digits(64, DigitsConfig(patch=2)).whole("test").inputs[0]
    np.testing.assert_allclose(repeated[9], np.full(4, picture[1, 1] / 8 - 1), err_msg="one pixel, repeated")


@pytest.mark.parametrize(("seq_len", "patch"), [(4, 1), (16, 1), (4, 2)])
def test_a_picture_needs_enough_positions(seq_len, patch):
    with pytest.raises(ValueError, match=rf"expected seq_len of at least {(8 // patch) ** 2} with patches of {patch}"):
        Digits(seq_len, DigitsConfig(patch=patch))
    with pytest.raises(ValueError, match=r"digits\.patch: expected 1, 2 or 4, got 3"):
        DigitsConfig(patch=3)


def test_baselines():
    scores = Digits(64).baselines()
    assert scores["majority"] == pytest.approx(0.1, abs=0.01)
    assert 0.93 < scores["logistic regression"] < 0.99
    assert Digits(256).baselines() == scores


def test_provenance_counts_the_labels():
    provenance = Digits(64).provenance()
    counts = Counter(Digits(64).whole("test").targets.tolist())
    assert provenance["test_labels"] == " ".join(str(counts[label]) for label in range(10))
    assert provenance["train_samples"] == 1259


@pytest.mark.slow
def test_a_small_model_learns():
    score, baseline = learns(small_spec("digits", 64, steps=150))
    assert baseline > 0.9  # logistic regression, which is hard to beat here
    assert score > 0.5
