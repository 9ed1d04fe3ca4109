"""Which runs the arguments ask for: tasks, suites, lengths, data of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import tasks
from compare.arguments import run_parser
from compare.plan import DEFAULT_BUDGET, UsageError, choose_tasks, make_specs
from compare.run import reproduce
from compare.spec import RunSpec


def chosen(*words: str) -> list[tuple[str, int, float]]:
    return choose_tasks(run_parser().parse_args(list(words)))


def specs(*words: str) -> list[RunSpec]:
    return make_specs(run_parser().parse_args(list(words)), "cpu", 2)


def test_a_task_has_its_own_length_and_lengths_given_count_for_all() -> None:
    assert chosen() == [("bytes", 8192, DEFAULT_BUDGET)]
    assert chosen("--tasks", "mqar,bytes") == [("mqar", 64, DEFAULT_BUDGET), ("bytes", 8192, DEFAULT_BUDGET)]
    assert chosen("--task", "mqar", "--seq-len", "32,64") == [
        ("mqar", 32, DEFAULT_BUDGET),
        ("mqar", 64, DEFAULT_BUDGET),
    ]


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


def test_options_of_tasks_and_flags_for_data_reach_the_run_and_its_command(tmp_path: Path) -> None:
    data = str(tmp_path / "my reviews.csv")
    words = ["--task", "classify", "--data", data, "--label-column", "stars", "--no-control", "--variants", "full"]
    (spec,) = specs(*words, "--set", "classify.text_column=review")
    assert spec.task_options == (("data", data), ("label_column", "stars"), ("text_column", "review"))
    assert RunSpec.from_json(spec.to_json()) == spec
    assert f"--set 'classify.data={data}'" in reproduce(spec)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "mqar", "--data", "x"], "--data: no task among mqar takes it; these do: .*classify.*text"),
        (["--tasks", "lra", "--data", "x"], r"--data: several tasks take it; say which: --set listops\.data=x"),
        (["--tasks", "text", "--tokenizer", "x"], "--tokenizer: no task among text takes it; these do: classify"),
        (["--tasks", "classify"], "classify.data: expected a file, a folder or a hub id, got nothing"),
        (["--set", "listops.samples=5"], "'listops' is not among what is compared: full, linformer, none, bytes"),
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
