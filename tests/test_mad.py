"""The six tasks of MAD, each against readers that go through a sample token by token, as its definition says."""

import doctest
import importlib
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from tasks import IGNORE, SUITES
from tasks.mad import first_seen
from tasks.mad_fuzzy_recall import motifs
from tasks.mad_memorize import value_of
from tasks.mad_noisy_recall import NOISE_IDS
from tests.learning import learns, small_spec

NAMES = tuple(SUITES["mad"].tasks)
RECALLS = ("mad_recall", "mad_noisy_recall", "mad_fuzzy_recall")


def make(name: str, seq_len: int, **options: object) -> tasks.Task:
    return tasks.get(name)(seq_len, tasks.get(name).config_type(**options))


def drawn(name: str, seq_len: int, rows: int = 150, *, training: bool = False, **options: object):
    """Inputs and targets, lists of lists."""
    task = make(name, seq_len, **options)
    draw = task.draw_train if training else task.draw
    inputs, targets = draw(np.random.default_rng(seq_len), rows, seq_len)
    return inputs.tolist(), targets.tolist()


@pytest.mark.parametrize("which", NAMES)
def test_worked_example(which):
    failed, tried = doctest.testmod(importlib.import_module(f"tasks.{which}"))
    assert (failed, tried > 2) == (0, True)


def recall(inputs: list[int], first_value: int, first_noise: int) -> list[int]:
    """What a reader of keys and values knows of the next token."""
    value_of_key: dict[int, int] = {}
    known = [IGNORE] * len(inputs)
    for place, token in enumerate(inputs):
        key = inputs[place - 1]
        if token < first_value:
            known[place] = value_of_key.get(token, IGNORE)
        elif token < first_noise:
            assert value_of_key.setdefault(key, token) == token
    return known


def fuzzy_recall(inputs: list[int], first_value: int, pad: int) -> list[int]:
    """The same, where a key is three tokens and a value one to three."""
    value_of_key: dict[tuple[int, ...], list[int]] = {}
    known, key, value = [IGNORE] * len(inputs), (), []
    for place, token in enumerate(inputs):
        if token == pad:
            assert not key
            continue
        if token < first_value and value:
            assert value_of_key.setdefault(key, value) == value
            key, value = (), []
        if token < first_value:
            key = (*key, token)
        else:
            value = [*value, token]
        if len(key) == 3 and key in value_of_key and len(value) < len(value_of_key[key]):
            known[place] = value_of_key[key][len(value)]
    return known


def selective_copy(inputs: list[int], vocab_size: int) -> list[int]:
    text, answers = inputs[: inputs.index(vocab_size - 1)], len(inputs) - inputs.index(vocab_size - 1) - 1
    assert set(inputs[-answers:]) == {vocab_size - 2}
    return [IGNORE] * (len(inputs) - answers) + [token for token in text if token < vocab_size - 2]


def memorize(inputs: list[int], vocab_size: int) -> list[int]:
    values = value_of(vocab_size)
    asked = [IGNORE, *(values[key] if token == vocab_size - 1 else IGNORE for key, token in pairwise(inputs))]
    assert all(token < vocab_size // 2 for token in inputs[::2])
    return asked


READERS = {
    "mad_recall": lambda inputs, V: recall(inputs, V // 2, V),
    "mad_noisy_recall": lambda inputs, V: recall(inputs, (V - NOISE_IDS) // 2, V - NOISE_IDS),
    "mad_fuzzy_recall": lambda inputs, V: fuzzy_recall(inputs, (V - 1) // 2, V - 1),
    "mad_selective_copy": selective_copy,
    "mad_memorize": memorize,
    "mad_compress": lambda inputs, V: [*inputs[:-1], IGNORE],
}


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("seq_len", [40, 63, 128])
@pytest.mark.parametrize("vocab_size", [32, 128])
def test_targets_are_what_a_reader_of_the_text_before_knows(which, seq_len, vocab_size):
    for inputs, targets in zip(*drawn(which, seq_len, vocab_size=vocab_size), strict=True):
        assert READERS[which](inputs, vocab_size) == targets
        assert 0 <= min(inputs) <= max(inputs) < vocab_size


@pytest.mark.parametrize("which", RECALLS)
@pytest.mark.parametrize("seq_len", [40, 63])
def test_recalls_are_trained_on_every_next_token(which, seq_len):
    for inputs, targets in zip(*drawn(which, seq_len, training=True), strict=True):
        assert inputs[1:] == targets[:-1]
        assert (targets[-1] == IGNORE) == (seq_len % 2 == 0 and which != "mad_fuzzy_recall")
    tested = drawn(which, seq_len)[1]
    assert all(any(target != IGNORE for target in row[-2 if "fuzzy" not in which else -1 :]) for row in tested)


@pytest.mark.parametrize("which", RECALLS)
def test_the_stored_splits_are_those_of_training_and_of_test(which, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    task = make(which, 40, train_samples=300)
    assert [task.size(split) for split in ("train", "validation", "test")] == [300, 1280, 1280]
    train, test = task.whole("train"), task.whole("test")
    assert np.array_equal(train.inputs[:, 1:], train.targets[:, :-1])
    assert 0.05 < (test.targets != IGNORE).mean() < 0.5
    shorter = next(task.train_batches(8, 30, 0))
    assert np.array_equal(shorter.inputs[:, 1:], shorter.targets[:, :-1])


def test_keys_and_values_are_drawn_evenly_and_the_last_key_among_those_shown():
    inputs, _ = map(np.array, drawn("mad_recall", 12, rows=20_000, vocab_size=8))
    keys, values = inputs[:, :-2:2], inputs[:, 1:-2:2]
    for ids, first in ((keys, 0), (values[:, :1], 4)):
        assert np.abs(np.bincount(ids.ravel(), minlength=first + 4)[first:] / ids.size - 1 / 4).max() < 0.01
    counts = Counter()
    for shown, asked in zip(keys.tolist(), inputs[:, -2].tolist(), strict=True):
        if len(set(shown)) == 2:
            counts[shown.count(asked)] += 1
    assert counts[1] == pytest.approx(
        counts[4], rel=0.1
    )  # of two keys each is asked as often, shown once or four times


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_share_of_noise(share):
    inputs, _ = map(np.array, drawn("mad_noisy_recall", 256, rows=500, noise_share=share))
    pairs = inputs.reshape(500, -1, 2) >= 16
    assert np.array_equal(pairs[..., 0], pairs[..., 1])
    assert pairs[:, :-1].mean() == pytest.approx(share * (1 - 1 / 127), abs=0.01)
    assert not pairs[:, -1].any()
    noise = inputs[inputs >= 16]
    assert np.abs(np.bincount(noise - 16, minlength=16) / len(noise) - 1 / 16).max() < 0.01


@settings(max_examples=40, deadline=None)
@given(
    keys=st.integers(1, 30).flatmap(
        lambda width: st.lists(st.lists(st.integers(-3, 5), min_size=width, max_size=width), min_size=1, max_size=4)
    )
)
def test_first_seen_is_where_a_list_finds_it(keys):
    assert first_seen(np.array(keys)).tolist() == [[row.index(key) for key in row] for row in keys]


def test_motifs_are_all_orders_of_different_ids_alike():
    counts = Counter(map(tuple, motifs(np.random.default_rng(0), np.full(24_000, 3), 5, 4).tolist()))
    assert len(counts) == 24
    assert all(len(set(motif)) == 3 and set(motif) <= {5, 6, 7, 8} for motif in counts)
    assert max(abs(count - 1000) for count in counts.values()) < 150
    assert motifs(np.random.default_rng(0), np.array([1, 2]), 5, 4)[:, 2].tolist() == [-1, -1]


def read_pairs(text: list[int], first_value: int, pad: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    pairs, key, value = [], [], []
    for token in [*text, 0]:
        if token < first_value and value:
            pairs.append((tuple(key), tuple(value)))
            key, value = [], []
        if token != pad:
            (key if token < first_value else value).append(token)
    return pairs


def literal_fuzzy(rng: np.random.Generator, seq_len: int, training: bool) -> list[tuple]:
    """The pairs of one sample of 16 ids, one after the other as the paper's generator draws them."""

    def motif(ids: range, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(rng.choice(list(ids), rng.choice(sizes), replace=False).tolist())

    key_sizes = (1, 2, 3) if training else (3,)
    probe = motif(range(7), key_sizes), motif(range(7, 15), (1, 2, 3))
    size = len(probe[0] + probe[1])
    place, pairs, length, values = rng.integers(seq_len - 2 * size), [], 0, {probe[0]: probe[1]}
    while length < seq_len - size - 6:
        key = motif(range(7), key_sizes)
        if length >= place and probe not in pairs:
            key = probe[0]
        pairs.append((key, values.setdefault(key, motif(range(7, 15), (1, 2, 3)))))
        length += len(pairs[-1][0] + pairs[-1][1])
    return [*pairs, probe]


@pytest.mark.parametrize("training", [False, True])
def test_fuzzy_texts_are_as_a_literal_generator_draws_them(training):
    rng, rows, seq_len = np.random.default_rng(0), 500, 64
    task = make("mad_fuzzy_recall", seq_len)
    ours, foretold = task.text(rng, rows, seq_len, training=training)
    assert (ours.shape, foretold.shape) == ((rows, seq_len + 1), (rows, seq_len + 1))
    texts = [read_pairs(text, 7, 15) for text in ours.tolist()]
    literal = [literal_fuzzy(rng, seq_len, training) for _ in range(rows)]
    assert all(pairs[-1] in pairs[:-1] for pairs in texts)
    answerable = [pairs for pairs in literal if pairs[-1] in pairs[:-1]]
    assert 0.9 < len(answerable) / rows < 1

    def facts(found: list[list[tuple]]) -> np.ndarray:
        """Means of: pairs, tokens, sizes of keys and of values, keys that came before, where the last came first."""
        rows = []
        for pairs in found:
            keys = [key for key, _ in pairs]
            again = sum(key in keys[:place] for place, key in enumerate(keys))
            sizes = np.array([(len(key), len(value)) for key, value in pairs])
            place = keys.index(keys[-1]) / len(keys)
            rows.append([len(pairs), sizes.sum(), *sizes.mean(axis=0), again, place])
        return np.array(rows)

    ours, theirs = facts(texts), facts(answerable)
    noise = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
    gaps = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
    assert (gaps < 4 * noise + 0.02 * np.abs(theirs.mean(axis=0)) + 1e-9).all()


def test_blanks_fall_before_tokens_as_numpy_inserts_them():
    rng, rows, n = np.random.default_rng(0), 4_000, 4
    places = []
    for _ in range(rows):
        text = np.insert(np.arange(n), rng.integers(n, size=20 - 2 * n - 1), -1)
        places.append([text.tolist().index(token) for token in range(n)])
    inputs, _ = map(np.array, drawn("mad_selective_copy", 20, rows=rows, n_copy=n))
    ours = np.nonzero(inputs[:, : -n - 1] < 14)[1].reshape(rows, n)
    theirs = np.array(places)
    assert (ours[:, -1] == 20 - n - 2).all()
    assert (theirs[:, -1] == 20 - n - 2).all()
    assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() < 0.2
    assert np.abs(ours.std(axis=0) - theirs.std(axis=0)).max() < 0.15


def test_the_list_is_the_same_in_every_split_and_another_for_each_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    task = make("mad_memorize", 32)
    known: dict[int, int] = {}
    for split in ("train", "validation", "test"):
        batch = task.whole(split)
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            for key, target in zip(inputs[::2], targets[1::2], strict=True):
                assert known.setdefault(key, target) == target
    assert (sorted(known), len(set(known.values()))) == (list(range(127)), 127)
    assert value_of(256).tolist() == [known[key] for key in range(127)]
    assert not np.array_equal(value_of(256) - 127, value_of(257)[:127] - 128)


def test_what_training_never_shows_bounds_the_score(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    shares = {size: make("mad_memorize", 32, vocab_size=size).shown() for size in (2048, 4096, 8192)}
    for size, share in shares.items():
        assert share == pytest.approx(1 - np.exp(-256 * 16 / ((size - 1) // 2)), abs=0.02)
    assert (round(shares[4096], 2), round(shares[8192], 2)) == (0.86, 0.63)
    mean = (3 + sum(shares.values())) / 6  # up to 1024 all are shown
    assert round(mean, 2) == 0.91
    (note,) = make("mad_memorize", 32, vocab_size=8192).notes()
    assert f"{shares[8192]:.1%}" in note


@pytest.mark.parametrize("which", RECALLS)
def test_no_place_and_no_distance_holds_the_answers(which):
    inputs, targets = map(np.array, drawn(which, 64, rows=2_000))
    rows, places = np.nonzero(targets != IGNORE)
    answers = targets[rows, places]
    for fixed in range(64):
        assert np.mean((inputs[rows, fixed] == answers) & (fixed <= places)) < 0.3  # 8 values, and 8 keys or more
    for back in range(64):
        assert np.mean((inputs[rows, places - back] == answers) & (back <= places)) < 0.3


def test_one_answer_of_selective_copying_stands_at_its_place_and_no_other():
    inputs, targets = map(np.array, drawn("mad_selective_copy", 64, rows=4_000))
    best = [(inputs[:, :47] == targets[:, [asked]]).mean(axis=0).max() for asked in range(48, 64)]
    assert best[-1] == 1
    assert max(best[:-1]) < 0.3


@pytest.mark.parametrize("which", NAMES)
def test_one_sample_in_another_vocabulary_is_another_table(which):
    keys = {make(which, 64).cache_key, make(which, 64, vocab_size=40).cache_key, make(which, 66).cache_key}
    assert len(keys | {make(which, 64, train_samples=800).cache_key}) == 4


@pytest.mark.parametrize(
    ("which", "seq_len", "options", "message"),
    [
        ("mad_recall", 64, {"vocab_size": 3}, r"expected 4 <= mad_recall\.vocab_size <= 32768, got 3"),
        ("mad_noisy_recall", 64, {"vocab_size": 19}, r"expected 20 <= mad_noisy_recall\.vocab_size <= 32768, got 19"),
        ("mad_noisy_recall", 64, {"noise_share": 1.0}, r"expected 0 <= mad_noisy_recall\.noise_share < 1, got 1\.0"),
        ("mad_memorize", 64, {"train_samples": 0}, r"expected mad_memorize\.train_samples >= 1, got 0"),
        ("mad_selective_copy", 64, {"n_copy": 0}, r"expected mad_selective_copy\.n_copy >= 1, got 0"),
        ("mad_selective_copy", 33, {}, r"mad_selective_copy: expected seq_len >= 34 for n_copy=16, got 33"),
    ],
)
def test_settings_that_cannot_be_are_refused(which, seq_len, options, message):
    with pytest.raises(ValueError, match=message):
        make(which, seq_len, **options)


def test_baselines_match_a_reader(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    right: dict[str, Counter] = defaultdict(Counter)
    for name, values in (("mad_recall", range(8, 16)), ("mad_fuzzy_recall", range(7, 15))):
        task = make(name, 48, train_samples=500)
        batch = task.whole("test")
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            for place, answer in enumerate(targets):
                if answer == IGNORE:
                    continue
                shown = [token for token in inputs[: place + 1] if token in values]
                counts = Counter(shown)
                right[name]["so far"] += min(counts, key=lambda token: (-counts[token], token)) == answer
                right[name]["last"] += shown[-1] == answer
                right[name]["asked"] += 1
        scores, found = task.baselines(), right[name]
        assert scores["most frequent value so far"] == pytest.approx(found["so far"] / found["asked"])
        assert scores["last value"] == pytest.approx(found["last"] / found["asked"])
        assert scores["most frequent value"] == pytest.approx(1 / 8, abs=0.04)
    copy = make("mad_selective_copy", 64, train_samples=500).baselines()
    assert copy["that, and the last token"] > copy["most frequent of the text"] + 0.9 / 16 * (1 - 0.3)
    assert make("mad_compress", 64, train_samples=500).baselines()["most frequent of the text"] < 0.25
    assert make("mad_memorize", 32).baselines()["most frequent value"] < 0.03


def test_recalls_are_for_causal_encoders_alone():
    found = {name: (tasks.get(name).causal, tasks.get(name).causal_only) for name in NAMES}
    assert found == {name: (True, name in RECALLS) for name in NAMES}


@pytest.mark.long
@pytest.mark.parametrize(("which", "steps", "least"), [("mad_memorize", 400, 0.5), ("mad_compress", 400, 0.3)])
def test_full_attention_learns_those_with_a_reading_in_both_directions(which, steps, least, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    score, trivial = learns(small_spec(which, 32, steps=steps, batch_size=128))
    assert score > max(least, trivial + 0.1)
