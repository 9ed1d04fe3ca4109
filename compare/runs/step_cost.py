"""The cost of a training step: kernel, parameters, state, time, memory and FLOPs; and whether it fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from compare.parallel import is_sharded, is_staged
from compare.record import Record
from compare.runs import measure
from compare.runs.clocks import add_since, clocks, shares
from compare.runs.communicated import sent_bytes
from compare.runs.data import at_full_length, count_tokens, resized
from compare.runs.quantise import weights_bytes
from compare.runs.score import OnDevice
from compare.runs.traffic import copy_rate, moved_bytes
from compare.runs.train import Trainer
from tasks import Batch

Counted = dict[bool, dict[int, float]]
"""Whether a step is self-supervised -> length -> FLOPs per token of its forward and backward."""


def measure_costs(trainer: Trainer, record: Record) -> Counted:
    """Measure the cost of a training before it starts.

    For a search run, count only FLOPs: the runs that use its result measure the rest.

    Returns:
        The FLOPs at some lengths that occur in training.
    """
    spec = trainer.spec
    first = at_full_length(next(trainer.task.train_batches(spec.batch_size, spec.seq_len, spec.seed)), spec.seq_len)
    counted: Counted = {}
    if spec.pretrain:  # first: tuning fixes the encoder
        trainer.restoring = True
        counted[True] = count_step(trainer, first)
        trainer.restoring = False
    if spec.tune is not None and not trainer.tuned:
        trainer.begin_tuning()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0  # many steps on one batch could diverge; their cost is the same
    if spec.kind != "search":
        measure_step(trainer, first, record)
    counted[False] = count_step(trainer, first)
    record["flops"] = round(counted[False][spec.seq_len] * count_tokens(first)) * spec.accumulate
    return counted


def measure_step(trainer: Trainer, first: Batch, record: Record) -> None:
    """Measure kernel, parameters, state, time and memory of an optimizer step on micro-batches of full length."""
    spec, device, ranks = trainer.spec, trainer.device, trainer.ranks
    if spec.kind == "cost":
        record["matrix_rate_flops"] = measure.matrix_rate(device, getattr(torch, spec.dtype))
        record["copy_rate_bytes"] = copy_rate(device)
    batch = trainer.to_device(first)
    layer: Any = next(iter(trainer.trained.encoder.layers))
    sublayer = layer.attention
    shape = (count_tokens(ranks.rows(first)) // spec.seq_len, spec.seq_len, spec.d_model)
    example = torch.empty(shape, device=device, dtype=getattr(torch, spec.dtype), requires_grad=True)
    kernel = sublayer.kernel(example, None if batch[2] is None else batch[2].view(shape[:2]))
    trained = trainer.parameters
    if spec.tune is not None:  # runs of one process
        parts = trainer.trained.encoder, trainer.trained.head
        trained = sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
    record |= {
        "params": trainer.parameters,
        "trained_params": trained,
        "kernel": kernel.name,
        "kernel_fallback": kernel.fallback,
    }
    state = sublayer.state_size(spec.seq_len)
    record["state_bytes"] = None if state is None else state * example.element_size()
    del example

    def forward_backward() -> None:
        trainer.learn(batch, trainer.training_tally())
        trainer.model.zero_grad()

    def step() -> None:
        trainer.step(batch, trainer.training_tally())

    def whole_step() -> None:
        for _ in range(spec.accumulate):
            step()

    whole_step()  # creates the state of the optimizer, and compiles
    before = clocks()
    added = measure.peak_memory(whole_step, device)
    record["peak_memory_bytes"] = None if added is None else round(ranks.most(added))
    record["train_memory_bytes"] = None if added is None else round(ranks.most(trainer.held_bytes() + added))
    if not (is_sharded(spec.parallel) or is_staged(spec.parallel)):  # gathered weights, and micro-batches, are freed
        record["saved_bytes"] = measure.saved_bytes(
            lambda: trainer.loss(batch, trainer.training_tally()), trainer.model
        )
    if spec.kind == "cost" and ranks.size == 1 and not spec.compile:  # a compiler leaves operations out
        record["moved_bytes"] = moved_bytes(forward_backward) * spec.accumulate
    if ranks.size > 1:
        record["communicated_bytes"] = round(ranks.most(sent_bytes(whole_step)))
    record["weights_bytes"] = round(ranks.most(weights_bytes(trainer.trained)))
    measure_forward(trainer, batch, record)
    note_time(record, "forward_backward", forward_backward, trainer, times=spec.accumulate)
    note_time(record, "step", whole_step, trainer)
    record["tokens_per_second"] = spec.accumulate * count_tokens(first) / record["step_seconds"]
    spent = add_since({}, before, clocks())
    record |= {f"measure_{name}": share for name, share in shares(spent, spec.threads, alone=ranks.size == 1).items()}


def measure_forward(trainer: Trainer, batch: OnDevice, record: Record) -> None:
    """Measure the time of a forward pass in evaluation mode, without gradients, over all micro-batches of a step."""

    @torch.no_grad()
    def forward() -> None:
        trainer.forward(batch)

    trainer.model.eval()
    note_time(record, "forward", forward, trainer, times=trainer.spec.accumulate)
    trainer.model.train()


def note_time(record: Record, name: str, fn: Callable[[], object], trainer: Trainer, *, times: int = 1) -> None:
    """Time ``fn``, which an optimizer step does so many ``times``. On a CPU only a forward pass needs a warm-up: the
    steps before have done the rest. Where a training follows, it begins sooner."""
    warm_up = 3 if trainer.device.type == "cuda" else int(name == "forward")
    seconds = 2.0 if trainer.spec.kind == "cost" else 1.0
    timing = measure.time_it(fn, trainer.device, warm_up=warm_up, seconds=seconds, first=trainer.ranks.first)
    record[f"{name}_seconds"] = timing.median * times
    record[f"{name}_seconds_spread"] = [end * times for end in timing.spread]


def count_step(trainer: Trainer, first: Batch) -> dict[int, float]:
    """Length -> FLOPs per token of forward and backward of a micro-batch of full length."""
    spec, task = trainer.spec, trainer.task
    lengths = {spec.seq_len, *(length for _, length, _ in spec.phases())}
    if task.sample_lengths("train") is not None:
        lengths |= {max(1, spec.seq_len // 4), max(1, spec.seq_len // 16)}

    def forward_backward(batch: Batch) -> None:
        trainer.learn(trainer.to_device(batch), trainer.training_tally())
        trainer.model.zero_grad()

    parts = {length: resized(first, length) for length in lengths}
    flops = {length: measure.count_flops(partial(forward_backward, part)) for length, part in parts.items()}
    together = {length: trainer.ranks.total([own])[0] * trainer.ranks.repeats for length, own in flops.items()}
    return {length: together[length] / count_tokens(part) for length, part in parts.items()}


def try_length(trainer: Trainer) -> None:
    """Do a step at the task's length, which creates the state of the optimizer, and one at full length."""
    spec, task = trainer.spec, trainer.task
    first = at_full_length(next(task.train_batches(spec.batch_size, task.seq_len, spec.seed)), task.seq_len)
    for trainer.restoring in (True, False) if spec.pretrain else (False,):
        for length in (task.seq_len, spec.seq_len):
            for _ in range(spec.accumulate):
                trainer.step(trainer.to_device(resized(first, length)), trainer.training_tally())
    measure.synchronise(trainer.device)
