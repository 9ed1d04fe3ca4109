"""The next byte of the standard library: windows, targets, and baselines held to literal readings."""

import doctest
import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

import tasks.next_byte
from tasks import IGNORE
from tasks.bytes import PAD, Bytes
from tasks.next_byte import CONTEXTS, LONGEST_CONTEXT, NextByte, backed_off

N = 1024


@pytest.fixture(scope="module")
def task() -> NextByte:
    task = NextByte(N)
    task.prepare()
    return task


def test_worked_example() -> None:
    assert doctest.testmod(tasks.next_byte).failed == 0


def test_it_is_what_bytes_becomes() -> None:
    assert Bytes.causal_form == NextByte.name
    assert not Bytes.causal
    assert (NextByte.min_len, NextByte.max_len, NextByte.defaults) == (Bytes.min_len, Bytes.max_len, Bytes.defaults)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_each_byte_but_the_first_is_predicted_once_from_those_before_it_in_its_window(task, split) -> None:
    stream, whole = task.streams[split], task.whole(split)
    asked = []
    for number, (inputs, targets) in enumerate(zip(whole.inputs, whole.targets, strict=True)):
        for place in (0, 1, N // 2, N - 2, N - 1):
            if targets[place] != IGNORE:
                at = number * N + place
                assert inputs[place] == stream[at] + 1
                assert targets[place] == stream[at + 1] + 1
        asked += (targets[targets != IGNORE] - 1).tolist()
    assert asked == stream[1:].tolist()
    assert whole.padding is not None
    assert np.array_equal(whole.padding, whole.targets == IGNORE)
    assert (whole.inputs[whole.padding] == PAD).all()
    assert not whole.padding[:-1].any()


def test_training_windows_run_on_in_the_stream(task) -> None:
    batch = next(task.train_batches(8, 64, 0))
    assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    text = task.streams["train"].tobytes()
    assert all((row - 1).astype(np.uint8).tobytes() in text for row in np.c_[batch.inputs, batch.targets[:, -1:]])
    assert batch.padding is None


def test_slices_are_of_the_bytes_seen(task) -> None:
    batch = next(task.eval_batches("test", 3))
    assert task.slice_names[:3] == ("after 1 to 15 bytes", "after 16 to 127 bytes", "after 128 to 1,023 bytes")
    for place in range(N):
        first = max(start for start in CONTEXTS if start <= place + 1)
        assert (batch.slices[:, place] == CONTEXTS.index(first)).all()


def literal(train: bytes, test: bytes, seq_len: int, order: int) -> list[float]:
    """Bits of each byte of test but the first: Witten and Bell's mixture, by dictionaries."""
    after: dict[bytes, Counter[int]] = defaultdict(Counter)
    for end, byte in enumerate(train):
        for length in range(min(end, order) + 1):
            after[train[end - length : end]][byte] += 1
    bits = []
    for at in range(1, len(test)):
        p, seen = 1 / 256, test[(at - 1) // seq_len * seq_len : at]
        for length in range(min(len(seen), order) + 1):
            counts = after.get(seen[len(seen) - length :])
            if counts:
                kinds = len(counts)
                p = (counts[test[at]] + kinds * p) / (counts.total() + kinds)
        bits.append(-math.log2(p))
    return bits


def test_the_n_gram_is_that_of_a_literal_reading() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.choice(np.frombuffer(b"ab\0\xff", np.uint8), size) for size in (400, 90))
    test[:5] = (0, 7, 0, 255, 7)  # and a byte that train does not have
    context = 1 + np.arange(-1, len(test) - 1) % 16
    for order, p in enumerate(backed_off(train, test, context)):
        expected = literal(train.tobytes(), test.tobytes(), 16, order)
        assert -np.log2(p[1:]) == pytest.approx(expected)
    assert order == LONGEST_CONTEXT


def test_its_probabilities_add_up() -> None:
    train = np.random.default_rng(1).integers(0, 4, 300).astype(np.uint8)
    total = np.zeros(3)
    for byte in range(256):
        test = np.array([1, 2, byte], np.uint8)
        *_, p = backed_off(train, test, np.array([0, 1, 2]))
        total += p
    assert total[2] == pytest.approx(1)


def test_baselines_fall_from_eight_bits(task) -> None:
    streams = {split: stream[:5_000] for split, stream in task.streams.items()}
    few = SimpleNamespace(streams=streams, seq_len=N)
    found = NextByte.baselines(few)
    assert list(found) == ["uniform", "unigram", "5-gram", "xz of the test set"]
    assert found["uniform"] == 8
    assert 4 < found["unigram"] < 5.5
    assert 2 < found["5-gram"] < found["unigram"]
    assert found["5-gram"] == pytest.approx(
        np.mean(literal(streams["train"].tobytes(), streams["test"].tobytes(), N, LONGEST_CONTEXT))
    )
