"""Executes a run in this process: from its spec to its record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from compare.parallel import unable
from compare.record import Record, other_data, other_machine
from compare.runs import measure
from compare.runs.checkpoint import Checkpoint
from compare.runs.child import Events
from compare.runs.compiled import check_compiler
from compare.runs.data import at_full_length, make_task, resized
from compare.runs.decode import measure_decoding, measure_without_state
from compare.runs.keep import keep
from compare.runs.model import Model
from compare.runs.options import RunOptions
from compare.runs.outcome import explain, lost_peer, new_record
from compare.runs.progress import share_done
from compare.runs.quantise import check_quantiser, quantised, weights_bytes
from compare.runs.ranks import ALONE, Ranks
from compare.runs.score import OnDevice
from compare.runs.step_cost import Counted, measure_costs, measure_forward, try_length
from compare.runs.track import Tracking
from compare.runs.train import Trainer
from compare.runs.tune import check_tuner
from compare.spec import RunSpec


def execute(spec: RunSpec, run_options: RunOptions, events: Events, started: float, ranks: Ranks = ALONE) -> Record:
    """Execute the run. A failure sets the record's status and reason; earlier measurements stay in the record.

    Args:
        started: when the process began, by ``time.perf_counter``.
        ranks: the processes of the run, which all execute it. Rank 0 writes; the records of the others tell only
            whether they failed.
    """
    settle_cpu(spec.threads)
    record = new_record(spec, "ok", "") | {"machine": run_options.machine}

    def wall() -> float:
        return float(record.get("wall_seconds", 0.0)) + time.perf_counter() - started

    path = run_options.checkpoint_of(spec)
    checkpoint = None if path is None else Checkpoint(path, run_options.checkpoint_every, events.warn, ranks)
    tracking = None
    try:
        wanted = run_options.track and ranks.rank == 0 and spec.kind in ("train", "search")
        if wanted and run_options.out is not None:
            tracking = Tracking(run_options.track, Path(run_options.out) / "track", spec, events.warn)
        trained = work(spec, run_options.out, record, events, checkpoint, tracking, wall, ranks)
        if trained is not None and run_options.out is not None and run_options.keeps(spec):
            events.phase("saving")
            trained.trained = ranks.plain(trained.trained, lambda: Model(spec, trained.task))
            if ranks.rank == 0:
                save(trained, record, Path(run_options.out), events)
    except Exception as error:
        record["status"], record["reason"] = explain(error)
        if checkpoint is not None and not lost_peer(record):
            # It would repeat the failure, or skip the part that was mended.
            checkpoint.discard()
    if tracking is not None:
        tracking.end(record)
    record["wall_seconds"] = wall()
    return record


def save(trainer: Trainer, record: Record, out: Path, events: Events) -> None:
    """Keep the trained model; a full disk is a warning, because the results are there."""
    try:
        keep(trainer, record, out)
    except OSError as error:
        events.warn(f"the trained model cannot be saved: {error.filename or out}: {error.strerror or error}")
    except SafetensorError as error:  # its own name for a full disk
        events.warn(f"the trained model cannot be saved: {out}: {error}")


def settle_cpu(threads: int) -> None:
    """Set the number of threads, and treat denormal numbers as 0.

    Processors compute with denormals up to a hundred times slower, and sharp attention and idle optimizer states are
    full of them: at 8,192 tokens steps took two to three times as long, and a budget in seconds trained less.
    """
    torch.set_flush_denormal(True)  # first: threads inherit it when they start
    torch.set_num_threads(threads)


def work(
    spec: RunSpec,
    out: str | None,
    record: Record,
    events: Events,
    checkpoint: Checkpoint | None,
    tracking: Tracking | None,
    wall: Callable[[], float],
    ranks: Ranks = ALONE,
) -> Trainer | None:
    """Measure, train and test as the spec says, and add each result to ``record``.

    ``out``: the folder of the results, which may hold models that the run begins with or learns from. ``wall`` returns
    the seconds that the run took so far, including those of an earlier process that was killed.

    Returns:
        The trainer with the tested model; None where the spec trains no model to test.
    """
    if spec.device == "cuda" and spec.memory_limit:
        share = spec.memory_limit / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    if why := unable(spec):
        raise NotImplementedError(why)
    if spec.dtype == "float16" and spec.device == "cpu":
        raise NotImplementedError("float16 training needs a GPU; use bfloat16 or float32 on a CPU")
    events.phase("preparing data")
    task = make_task(spec)
    task.prepare(lambda done: events.phase("preparing data", done))
    if spec.kind == "probe":
        events.phase("probing")
        try_length(Trainer(spec, task, out, ranks))
        return None
    facts = task.facts
    scale = asdict(task.metric)
    record |= {"metric": scale.pop("name"), "metric_scale": scale}
    record |= {"baselines": facts["baselines"], "data": facts["data"]}
    record["data_notes"] = facts["notes"]
    if spec.kind == "decode":
        events.phase("decoding")
        batch = resized(next(task.train_batches(spec.batch_size, spec.seq_len, spec.seed)), spec.seq_len)
        record |= measure_decoding(spec, task, batch.inputs, lambda done: events.still("decoding", done))
        events.phase("recomputing")
        try:
            record |= measure_without_state(spec, task, batch.inputs)
        except Exception as error:
            if explain(error)[0] != "oom":
                raise  # what a token costs with a state is measured, and stays
        return None
    if spec.quantize is not None:
        check_quantiser()
        if spec.compile:
            raise NotImplementedError("--quantize with --compile: the quantised copy runs uncompiled")
    if spec.tune is not None:
        check_tuner(spec.tune)
    if spec.compile:
        check_compiler(spec.device)

    def go_on(state: dict[str, Any]) -> tuple[Trainer, Counted | None]:
        return restore(Trainer(spec, task, out, ranks), record, state)

    trainer, counted = (None if checkpoint is None else checkpoint.load(go_on)) or (None, None)
    if counted is None:
        events.phase("measuring")
        measured = Trainer(spec, task, out, ranks)
        counted = measure_costs(measured, record)
        if spec.kind == "cost":
            return None
        if spec.quantize is not None:
            try_quantised(measured, spec.quantize)
        trainer = trainer or Trainer(spec, task, out, ranks)
    assert trainer is not None
    train(trainer, counted, record, events, checkpoint, tracking, wall)
    if spec.kind != "train":
        del record["curve"]  # a search uses the last validation, and no report draws its runs
        return None
    if spec.quantize is not None:
        events.phase("quantising")
        quantise(trainer, spec.quantize, record)
    test(trainer, record, events)
    return trainer


def first_batch(trainer: Trainer) -> OnDevice:
    """The first micro-batch of the training, at full length."""
    spec = trainer.spec
    first = next(trainer.task.train_batches(spec.batch_size, spec.seq_len, spec.seed))
    return trainer.to_device(at_full_length(first, spec.seq_len))


@torch.no_grad()
def try_quantised(trainer: Trainer, scheme: str) -> None:
    """Raise NotImplementedError before the training where the model cannot have weights of int8."""
    try:
        quantised(trainer.trained, scheme)(*first_batch(trainer))
    except Exception as error:
        if explain(error)[0] == "oom":
            raise
        raise NotImplementedError(f"--quantize {scheme}: {' '.join(str(error).split())}") from error


def quantise(trainer: Trainer, scheme: str, record: Record) -> None:
    """Replace the model by its quantised copy, and measure the copy's forward pass and size."""
    trainer.model = quantised(trainer.trained, scheme)
    record["weights_bytes"] = weights_bytes(trainer.model)
    measure_forward(trainer, first_batch(trainer), record)


def restore(trainer: Trainer, record: Record, state: dict[str, Any]) -> tuple[Trainer, Counted | None]:
    """Return the trainer, which goes on from a checkpoint, and the counted FLOPs; copy its results into ``record``.

    Where another number of processes trained so far, its costs are not those of this run: the FLOPs are None, and the
    record only names it.

    Raises:
        ValueError: the checkpoint comes from other data or another machine.
    """
    so_far = json.loads(state["record"])
    if changed := other_data(so_far["data"], record["data"]):
        raise ValueError(f"the data changed: {changed}")
    if changed := other_machine(so_far.get("machine"), record["machine"]):
        raise ValueError(f"the machine changed: {changed}")
    trainer.restore(state["trainer"])
    if state["parallel"] != trainer.spec.parallel:
        earlier = [*so_far.get("earlier_parallel", []), state["parallel"] or "one process"]
        record |= {"earlier_parallel": earlier, "wall_seconds": so_far["wall_seconds"]}
        return trainer, None
    record.update(so_far)
    return trainer, state["counted"]


def train(
    trainer: Trainer,
    counted: Counted,
    record: Record,
    events: Events,
    checkpoint: Checkpoint | None,
    tracking: Tracking | None,
    wall: Callable[[], float],
) -> None:
    """Train to the end, and save checkpoints when due."""
    at = trainer.progress
    per_token = {restoring: measure.between(own) for restoring, own in counted.items()}

    def on_progress(done: float, loss: float | None) -> None:
        events.phase("training", done, loss, at.step)
        if tracking is not None and at.curve and at.curve[-1]["step"] == at.step:
            tracking.log(at.curve[-1], at.step)

    def on_step(seconds: float) -> None:
        if checkpoint is not None and seconds >= checkpoint.due:
            so_far = json.dumps(record | {"wall_seconds": wall()})
            state = {"trainer": trainer.state(), "record": so_far, "counted": counted}
            checkpoint.save(state | {"parallel": trainer.spec.parallel}, seconds)

    on_progress(share_done(trainer.spec, at.step, at.seconds), None)
    record |= trainer.train(on_progress, lambda length, restoring: per_token[restoring](length), on_step)


def test(trainer: Trainer, record: Record, events: Events) -> None:
    """Test the trained model on the test set, and at the other lengths of the spec."""
    events.phase("testing")
    result = trainer.evaluate("test", lambda: events.still("testing"))
    record |= {"test_loss": result.loss, "test_score": result.score, "test_size": result.size}
    if result.slices:
        record["test_slices"] = result.slices
    if lengths := trainer.spec.test_lens:
        record["test_lens"] = {str(n): test_at(n, trainer, events) for n in lengths}


def test_at(length: int, trainer: Trainer, events: Events) -> Record:
    """Test the trained model at another length; a failure there becomes a status and a reason."""
    events.phase(f"testing at {length:,}")
    task = make_task(trainer.spec, length)
    baselines = task.facts["baselines"]
    try:
        result = trainer.evaluate("test", lambda: events.still(f"testing at {length:,}"), task)
    except Exception as error:
        if trainer.ranks.size > 1:  # the others wait for this process
            raise
        status, reason = explain(error)
        return {"status": status, "reason": reason, "baselines": baselines}
    return {
        **{"status": "ok", "score": result.score, "loss": result.loss, "size": result.size},
        "baselines": baselines,
    }
