"""``python -m compare plan``: from the arguments of a comparison to what it will take."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import tasks
import zoo
from compare.choice import choose_tasks, remarks
from compare.comparison import choose_device, choose_threads
from compare.display import choose_display
from compare.errors import UsageError
from compare.estimate.forecast import Forecaster, Unknown
from compare.estimate.points import Cost, Done, Machine, find_folders, read_folder
from compare.estimate.show import Line, Prices, add_up, as_json, show_plan
from compare.estimate.splits import split_sizes
from compare.load import disturbance
from compare.plan import Planned, plan_runs
from compare.runs.machine import describe_machine
from compare.runs.options import RunOptions
from compare.runs.rate_search import search_specs
from compare.runs.supervisor import run_one
from compare.spec import RunSpec

CALIBRATED = (512, 2048)  # lengths that --calibrate measures at: two, because one says nothing about growth


def plan(options: argparse.Namespace) -> int:
    """Print what a comparison will take. Returns 1 where no run has an estimate.

    Raises:
        UsageError: the arguments contradict one another, or there are no records.
    """
    display = choose_display(quiet=True, as_json=False)
    threads = choose_threads(display)
    gpu_is_here = torch.cuda.is_available()
    device = "cuda" if options.device == "cuda" else choose_device(options.device)
    gpu = torch.cuda.get_device_name() if device == "cuda" and gpu_is_here else None
    stamp = describe_machine(device=device, threads=threads, gpu=gpu, command="")
    planned, notes = plan_beyond(options, device, threads)
    searches = search_specs(planned.specs, planned.grid, planned.grid_at)
    runs = [run for folder in find_folders(roots(options.records)) for run in read_folder(folder)]
    if options.calibrate:
        if device == "cuda" and not gpu_is_here:
            raise UsageError("--calibrate --device cuda: no CUDA device is available here")
        measured = calibrate(planned.specs, RunOptions(machine=stamp), Machine.of(stamp))
        notes += [
            f"Calibration of {run.spec.label} at {run.spec.seq_len:,} tokens was disturbed: {said}."
            for run in measured
            if (said := disturbance(run.record))
        ]
        runs += measured
    if not runs:
        raise UsageError("no records to estimate from: name some with --records DIR, or measure here with --calibrate")
    forecaster = Forecaster(runs, grows_with_pairs, split_sizes(runs))
    machine = Machine.of(stamp)
    lines = [
        Line(spec, number, forecaster.forecast(spec, machine))
        for spec, number in Counter(alike(spec) for spec in (*searches, *planned.specs)).items()
    ]
    prices = Prices(options.workers, options.watts, options.price_per_hour)
    totals = add_up(lines, prices)
    notes += notes_of(options, lines)
    if options.json:
        print(json.dumps(as_json(lines, totals, notes)), flush=True)
    else:
        show_plan(lines, totals, prices, notes, threads)
    return 0 if totals.runs else 1


def roots(typed: Sequence[Path] | None) -> Iterable[Path]:
    """Folders to search for records: the typed ones, else results/ here and beside the package."""
    if typed is not None:
        return typed
    return [folder for folder in (Path("results"), Path(__file__).parents[2] / "results") if folder.is_dir()]


def alike(spec: RunSpec) -> RunSpec:
    """The same for all runs that cost the same."""
    return replace(spec, seed=0, lr=1.0, weight_decay=0.0)


def plan_beyond(options: argparse.Namespace, device: str, threads: int) -> tuple[Planned, list[str]]:
    """The runs of the arguments, also at lengths that no task has, and lines that explain them."""
    bound = min(tasks.get(name).max_len for name, _, _ in choose_tasks(options))
    beyond = [length for length in options.seq_len or [] if length > bound]
    within = [length for length in options.seq_len or [] if length <= bound]
    if not beyond:
        return plan_runs(options, device, threads), remarks(options)
    asked = argparse.Namespace(**vars(options) | {"seq_len": [*within, bound]})
    planned = plan_runs(asked, device, threads)
    specs = [spec for spec in planned.specs if spec.seq_len in within]
    specs += [replace(spec, seq_len=length) for length in beyond for spec in planned.specs if spec.seq_len == bound]
    note = f"The tasks have samples of up to {bound:,} tokens: longer ones are planned as if they had them."
    return planned._replace(specs=specs), [*remarks(options), note]


def notes_of(options: argparse.Namespace, lines: Sequence[Line]) -> list[str]:
    """What the plan leaves open, in lines."""
    notes = []
    if options.early_stopping is not None:
        notes.append("--early-stopping may end runs sooner than planned.")
    if options.batch_size == 0:
        notes.append("--batch-size auto is planned with the batch of the task in one micro-batch.")
    if any(isinstance(line.forecast, Unknown) for line in lines) and not options.calibrate:
        notes.append("--calibrate measures what the records lack, on this machine.")
    return notes


def grows_with_pairs(label: str, cost: Cost) -> bool:
    """Whether a cost of a variant has a part that grows with the square of the length, by its traits. A class from
    outside that records name is not imported; nobody asks for it."""
    name = label.split()[0]
    if name not in zoo.available() and name.partition(":")[0] not in sys.modules:
        return False
    traits = zoo.describe(name).traits
    return "N²" in (traits.memory if cost == "memory" else traits.time)


def calibrate(specs: Sequence[RunSpec], run_options: RunOptions, machine: Machine) -> list[Done]:
    """Measure the cost of each variant on short samples, each in a fresh process."""
    wanted = dict.fromkeys(
        replace(
            alike(spec),
            budget=None,
            steps=0,
            seq_len=length,
            length_schedule="constant",
            test_lens=(),
            early_stopping=None,
        )
        for spec in specs
        for length in sorted({min(spec.seq_len, length) for length in CALIBRATED})
        if length >= tasks.get(spec.task).min_len
    )
    done = [(spec, run_one(spec, lambda _: None, run_options)) for spec in wanted]
    return [Done(record, spec, machine, "measured now") for spec, record in done if record["status"] == "ok"]
