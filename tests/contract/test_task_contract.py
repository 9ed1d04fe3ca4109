"""What every task holds, for each name in the registry."""

import doctest
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import tasks
from tasks import IGNORE, Batch, Task
from tasks.base import EXPLAINED_VARIANCE, POOL
from tasks.cache import Rows

EVAL_SPLITS = ("validation", "test")
FEW = 2500  # rows, which are written in three parts


def cases_of(name: str) -> ModuleType:
    assert importlib.util.find_spec(f"tests.task_cases.{name}"), (
        f"task {name!r} has no cases: write tests/task_cases/{name}.py with cases(folder)"
    )
    return importlib.import_module(f"tests.task_cases.{name}")


@pytest.fixture(scope="module", params=tasks.available())
def task_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def cases(task_name, tmp_path_factory) -> list[tuple[int, dict[str, object]]]:
    """Small samples of the task: lengths and options, with whatever files these name."""
    return cases_of(task_name).cases(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=["first", "last"])
def task(task_name, cases, request) -> Iterator[Task]:
    with pytest.MonkeyPatch.context() as patch:
        few_rows(task_name, Path(os.environ["ATTENTION_ZOO_CACHE"]) / "few", patch)
        yield make(task_name, cases[0 if request.param == "first" else -1])


@pytest.fixture
def own_cache(task_name, tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    few_rows(task_name, tmp_path, monkeypatch)
    return tmp_path


def few_rows(name: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the task have few rows, which are soon built, in a cache that no other test reads."""
    kind = tasks.get(name)
    build = kind.build

    def few(task: Task) -> dict[str, Rows]:
        return {split: Rows(min(rows.count, FEW), islice(rows.rows, FEW)) for split, rows in build(task).items()}

    patch.setattr(kind, "build", few)
    patch.setenv("ATTENTION_ZOO_CACHE", str(cache))


def make(name: str, case: tuple[int, dict[str, object]]) -> Task:
    seq_len, options = case
    return tasks.get(name)(seq_len, tasks.get(name).config_type(**options))


def again(task: Task) -> Task:
    """The same, opened anew."""
    return type(task)(task.seq_len, task.config)


def first(task: Task, n: int, *, seed: int, batch_size: int = 5) -> list[Batch]:
    return list(islice(task.train_batches(batch_size, task.seq_len, seed), n))


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all((a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in pairs)


def assert_well_formed(task: Task, batch: Batch, size: int) -> None:
    longest = batch.inputs.shape[1 if task.n_features else -1]
    assert 1 <= longest <= task.seq_len
    if task.sample_lengths("train") is None:
        assert longest == task.seq_len
    shape = (size, 2, longest) if task.kind == "pair" else (size, longest)
    if task.n_features is None:
        assert batch.inputs.shape == shape
        assert batch.inputs.dtype == np.int64
        assert batch.inputs.min() >= 0
        assert batch.inputs.max() < task.vocab_size
    else:
        assert task.vocab_size is None
        assert batch.inputs.shape == (*shape, task.n_features)
        assert batch.inputs.dtype == np.float32
        assert np.isfinite(batch.inputs).all()
    assert batch.targets.shape == (shape if task.kind in ("token", "restore") else (size,))
    asked = batch.targets != IGNORE
    assert asked.any()
    if task.kind == "value":
        assert task.n_classes == 1
        assert batch.targets.dtype == np.float32
    else:
        assert batch.targets.dtype == np.int64
        assert batch.targets[asked].min() >= 0
        assert batch.targets[asked].max() < task.n_classes
    if batch.padding is not None:
        assert batch.padding.shape == shape
        assert batch.padding.dtype == np.bool_
        assert batch.padding.any()
        assert not batch.padding.all(axis=-1).any()
        if task.kind == "token":
            assert not (asked & batch.padding).any()
    if task.slice_names:
        assert batch.slices.shape == batch.targets.shape
        assert batch.slices[asked].min() >= 0
        assert batch.slices[asked].max() < len(task.slice_names)


def test_training_batches_are_well_formed_down_to_one_sample(task):
    for batch_size in (1, 7):
        for batch in first(task, 8, seed=0, batch_size=batch_size):
            assert_well_formed(task, batch, batch_size)


def test_training_at_a_shorter_length_where_the_task_allows_it(task_name, cases):
    for case in (cases[0], cases[-1]):
        task = make(task_name, case)
        if task.shortest_train < task.seq_len:
            shorter = task.train_batches(4, task.shortest_train, 0)
            batch, other = next(shorter), next(shorter)
            longest = batch.inputs.shape[1 if task.n_features else -1]
            assert len(batch.inputs) == 4
            assert longest <= task.shortest_train
            if task.sample_lengths("train") is None:
                assert longest == task.shortest_train
            assert (batch.targets != IGNORE).any(axis=-1).all()
            assert batch.targets[batch.targets != IGNORE].max() < (task.n_classes if task.kind != "value" else np.inf)
            assert not same(batch, other)
        elif task.seq_len > task.min_len:
            with pytest.raises(ValueError, match=f"got {task.min_len}"):
                task.train_batches(4, task.min_len, 0)


def test_training_batches_follow_their_seed(task):
    once, again, other = first(task, 3, seed=1), first(task, 3, seed=1), first(task, 3, seed=2)
    assert all(map(same, once, again))
    assert not any(map(same, once, other))
    assert not same(once[0], once[1])


@pytest.mark.parametrize("split", EVAL_SPLITS)
def test_evaluation_covers_its_split_the_same_way_every_time(task, split):
    size = task.size(split)
    batch_size = size // 3 + 1
    batches = list(task.eval_batches(split, batch_size))
    assert [len(batch.targets) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sum(len(batch.targets) for batch in batches) == size
    for batch in batches:
        assert_well_formed(task, batch, len(batch.targets))

    def rows(found):
        """Each sample without its padding."""
        for batch in found:
            for number, targets in enumerate(batch.targets):
                inputs = batch.inputs[number]
                kept = inputs if batch.padding is None else inputs[~batch.padding[number]]
                yield kept.tobytes(), np.where(targets == IGNORE, 0, targets).sum()

    assert sorted(rows(batches)) == sorted(rows([task.whole(split)]))
    assert all(map(same, again(task).eval_batches(split, batch_size), batches))


@pytest.mark.parametrize("split", EVAL_SPLITS)
def test_every_evaluation_row_is_asked_something(task, split):
    targets = task.whole(split).targets
    assert (targets != IGNORE).reshape(len(targets), -1).any(axis=1).all()


def test_no_sample_is_in_two_splits(task):
    if "_train" in vars(type(task)):
        pytest.skip("its samples are windows of files, which are dealt out whole")
    seen = {}
    for split in ("train", *EVAL_SPLITS):
        for row in task.whole(split).inputs:
            assert seen.setdefault(row.tobytes(), split) == split


def test_batches_of_neighbours_in_length_waste_little(task):
    lengths = task.sample_lengths("train")
    if lengths is None or task.size("train") < 200:
        pytest.skip("its samples are of one length, or few")
    batches = first(task, 60, seed=0, batch_size=4)
    wasted = [0 if batch.padding is None else batch.padding.mean() for batch in batches]
    assert np.mean(wasted) < 0.1
    assert len({batch.inputs.shape for batch in batches}) > 1


def test_baselines_are_scores_the_weakest_first(task):
    scores = list(task.facts["baselines"].values())
    assert scores
    assert scores == sorted(scores, reverse=task.metric.lower_is_better)
    least, most = task.metric.bounds
    assert scores[-1] > 0 if least is None else min(scores) >= least
    assert scores[0] > -0.05  # explained variance may fall a little below 0
    assert most is None or scores[-1] < most


def test_what_is_scored_and_read_causally_is_declared(task_name):
    kind = tasks.get(task_name)
    assert (kind.metric is EXPLAINED_VARIANCE) == (kind.kind == "value")
    assert kind.causal or not kind.causal_only
    assert not (kind.causal and kind.causal_form)
    assert not kind.causal_form or tasks.get(kind.causal_form).causal_only


def test_provenance_goes_into_a_record(task):
    provenance = task.provenance()
    assert provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert again(task).provenance() == provenance


def test_facts_are_computed_once(task, monkeypatch):
    found = task.facts
    assert list(found) == ["baselines", "data", "notes"]
    assert all(isinstance(note, str) for note in found["notes"])
    monkeypatch.setattr(type(task), "baselines", lambda _: pytest.fail("computed again"))
    assert again(task).facts == found


def test_lengths_outside_the_range_are_refused(task_name):
    kind = tasks.get(task_name)
    for seq_len in (kind.min_len - 1, kind.max_len + 1):
        with pytest.raises(ValueError, match=rf"{kind.min_len}.*{kind.max_len}.*got {seq_len}$"):
            kind(seq_len, SimpleNamespace())


def test_longest_and_natural_length_are_accepted(task_name, cases):
    options = cases[0][1]
    for seq_len in (tasks.get(task_name).max_len, tasks.get(task_name).defaults.seq_len):
        assert make(task_name, (seq_len, options)).seq_len == seq_len


def test_training_beyond_the_length_is_refused(task):
    with pytest.raises(ValueError, match=f"got {task.seq_len + 1}$"):
        task.train_batches(1, task.seq_len + 1, 0)


def test_options_are_plain_values_and_documented(task_name):
    kind = tasks.get(task_name)
    for name, default in tasks.options(task_name).items():
        assert isinstance(default, int | float | str | bool)
        assert f"{name}:" in kind.config_type.__doc__


def test_the_first_use_tells_its_progress_and_the_second_comes_from_the_cache(task_name, cases, own_cache, monkeypatch):
    shares = []
    task = make(task_name, cases[0])
    task.prepare(shares.append)
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    built = next(task.eval_batches("test", 9))
    monkeypatch.setattr(tasks.get(task_name), "build", lambda _: pytest.fail("built again"))
    assert same(next(make(task_name, cases[0]).eval_batches("test", 9)), built)
    assert len(list(own_cache.iterdir())) == 1


def test_an_interrupted_build_leaves_nothing(task_name, cases, own_cache, monkeypatch):
    build = tasks.get(task_name).build

    def cut_short(task):
        *whole, (split, last) = build(task).items()
        return dict(whole) | {split: Rows(last.count, chain(islice(last.rows, 3), stop()))}

    def stop():
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(tasks.get(task_name), "build", cut_short)
        with pytest.raises(KeyboardInterrupt):
            make(task_name, cases[0]).prepare()
    assert list(own_cache.iterdir()) == []
    make(task_name, cases[0]).prepare()


def test_a_damaged_cache_is_built_again_with_a_warning(task_name, cases, own_cache):
    built = next(make(task_name, cases[0]).eval_batches("test", 9))
    arrow = next(own_cache.rglob("test/*.arrow"))
    contents = arrow.read_bytes()
    arrow.write_bytes(contents[: len(contents) // 2 + 1])
    with pytest.warns(UserWarning, match="rebuilding the unreadable cache"):
        rebuilt = next(make(task_name, cases[0]).eval_batches("test", 9))
    assert same(rebuilt, built)


@pytest.mark.parametrize("ragged", [False, True])
def test_an_epoch_sees_every_sample_once(ragged):
    """Samples of one length in any order; of different lengths in batches of neighbours, themselves in any order."""
    task = tasks.get("mqar")(32)
    lengths = np.random.default_rng(0).integers(1, 33, 3 * POOL * 2)
    task.size = lambda split: len(lengths)
    task.sample_lengths = lambda split: lengths if ragged else None
    task.take = lambda split, rows: rows
    batches = list(islice(task.train_batches(2, 32, seed=0), 6 * POOL))
    assert {len(rows) for rows in batches} == {2}
    epochs = [np.concatenate(batches[: 3 * POOL]), np.concatenate(batches[3 * POOL :])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(len(lengths)))
    assert not np.array_equal(*epochs)
    apart = np.mean([np.ptp(lengths[rows]) for rows in batches])
    assert apart < 1.5 if ragged else apart > 5
    means = [lengths[rows].mean() for rows in batches[:POOL]]
    assert means != sorted(means)


def test_worked_example_of_the_package():
    assert doctest.testmod(tasks) == (0, 3)


def test_import_is_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'sklearn', 'joblib', 'zoo', 'compare'}"
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
    helpers = {
        "__init__",
        "base",
        "baselines",
        "cache",
        "contours",
        "files",
        "folders",
        "generated",
        "labelled",
        "labels",
        "layouts",
        "mad",
        "parallel",
        "sources",
        "suites",
    }
    assert files - helpers == set(tasks.available())
