"""The task of a run, and its batches at other lengths."""

from __future__ import annotations

import math

import numpy as np

import tasks
from compare.spec import RunSpec
from tasks import IGNORE, Batch, Task


def make_task(spec: RunSpec, seq_len: int | None = None) -> Task:
    """Make the task of a run. seq_len: None = the length of its training."""
    kind = tasks.get(spec.task)
    return kind(seq_len or spec.probe or spec.seq_len, kind.config_type(**dict(spec.task_options)))


def at_full_length(batch: Batch, seq_len: int) -> Batch:
    """Pad a batch of shorter samples to the task's length, so that it costs what the longest samples cost."""
    missing, slices = seq_len - batch.inputs.shape[-1], batch.slices
    if batch.inputs.dtype != np.int64 or missing == 0:
        return batch
    grown = [(0, 0)] * (batch.inputs.ndim - 1) + [(0, missing)]
    padding = np.zeros(batch.inputs.shape, np.bool_) if batch.padding is None else batch.padding
    targets = batch.targets
    if targets.shape == batch.inputs.shape:
        targets = np.pad(targets, grown, constant_values=IGNORE)
        slices = None if slices is None else np.pad(slices, grown)
    return Batch(np.pad(batch.inputs, grown), targets, np.pad(padding, grown, constant_values=True), slices)


def resized(batch: Batch, length: int) -> Batch:
    """The first ``length`` positions of a batch; shorter samples are repeated up to that length."""
    axis = batch.inputs.ndim - 1 if batch.inputs.dtype == np.int64 else 1
    places = np.arange(length) % batch.inputs.shape[axis]
    targets, padding = batch.targets, batch.padding
    if targets.shape == batch.inputs.shape:
        targets = targets.take(places, axis)
    if padding is not None:
        padding = padding.take(places, -1)
    return Batch(batch.inputs.take(places, axis), targets, padding)


def length_of(batch: Batch) -> int:
    """N, padding included."""
    return int(batch.inputs.shape[-1 if batch.inputs.dtype == np.int64 else 1])


def count_tokens(batch: Batch) -> int:
    """Positions of a batch, padding included."""
    shape = batch.inputs.shape
    return math.prod(shape if batch.inputs.dtype == np.int64 else shape[:2])
