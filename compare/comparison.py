"""One comparison: built from the arguments, then prepared, run and reported."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from math import floor
from pathlib import Path

import torch

from compare.choice import asked_variants, find, left_out, remarks, split
from compare.display import Display
from compare.engines import open_engine
from compare.engines.base import Engine
from compare.errors import UsageError
from compare.folder import claim_folder, go_on, stamp_folder
from compare.launch import Launch, choose_parallel, find_launch, program
from compare.parallel import split_sizes
from compare.plan import plan_runs
from compare.record import Record, is_result, read_records
from compare.runs.fit_batch import fit_batches
from compare.runs.kept import spec_of
from compare.runs.limits import usable_cores
from compare.runs.longest import search_longest
from compare.runs.machine import describe_machine
from compare.runs.options import RunOptions
from compare.runs.prepare import prepare_data
from compare.runs.rate_search import At, GridPoint, search_rates
from compare.runs.sequence import run_all
from compare.runs.supervisor import make_ready
from compare.runs.track import TRACKERS, check_trackers
from compare.spec import DataId, RunSpec
from compare.tips import BASELINE, with_tips


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one command compares, and how.

    Attributes:
        command: the typed command.
        specs: the runs; before a search, with the learning rates that the search replaces.
        tips: the tips that each run is repeated with, after the search; empty = none.
        fit_batch: whether each run takes the largest micro-batch that fits into memory.
        grid: rates and weight decays that the search tries for each variant; empty = no search.
        grid_at: swept tasks for which one search serves all values, as ``At``.
        longest: the longest length that the search for the longest that fits into memory tries; None = no search.
        match: the score that the report compares.
        plan: the name of the plan that is repeated; None = no plan.
        out: the folder of the results. resume: whether to continue the runs in it.
        engine: where runs are executed, as typed.
        run_options: how each run is executed.
    """

    command: str
    specs: tuple[RunSpec, ...]
    tips: tuple[str, ...]
    fit_batch: bool
    grid: tuple[GridPoint, ...]
    grid_at: At
    longest: int | None
    match: str
    plan: str | None
    out: Path
    resume: bool
    engine: str
    run_options: RunOptions

    @property
    def records(self) -> Path:
        return self.out / "records.jsonl"


def make_comparison(options: argparse.Namespace, words: list[str], longest: int | None, display: Display) -> Comparison:
    """Build the comparison that the arguments describe, on this machine.

    Args:
        options: from ``run_parser`` or ``cost_parser``.
        words: the typed arguments.
        longest: as in ``Comparison``.
        display: shows what is skipped or replaced, and warnings.

    Raises:
        UsageError: the arguments contradict one another, or this machine.
    """
    if options.resume and options.out is None:
        raise UsageError("--resume needs --out DIR: the folder to continue in")
    track = check_trackers(split(options.track, "tracker", list(TRACKERS))) if options.track is not None else ()
    launch = find_launch()
    options.parallel = choose_parallel(options.parallel, launch)
    if options.parallel and options.engine != "local":
        raise UsageError(f"--engine {options.engine}: expected no launcher, whose processes share each run themselves")
    if longest and "context" in split_sizes(options.parallel):
        raise UsageError(
            f"--memory-limit searches lengths that --parallel {options.parallel} does not divide: drop one"
        )
    is_here = options.engine in ("local", "ray")
    device = choose_device(options.device, launch) if is_here or options.device == "auto" else options.device
    threads = choose_threads(display, launch) if is_here else torch.get_num_threads()
    planned = plan_runs(options, device, threads)
    if options.tips:
        with_tips(planned.specs, options.tips)  # raises where parts of a tip contradict one another
    for line in remarks(options):
        display.say(line)
    run = {find(spec.variant, "--variants").name for spec in planned.specs}
    if options.test_len and (bound := asked_variants(options).keys() - {*run, *left_out(options)}):
        names = ", ".join(sorted(bound))
        display.say(f"skipped (parameters for each position, untrained beyond the training length): {names}")
    command = shlex.join([*program(1 if launch is None else launch.size), *words])
    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    machine = describe_machine(device=device, threads=threads, gpu=gpu, command=command)
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else machine["memory_bytes"]
    if is_here and memory and options.memory_limit and options.memory_limit > memory:
        beyond = f"--memory-limit: expected at most the available memory, {memory} bytes, got {options.memory_limit}"
        if longest:
            raise UsageError(f"{beyond}: lower it to search the longest length that fits")
        display.warn(f"{beyond}: runs are limited by the available memory")
    out = options.out or Path("results") / datetime.now().strftime("%Y%m%d-%H%M%S")
    return Comparison(
        command=command,
        specs=tuple(planned.specs),
        tips=tuple(options.tips),
        fit_batch=options.batch_size == 0,
        grid=tuple(planned.grid),
        grid_at=planned.grid_at,
        longest=longest,
        match=options.match,
        plan=options.plan,
        out=out,
        resume=options.resume,
        engine=options.engine,
        run_options=RunOptions(
            out=str(out),
            checkpoint_every=options.checkpoint_every,
            timeout=options.timeout,
            track=track,
            save=options.save,
            machine=machine,
        ),
    )


def choose_device(typed: str, launch: Launch | None = None) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes the GPU if there is one, for each process of this machine its own."""
    available = torch.cuda.is_available()
    if typed == "cuda" and not available:
        raise UsageError("--device cuda: no CUDA device is available here; use --device cpu")
    if launch is not None and available and typed != "cpu" and torch.cuda.device_count() < launch.local_size:
        raise UsageError(
            f"--device cuda: expected a GPU for each of {launch.local_size} processes of this machine, got "
            f"{torch.cuda.device_count()}: start fewer, or use --device cpu"
        )
    return ("cuda" if available else "cpu") if typed == "auto" else typed


def choose_threads(display: Display, launch: Launch | None = None) -> int:
    """The number of threads of a process: torch's default, but at most its share of the usable cores, because torch
    counts all cores of the machine and not those of a container. OMP_NUM_THREADS is never changed."""
    threads, cores = torch.get_num_threads(), usable_cores() / (1 if launch is None else launch.local_size)
    most = max(1, floor(cores))
    if threads > most and "OMP_NUM_THREADS" in os.environ:
        display.warn(f"OMP_NUM_THREADS: {threads} threads on {cores} cores make times noisy; set it to {most}")
        return threads
    return min(threads, most)


@dataclass(frozen=True)
class Unshown:
    """A listener that passes on warnings alone."""

    warn: Callable[[str], None]

    def started(self, spec: RunSpec) -> None:
        pass

    def update(self, spec: RunSpec, event: Record) -> None:
        pass


def carry_out(comparison: Comparison, display: Display) -> int:
    """Prepare the data, do the runs and draw the report; return the exit code.

    Raises:
        UsageError: the folder or the engine cannot be used.
    """
    out = comparison.out
    with (
        claim_folder(out, comparison.command, resume=comparison.resume),
        open_engine(comparison.engine, out, comparison.run_options.timeout) as engine,
    ):
        if comparison.engine == "local":
            make_ready(comparison.specs[0])
        unprepared = prepare_data(comparison.specs, display)
        if len(unprepared) == len({spec.data_id for spec in comparison.specs}):
            return 2  # each error was shown
        try:
            return run_and_report(comparison, unprepared, engine, display)
        except BrokenPipeError:
            raise
        except OSError as error:
            what = f"{error.filename or out}: {error.strerror or error}"
            print(f"error: {what}; finished runs are kept: free disk space, then {go_on(out)}", file=sys.stderr)
            return 1


def run_and_report(comparison: Comparison, unprepared: dict[DataId, str], engine: Engine, display: Display) -> int:
    """Do the runs and draw the report. unprepared: data that could not be prepared -> the reason."""
    out, specs = comparison.out, comparison.specs
    stamp_folder(out, comparison.run_options.machine, display)
    number = len(with_tips(specs, comparison.tips).specs) if comparison.tips else len(specs)
    how = "one after another" if comparison.engine == "local" else f"engine {comparison.engine}"
    count = f"{number} runs, {how}" if number > 1 else "1 run"
    together = f", each shared by all processes ({specs[0].parallel})" if specs[0].parallel else ""
    display.say(f"{count}{together}; results in {out}")
    interrupted = False
    try:
        specs = do_runs(comparison, unprepared, engine, display)
    except KeyboardInterrupt:
        interrupted = True
    finished = read_records(comparison.records)[0] if comparison.records.exists() else []
    if any(map(is_result, finished)):
        from compare.report import write_report  # matplotlib takes most of a second to load: the runs come first

        for sentence in write_report(out, comparison.match).sentences:
            display.say(sentence)
        display.report(out / "report.html")
    if interrupted:
        display.say(f"interrupted: {len(finished)} finished runs are kept; {go_on(out)}")
        return 130
    wanted = {spec.run_id for spec in specs}
    return 0 if any(r["status"] == "ok" for r in finished if r["run_id"] in wanted) else 1


def do_runs(
    comparison: Comparison, unprepared: dict[DataId, str], engine: Engine, display: Display
) -> tuple[RunSpec, ...]:
    """Search rates, run all specs, search longest lengths; return the specs with their learning rates."""
    specs, notes = comparison.specs, dict[str, Record]()
    run = partial(
        run_all,
        records=comparison.records,
        display=display,
        unprepared=unprepared,
        run_options=comparison.run_options,
        engine=engine,
    )
    if comparison.fit_batch:

        def probe(spec: RunSpec) -> Record:
            left = [spec]
            once = engine.results(lambda: left.pop() if left else None, comparison.run_options, Unshown(display.warn))
            ((_, record),) = once
            return record

        earlier = read_records(comparison.records)[0] if comparison.records.exists() else []
        plain = [r for r in earlier if r["status"] == "ok" and r.get("tip", BASELINE) == BASELINE]
        specs = fit_batches(specs, map(spec_of, plain), probe, display.say)
    if comparison.grid:
        specs, notes = search_rates(specs, comparison.grid, run, display.say, comparison.grid_at)
    if comparison.plan:
        notes = {spec.run_id: notes.get(spec.run_id, {}) | {"plan": comparison.plan} for spec in specs}
    if comparison.tips:
        tipped = with_tips(specs, comparison.tips)
        for line in tipped.idle:
            display.say(f"skipped: {line}")
        notes = {
            spec.run_id: notes.get(base, {}) | {"tip": tip, "baseline_id": base} for spec, tip, base in tipped.rows
        }
        specs = tipped.specs
        keep = {name for spec in specs for name in (spec.teacher, spec.start) if name is not None}
        run = partial(run, run_options=replace(comparison.run_options, keep=tuple(sorted(keep))))
    run(specs, notes=notes)
    if comparison.longest is not None:
        search_longest(specs, comparison.longest, read_records(comparison.records)[0], run)
    return specs
