"""The benchmark against public packages: every adapter's pairs agree, and only what agrees is timed."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.__main__ import find, main
from benchmarks.peers._report import by_dtype, page, read_rows
from benchmarks.peers._worker import relative_difference

ROOT = Path(__file__).parent.parent
ADAPTERS = find("benchmarks.peers")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_pairs_agree_in_output_and_input_gradient(adapter: str) -> None:
    torch.manual_seed(0)
    pairs = importlib.import_module(ADAPTERS[adapter]).pair(d_model=64, n_heads=4, length=512)
    assert pairs
    x, grad = torch.randn(1, 512, 64), torch.randn(1, 512, 64)
    for pair in pairs:
        assert pair.package
        assert pair.setting
        assert pair.tolerance <= 1e-4 or pair.why, "a wide tolerance needs a reason"
        results = []
        for layer in (pair.ours, pair.theirs):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(grad)
            results.append((y.detach(), leaf.grad))
        for ours, theirs in zip(*results, strict=True):
            difference = relative_difference(ours, theirs)
            assert difference is not None
            assert difference <= pair.tolerance, pair.package


def test_a_difference_that_is_no_number_is_none() -> None:
    one = torch.ones(3)
    assert relative_difference(one, one) == 0
    assert relative_difference(2 * one, one) == 1
    assert relative_difference(one * float("nan"), one) is None
    assert relative_difference(one * float("inf"), one) is None


# The command

ADAPTER = """
import copy
from torch import nn
from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.linformer import LinformerConfig

def pair(*, d_model, n_heads, length):
    ours = MultiHeadAttention(LinformerConfig(rank=8), d_model=d_model, n_heads=n_heads, max_len=length)
    theirs = copy.deepcopy(ours)
    {change}
    return [Pair(ours, theirs, "torch", "a copy")]
"""
WRONG = "theirs.mixer.out.weight.data *= 1.01"
NO_CPU = """
    class Theirs(nn.Module):
        def forward(self, x):
            raise RuntimeError("needs a CUDA device")
    theirs = Theirs()"""


@pytest.mark.slow
def test_only_what_agrees_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted, out = tmp_path / "planted", tmp_path / "out"
    planted.mkdir()
    changes = {"right": "", "wrong": WRONG, "no_cpu": NO_CPU}
    for file, change in changes.items():
        (planted / f"{file}.py").write_text(ADAPTER.replace("{change}", change))
    (planted / "__init__.py").touch()
    (planted / "_no_adapter.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["--shapes", "2x256x64x4", "--rounds", "2", "--full-shape", "", "--out", str(out), "--check"]
    with pytest.raises(SystemExit) as ended:
        main(words, adapters="planted")
    assert ended.value.code == 1, "a layer that differs is a bar missed"
    rows = {row["backend"]: row for row in read_rows(out / "peers.jsonl")}
    assert rows.keys() == changes.keys()
    assert rows["right"]["status"] == "ok"
    assert rows["right"]["times"].keys() == {"train", "forward", "inference"}
    for times in rows["right"]["times"].values():
        assert times["rounds"] == 2
        assert times["time_ratio"][0] <= times["time_ratio"][1] <= times["time_ratio"][2]
    assert rows["right"]["output_difference"] == 0
    assert rows["right"]["ours_saved_bytes"] == rows["right"]["theirs_saved_bytes"] > 0
    if sys.platform == "linux":
        assert rows["right"]["ours_peak_bytes"] > 0
        assert rows["right"]["theirs_peak_bytes"] > 0
    assert rows["wrong"]["status"] == "differs"
    assert rows["wrong"]["output_difference"] == pytest.approx(0.0099, rel=0.01)
    assert rows["no_cpu"]["status"] == "unsupported"
    assert rows["no_cpu"]["side"] == "theirs"
    for backend in ("wrong", "no_cpu"):
        assert not {"times", "ours_peak_bytes"} & rows[backend].keys(), "it was timed"
    said = " ".join(capsys.readouterr().out.split())
    assert "wrong against torch at 2 × 256 × 64, 4 heads: differs, output by 0.0099" in said
    assert (out / "peers.png").exists()
    text = (out / "peers.md").read_text()
    missed = text.partition("Missed:")[2].partition("##")[0]
    assert "- wrong against torch at 2 × 256 × 64, 4 heads: differs" in missed
    assert "- no_cpu against" not in missed


@pytest.mark.long
def test_the_command_measures_and_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    shapes = ",".join(f"1x{length}x64x4" for length in range(256, 260))
    words = ["linformer", "--shapes", shapes, "--dtype", "bfloat16", "--rounds", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and the tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout)
        assert next(lines).startswith("peers: ")
        assert any("linformer against linformer at 1 × 256 × 64, 4 heads in bfloat16: train" in line for line in lines)
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, complained
    assert complained == ""
    assert "interrupted: finished measurements are kept" in said
    row, *_ = read_rows(tmp_path / "peers.jsonl")
    assert row["status"] == "ok"
    assert row["package"] == "linformer"
    assert row["environment"]["torch"] == torch.__version__
    assert row["dtype"] == "bfloat16"
    assert "| linformer | linformer |" in (tmp_path / "peers.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["linfromer"], "'linfromer' has no peer and is not a sub-quadratic backend; known: "),
        (["--shapes", "1x2048x512"], "expected batch x length x d_model x heads, like 1x2048x512x8, got '1x2048x512'"),
        (["--shapes", "1x0x512x8"], "got '1x0x512x8'"),
        (["--shapes", "1x64x510x8"], "expected a d_model that the heads divide, got '1x64x510x8'"),
        (["--dtype", "float16"], "expected float32 or bfloat16, got 'float16'"),
    ],
)
def test_bad_words_are_said(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


# Bars and tables

MODES_TOLD = ("forward + backward, time", "forward of a training, time", "inference, time")


def row(backend: str, length: int, time: float, memory: float, **more: Any) -> dict[str, Any]:
    times = {"rounds": 6, "time_ratio": [time] * 3, "ours_ms": [time] * 3, "theirs_ms": [1.0] * 3}
    return {
        "run": "1",
        "kind": "peer",
        "backend": backend,
        "package": "package",
        "version": "1",
        "setting": "defaults",
        "tolerance": 1e-4,
        "why": "",
        "shape": [1, length, 256, 4],
        "dtype": "float32",
        "status": "ok",
        "reason": "",
        "side": "",
        "times": {"train": times, "forward": times, "inference": times},
        "ours_peak_bytes": int(memory * 1e8),
        "theirs_peak_bytes": 10**8,
        "environment": {
            "cpu": "?",
            "cores": 2,
            "threads": 2,
            "python": "",
            "torch": "",
            "git_commit": "",
            "command": "",
        },
    } | more


def failed(backend: str, length: int, status: str, side: str) -> dict[str, Any]:
    whole = row(backend, length, 1, 1, status=status, side=side, reason="why")
    measured = ("times", "ours_peak_bytes", "theirs_peak_bytes")
    return {key: value for key, value in whole.items() if key not in measured}


def full(backend: str, time: float) -> dict[str, Any]:
    return row(backend, 8192, time, 1) | {"kind": "full", "package": ""}


def misses(rows: list[dict[str, Any]]) -> list[str]:
    return [miss for results in by_dtype(rows) for miss in results.misses()]


def test_all_bars_are_met() -> None:
    rows = [row("a", 1024, 1.004, 1.05), row("a", 2048, 0.3, 0.2), row("b", 1024, 0.6, 0.6), full("a", 0.9)]
    rows.append(failed("b", 2048, "oom", "theirs"))
    assert misses(rows) == []
    assert "All bars are met." in page(rows)


AT = "at 1 × 1,024 × 256, 4 heads"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [row("a", 1024, 1.01, 0.5), row("b", 1024, 0.3, 0.5)],
            [f"a against package {AT}: {mode} 1.01" for mode in MODES_TOLD],
        ),
        (
            [row("a", 1024, 0.5, 1.06), row("b", 1024, 0.4, 0.3)],
            [f"a against package {AT}: forward + backward, peak memory 1.06"],
        ),
        ([row("a", 1024, 0.71, 0.5)], [f"{mode}, median over the rows: 0.71" for mode in MODES_TOLD]),
        ([row("a", 1024, 0.5, 0.9)], ["forward + backward, peak memory, median over the rows: 0.90"]),
        ([failed("a", 1024, "differs", "")], [f"a against package {AT}: differs, why"]),
        ([failed("a", 1024, "error", "ours")], [f"a against package {AT}: error, why"]),
        (
            [failed("a", 1024, "error", "ours") | {"dtype": "bfloat16"}],
            [f"a against package {AT} in bfloat16: error, why"],
        ),
        ([full("a", 1.0)], ["a against full attention at 1 × 8,192 × 256, 4 heads: time 1.00"]),
    ],
)
def test_bars_that_are_missed_are_named(rows: list[dict[str, Any]], told: list[str]) -> None:
    assert misses(rows) == told


def test_tables_hold_ratios_and_their_medians() -> None:
    rows = [row("a", 1024, 0.2, 0.5), row("a", 2048, 0.4, 0.5), row("b", 1024, 0.6, 0.5)]
    rows.append(failed("b", 2048, "differs", ""))
    rows.append(row("a", 1024, 0.3, 0.5, dtype="bfloat16", shape=[2, 1024, 512, 8]))
    text = page(rows)
    for line in (
        "| backend | peer | 1×1,024×256/4 | 1×2,048×256/4 | median |",
        "| a | package | 0.20 | 0.40 | 0.30 |",
        "| b | package | 0.60 | differs | 0.60 |",
        "| **median** |  | **0.40** | **0.40** | **0.45** |",
        "- b against package at 1 × 2,048 × 256, 4 heads: differs, why",
        "## Inference, time, ours over theirs, bfloat16",
        "| backend | peer | 2×1,024×512/8 | median |",
        "| a | package | 0.30 | 0.30 |",
    ):
        assert line in text.splitlines()


def test_two_settings_of_one_package_have_a_row_each() -> None:
    rows = [row("a", 1024, time, 0.5, setting=setting) for time, setting in ((0.2, "top"), (0.4, "soft"))]
    rows.append(failed("a", 2048, "unsupported", "") | {"package": "", "setting": ""})
    lines = page(rows).splitlines()
    assert "| a | package: soft | 0.40 | unsupported | 0.40 |" in lines
    assert "| a | package: top | 0.20 | unsupported | 0.20 |" in lines
    assert misses(rows) == [], "the package takes no such shape"


def test_a_later_run_replaces_what_it_measures_and_a_line_cut_off_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "peers.jsonl"
    rows = [row("a", 1024, 0.2, 0.5), row("a", 2048, 0.2, 0.5), failed("a", 1024, "error", "") | {"run": "2"}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"run": "3", "ki')
    assert [(r["run"], r["shape"][1]) for r in read_rows(file)] == [("1", 2048), ("2", 1024)]
