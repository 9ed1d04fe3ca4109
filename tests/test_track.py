"""Curves and scores for TensorBoard and Weights & Biases, where their libraries are installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from compare.errors import UsageError
from compare.runs.options import RunOptions
from compare.runs.supervisor import run_one
from compare.runs.track import check_trackers
from tests.here import run_here
from tests.learning import small_spec

SPEC = replace(small_spec("mqar", 32, steps=3, batch_size=64), d_model=16, n_heads=1, n_layers=1)


def test_trackers_that_cannot_be_had_are_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--track: expected trackers among tensorboard, wandb, got 'mlflow'"):
        check_trackers(["mlflow"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    assert check_trackers(["tensorboard", "tensorboard"]) == ("tensorboard",)
    with pytest.raises(UsageError, match=r"wandb is not installed; pip install 'attention-zoo\[track\]' brings it"):
        check_trackers(["tensorboard", "wandb"])


def test_tensorboard_holds_the_curve_and_the_scores(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'attention-zoo[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    warnings: list[str] = []
    record = run_here(SPEC, run_options=RunOptions(out=str(tmp_path), track=("tensorboard",)), warn=warnings.append)
    assert record["status"] == "ok", record["reason"]
    assert warnings == []
    events = EventAccumulator(str(tmp_path / "track" / SPEC.run_id / "attention-zoo")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert losses == [(p["step"], pytest.approx(p["train_loss"])) for p in record["curve"]]
    (score,) = events.Scalars("final/test_score")
    assert score.value == pytest.approx(record["test_score"])


def test_wandb_writes_a_run_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'attention-zoo[track]'")
    warnings: list[str] = []
    record = run_one(SPEC, lambda _: None, RunOptions(out=str(tmp_path), track=("wandb",)), warnings.append)
    assert record["status"] == "ok", record["reason"]
    assert warnings == []
    (log,) = (tmp_path / "track" / SPEC.run_id).glob("wandb/offline-run-*/run-*.wandb")
    assert log.stat().st_size > 0
