"""Runs that crash or hang are a row; comparisons keep out of one another's folders; a full disk loses nothing."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from compare.__main__ import main
from compare.display import Display
from compare.errors import UsageError
from compare.lock import hold
from compare.record import append_record, read_records, write_atomically
from compare.runs import supervisor
from compare.runs.data import make_task
from compare.runs.options import RunOptions
from compare.runs.outcome import record_of_crash
from compare.runs.sequence import run_all
from compare.runs.supervisor import run_one
from tests.here import compare_here, few_samples
from tests.learning import small_spec
from tests.make_records import many_records, write_folder

ROOT = Path(__file__).parents[1]
SPEC = replace(small_spec("mqar", 32, steps=6, batch_size=64), d_model=16, n_heads=1, n_layers=1)
TINY = ["--tasks", "mqar", "--seq-len", "32", "--d-model", "16", "--batch-size", "64", "--steps", "2"]
PLUG_IN = '''
import ctypes, os, time
from dataclasses import dataclass
from pathlib import Path
from zoo import register
from zoo.contract import Attention, Dims, Traits

@dataclass(frozen=True, kw_only=True)
class Config:
    """how: it fails. flag: a file that says that it has failed already."""
    how: str = ""
    flag: str = ""

@register("failing", config=Config)
class Failing(Attention):
    """Fails in the fourth step of training, once."""
    traits = Traits(family="mine", source="mine", year=2026, time="O(N)", memory="O(N)", causal=False)
    made = 0

    def __init__(self, dims: Dims, config: Config):
        super().__init__(dims)
        self.config = config
        self.calls = 0
        Failing.made += 1
        self.trained = Failing.made == 2 or os.path.exists(config.flag)

    def forward(self, q, k, v, *, key_padding_mask=None):
        self.calls += self.training
        if self.trained and self.calls == 4 and not os.path.exists(self.config.flag):
            Path(self.config.flag).touch()
            if self.config.how == "segfault":
                ctypes.string_at(0)
            elif self.config.how == "hang":
                time.sleep(600)
        return v + q.mean() + k.mean()
'''


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend that fails, importable here and in workers."""
    import zoo
    from zoo.registry import _entries

    site = tmp_path / "site"
    site.mkdir()
    (site / "failing.py").write_text(PLUG_IN)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    zoo.available()
    before = dict(_entries)
    yield
    sys.modules.pop("failing", None)
    _entries.clear()
    _entries.update(before)


@pytest.mark.usefixtures("plug_in")
def test_a_run_that_is_killed_is_a_row_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    options = (("flag", str(tmp_path / "failed")), ("how", "segfault"))
    spec = replace(SPEC, variant="failing:Failing", options=options)
    run_options = RunOptions(out=str(tmp_path), checkpoint_every=1e-9)
    records = tmp_path / "records.jsonl"
    (record,) = run_all([spec], records, silent(), {}, run_options)
    assert record["status"] == "error"
    reason = r"killed by signal 11 \(SIGSEGV\) in training, after step 3: .*"
    assert re.fullmatch(reason, record["reason"]), record["reason"]
    assert (tmp_path / "checkpoints" / f"{spec.run_id}.pt").exists()

    events: list[dict[str, object]] = []
    resumed = run_one(spec, events.append, run_options)
    assert resumed["status"] == "ok", resumed["reason"]
    assert resumed["train_steps"] == 6
    assert not any(event["phase"] == "measuring" for event in events), "costs were measured again"
    assert next(event["step"] for event in events if event["phase"] == "training") in (1, 2, 3)


@pytest.mark.usefixtures("plug_in")
def test_a_run_that_hangs_is_ended_and_tried_again(tmp_path: Path) -> None:
    options = (("flag", str(tmp_path / "failed")), ("how", "hang"))
    spec = replace(SPEC, variant="failing:Failing", options=options)
    records = tmp_path / "records.jsonl"
    started = time.perf_counter()
    (record,) = run_all([spec], records, silent(), {}, RunOptions(timeout=8))
    assert time.perf_counter() - started < 60
    assert record["status"] == "timeout"
    assert re.fullmatch(r"not done after 8 s; stopped in [a-z0-9, ]+", record["reason"]), record["reason"]
    (tmp_path / "failed").touch()
    (record,) = run_all([spec], records, silent(), {}, RunOptions())
    assert record["status"] == "ok"
    assert len(read_records(records)[0]) == 1


def test_the_reason_of_a_timeout_names_phase_and_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    event = json.dumps({"phase": "training", "done": 0.3, "loss": 1.0, "step": 12})
    script.write_text(f"#!/bin/sh\necho '{event}'\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(supervisor, "may_fork", lambda _: False)
    record = run_one(SPEC, lambda _: None, RunOptions(timeout=1.5))
    assert record["status"] == "timeout"
    assert record["reason"] == "not done after 1.5 s; stopped in training, after step 12"
    assert 1.5 <= record["wall_seconds"] < 30


@pytest.mark.parametrize(("number", "signal"), [(6, "SIGABRT"), (9, "SIGKILL"), (15, "SIGTERM")])
def test_a_signal_is_named_with_the_last_words(
    number: int, signal: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    event = json.dumps({"phase": "training", "done": 0.3, "loss": 1.0, "step": 3})
    said = f"echo '{event}'\nprintf 'a warning\\nterminate called\\n\\n' >&2"
    script.write_text(f"#!/bin/sh\n{said}\nkill -{number} $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(supervisor, "may_fork", lambda _: False)
    record = run_one(SPEC, lambda _: None, RunOptions())
    assert record["reason"] == f"killed by signal {number} ({signal}) in training, after step 3: terminate called"


def test_sigkill_is_want_of_memory_only_where_the_system_killed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = record_of_crash(SPEC, -9, "", 1.0, where="measuring", no_memory=True)
    assert killed["status"] == "oom"
    assert killed["reason"] == "killed by the system (signal 9, SIGKILL) in measuring, most likely out of memory"
    assert record_of_crash(SPEC, -9, "", 1.0, where="measuring", no_memory=False)["status"] == "error"


def silent() -> Display:
    return Display(Console(file=io.StringIO()))


def test_a_second_comparison_in_a_folder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from compare.__main__ import main
from compare.lock import hold
with hold(Path({str(tmp_path)!r}), "python -m compare --variants all"):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(UsageError) as refused, hold(tmp_path, "mine"):
            pass
        assert re.fullmatch(
            rf"--out {tmp_path} is in use by process {holder.pid} since \S+: python -m compare --variants all; .*",
            str(refused.value),
        )
        second = compare_here(*TINY, "--out", str(tmp_path))
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"is in use by process {holder.pid}" in second.stderr
    finally:
        holder.kill()
        holder.communicate()
    with hold(tmp_path, "mine"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_report_is_drawn_while_a_comparison_holds_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, many_records(lengths=(1024,), seeds=1)[:2])
    with hold(tmp_path, "a comparison"), pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path)])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


@pytest.mark.parametrize("left", ["records.jsonl", "checkpoints"])
def test_what_a_killed_comparison_left_is_not_begun_anew_unasked(
    left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / left).mkdir()
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert f"--out {tmp_path} holds results already: add --resume to continue them" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_a_folder_is_held_by_one_of_many_who_come_at_once(tmp_path: Path) -> None:
    """Each adds 1 to a number that only the holder may change."""
    code = f"""
import time
from pathlib import Path
from compare.__main__ import main
from compare.lock import hold
from compare.errors import UsageError
number = Path({str(tmp_path / "number")!r})
done = 0
while done < 25:
    try:
        with hold(Path({str(tmp_path)!r}), "test"):
            value = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(value + 1))
            done += 1
    except UsageError:
        time.sleep(0.001)
"""
    (tmp_path / "number").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "number").read_text() == "100"


def test_a_record_that_does_not_fit_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = {"run_id": "a", "variant": "full", "task": "t", "seq_len": 1, "seed": 0, "status": "ok"}
    append_record(path, good)
    before = path.read_bytes()
    with file_limit(len(before) + 500), pytest.raises(OSError, match="File too large") as refused:
        append_record(path, good | {"run_id": "b", "curve": [0] * 1000})
    assert refused.value.filename == str(path)
    assert path.read_bytes() == before
    append_record(path, good | {"run_id": "b"})
    assert [r["run_id"] for r in read_records(path)[0]] == ["a", "b"]
    assert read_records(path)[1] == []


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_atomically(path, "old")
    with file_limit(1000), pytest.raises(OSError, match="File too large") as refused:
        write_atomically(path, "new" * 1000)
    assert refused.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process and of those it starts may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [600, 40_000])
def test_a_full_disk_is_one_line_and_the_comparison_goes_on_later(room: int, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    with few_samples():  # built before the limit
        assert make_task(SPEC).facts
    records = tmp_path / "records.jsonl"
    earlier = {"run_id": "a", "variant": "full", "task": "mqar", "seq_len": 32, "seed": 0, "status": "error"}
    append_record(records, earlier | {"reason": "long " * 4000})
    before = records.read_bytes()
    words = [*TINY, "--variants", "none", "--checkpoint-every", "1e-9", "--resume", "--out", str(tmp_path)]
    with file_limit(len(before) + room):
        failed = compare_here(*words)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert re.search(
        rf"^error: {tmp_path}.*: File too large; finished runs are kept: free disk space, then", failed.stderr
    )
    assert records.read_bytes().startswith(before)
    assert read_records(records)[1] == []
    if room == 600:
        assert "records.jsonl: File too large" in failed.stderr
        assert failed.stdout.count("cannot be written") == 1, "of the checkpoint, once"
    done = compare_here(*words)
    assert done.returncode == 0, done.stderr
    assert [r["status"] for r in read_records(records)[0]] == ["error", "ok"]
    assert (tmp_path / "report.html").exists()
    assert not list(tmp_path.glob("*.part"))
