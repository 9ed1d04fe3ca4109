"""No generated task gives its answers away by place, but where its definition says so.

A model-free measure of what a method could gain that sees some fixed places more than others: global blocks, first
tokens, landmarks, learned projections of positions.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

import tasks
from tasks import IGNORE, listops
from tasks.generated import Generated

ROWS = 4_000
SEQ_LEN = 128
PARTS = 8
ALLOWED = 0.3  # of the answers from one part; twice its eighth is what half of the positions give alike
RANKS = 8  # questions of a sample that are looked at, the first and the last among them

GENERATED = [name for name in tasks.available() if issubclass(tasks.get(name), Generated)]


def sources(inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """The largest share of the answers to one question that stand in one part of the inputs, chance taken off.

    A question is told by its rank in the sample: the first, the second ...
    """
    asked = targets != IGNORE
    fewest = asked.sum(axis=1).min()
    rank = np.cumsum(asked, axis=1) - 1
    largest = 0.0
    for number in np.unique(np.linspace(0, fewest - 1, RANKS).astype(int)):
        answers = targets[asked & (rank == number)]
        for part in np.array_split(inputs, PARTS, axis=1):
            there, by_chance = ((part == ids[:, None]).any(axis=1).mean() for ids in (answers, np.roll(answers, 1)))
            largest = max(largest, (there - by_chance) / (1 - by_chance))
    return largest


def explained(inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """The largest share of the variance that a linear model explains from the marked numbers of one part."""
    largest = 0.0
    for part in np.array_split(inputs, PARTS, axis=1):
        seen = np.stack([part.prod(axis=2).sum(axis=1), part[..., 1].sum(axis=1), np.ones(len(part))], axis=1)
        left = targets - seen @ np.linalg.lstsq(seen, targets, rcond=None)[0]
        largest = max(largest, 1 - left.var() / targets.var())
    return largest


def told(inputs: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """How much more often than the most frequent label a guess from the id at one place is right; itself left out."""
    right = [0.0]
    for ids in inputs.T:
        counts = np.zeros((inputs.max() + 1, labels.max() + 1))
        np.add.at(counts, (ids, labels), 1)
        others = counts[ids] - np.eye(counts.shape[1])[labels]
        right.append((others.argmax(axis=1) == labels).mean())
    return max(right) - np.bincount(labels).max() / len(labels)


MEASURES = {"token": sources, "restore": sources, "value": explained, "sequence": told}


@pytest.mark.parametrize("task_name", GENERATED)
def test_no_place_tells_more_than_its_share_unless_the_task_says_so(task_name):
    task = tasks.get(task_name)(SEQ_LEN)
    batch = task.to_batch(*task.draw(np.random.default_rng(0), ROWS, SEQ_LEN))
    found = MEASURES[task.kind](batch.inputs, batch.targets)
    if task.fixed_places:
        assert found > ALLOWED / 2, "this exception is not needed"
    else:
        assert found < ALLOWED


def test_the_first_place_of_listops_tells_what_its_file_says():
    trees = listops.generate(np.random.default_rng(0), 10_000, seq_len=64, min_len=8)
    inputs = np.array([list(ids[:8]) for ids, _ in trees])
    found = told(inputs, np.array([label for _, label in trees]))
    assert found == told(inputs[:, :1], np.array([label for _, label in trees]))
    assert found > ALLOWED / 2
    assert tasks.get("listops").fixed_places


@pytest.mark.parametrize("start", [0, 8])
def test_a_context_at_a_fixed_place_is_found(start):
    """The samples of mqar, each rotated until its context begins at one place: what the measure is for."""
    inputs, targets = tasks.get("mqar")(SEQ_LEN).draw(np.random.default_rng(0), ROWS, SEQ_LEN)
    keys = inputs[targets != IGNORE].reshape(ROWS, -1)
    found = (inputs[:, None] == keys[..., None]).any(axis=1).argmax(axis=1)
    places = (np.arange(SEQ_LEN) + found[:, None] - start) % SEQ_LEN
    inputs, targets = (np.take_along_axis(ids, places, axis=1) for ids in (inputs, targets))
    assert sources(inputs, targets) > 1.5 * ALLOWED
