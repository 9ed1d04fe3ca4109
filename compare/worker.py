"""One run in a process of its own: reads a RunSpec and a RunOptions as JSON on stdin, writes JSON lines on stdout.

Events: ``{"phase": …, "done": 0..1 or null, "loss": … or null, "step": … or null}`` while it works,
``{"warning": …}``, at the end ``{"record": {…}}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from compare.limits import memory_left
from compare.record import SCHEMA, Record, now, other_data, other_machine
from compare.spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from compare.checkpoint import Checkpoint
    from compare.track import Tracking
    from compare.train import Trainer
    from tasks import Batch, Task

PR_SET_PDEATHSIG = 1
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out. Nothing here changes what comes out of it.

    Attributes:
        out: the folder of the results, for checkpoints and trackers; None = neither.
        checkpoint_every: seconds of training from one checkpoint to the next, at least.
        timeout: seconds after which the run is ended; None = never.
        track: names of trackers, as ``tensorboard``.
        machine: what it runs on, of ``describe_machine``; empty = nobody asks.
    """

    out: str | None = None
    checkpoint_every: float = 30.0
    timeout: float | None = None
    track: tuple[str, ...] = ()
    machine: Record = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunOptions:
        fields = json.loads(text)
        return cls(**fields | {"track": tuple(fields["track"])})

    def checkpoint_of(self, spec: RunSpec) -> Path | None:
        """The file that the run goes on from."""
        return None if self.out is None else Path(self.out) / "checkpoints" / f"{spec.run_id}.pt"


class Events:
    """The line to the parent process."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.last = 0.0

    def send(self, event: Record) -> None:
        self.last = time.perf_counter()
        self.out.write(json.dumps(event) + "\n")
        self.out.flush()

    def phase(self, name: str, done: float | None = None, loss: float | None = None, step: int | None = None) -> None:
        self.send({"phase": name, "done": done, "loss": loss, "step": step})

    def still(self, name: str, done: float | None = None) -> None:
        """The phase is what it was: told twice a second at most."""
        if time.perf_counter() - self.last >= 0.5:
            self.phase(name, done)

    def warn(self, text: str) -> None:
        self.send({"warning": text})


def main() -> None:
    # Only events go to the parent's pipe: whatever a library prints goes to stderr.
    events = Events(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    if sys.platform == "linux":  # an orphan would train on beside what is measured next
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    first, second = sys.stdin.read().splitlines()
    spec, run_options = RunSpec.from_json(first), RunOptions.from_json(second)
    if spec.device == "cpu":
        limit_memory(spec.memory_limit)
    events.send({"record": run(spec, run_options, events)})


def limit_memory(limit: int | None = None) -> None:
    """Let an allocation that does not fit fail in this process, before the system kills one of its choice.

    limit: bytes of data this process may hold, its libraries included; None = nearly all that is free.
    """
    adjust = Path("/proc/self/oom_score_adj")
    info = Path("/proc/meminfo")
    if not (adjust.exists() and info.exists()):
        return
    import resource  # exists where /proc does

    adjust.write_text("1000")
    available = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    left = memory_left()
    free = int(available.split()[1]) * 1024
    free = int(0.95 * (free if left is None else min(free, left)))
    limit = free if limit is None else min(limit, free)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def new_record(spec: RunSpec, status: str, reason: str) -> Record:
    """The fields that every record has, whatever became of its run."""
    started = now()
    import tasks
    import zoo

    kind = tasks.get(spec.task)
    try:
        traits = zoo.describe(spec.variant).traits
        family, unturned = traits.family, spec.positions == "rotary" and not traits.rotary
    except ValueError:  # a backend that cannot be found, which the run tells itself
        family, unturned = None, None
    return {
        "schema": SCHEMA,
        "run_id": spec.run_id,
        "variant": spec.variant,
        "label": spec.label,
        "family": family,
        "rotary_without_effect": unturned,
        "task": spec.task,
        "task_summary": kind.summary,
        "remark": kind.remarks.get(spec.variant, ""),
        "seq_len": spec.seq_len,
        "seed": spec.seed,
        "causal": spec.causal or spec.decode,
        "status": status,
        "reason": reason,
        "spec": json.loads(spec.to_json()),
        "started": started,
    }


def run(spec: RunSpec, run_options: RunOptions, events: Events) -> Record:
    """Do the run. What fails is told in the record's status and reason; what was measured before stays."""
    started = time.perf_counter()
    events.phase("loading torch")
    settle_cpu(spec.threads)
    record = new_record(spec, "ok", "") | {"machine": run_options.machine}
    from compare.checkpoint import Checkpoint
    from compare.track import Tracking

    def wall() -> float:
        return float(record.get("wall_seconds", 0.0)) + time.perf_counter() - started

    path = run_options.checkpoint_of(spec)
    checkpoint = None if path is None else Checkpoint(path, run_options.checkpoint_every, events.warn)
    tracking = None
    try:
        if run_options.track and run_options.out is not None and spec.steps != 0:
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


def work(
    spec: RunSpec,
    record: Record,
    events: Events,
    checkpoint: Checkpoint | None,
    tracking: Tracking | None,
    wall: Callable[[], float],
) -> None:
    """Measure, train and test (with 0 steps, or to decode: measure), filling ``record`` as results come.

    ``wall`` tells the seconds that the run took, those of a process that was killed before it included.
    """
    import torch

    from compare import measure
    from compare.train import Trainer, share_done

    if spec.device == "cuda" and spec.memory_limit:
        share = spec.memory_limit / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    if spec.dtype == "float16" and spec.device == "cpu":
        raise NotImplementedError("float16 training needs a GPU; use bfloat16 or float32 on a CPU")
    events.phase("preparing data")
    task = make_task(spec)
    task.prepare(lambda done: events.phase("preparing data", done))
    if spec.probe is not None:
        events.phase("probing")
        try_length(Trainer(spec, task))
        return
    facts = task.facts
    scale = asdict(task.metric)
    record |= {"metric": scale.pop("name"), "metric_scale": scale}
    record |= {"baselines": facts["baselines"], "data": facts["data"]}
    record["data_notes"] = facts["notes"]
    if spec.decode:
        from compare.decode import measure_decoding

        events.phase("decoding")
        batch = resized(next(task.train_batches(spec.batch_size, spec.seq_len, spec.seed)), spec.seq_len)
        record |= measure_decoding(spec, task, batch.inputs, lambda done: events.still("decoding", done))
        return

    def restore(state: dict[str, Any]) -> tuple[Trainer, dict[int, float]]:
        so_far = json.loads(state["record"])
        if changed := other_data(so_far["data"], record["data"]):
            raise ValueError(f"it is of other data: {changed}")
        if changed := other_machine(so_far.get("machine"), record["machine"]):
            raise ValueError(f"it is of another machine: {changed}")
        trainer = Trainer(spec, task)
        trainer.restore(state["trainer"])
        record.update(so_far)
        return trainer, state["counted"]

    resumed = None if checkpoint is None else checkpoint.load(restore)
    if resumed is None:
        events.phase("measuring")
        counted = measure_costs(Trainer(spec, task), record)
        if spec.steps == 0:
            return
        resumed = Trainer(spec, task), counted
    trainer, counted = resumed

    def on_progress(done: float, loss: float | None) -> None:
        at = trainer.progress
        events.phase("training", done, loss, at.step)
        if tracking is not None and at.curve and at.curve[-1]["step"] == at.step:
            tracking.log(at.curve[-1], at.step)

    def on_step(seconds: float) -> None:
        if checkpoint is not None and seconds >= checkpoint.due:
            so_far = json.dumps(record | {"wall_seconds": wall()})
            checkpoint.save({"trainer": trainer.state(), "record": so_far, "counted": counted}, seconds)

    on_progress(share_done(spec, trainer.progress.step, trainer.progress.seconds), None)
    record |= trainer.train(on_progress, measure.between(counted), on_step)
    if spec.search:
        return
    events.phase("testing")
    found = trainer.evaluate("test", lambda: events.still("testing"))
    record |= {"test_loss": found.loss, "test_score": found.score, "test_size": found.size}
    if found.slices:
        record["test_slices"] = found.slices
    if spec.test_lens:
        record["test_lens"] = {str(n): test_at(n, trainer, events) for n in spec.test_lens}


def settle_cpu(threads: int) -> None:
    """Set the number of threads, and count denormal numbers as 0.

    Processors compute with denormals up to a hundred times slower, and sharp attention and idle states of the optimizer
    are full of them: at 8,192 tokens steps took twice to three times as long, and a budget in seconds trained less.
    """
    import torch

    torch.set_flush_denormal(True)  # first: threads inherit it when they start
    torch.set_num_threads(threads)


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


def make_task(spec: RunSpec, seq_len: int | None = None) -> Task:
    """seq_len: None = that of training."""
    import tasks

    kind = tasks.get(spec.task)
    return kind(seq_len or spec.probe or spec.seq_len, kind.config_type(**dict(spec.task_options)))


def try_length(trainer: Trainer) -> None:
    """A step at the task's length, after which the optimizer holds its state, and one at full length."""
    from compare.measure import synchronise
    from compare.train import Tally

    spec, task = trainer.spec, trainer.task
    first = at_full_length(next(task.train_batches(spec.batch_size, task.seq_len, spec.seed)), task.seq_len)
    for length in (task.seq_len, spec.seq_len):
        trainer.step(trainer.to_device(resized(first, length)), Tally(task.metric))
    synchronise(trainer.device)


def measure_costs(trainer: Trainer, record: Record) -> dict[int, float]:
    """What a training costs, before it; of a search FLOPs alone: the runs that use what it finds measure the rest.

    Returns:
        Length -> FLOPs per token of forward and backward, at some lengths that come up in training.
    """
    spec = trainer.spec
    first = at_full_length(next(trainer.task.train_batches(spec.batch_size, spec.seq_len, spec.seed)), spec.seq_len)
    if not spec.search:
        measure_step(trainer, first, record)
    return count_step(trainer, first, record)


def measure_step(trainer: Trainer, first: Batch, record: Record) -> None:
    """Kernel, parameters, state, time and memory of a micro-batch at full length."""
    import torch

    from compare import measure
    from compare.load import add_since, clocks, shares
    from compare.train import Tally, count_tokens

    spec, task, device = trainer.spec, trainer.task, trainer.device
    before = clocks()
    if spec.steps == 0:
        record["matrix_rate_flops"] = measure.matrix_rate(device, getattr(torch, spec.dtype))
    batch = trainer.to_device(first)
    sublayer = trainer.accelerator.unwrap_model(trainer.model).encoder.layers[0].attention
    shape = (count_tokens(first) // spec.seq_len, spec.seq_len, spec.d_model)
    example = torch.empty(shape, device=device, dtype=getattr(torch, spec.dtype), requires_grad=True)
    kernel = sublayer.kernel(example, None if batch[2] is None else batch[2].view(shape[:2]))
    record |= {"params": trainer.parameters, "kernel": kernel.name, "kernel_fallback": kernel.fallback}
    state = sublayer.state_size(spec.seq_len)
    record["state_bytes"] = None if state is None else state * example.element_size()
    del example

    def forward() -> None:
        with torch.no_grad():
            trainer.forward(batch)

    def forward_backward() -> None:
        trainer.accelerator.backward(Tally(task.metric).add(*trainer.forward(batch)))
        trainer.model.zero_grad()

    def step() -> None:
        trainer.step(batch, Tally(task.metric))

    def whole_step() -> None:
        for _ in range(spec.accumulate):
            step()

    whole_step()  # after it the optimizer holds its state
    record["peak_memory_bytes"] = added = measure.peak_memory(whole_step, device)
    record["train_memory_bytes"] = None if added is None else trainer.held_bytes() + added
    record["saved_bytes"] = measure.saved_bytes(lambda: Tally(task.metric).add(*trainer.forward(batch)), trainer.model)
    warm_up = 3 if device.type == "cuda" else 1
    for name, fn in (("forward", forward), ("forward_backward", forward_backward), ("step", step)):
        timing = measure.time_it(fn, device, warm_up=warm_up)
        record[f"{name}_seconds"], record[f"{name}_seconds_spread"] = timing.median, list(timing.spread)
    record["tokens_per_second"] = count_tokens(first) / record["step_seconds"]
    spent = add_since({}, before, clocks())
    record |= {f"measure_{name}": share for name, share in shares(spent, spec.threads).items()}


def count_step(trainer: Trainer, first: Batch, record: Record) -> dict[int, float]:
    """FLOPs of forward and backward of a micro-batch at full length; returns what ``measure_costs`` does."""
    from compare.measure import count_flops
    from compare.train import Tally, count_tokens

    spec, task = trainer.spec, trainer.task
    lengths = {spec.seq_len, *(length for _, length, _ in spec.phases())}
    if task.sample_lengths("train") is not None:
        lengths |= {max(1, spec.seq_len // 4), max(1, spec.seq_len // 16)}

    def forward_backward(batch: Batch) -> None:
        trainer.accelerator.backward(Tally(task.metric).add(*trainer.forward(trainer.to_device(batch))))
        trainer.model.zero_grad()

    parts = {length: resized(first, length) for length in lengths}
    flops = {length: count_flops(partial(forward_backward, part)) for length, part in parts.items()}
    record["flops"] = flops[spec.seq_len]
    return {length: flops[length] / count_tokens(part) for length, part in parts.items()}


def at_full_length(batch: Batch, seq_len: int) -> Batch:
    """The batch padded to the task's length, where all its samples are shorter: what the longest cost."""
    import numpy as np

    from tasks import IGNORE, Batch

    missing = seq_len - batch.inputs.shape[-1]
    if batch.inputs.dtype != np.int64 or missing == 0:
        return batch
    grown = [(0, 0)] * (batch.inputs.ndim - 1) + [(0, missing)]
    padding = np.zeros(batch.inputs.shape, np.bool_) if batch.padding is None else batch.padding
    targets = batch.targets
    if targets.shape == batch.inputs.shape:
        targets = np.pad(targets, grown, constant_values=IGNORE)
    return Batch(np.pad(batch.inputs, grown), targets, np.pad(padding, grown, constant_values=True))


def resized(batch: Batch, length: int) -> Batch:
    """The first positions of a batch; its samples are repeated where there are not that many."""
    import numpy as np

    from tasks import Batch

    axis = batch.inputs.ndim - 1 if batch.inputs.dtype == np.int64 else 1
    places = np.arange(length) % batch.inputs.shape[axis]
    targets, padding = batch.targets, batch.padding
    if targets.shape == batch.inputs.shape:
        targets = targets.take(places, axis)
    if padding is not None:
        padding = padding.take(places, -1)
    return Batch(batch.inputs.take(places, axis), targets, padding)


def explain(error: Exception) -> tuple[str, str]:
    """Status and a one-line reason for what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = type(error).__name__
    if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
        return "oom", text
    if kind == "DivergedError":
        return "diverged", text
    if isinstance(error, NotImplementedError):
        return "unsupported", text
    return "error", f"{kind}: {text}"


def record_of_crash(
    spec: RunSpec, returncode: int, stderr: str, wall_seconds: float, *, where: str, no_memory: bool
) -> Record:
    """The record of a run whose process died without writing one.

    where: what it was at. no_memory: the system may have killed it for want of memory.
    """
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no output")
    oom = returncode == -9 and no_memory
    if oom:
        reason = f"killed by the system (signal 9, SIGKILL) in {where}, most likely out of memory"
    elif returncode < 0:
        name = signal.Signals(-returncode).name
        reason = f"killed by signal {-returncode} ({name}) in {where}: {last}"
    else:
        reason = f"exit {returncode}, {where}: {last}"
    return new_record(spec, "oom" if oom else "error", reason) | {"wall_seconds": wall_seconds}


if __name__ == "__main__":
    main()
