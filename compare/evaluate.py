"""`python -m compare evaluate`: scores a kept model on a task, at any length that it can take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import tasks
from compare.choice import find
from compare.comparison import choose_device
from compare.display import score_text
from compare.errors import UsageError
from compare.record import Record
from compare.runs.data import make_task
from compare.runs.execute import settle_cpu
from compare.runs.kept import load, read_run
from compare.runs.score import evaluate
from compare.schedule import at_length
from compare.settings import check_option, read_value, split_setting
from compare.spec import RunSpec
from tasks import Task


def score_kept(options: argparse.Namespace) -> int:
    """Print the test score of the model at each length, beside the best trivial predictor."""
    try:
        if options.attn:
            find(options.attn, "--attn")  # imports it
        spec, _, record = read_run(options.model)
        spec = asked(spec, options)
        device = torch.device(choose_device(options.device))
        settle_cpu(spec.threads)
        for length in options.seq_len or [spec.seq_len]:
            task = open_task(spec, length, record)
            print_result(score(options.model, spec, task, device), task, as_json=options.json)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no memory, or a missing library
        raise UsageError(" ".join(str(error).split())) from error
    return 0


def asked(spec: RunSpec, options: argparse.Namespace) -> RunSpec:
    """The spec of the model with the task and the task's options that were typed."""
    name = options.task or spec.task
    tasks.get(name)  # raises with the nearest name
    chosen = dict(spec.task_options) if name == spec.task else {}
    for word in options.set:
        typed, option, value = split_setting("--set", word, "VALUE")
        if typed != name:
            raise UsageError(f"--set {word}: expected an option of the task {name}, got one of {typed!r}")
        known = tasks.options(name)
        check_option("--set", name, option, known)
        chosen[option] = read_value(f"--set {name}.{option}", value, known[option])
    return replace(spec, task=name, task_options=tuple(sorted(chosen.items())))


def open_task(spec: RunSpec, length: int, record: Record) -> Task:
    """The task at a length, prepared.

    Raises:
        ValueError: the model was built for other inputs or answers.
    """
    task = make_task(spec, length)
    task.prepare()
    for what, wanted in record["sizes"].items():
        if (own := getattr(task, what)) != wanted:
            raise ValueError(
                f"{task.name} has {what} {own}, expected {wanted} as in {record['task']}, the model's task"
            )
    return task


def score(folder: Path, spec: RunSpec, task: Task, device: torch.device) -> Record:
    """The test score of the model in a folder, as a record has it."""
    model = load(folder, task.seq_len).model.to(device)
    size, most = (spec.batch_size, None) if task.seq_len == spec.seq_len else at_length(spec, task.seq_len)
    with torch.autocast(device.type, dtype=getattr(torch, spec.dtype), enabled=spec.dtype != "float32"):
        result = evaluate(model, task, "test", size, device, lambda: None, most)
    metric = {"unit": task.metric.unit, "lower_is_better": task.metric.lower_is_better}
    return {
        **{"task": task.name, "seq_len": task.seq_len, "metric": task.metric.name, "metric_scale": metric},
        **{"test_score": result.score, "test_loss": result.loss, "test_size": result.size},
        **{"test_slices": result.slices, "baselines": task.facts["baselines"]},
    }


def print_result(result: Record, task: Task, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    parts = [f"{result['test_size']:,} predictions", *slice_words(result)]
    if result["baselines"]:
        best = list(result["baselines"].items())[-1]
        trivial = score_text(result | {"trivial": best[1]}, "trivial")
        parts.append(f"best trivial predictor: {best[0]}, {trivial}")
    print(f"{task.name} · N {task.seq_len}: {score_text(result)} ({'; '.join(parts)})", flush=True)


def slice_words(result: Record) -> Sequence[str]:
    return [f"{name}: {score_text(result | {name: value}, name)}" for name, value in result["test_slices"].items()]
