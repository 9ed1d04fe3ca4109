"""A killed run goes on from its last checkpoint, and ends as one that was never interrupted."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console

from compare.display import Display
from compare.record import Record, read_records
from compare.runs.checkpoint import FORMAT, Checkpoint
from compare.runs.child import Events
from compare.runs.data import make_task
from compare.runs.execute import work
from compare.runs.options import RunOptions
from compare.runs.outcome import new_record
from compare.runs.sequence import run_all
from compare.runs.train import Trainer
from compare.spec import RunSpec
from tests.here import few_samples, run_here, run_whole
from tests.learning import small_spec

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 1}
TINY = replace(small_spec("mqar", 32, steps=12, batch_size=64), **SMALL)
TIMES = {"started", "wall_seconds", "train_seconds", "loader_seconds", "command", "peak_memory_bytes"}
TIMES |= {f"{part}_seconds{spread}" for part in ("forward", "forward_backward", "step") for spread in ("", "_spread")}
TIMES |= {"train_memory_bytes", "train_cpu_seconds", "train_step_seconds"}
TIMES |= {f"{stage}_{of}_share" for stage in ("measure", "train") for of in ("others", "lost")}
TIMES |= {"tokens_per_second"}


class KilledError(Exception):
    """What stands for the end of the process in these tests."""


def untimed(record: Record) -> Record:
    """A record without what no two runs have in common: times, and at which points there was time to validate."""
    kept = {name: value for name, value in record.items() if name not in TIMES}
    timed = {"seconds", "val_loss", "val_score", "val_size"}
    kept["curve"] = [{name: value for name, value in p.items() if name not in timed} for p in kept["curve"]]
    return kept


def train(spec: RunSpec, path: Path, kill_after: int | None = None) -> tuple[Trainer, Record]:
    """Train from the checkpoint where there is one; a checkpoint follows every step until it is killed."""
    AcceleratorState._reset_state(reset_partial_state=True)

    def restore(state: dict[str, Any]) -> Trainer:
        trainer = Trainer(spec, make_task(spec))
        trainer.restore(state["trainer"])
        return trainer

    def fail(text: str) -> None:
        raise AssertionError(text)

    checkpoint = Checkpoint(path, 1e-9, fail)
    trainer = checkpoint.load(restore) or Trainer(spec, make_task(spec))

    def on_step(seconds: float) -> None:
        checkpoint.save({"trainer": trainer.state()}, seconds)
        if trainer.progress.step == kill_after:
            raise KilledError

    return trainer, trainer.train(lambda done, loss: None, on_step=on_step)


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.2, "accumulate": 3},
        {"variant": "routing", "options": (("window", 8),)},
        {"variant": "performer", "options": (("redraw_interval", 3),), "dtype": "bfloat16"},
        {"task": "bytes", "seq_len": 512, "batch_size": 1, "length_schedule": "from-16th"},
        {"task": "adding", "seq_len": 64, "length_schedule": "from-16th"},
    ],
    ids=str,
)
@few_samples()
def test_a_killed_training_ends_as_an_uninterrupted_one_bit_by_bit(change: dict[str, Any], tmp_path: Path) -> None:
    spec = replace(TINY, **change)
    whole, expected = train(spec, tmp_path / "whole.pt")
    for step in (1, 7, 12):
        with pytest.raises(KilledError):
            train(spec, tmp_path / "killed.pt", step)
    resumed, found = train(spec, tmp_path / "killed.pt")
    assert untimed(found) == untimed(expected)
    assert found["train_steps"] == 12
    weights = whole.model.state_dict()
    assert weights.keys() == resumed.model.state_dict().keys()
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert whole.evaluate("validation") == resumed.evaluate("validation")


def test_a_budget_counts_the_seconds_before_the_kill(tmp_path: Path) -> None:
    spec = replace(TINY, steps=None, budget=1.0)
    make_task(spec).prepare()  # or the budget goes into its tables
    with pytest.raises(KilledError):
        train(spec, tmp_path / "killed.pt", 1)  # a busy machine takes few steps in a second
    state = torch.load(tmp_path / "killed.pt", weights_only=True)
    before = state["trainer"]["progress"]["seconds"]
    resumed, found = train(spec, tmp_path / "killed.pt")
    assert 0 < before < 1
    assert 1 <= found["train_seconds"] < 3
    assert [p["seconds"] for p in found["curve"]] == sorted(p["seconds"] for p in found["curve"])
    assert found["curve"][0]["seconds"] <= before + 0.001  # curves have milliseconds


def test_checkpoints_come_at_most_so_often_and_take_a_small_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt", 30.0, print)
    assert checkpoint.due == 30
    checkpoint.save({}, 31.0)
    assert checkpoint.due == 61
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: (time.sleep(0.1), save(state, file)))
    checkpoint = Checkpoint(tmp_path / "b.pt", 1.0, print)
    checkpoint.save({}, 1.0)
    assert checkpoint.due >= 1 + 0.1 / 0.02


@pytest.mark.parametrize("damage", ["cut", "emptied", "noise", "another format", "another model", "a pickle"])
def test_a_damaged_checkpoint_is_told_and_ignored(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / f"{TINY.run_id}.pt"
    spec = replace(TINY, d_model=32) if damage == "another model" else TINY
    with pytest.raises(KilledError):
        train(spec, path, 5)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "noise":
        path.write_bytes(random.Random(0).randbytes(len(whole)))
    elif damage == "another format":
        torch.save({"format": FORMAT + 1}, path)
    elif damage == "a pickle":
        torch.save({"format": FORMAT, "seconds": Path("/")}, path)
    said: list[str] = []
    trainers: list[Trainer] = []

    def restore(state: dict[str, Any]) -> Trainer:
        trainers.append(Trainer(TINY, make_task(TINY)))
        trainers[-1].restore(state["trainer"])
        return trainers[-1]

    assert Checkpoint(path, 30.0, said.append).load(restore) is None
    (warning,) = said
    assert str(path) in warning
    assert warning.endswith("the run starts over")
    assert "\n" not in warning
    assert "weights_only" not in warning
    assert ("damaged, or holds more than" in warning) == (damage in ("noise", "a pickle"))


def test_a_checkpoint_that_cannot_be_written_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    said: list[str] = []
    run_options = RunOptions(out=str(tmp_path), checkpoint_every=1e-9)
    record = run_here(TINY, run_options=run_options, warn=said.append)
    assert record["status"] == "ok", record["reason"]
    (warning,) = said
    assert "cannot be written" in warning
    assert "training continues without a checkpoint" in warning


class Last(Checkpoint):
    """After its first the process ends, as it were."""

    def save(self, state: dict[str, Any], seconds: float) -> None:
        super().save(state, seconds)
        raise KilledError


def write_texts(path: Path, pleasant: str) -> RunSpec:
    """A file of texts with classes, and a run on it."""
    texts = [f"{word} {number} of them,{word == pleasant:d}" for number in range(150) for word in ("fine", "poor")]
    path.write_text("\n".join(["text,label", *texts]) + "\n")
    return replace(small_spec("classify", 64, {"data": str(path)}, steps=6, batch_size=8), **SMALL)


def go_on(spec: RunSpec, kind: type[Checkpoint], path: Path, cpu: str) -> tuple[Record, list[str], list[str]]:
    """Do a run from its checkpoint on: its record, the phases it went through, and warnings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    record: Record = {"machine": {"cpu": cpu, "command": "…"}}
    said: list[str] = []
    sent = io.StringIO()
    work(spec, None, record, Events(sent), kind(path, 1e-9, said.append), None, lambda: 0.0)
    return record, [json.loads(line)["phase"] for line in sent.getvalue().splitlines()], said


def test_a_checkpoint_of_other_data_or_of_another_machine_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))
    spec, path = write_texts(tmp_path / "texts.csv", "fine"), tmp_path / "run.pt"
    with pytest.raises(KilledError):
        go_on(spec, Last, path, "Xeon")
    kept = path.read_bytes()
    _, phases, said = go_on(spec, Checkpoint, path, "Xeon")
    assert said == []
    assert "measuring" not in phases, "it began anew"
    path.write_bytes(kept)
    _, phases, said = go_on(spec, Checkpoint, path, "EPYC")
    assert said == [
        f"{path} cannot be used (ValueError: the machine changed: cpu was Xeon, is now EPYC); the run starts over"
    ]
    assert "measuring" in phases
    path.write_bytes(kept)
    write_texts(tmp_path / "texts.csv", "poor")
    record, phases, said = go_on(spec, Checkpoint, path, "Xeon")
    assert len(said) == 1
    assert re.search(r"the data changed: test_sha256 was \w{8}, is now \w{8}\); the run starts over", said[0])
    assert "measuring" in phases
    assert [point["step"] for point in record["curve"]] == [1, 2, 3, 4, 5, 6]


def test_finished_runs_of_other_data_run_again_and_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here only the classes of training texts change: what is tested stays."""
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))
    spec, records = write_texts(tmp_path / "texts.csv", "fine"), tmp_path / "records.jsonl"
    other = replace(TINY, seed=1)
    began: list[RunSpec] = []

    def run_one(spec: RunSpec, *_: object) -> Record:
        began.append(spec)
        return new_record(spec, "ok", "") | {"data": make_task(spec).facts["data"], "wall_seconds": 1.0}

    monkeypatch.setattr("compare.engines.local.run_one", run_one)
    monkeypatch.setattr("compare.display.outcome", lambda _: "done")

    def compare() -> str:
        said = io.StringIO()
        run_all([spec, other], records, Display(Console(file=said, width=200)), {}, RunOptions())
        return said.getvalue()

    compare()
    assert "2 of 2 runs are already in" in compare()
    assert began == [spec, other]
    tested = {row["ids"].decode() for row in make_task(spec).tables["test"]}
    lines = (tmp_path / "texts.csv").read_text().splitlines()
    others = {"0": "1", "1": "0", "label": "label"}
    parts = [line.split(",") for line in lines]
    turned = [f"{text},{label if text in tested else others[label]}" for text, label in parts]
    (tmp_path / "texts.csv").write_text("\n".join(turned) + "\n")
    said = " ".join(compare().split())
    assert re.search(
        r"warning: classify · N 64: the data changed \(rows_sha256 was \w{8}, is now \w{8}\): "
        r"finished runs on the old data are repeated: 1 1 of 2 runs are already in",
        said,
    ), said
    assert began == [spec, other, spec]
    assert "2 of 2 runs are already in" in compare()


COMPARISON = """
import json, sys
from pathlib import Path
from rich.console import Console
from compare.lock import hold
from compare.display import JsonDisplay
from compare.runs.sequence import run_all
from compare.spec import RunSpec
from compare.runs.options import RunOptions

out, *texts = sys.argv[1:]
with hold(Path(out), "test"):
    specs = [RunSpec.from_json(text) for text in texts]
    run_options = RunOptions(out=out, checkpoint_every=1e-9)
    run_all(specs, Path(out) / "records.jsonl", JsonDisplay(Console(stderr=True)), {}, run_options)
"""


def compare_until(kill_after: float, out: Path, specs: list[RunSpec], rng: random.Random) -> int:
    """A comparison in a process of its own, killed a moment after so many events; its exit code."""
    command = [sys.executable, "-c", COMPARISON, str(out), *(spec.to_json() for spec in specs)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for number, _ in enumerate(process.stdout, 1):
        if number >= kill_after:
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            break
    process.communicate()
    return process.returncode


def finished_lines(out: Path) -> list[str]:
    """Lines of the records that can be read, in order."""
    path = out / "records.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [line.decode() for line in lines if line.startswith(b"{") and line.endswith(b"}")]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to end the worker with its parent")
@pytest.mark.parametrize(("comparisons", "kills"), [(1, 1), (2, 10)])
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path, comparisons: int, kills: int) -> None:
    """Comparisons at once, the parent of each killed some times, and with it its worker."""
    specs = [replace(TINY, variant=variant, steps=80) for variant in ("full", "none")]
    failures: list[str] = []

    def torment(out: Path, rng: random.Random) -> None:
        out.mkdir()
        kept: list[str] = []
        for kill in range(kills):
            compare_until(rng.randint(1, 60), out, specs, rng)
            lines = finished_lines(out)
            if lines[: len(kept)] != kept:
                failures.append(f"kill {kill}: {len(kept)} finished runs before it, after it {len(lines)}")
            kept = lines
        if code := compare_until(math.inf, out, specs, rng):
            failures.append(f"exit {code} of the comparison that was left alone")

    folders = [tmp_path / str(number) for number in range(comparisons)]
    threads = [threading.Thread(target=torment, args=(f, random.Random(n))) for n, f in enumerate(folders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = [untimed(run_whole(spec)) for spec in specs]
    for folder in folders:
        records = [json.loads(line) for line in finished_lines(folder)]
        assert [r["run_id"] for r in records] == [spec.run_id for spec in specs], "a run is missing or was repeated"
        for record, whole in zip(records, expected, strict=True):
            for name, value in whole.items():
                assert untimed(record)[name] == value, f"{record['variant']}: {name}"
        assert [r["run_id"] for r in read_records(folder / "records.jsonl")[0]] == [r["run_id"] for r in records]
        assert not (folder / "checkpoints").exists()
