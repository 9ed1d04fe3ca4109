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
from benchmarks.peers._report import Results, page, read_rows
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
    words = ["--seq-len", "256", "--rounds", "2", "--full-len", "0", "--out", str(out), "--check"]
    with pytest.raises(SystemExit) as ended:
        main(words, adapters="planted")
    assert ended.value.code == 1, "a layer that differs is a bar missed"
    rows = {row["backend"]: row for row in read_rows(out / "peers.jsonl")}
    assert rows.keys() == changes.keys()
    assert rows["right"]["status"] == "ok"
    assert rows["right"]["rounds"] == 2
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
        assert not {"time_ratio", "ours_ms", "ours_peak_bytes"} & rows[backend].keys(), "it was timed"
    said = " ".join(capsys.readouterr().out.split())
    assert "wrong against torch at 256: differs, output by 0.0099" in said
    assert (out / "peers.png").exists()
    text = (out / "peers.md").read_text()
    assert "- wrong against torch at 256: differs" in text
    assert "- no_cpu · torch" not in text.partition("Missed:")[2].partition("##")[0]


@pytest.mark.long
def test_the_command_measures_and_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    words = ["linformer", "--seq-len", "256,257,258,259", "--rounds", "2", "--out", str(tmp_path)]
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
        assert any("linformer against linformer at 256: time" in line for line in lines)
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
    assert row["time_ratio"][0] <= row["time_ratio"][1] <= row["time_ratio"][2]
    assert "| linformer | linformer |" in (tmp_path / "peers.md").read_text()


def test_unknown_names_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["linfromer"])
    assert ended.value.code == 2
    assert "'linfromer' has no peer and is not a sub-quadratic backend; known: " in capsys.readouterr().err


# Bars and tables


def row(backend: str, length: int, time: float, memory: float, **more: Any) -> dict[str, Any]:
    return {
        "run": "1",
        "kind": "peer",
        "backend": backend,
        "package": "package",
        "version": "1",
        "setting": "defaults",
        "tolerance": 1e-4,
        "why": "",
        "seq_len": length,
        "status": "ok",
        "reason": "",
        "side": "",
        "rounds": 6,
        "time_ratio": [time, time, time],
        "ours_ms": [time] * 3,
        "theirs_ms": [1.0] * 3,
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
    measured = ("time_ratio", "ours_ms", "theirs_ms", "ours_peak_bytes", "theirs_peak_bytes")
    return {key: value for key, value in whole.items() if key not in measured}


def full(backend: str, time: float) -> dict[str, Any]:
    return row(backend, 8192, time, 1) | {"kind": "full", "package": ""}


def test_all_bars_are_met() -> None:
    rows = [row("a", 1024, 1.05, 0.4), row("a", 2048, 0.5, 0.4), row("b", 1024, 0.6, 0.6), full("a", 0.9)]
    rows.append(failed("b", 2048, "oom", "theirs"))
    assert Results(rows).misses() == []
    assert "All bars are met." in page(Results(rows), rows)


@pytest.mark.parametrize(
    ("rows", "misses"),
    [
        ([row("a", 1024, 1.06, 0.5), row("b", 1024, 0.4, 0.5)], ["a against package: time, median 1.06"]),
        ([row("a", 1024, 0.5, 1.06), row("b", 1024, 0.4, 0.5)], ["a against package: peak memory, median 1.06"]),
        ([row("a", 1024, 0.81, 0.5)], ["time, median over the rows: 0.81"]),
        ([row("a", 1024, 0.5, 0.9)], ["peak memory, median over the rows: 0.90"]),
        ([failed("a", 1024, "differs", "")], ["a against package at 1,024: differs, why"]),
        ([failed("a", 1024, "error", "ours")], ["a against package at 1,024: error, why"]),
        ([full("a", 1.0)], ["a against full attention at 8,192: time 1.00"]),
    ],
)
def test_bars_that_are_missed_are_named(rows: list[dict[str, Any]], misses: list[str]) -> None:
    assert [miss for miss in Results(rows).misses() if "over the rows" not in miss or len(rows) == 1] == misses


def test_a_single_length_above_the_bar_is_told_beside_a_good_median() -> None:
    rows = [row("a", 1024, 1.2, 0.5), row("a", 2048, 0.4, 0.5), row("a", 4096, 0.4, 0.5)]
    assert Results(rows).misses() == []
    assert Results(rows).excesses() == ["a against package at 1,024: time 1.20"]
    assert "- a against package at 1,024: time 1.20" in page(Results(rows), rows)


def test_tables_hold_ratios_and_their_medians() -> None:
    rows = [row("a", 1024, 0.2, 0.5), row("a", 2048, 0.4, 0.5), row("b", 1024, 0.6, 0.5)]
    rows.append(failed("b", 2048, "differs", ""))
    text = page(Results(rows), rows)
    for line in (
        "| backend | peer | 1,024 | 2,048 | median |",
        "| a | package | 0.20 | 0.40 | 0.30 |",
        "| b | package | 0.60 | differs | 0.60 |",
        "| **median** |  | **0.40** | **0.40** | **0.45** |",
        "- b · package at 2,048: differs, why",
    ):
        assert line in text.splitlines()


def test_a_later_run_replaces_what_it_measures_and_a_line_cut_off_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "peers.jsonl"
    rows = [row("a", 1024, 0.2, 0.5), row("a", 2048, 0.2, 0.5), failed("a", 1024, "error", "") | {"run": "2"}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"run": "3", "ki')
    assert [(r["run"], r["seq_len"]) for r in read_rows(file)] == [("1", 2048), ("2", 1024)]
