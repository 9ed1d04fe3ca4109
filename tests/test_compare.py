"""The comparison as a user meets it: runs, records, failures, interruptions, and what one can type wrong."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from compare.arguments import cost_parser, run_parser
from compare.display import Display
from compare.errors import UsageError
from compare.record import append_record, read_records
from compare.runs.options import RunOptions
from compare.runs.sequence import run_all
from compare.runs.supervisor import run_one
from compare.spec import DEFAULTS, RunSpec
from tests.here import compare_here, run_here
from tests.make_records import make_record, write_folder

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
    assert record["curve"][-1]["val_score"] == record["val_score"]


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
        ({"lr": 1e30, "steps": 6}, "diverged", "loss is nan|loss is inf"),
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
    assert (record["status"], record["reason"]) == ("error", "exit code 3 in starting: fatal: it broke")


def test_where_every_run_fails_the_exit_code_is_1(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = compare_here(*TINY, "--variants", "none", "--dtype", "float16", "--device", "cpu", "--out", str(out))
    assert done.returncode == 1
    assert records_of(out)[0]["status"] == "unsupported"
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


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 2**34), ("512 MiB", 2**29), ("1.5g", 3 * 2**29), ("4096", 4096), ("8kb", 8192)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert run_parser().parse_args(["--memory-limit", text]).memory_limit == size


@pytest.mark.parametrize(
    ("text", "found"), [("8k", [8192]), ("512:16K", [2**n for n in range(9, 15)]), ("1k, 3000", [1024, 3000])]
)
def test_a_length_may_be_told_in_k(text: str, found: list[int]) -> None:
    for parser in (run_parser(), cost_parser()):
        assert parser.parse_args(["--seq-len", text]).seq_len == found
    assert cost_parser().parse_args(["--longest", "64k"]).longest == 65_536


@pytest.mark.parametrize("text", ["0", "-1GB", "16XB", "much", ""])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size such as 500MB or 16GB"):
        run_parser().parse_args([f"--memory-limit={text}"])


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
    assert done[-1] == record["train_flops"]
    assert done[-1] - done[-2] == pytest.approx(at_full_length * 2 * 512)
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
        workers = [pid for pid in children.read_text().split() if "compare.runs.process" in proc(pid, "cmdline")]
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--variants", "linfromer"],
            r"--variants: unknown attention 'linfromer'. Did you mean 'linformer'\? Available: .*block_sparse, ",
        ),
        (["--variants", ""], "expected at least one variant"),
        (["--tasks", "mqr"], r"unknown task 'mqr' \(did you mean 'mqar'\?\); known: all, quick, lra, diagnostics, "),
        (["--seq-len", "0"], "--seq-len: expected a positive integer, got '0'"),
        (["--seq-len", "-5"], "expected a positive integer, got '-5'"),
        (["--seq-len", "many"], "expected a positive integer, got 'many'"),
        (["--seq-len", "1024,"], "expected a positive integer, got ''"),
        (["--seq-len", "9999999"], "seq_len.*9999999"),
        (["--seeds", "0"], "--seeds: expected a positive integer"),
        (["--budget", "nan"], "--budget: expected a positive number, got 'nan'"),
        (["--budget", "5", "--steps", "5"], "not allowed with"),
        (["--checkpointing", "--reversible"], "--reversible: not allowed with argument --checkpointing"),
        (["--d-model", "30", "--n-heads", "4"], "d_model must be a multiple of n_heads, got d_model=30, n_heads=4"),
        (
            ["--set", "linformer.rnk=3"],
            r"linformer has no option 'rnk' \(did you mean 'rank'\?\); its options: rank, sh",
        ),
        (["--set", "linformer.rank=big"], "expected an integer, got 'big'"),
        (["--set", "linformer.rank=0"], "linformer.rank must be an integer of at least 1, got 0"),
        (["--set", "linformer.rank"], "expected NAME.OPTION=VALUE"),
        (["--set", "nobody.rank=3"], "--set: unknown attention 'nobody'. Available: "),
        (["--set", "linfromer.rank=3"], r"--set: unknown attention 'linfromer'. Did you mean 'linformer'\?"),
        (["--set", "full.size=3"], "full has no option 'size'; its options: kernel"),
        (["--set", "naive.size=3"], "naive has no option 'size'; it has no options"),
        (["--variants", "nowhere:MyAttention"], "--variants: there is no module 'nowhere'"),
        (["--set", "nowhere:MyAttention.rank=3"], "--set: there is no module 'nowhere'"),
        (
            ["--set", "reformer.n_hashes=3"],
            "variant or task of this comparison .full, linformer, linear, none, noisy_recall., got 'reformer'",
        ),
        (["--set", "block_sparse.layout=3"], "block_sparse has no option 'layout'"),
        (
            ["--tasks", "mqar", "--seq-len", "64", "--length-schedule", "from-16th"],
            r"from-16th \(50 % at N/16, .*\) trains at 4 of 64 tokens, but mqar has training samples of 32 tokens or",
        ),
        (
            ["--tasks", "digits", "--length-schedule", "from-16th"],
            "trains at .* tokens, but digits has training samples of full length only: take another schedule",
        ),
        (["--length-schedule", "short"], "invalid choice: 'short' .choose from '?from-64th'?, '?from-16th"),
        (["--lr-schedule", "step"], "invalid choice: 'step' .choose from '?constant-then-linear"),
        (["--warmup", "1"], "expected a share of the training, at least 0 and below 1, got '1'"),
        (
            ["--warmup", "0", "--lr-schedule", "inverse-square-root"],
            "--warmup 0 cannot be combined with --lr-schedule inverse-square-root",
        ),
        (["--tasks", "mqar", "--data", "x.csv"], "--data: expected a task that takes it .*classify.*, got mqar"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "/nonexistent/x"], "folder /nonexistent/x does not exist"),
        (["--out", "/proc/x"], "--out /proc/x cannot be written"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--frobnicate"], r"unrecognized arguments: --frobnicate \(python"),
        (["--variant", "full"], r"unrecognized arguments: --variant full; did you mean --variants\? \(python"),
        (["--seqlen=64"], r"unrecognized arguments: --seqlen=64; did you mean --seq-len\?"),
        (["-variants", "full"], r"did you mean --variants\?"),
        (["—variants", "full"], r"did you mean --variants\?"),
        (["cost", "--longst", "64"], r"did you mean --longest\?"),
        (["run", "--seqlen=64"], r"unrecognized arguments: --seqlen=64; did you mean --seq-len\?"),
        (["reproduce", "mad-memorise"], r"reproduce: expected a plan among .* .did you mean 'mad-memorize'"),
        (["reproduce", "mad-memorize", "--sedes", "1"], r"did you mean --seeds\?"),
        (["reprot", "results"], r"unrecognized arguments: reprot results; did you mean report\?"),
        (
            ["--lr", "1e-3,3e-3"],
            "--lr: expected one rate, got '1e-3,3e-3'; to choose among several, use --lr-grid 1e-3,3e",
        ),
        (["--seeds", "0,1,2"], "--seeds: expected the number of seeds .3 runs seeds 0, 1 and 2., got '0,1,2'"),
        (["--seq-len", "8kk"], "--seq-len: expected a positive integer, got '8kk'"),
        (["--seq-len", "k"], "--seq-len: expected a positive integer, got 'k'"),
        (
            ["--memory-limit", "16"],
            "--memory-limit: expected a size with its unit such as 500MB or 16GB, .* got 16 bytes",
        ),
        (["report", "/nonexistent"], "/nonexistent has no records.jsonl"),
        (["report"], "required: DIR"),
        (["list", "linfromer"], r"list: unknown attention 'linfromer'. Did you mean 'linformer'\?"),
        (["list", "full", "extra"], "unrecognized arguments: extra"),
        (["list", "full", "--markdown"], "not allowed with"),
        (["list", "--write", "/nonexistent/README.md"], "--write /nonexistent/README.md: .*No such file"),
        (
            ["list", "--write", str(ROOT / "LICENSE")],
            "expected a marker, <!-- results/FOLDER --> or one of <!-- backends -->, ",
        ),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compare.__main__ import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    complaint = capsys.readouterr().err
    assert stop.value.code == 2, complaint
    assert re.search(message, complaint), complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a usage error left something behind"


@pytest.mark.alone
def test_help_is_quick_and_does_not_import_torch() -> None:
    start = time.perf_counter()
    done = compare("--help")
    assert time.perf_counter() - start < 1
    assert done.returncode == 0
    assert "--variants" in done.stdout
    code = "import sys; from compare.arguments import cost_parser, run_parser; run_parser().format_help()"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_list_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compare.__main__ import main

    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    listed = capsys.readouterr().out
    assert stop.value.code == 0
    assert max(map(len, listed.splitlines())) <= columns
    assert "…" not in listed, "a cell is cut short"
    for part in ("block_sparse", "linformer", "rank=256", "low-rank", "+524,288", "4.0 MiB", "O(N·M)", "mqar", "cache"):
        assert part in listed
    assert listed.index("exact") < listed.index("low-rank") < listed.index("control")


def test_list_of_one_is_what_describe_prints(capsys: pytest.CaptureFixture[str]) -> None:
    import zoo
    from compare.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main(["list", "linformer"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{zoo.describe('linformer')}\n"


def test_the_tables_are_written_between_their_markers(tmp_path: Path) -> None:
    from compare.__main__ import main
    from compare.listing import markdown

    page, tables = tmp_path / "page.md", markdown()
    names = ("tasks", "suites", "backends", "backends in full")
    page.write_text("".join(f"a\n<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names))
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["list", "--write", str(page)])
        assert stop.value.code == 0
        assert page.read_text() == "".join(f"a\n<!-- {n} -->\n{tables[n]}\n<!-- /{n} -->\n" for n in names)


def test_results_are_written_between_markers_that_name_their_folder(tmp_path: Path) -> None:
    from compare.listing import results, written

    folder = tmp_path / "results" / "one"
    charts = folder / "charts"
    charts.mkdir(parents=True)
    (charts / "accuracy_speed_mqar_64.png").touch()
    (charts / "other.png").touch()
    write_folder(folder, [make_record(variant, task="mqar", seq_len=64) for variant in ("full", "linear", "none")])
    page = tmp_path / "page.md"
    names = ("results/one", "results/one other")
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names))
    first, other = results(folder, "results/one"), results(folder, "results/one", "other")
    assert first.startswith("![accuracy speed mqar 64](results/one/charts/accuracy_speed_mqar_64.png)\n\nTask: ")
    assert other.startswith("![other](results/one/charts/other.png)\n\nTask: ")
    assert written(page) == "".join(
        f"<!-- {name} -->\n{text}\n<!-- /{name} -->\n" for name, text in zip(names, (first, other), strict=True)
    )
    (tmp_path / "docs").mkdir()
    below = tmp_path / "docs" / "page.md"
    below.write_text("<!-- ../results/one -->\nold\n<!-- /../results/one -->\n")
    assert "](../results/one/charts/accuracy_speed_mqar_64.png)" in written(below)
    below.write_text("<!-- ../results/one -->\nold\n")
    with pytest.raises(ValueError, match=r"expected a line <!-- /\.\./results/one --> after <!-- ../results/one -->"):
        written(below)
    with pytest.raises(ValueError, match=r"chart \S+ does not exist"):
        results(folder, "results/one", "absent")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of docs/extending.md, in a current folder of its own; the registry is left as it was."""
    import zoo
    from zoo.registry import _entries

    text = (ROOT / "docs/extending.md").read_text().partition("## Add a backend from your own package")[2]
    path = tmp_path / "my_module.py"
    path.write_text(text.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    zoo.available()
    before = dict(_entries)
    yield path
    sys.modules.pop("my_module", None)
    _entries.clear()
    _entries.update(before)


def test_the_example_of_the_docs_runs_from_its_own_folder(module: Path) -> None:
    from compare.plan import plan_runs

    words = [*TINY, "--variants", "my_module:MyAttention", "--set", "my_attention.scale=5", "--no-control"]
    done = compare(*words, "--out", "out", cwd=module.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (record,) = records_of(module.parent / "out")
    assert (record["status"], record["variant"]) == ("ok", "my_module:MyAttention"), record["reason"]
    assert record["label"] == "my_module:MyAttention scale=5.0"
    assert record["state_bytes"] is None, "it does not say"
    assert "my_module:MyAttention" in (module.parent / "out" / "report.html").read_text()

    command = record["command"].removeprefix("python -m compare ").split()
    (spec,) = plan_runs(run_parser().parse_args(command), "cpu", record["spec"]["threads"]).specs
    assert spec.run_id == record["run_id"], "the command of the record repeats another run"
    said = Console(file=io.StringIO())
    assert run_all([spec], module.parent / "out" / "records.jsonl", Display(said), {}, RunOptions()) == [record]
    assert "1 of 1 runs are already in" in said.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("module")
def test_a_class_of_ones_own_stands_beside_the_zoos() -> None:
    from compare.choice import choose_variants
    from compare.settings import read_settings

    assert choose_variants("full,my_module:MyAttention, full") == {
        "full": "full",
        "my_attention": "my_module:MyAttention",
    }
    assert read_settings(["my_attention.scale=2", "my_module:MyAttention.scale=3"]) == {
        "my_attention": (("scale", 3.0),)
    }
    assert {"linformer", "my_attention"} <= set(choose_variants("all,my_module:MyAttention"))


@pytest.mark.parametrize(
    ("change", "variant", "message"),
    [
        (
            ("def forward", "def forwards"),
            "my_module:MyAttention",
            "MyAttention breaks the contract: it must define",
        ),
        (("*, key_padding_mask=None", "**kwargs"), "my_module:MyAttention", r"got \(q, k, v, \*\*kwargs\)"),
        (("frozen=True, ", ""), "my_module:MyAttention", "config must be a frozen dataclass, got MyConfig"),
        (("class MyConfig:", "class MyConfig"), "my_module:MyAttention", "cannot import my_module: SyntaxError: "),
        (("@register", "# @register"), "my_module:MyAttention", "my_module:MyAttention is not registered: decorate it"),
        (("", ""), "my_module:MyAtention", "my_module has no class 'MyAtention', did you mean 'MyAttention'"),
        (('"my_attention"', '"full"'), "my_module:MyAttention", "as 'full' .* zoo.attention.full:FullAttention is"),
    ],
)
def test_a_class_that_cannot_be_compared_is_one_line_and_exit_2(
    change: tuple[str, str], variant: str, message: str, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from compare.__main__ import main

    module.write_text(module.read_text().replace(*change))
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--variants", f"full,{variant}"])
    complaint = capsys.readouterr().err
    assert stop.value.code == 2, complaint
    assert re.search(f"^error: --variants: .*{message}", complaint), complaint
    assert complaint.count("\n") == 1
    assert not (module.parent / "results").exists()


def test_a_class_that_fails_at_work_is_a_row(module: Path) -> None:
    module.write_text(
        module.read_text().replace("return F.scaled_dot_product_attention(q, ", "return v[..., :1, :]  # (")
    )
    sys.path.append(str(module.parent))
    record = run_here(replace(SPEC, variant="my_module:MyAttention"))
    assert record["status"] == "error"
    assert re.fullmatch(
        r"ValueError: my_module:MyAttention breaks the contract: forward must return its input's shape .* got shape .*",
        record["reason"],
    )


def test_an_installed_plugin_is_one_of_all_and_runs(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = module.parent / "site"
    info = site / "my_plugin-0.1.dist-info"
    info.mkdir(parents=True)
    module.rename(site / module.name)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[attention_zoo.backends]\nmy_attention = my_module:MyAttention\nbroken = nowhere:Broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    code = "from compare.choice import choose_variants; print(*choose_variants('all')); "
    code += "from compare.__main__ import main; main(['list', 'broken'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert {"my_attention", "full", "linformer"} <= set(done.stdout.split())
    assert "broken" not in done.stdout
    refused = (
        r"attention plug-in 'broken' of my-plugin 0.1 \(nowhere:Broken\) is left out: there is no module 'nowhere'.*\n"
    )
    assert re.fullmatch(f"{refused}error: list: {refused}", done.stderr), done.stderr
    record = run_one(replace(SPEC, variant="my_attention", threads=1), lambda _: None)
    assert record["status"] == "ok", record["reason"]


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
