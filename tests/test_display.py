"""What a comparison shows: a table that fits the terminal, plain lines, JSON, or errors alone."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from compare.display import Display, QuietDisplay, TableDisplay, choose_display, clock
from compare.progress import OVERHEAD, Runs
from compare.record import Record
from compare.runs.prepare import prepare_data
from compare.spec import RunSpec
from tests.learning import small_spec

SPEC = replace(small_spec("mqar", 64, steps=1), steps=None, budget=100.0)


def specs_of(variants: list[str], tasks: tuple[str, ...] = ("mqar",), seeds: int = 1) -> list[RunSpec]:
    return [replace(SPEC, variant=v, task=t, seed=s) for s in range(seeds) for t in tasks for v in variants]


def record_of(spec: RunSpec, status: str = "ok", wall: float = 130.0, reason: str = "") -> Record:
    scores = {"metric": "accuracy", "test_score": 0.4921, "tokens_per_second": 1234.5, "step_seconds": 0.0123}
    found = scores if status == "ok" else {}
    return {"run_id": spec.run_id, "status": status, "reason": reason, "wall_seconds": wall} | found


def training(done: float, loss: float | None = 2.3456, step: int = 7) -> Record:
    return {"phase": "training", "done": done, "loss": loss, "step": step}


def terminal(width: int, height: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def drawn(display: TableDisplay) -> list[str]:
    """The table as it would be drawn now."""
    page = Console(file=io.StringIO(), width=display.console.width)
    page.print(display.table())
    return page.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_damaged_cache_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    spec, out = small_spec("digits", 64, steps=1), io.StringIO()
    assert prepare_data([spec], Display(Console(file=out))) == {}
    assert out.getvalue() == ""
    for file in tmp_path.rglob("*.arrow"):
        file.write_bytes(b"torn")
    assert prepare_data([spec], Display(Console(file=out))) == {}
    assert out.getvalue().startswith("warning: rebuilding the unreadable cache")
    assert out.getvalue().count("\n") == 1


def show(width: int, height: int, specs: list[RunSpec], current: int) -> list[str]:
    """A table with the runs before ``current`` ended, the second of them badly."""
    display = TableDisplay(terminal(width, height))
    ended = [record_of(s) for s in specs[:current]]
    if current > 1:
        ended[1] = record_of(specs[1], "oom", 12.0, "can't allocate memory: you tried to allocate 137438953472 bytes")
    with display.comparing(specs, ended):
        display.started(specs[current])
        display.update(specs[current], training(0.34))
        return drawn(display)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_says_of_each_run_how_it_stands(width: int) -> None:
    lines = show(width, 24, specs_of(["full", "linformer", "reformer", "none"]), 2)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[:4]] == ["full", "linformer", "reformer", "none"]
    assert "accuracy 49.2%" in lines[0]
    assert "2:10" in lines[0]
    assert "oom: can't allocate" in lines[1]
    assert "training 34%, loss 2.346" in lines[2]
    assert "1:06 left" in lines[2]
    assert "waiting" in lines[3]
    assert lines[4] == "2 of 4 runs done · 1 failed · 3:16 left", "1:06 and, as long as the first, 2:10"


@pytest.mark.parametrize(("width", "height"), [(60, 12), (100, 40), (60, 5)])
@pytest.mark.parametrize("current", [0, 3, 150, 299])
def test_of_hundreds_of_runs_as_many_are_drawn_as_fit(width: int, height: int, current: int) -> None:
    names = ["full", "my_module:AnAttentionWithAVeryLongName", *(f"variant_{n}" for n in range(48))]
    specs = specs_of(names, tasks=("mqar", "selective_copy"), seeds=3)
    lines = show(width, height, specs, current)
    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width
    running = [line for line in lines if "training 34%" in line]
    assert len(running) == 1
    spec = specs[current]
    name = f" · {spec.task} · seed {spec.seed}"
    assert (name if width == 100 else name[:11]) in running[0]
    assert "N 64" not in running[0], "what all runs have in common is left out"
    assert f"{current} of 300 runs done" in lines[-1]


def test_drawing_happens_upon_events_and_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = specs_of(["full", "none"])
    display = TableDisplay(terminal(80, 24))
    drawings = 0
    table = display.table

    def count() -> object:
        nonlocal drawings
        drawings += 1
        return table()

    monkeypatch.setattr(display, "table", count)
    with display.comparing(specs, []):
        display.started(specs[0])
        before, started = drawings, time.perf_counter()
        while (took := time.perf_counter() - started) < 1.2:
            display.update(specs[0], training(took / 2))
        busy = drawings - before
        time.sleep(0.7)
        assert drawings - before == busy, "it was drawn without an event"
    assert 1 <= busy <= 3


def test_a_hundred_events_are_drawn_fast() -> None:
    specs = specs_of([f"variant_{n}" for n in range(100)], seeds=3)
    display = TableDisplay(terminal(120, 50))
    with display.comparing(specs, [record_of(s) for s in specs[:150]]):
        display.started(specs[150])
        start = time.process_time()
        for _ in range(10):
            display.live.refresh()
    assert time.process_time() - start < 10 * 0.05, "a twentieth of a second each, of the half between two"


def test_outcomes_go_by_above_the_table_and_stay() -> None:
    specs = specs_of(["full", "none"])
    display = TableDisplay(terminal(100, 24))
    with display.comparing(specs, []):
        for spec in specs:
            display.started(spec)
            display.finished(spec, record_of(spec))
    with display.comparing(specs, []):
        pass
    said = Text.from_ansi(display.console.file.getvalue()).plain  # type: ignore[attr-defined]
    assert "1/2 full · mqar · N 64 · seed 0: accuracy 49.2%, 1,234 tokens/s, step 0.0123 s, 130 s in total" in said


def test_time_left_comes_from_runs_that_ended_and_from_budgets() -> None:
    specs = specs_of(["full", "none"], seeds=2)
    runs = Runs(specs, [])
    assert runs.time_left(0.0)[1] == 4 * (100 + OVERHEAD)
    runs.start(specs[0], 0.0)
    assert runs.time_left(10.0, specs[0])[0] == 100 + OVERHEAD - 10
    runs.update(specs[0], training(0.25), 20.0)
    assert runs.time_left(50.0, specs[0])[0] == 75
    runs.finish(record_of(specs[0], wall=120.0))
    assert runs.time_left(120.0, specs[0])[0] is None
    assert runs.time_left(120.0)[1] == 120 + 120 + 120, "none: its budget and the 20 s that full took beside it"
    runs.start(specs[1], 120.0)
    runs.finish(record_of(specs[1], "oom", wall=5.0))
    assert runs.time_left(125.0)[1] == 120 + 5

    counted = [replace(spec, budget=None, steps=100) for spec in specs]
    runs = Runs(counted, [])
    assert runs.time_left(0.0)[1] is None
    runs.start(counted[0], 0.0)
    runs.update(counted[0], training(0.0), 10.0)
    assert runs.time_left(11.0, counted[0])[0] is None
    runs.update(counted[0], training(0.25), 20.0)
    assert runs.time_left(20.0, counted[0])[0] == 30
    runs.finish(record_of(counted[0], wall=55.0))
    assert runs.time_left(55.0)[1] == 3 * 55


def test_runs_that_go_on_at_once_are_all_drawn_and_share_the_time_left() -> None:
    specs = specs_of(["full", "none", "linear", "local"])
    display = TableDisplay(terminal(100, 24))
    with display.comparing(specs, [record_of(specs[0], wall=120.0)]):
        for spec in specs[1:3]:
            display.started(spec)
            display.update(spec, training(0.5 if spec is specs[1] else 0.1))
        lines = drawn(display)
    assert "training 50%" in lines[1]
    assert "0:50 left" in lines[1]
    assert "training 10%" in lines[2]
    assert "1:30 left" in lines[2]
    assert "waiting" in lines[3]
    assert lines[4] == "1 of 4 runs done · 2 running · 2:10 left", "(50 + 90 + 120) / 2"
    console = Console(file=io.StringIO(), width=200)
    plain = Display(console)
    with plain.comparing(specs, []):
        for spec in specs[:2]:
            plain.started(spec)
        plain.last = -1e9
        plain.update(specs[1], training(0.5))
    told = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert told.startswith("  2/4 none · mqar · N 64 · seed 0: training 50%, loss 2.346, 0:50 left")


def test_a_run_that_takes_longest_sets_the_time_left() -> None:
    specs = specs_of(["full", "none"])
    runs = Runs(specs, [])
    for spec in specs:
        runs.start(spec, 0.0)
    runs.update(specs[0], training(0.9), 0.0)
    assert runs.time_left(0.0)[1] == 100 + OVERHEAD


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (90, "1:30"), (4000, "1:06:40")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def play(display: Display) -> None:
    """A comparison of two runs, one of which fails."""
    specs = specs_of(["full", "none"])
    display.say("hello")
    display.warn("take [care]")
    with display.preparing("mqar") as on_progress:
        on_progress(0.5)
    with display.comparing(specs, []):
        display.started(specs[0])
        display.update(specs[0], training(0.5))
        display.finished(specs[0], record_of(specs[0]))
        display.started(specs[1])
        display.finished(specs[1], record_of(specs[1], "error", reason="it [broke]"))
    display.report(Path("out/report.html"))


def test_quiet_tells_what_went_wrong_and_where_the_report_is(capsys: pytest.CaptureFixture[str]) -> None:
    complaints = Console(file=io.StringIO(), width=200)
    play(QuietDisplay(complaints))
    assert capsys.readouterr().out == "out/report.html\n"
    assert complaints.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "warning: take [care]",
        "error: 2/2 none · mqar · N 64 · seed 0: error: it [broke]",
    ]


def test_json_is_one_event_a_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    play(choose_display(quiet=False, as_json=True))
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert captured.err == ""
    order = ["message", "warning", "preparing", "started", "progress", "finished", "started", "finished", "report"]
    assert [event["event"] for event in events] == order
    assert events[4]["loss"] == 2.3456
    assert events[4]["seconds_left"] == 50
    assert (events[5]["status"], events[5]["test_score"], events[5]["run_id"]) == ("ok", 0.4921, SPEC.run_id)
    assert (events[7]["status"], events[7]["reason"], events[7]["test_score"]) == ("error", "it [broke]", None)


def test_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=40)
    play(Display(console))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "hello"
    assert lines[2] == "1/2 full · mqar · N 64 · seed 0: started"
    assert lines[-1] == "charts and tables: out/report.html"
    assert len(lines) == 7, "no word on progress within a few seconds"


def test_runs_that_differ_in_an_option_of_their_task_are_told_apart() -> None:
    options = [(("data", "a"), ("samples", n)) for n in (4, 8)]
    specs = [replace(SPEC, task="listops", task_options=given) for given in options]
    runs = Runs(specs, [])
    assert [runs.task_of(spec) for spec in specs] == ["listops samples=4", "listops samples=8"]
    assert runs.title(specs[1]).startswith(f"2/2 {SPEC.label} · listops samples=8 · N")
    assert Runs(specs[:1], []).task_of(specs[0]) == "listops"
    tried = [replace(spec, search=True, weight_decay=decay) for spec in specs[:1] for decay in (0.0, 0.1)]
    assert [Runs(tried, []).setting_of(spec) for spec in tried] == [
        f" · lr {specs[0].lr:g} · weight decay {decay:g}" for decay in (0.0, 0.1)
    ]
    assert Runs(tried[:1], []).setting_of(tried[0]) == f" · lr {specs[0].lr:g}"
    assert Runs(specs, []).setting_of(specs[0]) == ""
