"""What every task holds, for each name in the registry."""

import doctest
import itertools
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

import tasks
from tasks import IGNORE, Batch, Task

EVAL_SPLITS = ("validation", "test")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=tasks.available())
def task_name(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=["shortest", "odd"])
def task(task_name, request) -> Task:
    kind = tasks.get(task_name)
    return kind(kind.min_len if request.param == "shortest" else 2 * kind.min_len + 1)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    return tmp_path


def shortest(task_name: str) -> Task:
    return tasks.get(task_name)(tasks.get(task_name).min_len)


def first(task: Task, n: int, *, seed: int, batch_size: int = 5) -> list[Batch]:
    return list(itertools.islice(task.train_batches(batch_size, task.seq_len, seed), n))


def same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.inputs, other.inputs)
        and np.array_equal(one.targets, other.targets)
        and (one.padding is None) == (other.padding is None)
        and (one.padding is None or np.array_equal(one.padding, other.padding))
    )


def assert_well_formed(task: Task, batch: Batch, shape: tuple[int, int]) -> None:
    assert batch.inputs.shape == shape
    assert batch.targets.shape == (shape if task.kind == "token" else shape[:1])
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert batch.inputs.min() >= 0
    assert batch.inputs.max() < task.vocab_size
    asked = batch.targets != IGNORE
    assert asked.any()
    assert batch.targets[asked].min() >= 0
    assert batch.targets[asked].max() < task.n_classes
    if batch.padding is not None:
        assert batch.padding.shape == shape
        assert batch.padding.dtype == np.bool_
        assert batch.padding.any()
        assert not batch.padding.all(axis=1).any()
        if task.kind == "token":
            assert not (asked & batch.padding).any()


def test_training_batches_are_well_formed_down_to_one_sample(task):
    for batch_size in (1, 7):
        for batch in first(task, 20, seed=0, batch_size=batch_size):
            assert_well_formed(task, batch, (batch_size, task.seq_len))


def test_training_at_a_shorter_length_where_the_task_allows_it(task_name):
    task = tasks.get(task_name)(3 * tasks.get(task_name).min_len)
    shorter = task.min_len + 1
    if task.defaults.length_warmup:
        assert_well_formed(task, next(task.train_batches(4, shorter, 0)), (4, shorter))
    else:
        with pytest.raises(ValueError, match=f"got {shorter}"):
            task.train_batches(4, shorter, 0)


def test_training_batches_follow_their_seed(task):
    once, again, other = first(task, 3, seed=1), first(task, 3, seed=1), first(task, 3, seed=2)
    assert all(map(same, once, again))
    assert not any(map(same, once, other))
    assert not same(once[0], once[1])


@pytest.mark.parametrize("split", EVAL_SPLITS)
def test_evaluation_covers_its_split_the_same_way_every_time(task, split):
    whole = task.whole(split)
    batch_size = len(whole.inputs) // 3 + 1
    batches = list(task.eval_batches(split, batch_size))
    assert [len(batch.inputs) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        assert_well_formed(task, batch, (len(batch.inputs), task.seq_len))
    assert np.array_equal(np.concatenate([batch.inputs for batch in batches]), whole.inputs)
    assert np.array_equal(np.concatenate([batch.targets for batch in batches]), whole.targets)
    padding = [np.zeros(b.inputs.shape, bool) if b.padding is None else b.padding for b in batches]
    assert np.concatenate(padding).sum() == (0 if whole.padding is None else whole.padding.sum())

    fresh = type(task)(task.seq_len)
    assert all(map(same, fresh.eval_batches(split, batch_size), batches))


@pytest.mark.parametrize("split", EVAL_SPLITS)
def test_every_evaluation_row_is_asked_something(task, split):
    targets = task.whole(split).targets
    assert (targets != IGNORE).reshape(len(targets), -1).any(axis=1).all()


def test_evaluation_splits_differ(task):
    validation, test = (next(task.eval_batches(split, 5)) for split in EVAL_SPLITS)
    assert not same(validation, test)


def test_baselines_are_scores_the_weakest_first(task):
    scores = list(task.baselines().values())
    assert scores
    assert scores == sorted(scores)
    assert scores[0] >= 0
    assert scores[-1] < 1


def test_provenance_goes_into_a_record(task):
    provenance = task.provenance()
    assert provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert type(task)(task.seq_len).provenance() == provenance


def test_lengths_outside_the_range_are_refused(task_name):
    kind = tasks.get(task_name)
    for seq_len in (kind.min_len - 1, kind.max_len + 1):
        with pytest.raises(ValueError, match=rf"{kind.min_len}.*{kind.max_len}.*got {seq_len}$"):
            kind(seq_len)


def test_longest_length_is_accepted(task_name):
    assert tasks.get(task_name)(tasks.get(task_name).max_len).vocab_size > 0


def test_training_beyond_the_length_is_refused(task_name):
    task = shortest(task_name)
    with pytest.raises(ValueError, match=f"got {task.seq_len + 1}$"):
        task.train_batches(1, task.seq_len + 1, 0)


def test_second_use_comes_from_the_cache(task_name, own_cache, monkeypatch):
    built = next(shortest(task_name).eval_batches("test", 9))
    monkeypatch.setattr(tasks.get(task_name), "build", lambda _: pytest.fail("built again"))
    assert same(next(shortest(task_name).eval_batches("test", 9)), built)
    assert len(list(own_cache.iterdir())) == 1


def test_an_interrupted_build_leaves_nothing(task_name, own_cache, monkeypatch):
    def interrupted(splits, folder):
        splits["test"].save_to_disk(f"{folder}/test")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.DatasetDict, "save_to_disk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shortest(task_name).prepare()
    assert list(own_cache.iterdir()) == []
    shortest(task_name).prepare()


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_a_damaged_cache_is_built_again_with_a_warning(task_name, damage, own_cache):
    built = next(shortest(task_name).eval_batches("test", 9))
    arrow = next(own_cache.rglob("test/*.arrow"))
    contents = arrow.read_bytes()
    arrow.unlink()
    if damage == "cut":
        arrow.write_bytes(contents[: len(contents) // 2 + 1])
    with pytest.warns(UserWarning, match="rebuilding the unreadable cache"):
        rebuilt = next(shortest(task_name).eval_batches("test", 9))
    assert same(rebuilt, built)
    assert arrow.read_bytes() == contents


def test_worked_example_of_the_package():
    assert doctest.testmod(tasks) == (0, 3)


def test_import_is_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'zoo', 'compare'}"
    script = f"import sys, tasks; print({heavy} & set(sys.modules) or 'light')"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "light"


def test_an_unknown_name_answers_with_the_closest_and_the_list(task_name):
    with pytest.raises(ValueError, match=rf"{', '.join(tasks.available())}.*{task_name}x.*did you mean '{task_name}'"):
        tasks.get(f"{task_name}x")


def test_a_name_is_registered_once(task_name):
    with pytest.raises(ValueError, match=task_name):
        tasks.register(tasks.get(task_name))


def test_every_task_file_registers_a_task_of_its_name():
    files = {path.stem for path in Path(tasks.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base", "cache"} == set(tasks.available())
