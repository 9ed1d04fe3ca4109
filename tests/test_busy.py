"""A busy machine is told, and no verdict by time rests on what was measured on one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from compare.display import outcome
from compare.fields import parse_record
from compare.load import LIMIT, disturbance, wavered
from compare.quantities import FORWARD_BACKWARD
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.facts.scaling import find_crossovers, length_series, rows_by_length, series_of
from compare.report.render.csv_table import csv_table
from compare.report.sections.accuracy import SPEED, accuracy_chart
from compare.report.sections.heat_map import make_cell
from compare.report.sections.lengths import TIME, cost_against_length
from compare.report.sections.results import columns_of, notes
from compare.runs.clocks import add_since, clocks, shares
from tests.drawn import answer_to, drawn, markdown_of, page_of, sentences_of
from tests.here import compare_here
from tests.make_records import ENVIRONMENT, Record, make_record
from tests.test_fairness import words_of

LOAD = ("train_lost_share", "measure_lost_share", "train_step_seconds")
HOG = "while True: pass"


def groups_of(records: Sequence[Record]) -> list[Group]:
    return group_records([Source(records, ENVIRONMENT)])


def runs(variants: Sequence[str] = ("full", "linear", "local"), seeds: int = 3, **same: object) -> list[Record]:
    return [make_record(variant, seed=seed, **same) for variant in variants for seed in range(seeds)]  # type: ignore[arg-type]


def fill(system: Path, waiting: int, busy: int, idle: int) -> Path:
    """A /proc in which one thread waited for so many nanoseconds, and the first core was busy for so many ticks."""
    task = system / "proc/self/task/7"
    task.mkdir(parents=True, exist_ok=True)
    (task / "schedstat").write_text(f"1 {waiting} 1\n")
    core = min(os.sched_getaffinity(0))
    stat = f"cpu  1 2 3 4 5 6 7 8 9 10\ncpu{core} {busy - 4} 1 1 {idle - 1} 1 1 0 1 0 0\ncpu9999 5 5 5 5 5 5 5 5 0 0\n"
    (system / "proc/stat").write_text(stat)
    return system


@pytest.mark.skipif(sys.platform != "linux", reason="others are seen in /proc")
def test_clocks_read_waiting_and_busy_cores_of_this_process_alone(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    before = clocks(fill(tmp_path, 10**9, 10 * tick, 10 * tick))
    after = clocks(fill(tmp_path, 3 * 10**9, 14 * tick, 11 * tick))
    spent = add_since({"waiting": 1.0}, before, after)
    assert spent["waiting"] == pytest.approx(3.0)
    assert spent["busy"] == pytest.approx(4.0)
    assert spent["idle"] == pytest.approx(1.0)
    assert clocks(tmp_path / "elsewhere").keys() == {"wall", "cpu"}, "another system tells no more"
    real = clocks()
    assert real["busy"] > 0
    assert real["idle"] > 0


@pytest.mark.parametrize(
    ("spent", "others", "lost"),
    [
        ({"wall": 10, "cpu": 19.6, "busy": 19.8, "idle": 0.2, "waiting": 0.1}, 0.01, 0.01),
        ({"wall": 10, "cpu": 10.0, "busy": 20.0, "idle": 0.0, "waiting": 9.0}, 0.5, 0.5),  # a hog on two cores
        ({"wall": 10, "cpu": 6.0, "busy": 6.2, "idle": 13.8, "waiting": 0.0}, 0.01, 0.03),  # one thread mostly
        ({"wall": 10, "cpu": 19.5, "busy": 300.0, "idle": 340.0, "waiting": 0.2}, 0.44, 0.01),  # a large, busy host
        ({"wall": 10, "cpu": 10.0, "busy": 200.0, "idle": 440.0, "waiting": 9.9}, 0.3, 0.5),  # a quota shared there
        ({"wall": 10, "cpu": 12.0, "busy": 20.0, "idle": 0.0}, 0.4, 0.4),  # a hypervisor's other guests
        ({"wall": 10, "cpu": 12.0}, None, None),
        ({"wall": 0.1, "cpu": 0.1, "busy": 0.2, "idle": 0.0, "waiting": 0.1}, None, None),
    ],
)
def test_what_a_process_lost_is_told_from_what_others_took(
    spent: dict[str, float], others: float | None, lost: float | None
) -> None:
    found = shares(spent, threads=2)
    assert found["others_share"] == (None if others is None else pytest.approx(others, abs=0.01))
    assert found["lost_share"] == (None if lost is None else pytest.approx(lost, abs=0.02))


def test_a_run_is_disturbed_beyond_15_percent_and_unknown_without_a_word() -> None:
    quiet = make_record("full")
    quiet["train_step_seconds"] = quiet["step_seconds"]
    assert disturbance(quiet) == ""
    for field in ("train_lost_share", "measure_lost_share"):
        assert disturbance(quiet | {field: LIMIT - 0.01}) == ""
        assert "16 % of its CPU time lost to others" in disturbance(quiet | {field: LIMIT + 0.01})
    unknown = quiet | {"train_lost_share": None}
    for ratio, is_busy in ((0.84, True), (0.86, False), (1.14, False), (1.16, True)):
        took = {"train_step_seconds": ratio * quiet["step_seconds"]}
        assert bool(disturbance(unknown | took)) is is_busy
        assert bool(disturbance(quiet | took | {"train_lost_share": 0.06})) is is_busy
        assert bool(disturbance(quiet | took | {"spec": {"device": "cuda"}})) is is_busy
        assert disturbance(quiet | took) == "", "no CPU time was lost"
        assert (wavered(quiet | took) is not None) is is_busy
    assert "1.60 times as long" in disturbance(quiet | {"train_step_seconds": 1.6 * quiet["step_seconds"]})
    assert disturbance({name: value for name, value in quiet.items() if name not in LOAD}) == ""


def test_a_machine_whose_times_waver_by_themselves_is_told_and_judged() -> None:
    records = runs()
    for record in records:
        record["train_step_seconds"] = (1.3 if record["variant"] == "linear" else 1.0) * record["step_seconds"]
    (group,) = groups_of(records)
    assert "Training steps of 3 runs took 1.30 times as long as measured" in " ".join(notes(group))
    assert not any(row.disturbed for row in group.rows)
    assert "linear" in group.against_full


def test_an_older_record_is_unknown_and_not_idle() -> None:
    records = runs()
    assert not any("disturbed" in line for line in notes(groups_of(records)[0]))
    for record in records[:3]:
        record.update(dict.fromkeys([*LOAD, "train_cpu_seconds"]))
    assert "The records do not say whether other processes disturbed full." in notes(groups_of(records)[0])
    for record in records:
        record.update(dict.fromkeys(LOAD))
    assert "The records do not say whether other processes disturbed any run." in notes(groups_of(records)[0])


@pytest.mark.parametrize(("field", "value"), [("train_lost_share", "1.5"), ("train_cpu_seconds", "-1")])
def test_what_cannot_have_been_measured_is_a_damaged_line(field: str, value: str) -> None:
    line = json.dumps(make_record("full") | {field: json.loads(value)}).encode()
    with pytest.raises(ValueError, match=f"{field}: expected a number "):
        parse_record(line, 3)


def disturb(records: list[Record], variant: str, seeds: Sequence[int] = (0, 1, 2)) -> list[Record]:
    for record in records:
        if record["variant"] == variant and record["seed"] in seeds:
            record["train_lost_share"] = 0.4
    return records


def test_a_disturbed_run_is_flagged_everywhere_and_the_report_repeats_it(tmp_path: Path) -> None:
    (group,) = groups_of(disturb(runs(), "linear"))
    figure = words_of(drawn(accuracy_chart(group, SPEED), [group]))
    assert "linear‖" in figure
    assert "‖ disturbed (e.g. by other processes)" in figure
    assert "disturbed runs left out" in figure
    for page in (markdown_of([group]), page_of([group])):
        assert "linear‖" in page
        assert "Runs on a busy machine" in page
        assert page.count("40 % of its CPU time lost to others in training") >= 3
        assert page.count(ENVIRONMENT["command"]) >= 3
    assert "3 of 3 runs disturbed, e.g. by other processes" in csv_table([group])
    said = answer_to([group])[0]
    assert "Disturbed (e.g. by other processes) and left out of verdicts on time" in said
    assert "linear (3 of 3 runs; score with them 4" in said
    assert 'with the commands under "Runs on a busy machine"' in said


def fastest(records: list[Record]) -> str:
    return next(
        line for line in sentences_of(groups_of(records)[0]) if line.startswith(("Fastest", "Highest training"))
    )


def test_no_verdict_on_speed_rests_on_a_disturbed_run() -> None:
    assert "linear" in fastest(runs()).split(",")[0]
    assert "local" in fastest(disturb(runs(), "linear")).split(",")[0]
    assert "linear" in fastest(disturb(runs(seeds=4), "linear", [3])).split(",")[0], "its other seeds count"


@pytest.mark.parametrize("budget", [True, False])
def test_scores_of_disturbed_runs_count_where_steps_and_not_seconds_end_the_training(budget: bool) -> None:
    records = disturb(runs(), "linear")
    if not budget:
        for record in records:
            record["spec"] |= {"budget": None, "steps": 100}
    (group,) = groups_of(records)
    assert ("linear" in group.against_full) is not budget
    (cell,) = [c.cell(row, group) for c in columns_of(group) if c.title == "against full" for row in group.rows[1:2]]
    assert (cell.text == "no verdict: on a busy machine") is budget
    assert (make_cell(group.rows[1], group).mark == "busy") is budget
    assert "local" in group.against_full


def test_a_disturbed_measurement_leaves_the_scores_of_a_budget_in_seconds_alone() -> None:
    records = runs()
    for record in records:
        if record["variant"] == "linear":
            record["measure_lost_share"] = 0.4
            record["train_step_seconds"] = 0.4 * record["step_seconds"]
    (group,) = groups_of(records)
    assert "linear" in group.against_full
    assert "linear" not in fastest(records).split(",")[0]
    assert "left out of verdicts on time: linear (3 of 3 runs)" in answer_to([group])[0]


def test_without_an_undisturbed_run_of_full_nothing_is_compared() -> None:
    (group,) = groups_of(disturb(runs(), "full"))
    assert group.against_full == {}
    assert "Full was disturbed, so nothing can be compared with it." in answer_to([group])[0]
    everyone = runs()
    for variant in ("full", "linear", "local"):
        disturb(everyone, variant)
    (group,) = groups_of(everyone)
    assert "Every run was disturbed: no score can be compared." in answer_to([group])[0]


def test_no_crossover_rests_on_a_disturbed_run() -> None:
    records = [record for length in (512, 1024, 2048) for record in runs(seq_len=length)]
    clean = find_crossovers(rows_by_length(length_series(groups_of(records))[0]), FORWARD_BACKWARD)
    assert clean.keys() == {"linear", "local"}
    (series,) = series_of(groups_of(disturb(records, "linear")))
    assert find_crossovers(rows_by_length(series.groups), FORWARD_BACKWARD).keys() == {"local"}
    chart = words_of(drawn(cost_against_length(series, TIME), series.groups))
    assert "linear‖" in chart
    assert "left out of crossovers and powers of time: at 512 linear; at 1,024 linear; at 2,048 linear." in chart
    assert "left out of crossovers and powers of time" in answer_to(series.groups)[-1] + answer_to(series.groups)[-2]


def test_steps_are_told_where_the_budget_is_in_seconds() -> None:
    record = make_record("full")
    assert f"{record['train_steps']:,} steps, " in outcome(record)
    assert "lost to others in training" in outcome(record | {"train_lost_share": 0.3})
    (group,) = groups_of(runs())
    assert "steps trained" in [column.title for column in columns_of(group)]
    record["spec"] |= {"budget": None, "steps": 100}
    assert "steps trained" not in [column.title for column in columns_of(groups_of([record])[0])]


@pytest.mark.skipif(sys.platform != "linux", reason="others are seen in /proc")
@pytest.mark.alone
def test_a_comparison_beside_a_hog_is_flagged(tmp_path: Path) -> None:
    each = os.sched_getaffinity(0)  # in sessions of their own: a scheduler may share by session
    hogs = [subprocess.Popen([sys.executable, "-c", HOG], start_new_session=True) for _ in each]
    try:
        words = ["--variants", "full", "--tasks", "mqar", "--seq-len", "64", "--steps", "12", "--batch-size", "4"]
        compare_here(*words, "--d-model", "16", "--n-layers", "1", "--no-control", "--out", str(tmp_path / "out"))
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    (record,) = map(json.loads, (tmp_path / "out/records.jsonl").read_text().splitlines())
    assert record["status"] == "ok"
    assert record["measure_others_share"] > LIMIT
    assert record["measure_lost_share"] > LIMIT
    assert record["train_cpu_seconds"] > 0
    report = (tmp_path / "out/report.md").read_text()
    assert "| full‖ |" in report
    assert "Disturbed (e.g. by other processes) and left out of verdicts on time: full (1 of 1 run)." in report
    assert record["command"] in report
    (group,) = groups_of([record])
    assert "full‖" in words_of(drawn(accuracy_chart(group, SPEED), [group]))


def test_a_task_on_which_a_variant_was_disturbed_does_not_count_against_it() -> None:
    records = [record | {"test_score": 0.5} for record in [*runs(), *disturb(runs(task="mqar"), "linear")]]
    lines = [line for line in answer_to(groups_of(records)) if line.startswith("Over the 2 comparisons")]
    assert "linear on 1 of 1" in lines[0]
    assert "local on 2 of 2" in lines[0]
