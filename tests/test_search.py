"""A learning rate is chosen on validation, alike for every variant, and its cost is told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from compare.arguments import run_parser
from compare.display import Display
from compare.errors import UsageError
from compare.plan import plan_runs
from compare.record import Record, is_search, read_records
from compare.report import write_report
from compare.runs.options import RunOptions
from compare.runs.rate_search import GridPoint, choose, make_grid, search_rates, search_specs
from compare.runs.sequence import run_all
from compare.spec import RunSpec
from tests.here import compare_here
from tests.make_records import make_record, write_folder

RATES = (1e-3, 3e-3, 1e-2)
GRID = make_grid(RATES, ())
SWEPT = ["--tasks", "mad_memorize", "--sweep", "mad_memorize.vocab_size=64:128"]
WORDS = ["--tasks", "mqar", "--seq-len", "32", "--steps", "2", "--seeds", "3", "--no-control"]


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(run_parser().parse_args([*WORDS, "--lr-grid", "3e-3,1e-2,1e-3", *words]), "cpu", 2).specs


def ran(score: float | None, status: str = "ok") -> Record:
    return {"status": status, "wall_seconds": 2.0} | ({} if score is None else {"val_score": score})


@pytest.mark.parametrize(
    ("scores", "chosen", "words"),
    [
        ((0.2, 0.6, 0.5), 3e-3, ""),
        ((0.2, 0.5, 0.5), 3e-3, ""),
        ((0.5, 0.5, 0.2), 1e-3, "edge of the grid"),
        ((0.2, 0.5, 0.6), 1e-2, "edge of the grid"),
        ((None, 0.0, None), 3e-3, ""),
        ((None, None, None), 3e-3, "every run of the search failed"),
    ],
)
def test_the_best_on_validation_is_chosen_and_of_two_the_smaller(
    scores: tuple[float | None, ...], chosen: float, words: str
) -> None:
    search = choose([ran(score, "diverged" if score is None else "ok") for score in scores], GRID)
    assert (search["chosen"], search["scores"], search["runs"], search["seconds"]) == (chosen, list(scores), 3, 6.0)
    assert words in search["note"]
    assert bool(words) == bool(search["note"])


def test_a_weight_decay_is_chosen_together_with_the_rate() -> None:
    grid = make_grid((1e-3, 3e-3), (0.0, 0.1))
    assert [tuple(setting) for setting in grid] == [(1e-3, 0.0), (1e-3, 0.1), (3e-3, 0.0), (3e-3, 0.1)]
    search = choose([ran(score) for score in (0.2, 0.6, 0.6, 0.1)], grid)
    assert (search["chosen"], search["chosen_weight_decay"]) == (1e-3, 0.1)
    assert (search["grid"], search["weight_decay_grid"]) == ([1e-3, 3e-3], [0.0, 0.1])
    planned = specs("--variants", "full", "--weight-decay-grid", "0.1,0")
    assert [(run.lr, run.weight_decay) for run in search_specs(planned, grid, {})] == [tuple(s) for s in grid]
    assert GridPoint(2e-3).of(planned[0]).weight_decay == planned[0].weight_decay


def test_a_run_that_fails_late_has_lost_whatever_it_scored() -> None:
    assert choose([ran(0.1), ran(0.9, "oom"), ran(0.2)], GRID)["chosen"] == 1e-2


def test_the_search_takes_one_seed_one_grid_for_all_and_no_test() -> None:
    planned = specs("--variants", "full,linear", "--seq-len", "32,64")
    search = search_specs(planned, GRID, {})
    assert all(run.search and run.seed == 0 for run in search)
    assert {(run.variant, run.seq_len, run.lr) for run in search} == {
        (variant, length, rate) for variant in ("full", "linear") for length in (32, 64) for rate in RATES
    }
    assert len({run.run_id for run in search} | {spec.run_id for spec in planned}) == len(search) + len(planned)


def test_one_search_stands_for_all_values_of_a_sweep(worker: list[RunSpec], tmp_path: Path) -> None:
    planned = specs("--variants", "full,linear", "--tasks", "mad_memorize", "--sweep", "mad_memorize.vocab_size=64:256")
    at = {"mad_memorize": ("vocab_size", 128)}
    search = search_specs(planned, GRID, at)
    assert {(run.variant, run.task_options, run.lr) for run in search} == {
        (variant, (("vocab_size", 128),), rate) for variant in ("full", "linear") for rate in RATES
    }
    assert len(search) == 6
    silent = Display(Console(file=io.StringIO()))
    records = tmp_path / "records.jsonl"
    final, notes = search_rates(
        planned, GRID, lambda wanted: run_all(wanted, records, silent, {}, RunOptions()), lambda _: None, at
    )
    assert [spec.task_options for spec in final] == [spec.task_options for spec in planned]
    assert {spec.lr for spec in final} == {3e-3}
    assert {note["lr_search"]["at"] for note in notes.values()} == {"vocab_size=128"}
    assert len(notes) == len(planned)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The specs that were run; full learns best at 3e-3, linear diverges at every rate while it is searched."""
    calls: list[RunSpec] = []

    def run_one(spec: RunSpec, *_: object) -> Record:
        calls.append(spec)
        status = "diverged" if spec.search and spec.variant == "linear" else "ok"
        record = make_record(spec.variant, task=spec.task, seq_len=spec.seq_len, seed=spec.seed, status=status)
        return record | {"run_id": spec.run_id, "spec": {"search": spec.search}, "val_score": 1 - abs(spec.lr - 3e-3)}

    monkeypatch.setattr("compare.engines.local.run_one", run_one)
    return calls


def test_all_seeds_run_with_the_chosen_rate_and_resume_finds_the_search(worker: list[RunSpec], tmp_path: Path) -> None:
    path, told = tmp_path / "records.jsonl", []
    silent = Display(Console(file=io.StringIO()))

    def run(wanted: list[RunSpec], notes: dict[str, Record] | None = None) -> list[Record]:
        return run_all(wanted, path, silent, {}, RunOptions(), notes)

    def whole() -> list[RunSpec]:
        final, notes = search_rates(specs("--variants", "full,linear"), GRID, run, told.append, {})
        run(final, notes)
        return final

    final = whole()
    assert [(spec.lr, spec.seed) for spec in final] == [(3e-3, seed) for seed in range(3) for _ in range(2)]
    assert not any(spec.search for spec in final)
    assert len(worker) == 6 + 6
    assert "learning rate of full · mqar · N 32: 0.003" in told
    assert (
        "learning rate of linear · mqar · N 32: 0.003 (every run of the search failed: took the middle of the grid)"
        in told
    )
    for record in read_records(path)[0]:
        assert is_search(record) is ("lr_search" not in record)
        if not is_search(record):
            search = record["lr_search"]
            assert (search["grid"], search["chosen"], search["runs"]) == (list(RATES), 3e-3, 3)
            assert search["seconds"] > 0
            assert bool(search["note"]) is (record["variant"] == "linear")
    assert [spec.run_id for spec in whole()] == [spec.run_id for spec in final]
    assert len(worker) == 6 + 6, "a finished run was repeated"


def test_the_command_searches_and_touches_the_test_split_once(tmp_path: Path) -> None:
    words = ["--tasks", "mqar", "--seq-len", "32", "--d-model", "16", "--batch-size", "64", "--steps", "2"]
    words += ["--variants", "none", "--lr-grid", "1e-3,1e30", "--out", str(tmp_path / "run")]
    done = compare_here(*words)
    assert done.returncode == 0, done.stderr
    assert "learning rate of none · mqar · N 32: 0.001 (at the edge of the grid" in " ".join(done.stdout.split())
    *search, final = read_records(tmp_path / "run" / "records.jsonl")[0]
    assert [(is_search(run), run["spec"]["lr"]) for run in search] == [(True, 1e-3), (True, 1e30)]
    assert not any("test_score" in run or "step_seconds" in run for run in search)
    assert search[0]["flops"] == final["flops"] > 0
    assert f"validation accuracy {search[0]['val_score']:.1%}, 2 steps, " in done.stdout
    assert "test_score" in final
    assert final["lr_search"]["scores"] == [search[0]["val_score"], search[1].get("val_score")]


def test_runs_of_the_search_are_no_results(tmp_path: Path) -> None:
    search = make_record("performer") | {"run_id": "s"}
    search["spec"] = search["spec"] | {"search": True}
    write_report(write_folder(tmp_path, [make_record("full"), search]))
    assert "performer" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "1e-3"], "--lr: not allowed with argument --lr-grid"),
        (["--steps", "0"], "--lr-grid cannot be combined with --steps 0: choosing a rate needs training"),
        (["--weight-decay", "0.1", "--weight-decay-grid", "0,0.1"], "--weight-decay-grid: not allowed"),
        (["--weight-decay-grid", "0,-1"], "--weight-decay-grid: expected 0 or a positive number, got '-1'"),
        (["--lr-grid", "1e-3"], "--lr-grid: expected at least two rates such as 1e-3,3e-3, got '1e-3'"),
        (["--lr-grid", "1e-3,much"], "--lr-grid: expected a positive number, got 'much'"),
        (["--grid-at", "mqar.x=4"], r"expected a task option that --sweep varies \(nothing\), got mqar.x"),
        ([*SWEPT, "--grid-at", "mad_memorize.vocab_size=65"], "expected one of the swept values 64, 128, got 65"),
        (["--lr-grid", "auto"], "--lr-grid: expected a positive number, got 'auto'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        specs(*words)
    assert "\n" not in str(error.value)
