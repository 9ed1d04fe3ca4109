"""Which runs the arguments ask for: tasks, suites, lengths, data of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tasks
from compare.arguments import DEFAULT_BUDGET, run_parser
from compare.choice import choose_tasks
from compare.errors import UsageError
from compare.plan import plan_runs
from compare.spec import RunSpec, reproduce


def chosen(*words: str) -> list[tuple[str, int, float]]:
    return choose_tasks(run_parser().parse_args(list(words)))


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(run_parser().parse_args(list(words)), "cpu", 2).specs


def test_a_task_has_its_own_length_and_lengths_given_count_for_all() -> None:
    assert chosen() == [("noisy_recall", 8192, 60.0)]
    assert chosen("--tasks", "mqar,bytes") == [("mqar", 64, DEFAULT_BUDGET), ("bytes", 8192, DEFAULT_BUDGET)]
    assert chosen("--task", "mqar", "--seq-len", "32,64") == [
        ("mqar", 32, DEFAULT_BUDGET),
        ("mqar", 64, DEFAULT_BUDGET),
    ]


def test_a_task_may_have_a_budget_of_its_own_that_a_suite_and_the_command_line_replace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks.get("mqar"), "defaults", replace(tasks.get("mqar").defaults, budget=7.0))
    assert chosen("--tasks", "mqar") == [("mqar", 64, 7.0)]
    assert ("mqar", 64, tasks.SUITES["quick"].budget) in chosen("--tasks", "quick")
    assert {spec.budget for spec in specs("--tasks", "mqar", "--budget", "9")} == {9.0}


def test_without_arguments_three_variants_and_the_control_run() -> None:
    assert [spec.label for spec in specs()] == ["full", "linformer", "linear", "none"]
    assert {(spec.task, spec.seq_len, spec.budget) for spec in specs()} == {("noisy_recall", 8192, 60.0)}
    same = specs("--variants", "full,linformer", "--seq-len", "8192")
    assert same == [spec for spec in specs() if spec.variant != "linear"]
    assert tasks.get("noisy_recall").remarks["linformer"]


def test_a_suite_is_its_tasks_at_their_lengths_for_its_time() -> None:
    for name, suite in tasks.SUITES.items():
        found = chosen("--tasks", name)
        assert [task for task, _, _ in found] == list(suite.tasks)
        for task, seq_len, budget in found:
            assert seq_len == (suite.tasks[task] or tasks.get(task).defaults.seq_len)
            assert budget == suite.budget
    assert len(chosen("--tasks", "quick,mqar,needle")) == len(tasks.SUITES["quick"].tasks) + 1


def test_all_is_every_task_but_those_that_need_data_of_ones_own() -> None:
    assert {task for task, _, _ in chosen("--tasks", "all")} == set(tasks.available()) - {"classify", "retrieval"}


def test_a_suite_can_be_planned_whole_without_its_data() -> None:
    for name in tasks.SUITES:
        assert {spec.task for spec in specs("--tasks", name)} == set(tasks.SUITES[name].tasks)
    assert {spec.budget for spec in specs("--tasks", "quick")} == {tasks.SUITES["quick"].budget}
    assert {spec.budget for spec in specs("--tasks", "quick", "--budget", "7")} == {7}


@pytest.mark.parametrize("switch", ["checkpointing", "reversible", "compile"])
def test_switches_reach_the_run_and_its_command(switch: str) -> None:
    (with_it,), (without,) = (specs("--no-control", "--variants", "full", *words) for words in ([f"--{switch}"], []))
    assert with_it == replace(without, **{switch: True})
    assert reproduce(with_it).split().count(f"--{switch}") == 1
    assert f"--{switch}" not in reproduce(without)


def test_options_of_tasks_and_flags_for_data_reach_the_run_and_its_command(tmp_path: Path) -> None:
    data = str(tmp_path / "my reviews.csv")
    words = ["--task", "classify", "--data", data, "--label-column", "stars", "--no-control", "--variants", "full"]
    (spec,) = specs(*words, "--set", "classify.text_column=review", "--test-split", "dev")
    options = {"data": data, "label_column": "stars", "test_split": "dev", "text_column": "review"}
    assert spec.task_options == tuple(options.items())
    assert RunSpec.from_json(spec.to_json()) == spec
    assert f"--set 'classify.data={data}'" in reproduce(spec)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "mqar", "--data", "x"], "--data: expected a task that takes it .*classify.*text.*, got mqar"),
        (["--tasks", "lra", "--data", "x"], r"--data: several tasks take it; name one, such as --set listops\.data=x"),
        (["--tasks", "text", "--tokenizer", "x"], "--tokenizer: expected a task that takes it .classify., got text"),
        (["--tasks", "classify"], "classify.data: expected a file, a folder or a hub id, got nothing"),
        (
            ["--set", "listops.samples=5"],
            "expected a variant or task of this comparison .full, linformer, linear, none, .*, got 'listops'",
        ),
        (["--tasks", "listops", "--set", "listops.samples=many"], "expected an integer, got 'many'"),
        (["--tasks", "listops", "--set", "listops.samples=0"], "listops.samples >= 1, got 0"),
        (
            ["--tasks", "listops", "--set", "listops.sampels=1"],
            "'sampels' .did you mean 'samples'..; its options",
        ),
        (["--tasks", "image", "--seq-len", "100"], "image: expected seq_len among 16, 64, 256, 1024, got 100"),
        (["--tasks", "quik"], "unknown task 'quik' .did you mean 'quick'."),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        specs(*words)
    assert "\n" not in str(error.value)


def labels(*words: str) -> list[str]:
    return [spec.label for spec in specs("--tasks", "mqar", *words)]


def test_a_sweep_runs_each_value_as_a_variant_of_its_own() -> None:
    words = ["--variants", "full", "--sweep", "performer.features=16:100", "--sweep", "linformer.rank=64,8,64"]
    swept = [f"performer features={value}" for value in (16, 32, 64)] + ["linformer rank=64", "linformer rank=8"]
    assert labels(*words) == ["full", "none", *swept]
    assert labels(*words, "--seeds", "2") == 2 * ["full", "none", *swept]


def test_a_sweep_goes_over_numbers_of_any_kind_and_over_words() -> None:
    words = ["--variants", "full", "--no-control"]
    assert labels(*words, "--sweep", "skyformer.gamma=0.5:2") == ["full"] + [
        f"skyformer gamma={value}" for value in (0.5, 1.0, 2.0)
    ]
    assert labels(*words, "--sweep", "synthesizer.kind=dense,random")[1:] == [
        "synthesizer kind=dense",
        "synthesizer kind=random",
    ]


def test_a_sweep_keeps_what_is_set_and_runs_nothing_twice() -> None:
    words = ["--variants", "reformer", "--no-control", "--set", "reformer.bucket_size=16"]
    assert labels(*words, "--sweep", "reformer.n_hashes=1:4") == [  # 4 is the default
        f"reformer bucket_size=16 n_hashes={value}" for value in (1, 2, 4)
    ]
    crossed = labels(*words, "--sweep", "reformer.n_hashes=2,4", "--sweep", "reformer.bucket_size=8,16")
    assert crossed == [
        *("reformer bucket_size=16 n_hashes=2", "reformer bucket_size=16 n_hashes=4", "reformer bucket_size=8")
    ]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("performer.features", "expected NAME.OPTION=A:B or A,B,C, for example performer.features=16:1024"),
        ("performer.features=0,4", "--sweep: performer.features must be an integer of at least 1, got 0"),
        ("performer.features=0:4", "--sweep performer.features=0:4: expected A:B with 0 < A <= B, got '0:4'"),
        ("performer.features=8:4", "expected A:B with 0 < A <= B, got '8:4'"),
        ("performer.features=a:4", "expected an integer, got 'a'"),
        ("performer.features=", "expected an integer, got ''"),
        ("skyformer.gamma=1:inf", "expected A:B with 0 < A <= B, got '1:inf'"),
        ("performer.feature=4", "performer has no option 'feature' .did you mean 'features'..; its options: features"),
        ("mqar.samples=4", "mqar has no option 'samples'; it has no options"),
        ("perfomer.features=4", "--sweep: unknown attention 'perfomer'. Did you mean 'performer'"),
    ],
)
def test_a_sweep_that_cannot_be_is_said_in_one_line(sweep: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        labels("--sweep", sweep)
    assert "\n" not in str(error.value)


def swept_tasks(*words: str) -> list[tuple[str, int, str, object]]:
    """(task, length, label, samples) of each run."""
    found = specs("--no-control", *words)
    return [(s.task, s.seq_len, s.label, dict(s.task_options).get("samples")) for s in found]


def test_a_swept_task_runs_every_variant_at_each_value() -> None:
    words = ["--tasks", "listops", "--variants", "full,none", "--sweep", "listops.samples=16:64"]
    each = [(label, samples) for samples in (16, 32, 64) for label in ("full", "none")]
    assert swept_tasks(*words) == [("listops", 2000, label, samples) for label, samples in each]
    assert swept_tasks(*words, "--set", "listops.samples=99") == swept_tasks(*words)
    assert swept_tasks(*words, "--seeds", "2") == 2 * swept_tasks(*words)
    assert len({spec.data_id for spec in specs(*words)}) == 3
    assert "--set listops.samples=32" in reproduce(specs(*words)[3])


def test_sweeps_of_a_task_and_of_a_variant_multiply_and_leave_other_tasks_alone() -> None:
    words = ["--tasks", "listops,mqar", "--variants", "full", "--sweep", "listops.samples=16,64"]
    found = swept_tasks(*words, "--sweep", "linformer.rank=8,16")
    labels = ("full", "linformer rank=8", "linformer rank=16")
    swept = [("listops", 2000, label, samples) for samples in (16, 64) for label in labels]
    assert found == [*swept, *(("mqar", 64, label, None) for label in labels)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "listops.samples=0,4"], "listops.samples >= 1, got 0"),
        (["--sweep", "listops.min_len=64:2048"], "expected listops.min_len <= 998 at seq_len 1000, got 1024"),
        (["--sweep", "listops.sampels=4"], "listops has no option 'sampels' .did you mean 'samples'..; its options"),
        (
            ["--sweep", "listops.samples=4,8", "--sweep", "listops.data=a,b"],
            "--sweep listops.data=a,b: expected one swept option for each task, but listops.samples is swept too",
        ),
        (
            ["--sweep", "text.data=a,b"],
            "--sweep text.…: expected a task of this comparison .listops., got 'text'",
        ),
    ],
)
def test_a_sweep_of_a_task_that_cannot_be_is_said_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        specs("--tasks", "listops", "--seq-len", "4000,1000", *words)
    assert "\n" not in str(error.value)
