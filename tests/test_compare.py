"""The comparison as a user meets it: runs, records, failures and interruptions."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from compare.record import append_record, read_records
from compare.runs.supervisor import run_one
from compare.spec import DEFAULTS, RunSpec
from tests.here import compare_here, run_here

ROOT = Path(__file__).parents[1]
TINY = ["--tasks", "mqar", "--seq-len", "32", "--d-model", "16", "--batch-size", "64", "--steps", "2"]
SPEC = RunSpec(
    variant="full",
    task="mqar",
    seq_len=32,
    seed=0,
    budget=None,
    steps=2,
    batch_size=64,
    d_model=16,
    n_heads=1,
    n_layers=1,
    conv_width=3,
    embedding_std=0.1,
    positions="rotary",
    lr=1e-3,
    device="cpu",
    dtype="float32",
    threads=1,
)


def compare(*words: str, timeout: float = 120, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compare", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)


def records_of(folder: Path) -> list[dict]:
    return read_records(folder / "records.jsonl")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One comparison: three variants and the control, two of them bound to fail."""
    out = tmp_path_factory.mktemp("run")
    words = [*TINY, "--variants", "full,xformers", "--set", "full.kernel=efficient", "--out", str(out)]
    return out, compare_here(*words)


def test_a_comparison_writes_records_charts_and_page(finished) -> None:
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    by_variant = {r["variant"]: r for r in records_of(out)}
    assert set(by_variant) == {"full", "xformers", "none"}, "the control runs unasked"
    for name in ("report.md", "report.html", "environment.json"):
        assert (out / name).stat().st_size > 0
    assert {p.suffix for p in (out / "charts").iterdir()} == {".png", ".svg"}
    assert json.loads((out / "environment.json").read_text())["cpu"]


def test_a_record_holds_what_is_promised(finished) -> None:
    record = next(r for r in records_of(finished[0]) if r["variant"] == "xformers")
    assert record["status"] == "ok", record["reason"]
    assert record["reason"] == ""
    assert record["spec"]["steps"] == 2
    assert record["train_steps"] == 2
    assert 0 <= record["test_score"] <= 1
    assert record["metric"] == "accuracy"
    assert all(0 <= score <= 1 for score in record["baselines"].values())
    assert record["train_flops"] == pytest.approx(2 * record["flops"])
    assert record["state_bytes"] == 4 * 2 * record["seq_len"] * record["spec"]["d_model"]
    for field in ("params", "tokens_per_second", "step_seconds", "saved_bytes", "flops", "test_size", "wall_seconds"):
        assert record[field] > 0, field
    for field in ("forward_seconds", "forward_backward_seconds", "step_seconds"):
        low, high = record[f"{field}_spread"]
        assert 0 < low <= record[field] <= high, field
    if sys.platform == "linux":
        assert record["peak_memory_bytes"] >= 0
        assert record["train_memory_bytes"] >= record["peak_memory_bytes"] + 12 * record["params"]
        assert record["train_cpu_seconds"] > 0
    assert record["kernel_fallback"]
    assert "xformers has no cpu kernel" in record["kernel"]
    assert [p["step"] for p in record["curve"]] == [1, 2]
    assert record["curve"][-1]["val_score"] == pytest.approx(record["val_score"], rel=1e-5)


def test_no_steps_measure_cost_alone(tmp_path: Path) -> None:
    words = [*TINY[:-1], "0", "--seq-len", "32,64", "--variants", "linformer", "--no-control", "--out", str(tmp_path)]
    done = compare_here(*words)
    assert done.returncode == 0, done.stderr
    for record in records_of(tmp_path):
        assert record["status"] == "ok", record["reason"]
        assert record["forward_backward_seconds"] > 0
        assert "curve" not in record
        assert "test_score" not in record
    stems = {p.stem for p in (tmp_path / "charts").glob("*.png")}
    assert stems, "no chart of the cost"
    assert not any(stem.startswith(("accuracy", "curves")) for stem in stems)


def test_a_kernel_that_cannot_run_is_a_row_with_status_and_reason(finished) -> None:
    record = next(r for r in records_of(finished[0]) if r["variant"] == "full")
    assert record["status"] == "unsupported"
    assert "full.kernel='efficient' cannot run on cpu" in record["reason"]
    assert record["label"] == "full kernel=efficient"


def test_report_redraws_from_records_alone(finished) -> None:
    out, _ = finished
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    done = compare_here("report", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").read_text() == before


def test_resume_repeats_nothing_and_adds_what_is_missing(finished) -> None:
    out, _ = finished
    words = [*TINY, "--variants", "full,xformers", "--set", "full.kernel=efficient", "--out", str(out)]
    refused = compare_here(*words)
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr
    lines = (out / "records.jsonl").read_text().splitlines()
    (out / "records.jsonl").write_text("\n".join([lines[0], "{damaged", lines[1]]) + "\n" + lines[2][:50])
    done = compare_here(*words, "--resume")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "line 2 is damaged and was skipped" in said
    assert "line 4 is damaged and was skipped" in said
    assert "2 of 3 runs are already in" in said
    after = (out / "records.jsonl").read_text().splitlines()
    assert after[0] == lines[0]
    assert after[2] == lines[1]
    assert len(records_of(out)) == 3


def test_interrupting_keeps_what_is_finished(tmp_path: Path) -> None:
    """By SIGTERM, which becomes a Ctrl-C: it takes both ways."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "compare", *TINY, "--variants", "full,none", "--seeds", "20", "--out", str(out)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        give_up = time.monotonic() + 100
        while not (out / "records.jsonl").exists() and time.monotonic() < give_up:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, complained
    assert "Traceback" not in said + complained
    assert "finished runs are kept; continue with --out" in " ".join(said.split())
    assert 1 <= len(records_of(out)) < 40
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (
            {"lr": 1e30, "steps": 6},
            "diverged",
            r"step \d+: loss (is nan|\S+, gradient norm \S+); forward: the output of encoder",
        ),
        ({"variant": "naive", "seq_len": 4096, "batch_size": 64, "memory_limit": 2**32}, "oom", "allocate memory"),
        ({"dtype": "float16"}, "unsupported", "float16 training needs a GPU"),
        ({"d_model": 15, "n_heads": 2}, "error", "d_model must be a multiple of n_heads"),
    ],
)
def test_a_failed_run_is_a_row(change: dict[str, object], status: str, reason: str) -> None:
    record = (run_one if status == "oom" else run_here)(replace(SPEC, **change), lambda _: None)
    assert record["status"] == status, record["reason"]
    assert re.search(reason, record["reason"])
    assert "\n" not in record["reason"]
    assert record["spec"]["variant"] == record["variant"]


def test_bfloat16_and_accumulation_train() -> None:
    record = run_here(replace(SPEC, dtype="bfloat16", accumulate=3))
    assert record["status"] == "ok", record["reason"]
    assert record["train_tokens"] == 2 * 3 * 64 * 32
    assert record["train_flops"] == pytest.approx(2 * record["flops"]), "of a whole step, in whatever micro-batches"
    assert record["tokens_per_second"] == pytest.approx(3 * 64 * 32 / record["step_seconds"])


def test_the_same_steps_and_seed_give_the_same_result() -> None:
    first, second = (run_here(replace(SPEC, variant="reformer")) for _ in range(2))
    assert first["test_loss"] == second["test_loss"]
    other = run_here(replace(SPEC, variant="reformer", seed=1))
    assert other["test_loss"] != first["test_loss"]


def test_a_worker_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'fatal: it broke' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    record = run_one(SPEC, lambda _: None)
    assert (record["status"], record["reason"]) == ("error", "exit code 3 in loading torch: fatal: it broke")


def test_where_every_run_fails_the_exit_code_is_1(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = compare_here(*TINY, "--variants", "none", "--lr", "1e30", "--steps", "6", "--out", str(out))
    assert done.returncode == 1
    assert records_of(out)[0]["status"] == "diverged"
    assert (out / "report.html").exists()


def test_spec_round_trips_and_names_itself() -> None:
    spec = replace(SPEC, options=(("rank", 128),), variant="linformer")
    assert RunSpec.from_json(spec.to_json()) == spec
    assert hash(spec) == hash(RunSpec.from_json(spec.to_json()))
    assert spec.label == "linformer rank=128"
    assert len({spec.run_id, SPEC.run_id, replace(SPEC, seed=1).run_id}) == 3


def test_a_new_field_leaves_the_names_of_runs_as_they_are() -> None:
    """As of before the fields had defaults: what is left out of the name is what holds anyway."""
    assert SPEC.run_id == replace(SPEC, **DEFAULTS).run_id
    for change in (
        {"compile": True},
        {"checkpointing": True},
        {"reversible": True},
        {"memory_limit": 2**30},
        {"search": True},
        {"probe": 32},
    ):
        assert replace(SPEC, **change).run_id != SPEC.run_id


def test_phases_end_at_full_length() -> None:
    spec = replace(SPEC, seq_len=8192, batch_size=2, length_schedule="from-16th")
    assert spec.phases() == [(0.5, 512, 8), (0.75, 2048, 2), (1.0, 8192, 2)]
    assert replace(spec, length_schedule="constant").phases() == [(1.0, 8192, 2)]
    spec = replace(spec, batch_size=1, length_schedule="from-64th")
    assert spec.phases() == [(0.45, 128, 32), (0.65, 512, 8), (0.8, 2048, 2), (1.0, 8192, 1)]


def test_training_goes_through_the_lengths() -> None:
    change = {"task": "bytes", "seq_len": 512, "batch_size": 2, "length_schedule": "from-16th", "steps": 8}
    record = run_here(replace(SPEC, **change))
    assert record["status"] == "ok", record["reason"]
    assert [p["seq_len"] for p in record["curve"]] == [32] * 4 + [128] * 2 + [512] * 2
    assert record["train_tokens"] == 4 * 8 * 32 + 2 * 2 * 128 + 2 * 2 * 512
    done = [p["flops"] for p in record["curve"]]
    at_full_length = record["flops"] / (2 * 512)  # a token
    assert done[-1] == pytest.approx(record["train_flops"], rel=1e-5)
    assert done[-1] - done[-2] == pytest.approx(at_full_length * 2 * 512, rel=1e-3)
    assert 0.1 * at_full_length < done[0] / (8 * 32) < at_full_length


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to end the worker with its parent")
def test_a_killed_comparison_leaves_no_worker_behind(tmp_path: Path) -> None:
    words = [*TINY[:-1], "100000", "--variants", "none", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "compare", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    give_up = time.monotonic() + 60
    workers: list[str] = []
    while not workers and time.monotonic() < give_up:
        time.sleep(0.5)
        templates = [pid for pid in children.read_text().split() if "compare.runs.template" in proc(pid, "cmdline")]
        workers = [pid for each in templates for pid in (each, *proc(each, f"task/{each}/children").split())][:2]
        workers = workers if len(workers) == 2 else []
    time.sleep(3)
    process.kill()
    process.wait()
    assert workers
    alive = workers
    while alive and time.monotonic() < give_up:
        time.sleep(0.2)
        alive = [pid for pid in workers if proc(pid, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])]
    assert not alive


def proc(pid: str, name: str) -> str:
    """A file of a process; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def test_records_survive_damage(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = {"run_id": "a", "variant": "full", "task": "t", "seq_len": 1, "seed": 0, "status": "ok"}
    append_record(path, good)
    path.write_bytes(path.read_bytes() + b'{"run_id": "torn')
    append_record(path, good | {"run_id": "b"})
    path.write_bytes(path.read_bytes() + b"[1]\n\xff\xfe\n" + json.dumps(good | {"schema": 99}).encode() + b"\n")
    records, warnings = read_records(path)
    assert [r["run_id"] for r in records] == ["a", "b"]
    assert [re.search(r"line (\d)", w)[1] for w in warnings] == ["2", "4", "5", "6"]  # type: ignore[index]


@pytest.mark.alone
def test_a_sign_of_life_comes_within_three_seconds(tmp_path: Path) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "compare", *TINY, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    took = time.perf_counter() - start
    process.kill()
    process.communicate()
    assert "comparing full,linformer,linear on mqar" in first
    assert took < 3


def test_denormals_count_as_zero_in_every_thread_of_a_run() -> None:
    code = """if True:
    import torch
    from compare.runs.execute import settle_cpu
    settle_cpu(2)
    tiny = torch.full((2**20,), 1e-39)
    print(int((tiny * 1.0).count_nonzero()))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0", done.stdout + done.stderr


def test_rooms_import_one_way_only() -> None:
    """zoo knows neither tasks nor compare, tasks knows neither; a report knows records and no torch, nobody the entry
    of a run's process."""
    forbidden = {
        "compare": ("compare.runs.process",),
        "zoo": ("tasks", "compare"),
        "tasks": ("zoo", "compare", "torch"),
        "compare/report": ("torch", "zoo", "tasks", "datasets", "compare.runs"),
    }
    for room, names in forbidden.items():
        for path in (ROOT / room).rglob("*.py"):
            imported = re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(), re.MULTILINE)
            for name in names:
                wrong = [i for i in imported if i == name or i.startswith(name + ".")]
                assert not wrong, f"{path.relative_to(ROOT)} imports {wrong[0]}"
