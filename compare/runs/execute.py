"""From the spec of a run to its record, in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compare.record import Record, other_data, other_machine
from compare.runs import measure
from compare.runs.checkpoint import Checkpoint
from compare.runs.child import Events
from compare.runs.data import make_task, resized
from compare.runs.decode import measure_decoding
from compare.runs.options import RunOptions
from compare.runs.outcome import explain, new_record
from compare.runs.step_cost import measure_costs, try_length
from compare.runs.track import Tracking
from compare.runs.train import Trainer, share_done
from compare.spec import RunSpec
from tasks import Task


def execute(spec: RunSpec, run_options: RunOptions, events: Events, started: float) -> Record:
    """Do the run. What fails is told in the record's status and reason; what was measured before stays.

    started: when the process began, by ``time.perf_counter``.
    """
    settle_cpu(spec.threads)
    record = new_record(spec, "ok", "") | {"machine": run_options.machine}

    def wall() -> float:
        return float(record.get("wall_seconds", 0.0)) + time.perf_counter() - started

    path = run_options.checkpoint_of(spec)
    checkpoint = None if path is None else Checkpoint(path, run_options.checkpoint_every, events.warn)
    tracking = None
    try:
        if run_options.track and run_options.out is not None and spec.kind in ("train", "search"):
            tracking = Tracking(run_options.track, Path(run_options.out) / "track", spec, events.warn)
        work(spec, record, events, checkpoint, tracking, wall)
    except Exception as error:
        record["status"], record["reason"] = explain(error)
        if checkpoint is not None:  # it would lead there again, or past what was mended
            checkpoint.discard()
    if tracking is not None:
        tracking.end(record)
    record["wall_seconds"] = wall()
    return record


def settle_cpu(threads: int) -> None:
    """Set the number of threads, and count denormal numbers as 0.

    Processors compute with denormals up to a hundred times slower, and sharp attention and idle states of the optimizer
    are full of them: at 8,192 tokens steps took twice to three times as long, and a budget in seconds trained less.
    """
    torch.set_flush_denormal(True)  # first: threads inherit it when they start
    torch.set_num_threads(threads)


def work(
    spec: RunSpec,
    record: Record,
    events: Events,
    checkpoint: Checkpoint | None,
    tracking: Tracking | None,
    wall: Callable[[], float],
) -> None:
    """Measure, train and test, as far as the spec asks for it, filling ``record`` as results come.

    ``wall`` tells the seconds that the run took, those of a process that was killed before it included.
    """
    if spec.device == "cuda" and spec.memory_limit:
        share = spec.memory_limit / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    if spec.dtype == "float16" and spec.device == "cpu":
        raise NotImplementedError("float16 training needs a GPU; use bfloat16 or float32 on a CPU")
    events.phase("preparing data")
    task = make_task(spec)
    task.prepare(lambda done: events.phase("preparing data", done))
    if spec.kind == "probe":
        events.phase("probing")
        try_length(Trainer(spec, task))
        return
    facts = task.facts
    scale = asdict(task.metric)
    record |= {"metric": scale.pop("name"), "metric_scale": scale}
    record |= {"baselines": facts["baselines"], "data": facts["data"]}
    record["data_notes"] = facts["notes"]
    if spec.kind == "decode":
        events.phase("decoding")
        batch = resized(next(task.train_batches(spec.batch_size, spec.seq_len, spec.seed)), spec.seq_len)
        record |= measure_decoding(spec, task, batch.inputs, lambda done: events.still("decoding", done))
        return
    resumed = None if checkpoint is None else checkpoint.load(lambda state: restore(spec, task, record, state))
    if resumed is None:
        events.phase("measuring")
        counted = measure_costs(Trainer(spec, task), record)
        if spec.kind == "cost":
            return
        resumed = Trainer(spec, task), counted
    trainer, counted = resumed
    train(trainer, counted, record, events, checkpoint, tracking, wall)
    if spec.kind == "train":
        test(trainer, record, events)


def restore(spec: RunSpec, task: Task, record: Record, state: dict[str, Any]) -> tuple[Trainer, dict[int, float]]:
    """A trainer and the FLOPs counted before, of a checkpoint; what had been recorded goes into ``record``.

    Raises:
        ValueError: the checkpoint is of other data or of another machine.
    """
    so_far = json.loads(state["record"])
    if changed := other_data(so_far["data"], record["data"]):
        raise ValueError(f"the data changed: {changed}")
    if changed := other_machine(so_far.get("machine"), record["machine"]):
        raise ValueError(f"the machine changed: {changed}")
    trainer = Trainer(spec, task)
    trainer.restore(state["trainer"])
    record.update(so_far)
    return trainer, state["counted"]


def train(
    trainer: Trainer,
    counted: dict[int, float],
    record: Record,
    events: Events,
    checkpoint: Checkpoint | None,
    tracking: Tracking | None,
    wall: Callable[[], float],
) -> None:
    """Train to the end, with a checkpoint now and then. counted: length -> FLOPs per token."""
    at = trainer.progress

    def on_progress(done: float, loss: float | None) -> None:
        events.phase("training", done, loss, at.step)
        if tracking is not None and at.curve and at.curve[-1]["step"] == at.step:
            tracking.log(at.curve[-1], at.step)

    def on_step(seconds: float) -> None:
        if checkpoint is not None and seconds >= checkpoint.due:
            so_far = json.dumps(record | {"wall_seconds": wall()})
            checkpoint.save({"trainer": trainer.state(), "record": so_far, "counted": counted}, seconds)

    on_progress(share_done(trainer.spec, at.step, at.seconds), None)
    record |= trainer.train(on_progress, measure.between(counted), on_step)


def test(trainer: Trainer, record: Record, events: Events) -> None:
    """What the trained model reaches on the test set, and at other lengths where these are asked for."""
    events.phase("testing")
    found = trainer.evaluate("test", lambda: events.still("testing"))
    record |= {"test_loss": found.loss, "test_score": found.score, "test_size": found.size}
    if found.slices:
        record["test_slices"] = found.slices
    if lengths := trainer.spec.test_lens:
        record["test_lens"] = {str(n): test_at(n, trainer, events) for n in lengths}


def test_at(length: int, trainer: Trainer, events: Events) -> Record:
    """What the trained model reaches at a length other than its own; where it fails there, how."""
    events.phase(f"testing at {length:,}")
    task = make_task(trainer.spec, length)
    baselines = task.facts["baselines"]
    try:
        found = trainer.evaluate("test", lambda: events.still(f"testing at {length:,}"), task)
    except Exception as error:
        status, reason = explain(error)
        return {"status": status, "reason": reason, "baselines": baselines}
    return {
        **{"status": "ok", "score": found.score, "loss": found.loss, "size": found.size},
        "baselines": baselines,
    }
