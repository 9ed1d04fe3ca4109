"""The command line: ``python -m compare``. The work is in the modules beside it."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # -m looks for modules in the current folder first
    HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.realpath(sys.path[0]) != os.path.realpath(HERE):  # a user's, whose random.py is none of ours
        sys.path.append(sys.path.pop(0))

import io
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from compare.arguments import LONGEST, Parser, add_match, cost_parser, diff_parser, run_parser
from compare.plan import (
    UsageError,
    asked_variants,
    find,
    left_out,
    make_specs,
    read_grid_at,
    read_sweeps,
    remarks,
    split,
)

if TYPE_CHECKING:
    import argparse

    from compare.progress import Progress
    from compare.record import Record
    from compare.spec import DataId, RunSpec
    from compare.worker import RunOptions


REPRODUCE = """usage: python -m compare reproduce [NAME [OPTION ...]]

Run a named plan and show what came out beside published figures; without a NAME list the plans. What is typed behind
the NAME changes the plan, and is any option of python -m compare: --seeds 1, --variants full,linear, --out DIR
--resume, --device cuda ...
"""
NOT_DECODED = {
    "longest": "measured at the lengths of --seq-len alone",
    "compile": "run as they are",
    "checkpointing": "taken without backward",
    "causal": "those of the causal encoder",
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; exit code 0 done, 1 no run succeeded or a regression, 2 usage, 130 interrupted."""
    if arguments is None:
        settle()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["cost"]:
            code = command_cost(words)
        elif words[:1] == ["list"]:
            code = command_list(words[1:])
        elif words[:1] == ["report"]:
            code = command_report(words[1:])
        elif words[:1] == ["diff"]:
            code = command_diff(words[1:])
        elif words[:1] == ["reproduce"]:
            code = command_reproduce(words)
        else:
            code = command_run(words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a report's folder that cannot be written, records that cannot be read
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def settle() -> None:
    """Make this process, and what it starts, independent of where it was started from."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of few letters shows ? for the others
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's may name one that is not installed here
    os.environ["PYTHONSAFEPATH"] = "1"  # for processes that build data, as for this one
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is finished is reported, as after Ctrl-C


def command_run(words: list[str]) -> int:
    return execute(run_parser().parse_args(words), words)


def command_reproduce(words: list[str]) -> int:
    """Run a plan, with what is typed behind its name changed in it; without a name list the plans."""
    from compare.plans import PLANS, get

    if len(words) == 1:
        for name, plan in PLANS.items():
            print(f"{name}: {plan.summary}\n    python -m compare {shlex.join(plan.words)}")
        return 0
    if words[1] in ("-h", "--help"):
        print(REPRODUCE)
        return 0
    try:
        plan = get(words[1])
    except ValueError as error:
        raise UsageError(f"reproduce: {error}") from error
    options = run_parser().parse_args([*plan.words, *words[2:]])
    options.plan = words[1]
    return execute(options, words)


def command_cost(words: list[str]) -> int:
    options = cost_parser().parse_args(words[1:])
    if options.decode:
        for flag in NOT_DECODED:
            if getattr(options, flag):
                raise UsageError(f"--{flag} says nothing with --decode: steps are {NOT_DECODED[flag]}")
        return execute(options, words)
    if options.longest and not options.memory_limit:
        raise UsageError("--longest N: expected --memory-limit SIZE with it, the memory that N shall fit into")
    return execute(options, words, options.longest or LONGEST if options.memory_limit else None)


def execute(options: argparse.Namespace, words: list[str], cap: int | None = None) -> int:
    """Run what the options ask for.

    Args:
        options: of ``run_parser`` or ``cost_parser``.
        words: what was typed.
        cap: search the longest length that fits into the memory limit, up to this one; None = no search.
    """
    from compare.progress import choose_progress

    progress = choose_progress(quiet=options.quiet, as_json=options.json)
    command = shlex.join(["python", "-m", "compare", *words])
    progress.say(f"attention zoo: comparing {options.variants} on {options.tasks}")
    if options.resume and options.out is None:
        raise UsageError("--resume needs --out DIR: the folder to continue in")

    from compare.track import TRACKERS, check_trackers

    track = check_trackers(split(options.track, "tracker", list(TRACKERS))) if options.track is not None else ()

    import torch

    from compare.record import describe_machine
    from compare.worker import RunOptions

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here; use --device cpu")
    threads = choose_threads(progress)
    specs = make_specs(options, device, threads)
    for line in remarks(options):
        progress.say(line)
    run = {find(spec.variant, "--variants").name for spec in specs}
    if options.test_len and (bound := asked_variants(options).keys() - {*run, *left_out(options)}):
        progress.say(f"left out, with parameters for each position: {', '.join(sorted(bound))}")
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    machine = describe_machine(device=device, threads=threads, gpu=gpu, command=command)
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else machine["memory_bytes"]
    if memory and options.memory_limit and options.memory_limit > memory:
        beyond = f"--memory-limit: expected at most the memory there is, {memory} bytes, got {options.memory_limit}"
        if cap:
            raise UsageError(f"{beyond}: what fits cannot be searched beyond it")
        progress.warn(f"{beyond}: runs have no more than there is")
    with claim_folder(options.out, command, resume=options.resume) as out:
        every, timeout = options.checkpoint_every, options.timeout
        run_options = RunOptions(out=str(out), checkpoint_every=every, timeout=timeout, track=track, machine=machine)
        return prepare_and_run(specs, options, cap, out, progress, run_options)


def choose_threads(progress: Progress) -> int:
    """As many as torch takes, but no more than there are cores: torch counts those of the machine, whatever part of
    them a container gets. What the user asks for stays as it is."""
    import torch

    from compare.limits import usable_cores

    threads, cores = torch.get_num_threads(), usable_cores()
    most = max(1, floor(cores))
    if threads > most and "OMP_NUM_THREADS" in os.environ:
        progress.warn(f"OMP_NUM_THREADS: {threads} threads on {cores} cores make times waver; set it to {most}")
        return threads
    return min(threads, most)


def prepare_and_run(
    specs: list[RunSpec],
    options: argparse.Namespace,
    cap: int | None,
    out: Path,
    progress: Progress,
    run_options: RunOptions,
) -> int:
    from compare.prepare import prepare_data

    unprepared = prepare_data(specs, progress)
    if len(unprepared) == len({spec.data_id for spec in specs}):
        return 2  # each was told
    try:
        return run_and_report(specs, options, cap, unprepared, out, progress, run_options)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{error.filename or out}: {error.strerror or error}"
        print(f"error: {what}; what is finished is kept: make room, then {go_on(out)}", file=sys.stderr)
        return 1


def run_and_report(
    specs: list[RunSpec],
    options: argparse.Namespace,
    cap: int | None,
    unprepared: dict[DataId, str],
    out: Path,
    progress: Progress,
    run_options: RunOptions,
) -> int:
    from compare.cost import search_longest
    from compare.record import is_result, read_records
    from compare.report import write_report
    from compare.run import run_all
    from compare.search import make_grid, search_rates

    stamp_folder(out, run_options.machine, progress)
    records = out / "records.jsonl"
    count = f"{len(specs)} runs, one after another" if len(specs) > 1 else "1 run"
    progress.say(f"{count}; results in {out}")
    interrupted = False
    notes: dict[str, Record] = {}
    try:
        if options.lr_grid:
            grid = make_grid(options.lr_grid, options.weight_decay_grid)
            at = read_grid_at(options.grid_at, read_sweeps(options.sweep)[1])
            specs, notes = search_rates(
                *(specs, grid, lambda wanted: run_all(wanted, records, progress, unprepared, run_options)),
                progress.say,
                at,
            )
        if options.plan:
            notes = {spec.run_id: notes.get(spec.run_id, {}) | {"plan": options.plan} for spec in specs}
        run_all(specs, records, progress, unprepared, run_options, notes)
        if cap is not None:
            search_longest(specs, cap, records, progress, run_options)
    except KeyboardInterrupt:
        interrupted = True
    finished = read_records(records)[0] if records.exists() else []
    if any(map(is_result, finished)):
        for told in write_report(out, options.match).sentences:
            progress.say(told)
        progress.report(out / "report.html")
    if interrupted:
        progress.say(f"interrupted: {len(finished)} finished runs are kept; {go_on(out)}")
        return 130
    wanted = {spec.run_id for spec in specs}
    return 0 if any(r["status"] == "ok" for r in finished if r["run_id"] in wanted) else 1


def stamp_folder(out: Path, machine: dict[str, object], progress: Progress) -> None:
    """Write down what runs here from now on; what ran here before stays beside it."""
    import json

    from compare.record import write_atomically
    from compare.report import read_environment
    from compare.report.facts.grouping import machine_line

    path = out / "environment.json"
    known = read_environment(path)[0] if path.exists() else {}
    earlier = known.pop("earlier", [])
    if known:
        if machine_line(known) != machine_line(machine):
            progress.warn(
                f"what ran here before ran elsewhere ({machine_line(known)}): the report keeps it apart from what runs "
                f"now ({machine_line(machine)})"
            )
        machine = machine | {"earlier": [*(earlier if isinstance(earlier, list) else []), known]}
    write_atomically(path, json.dumps(machine, indent=1) + "\n")


def go_on(out: Path) -> str:
    return f"continue with --out {shlex.quote(str(out))} --resume"


@contextmanager
def claim_folder(out: Path | None, command: str, *, resume: bool | None = None) -> Iterator[Path]:
    """Create a folder, and hold it against other processes. Left empty, it is removed again.

    resume: whether runs go on in it; None: a report alone is drawn into it.
    """
    from compare.lock import hold

    folder = out or Path("results") / datetime.now().strftime("%Y%m%d-%H%M%S")
    is_new = not folder.exists()
    if resume and is_new:
        raise UsageError(f"--resume: there is no folder {folder} to continue in")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(folder, command))
        except OSError as error:
            raise UsageError(f"--out {folder} cannot be written: {error.strerror}") from error
        if not resume and any((folder / name).exists() for name in ("records.jsonl", "checkpoints")):
            advice = "leave --out away to draw its report" if resume is None else "add --resume to continue them"
            raise UsageError(f"--out {folder} holds results already: {advice}, or name another folder")
        if not is_new:
            check_foreign(folder)
        yield folder
    if is_new:
        with suppress(OSError):  # it holds something
            folder.rmdir()


def check_foreign(folder: Path) -> None:
    """Raise UsageError where a report would replace what no report wrote."""
    from compare.report import foreign_files

    if found := foreign_files(folder):
        raise UsageError(
            f"{folder / found[0]} was not written by a comparison, and the report would replace it: "
            "move it, or name another folder"
        )


def command_list(words: list[str]) -> int:
    listing = Parser(prog="python -m compare list", description="List backends and tasks, or tell all of one backend.")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("name", nargs="?", metavar="NAME", help="a backend, or module:Class of your own")
    form.add_argument("--markdown", action="store_true", help="the zoo's own, as the Markdown tables of the README")
    form.add_argument(
        "--write", type=Path, nargs="+", metavar="FILE", help="put tables and results into files, between their markers"
    )
    options = listing.parse_args(words)
    from compare.listing import markdown, show, written
    from compare.record import write_atomically

    if options.name is not None:
        print(find(options.name, "list"))
    elif options.write is not None:
        for path in options.write:
            try:
                write_atomically(path, written(path))
            except (OSError, ValueError) as error:
                raise UsageError(f"--write {path}: {error}") from error
    elif options.markdown:
        print(*markdown().values(), sep="\n\n")
    else:
        show()
    return 0


def command_report(words: list[str]) -> int:
    report = Parser(prog="python -m compare report", description="Draw charts and pages again, from records alone.")
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that hold a records.jsonl")
    report.add_argument("--out", type=Path, metavar="DIR", help="draw all folders together into this one")
    add_match(report)
    options = report.parse_args(words)
    for folder in options.folders:
        if not (folder / "records.jsonl").is_file():
            raise UsageError(f"{folder} holds no records.jsonl")
    from compare.record import read_records
    from compare.report import write_report, write_report_many

    empty = [folder for folder in options.folders if not read_records(folder / "records.jsonl")[0]]
    if empty and (options.out is None or len(empty) == len(options.folders)):
        print(f"error: {empty[0] / 'records.jsonl'} holds no record that can be read", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", "compare", "report", *words])
    try:
        if options.out is not None:
            with claim_folder(options.out, command) as out:
                tell_report(out, write_report_many(options.folders, out, options.match).warnings)
            return 0
        for folder in options.folders:
            check_foreign(folder)
            tell_report(folder, write_report(folder, options.match).warnings)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"error: the report cannot be written: {what}", file=sys.stderr)
        return 1
    return 0


def tell_report(folder: Path, warnings: list[str]) -> None:
    """The page on stdout, then what it warns of on stderr."""
    print(folder / "report.html", flush=True)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def command_diff(words: list[str]) -> int:
    options = diff_parser().parse_args(words)
    from compare.diff import diff_folders, show

    found = diff_folders(options.before, options.after)
    if options.markdown:
        print(found.markdown())
    else:
        show(found)
    return 1 if options.fail_on_regression and found.regressed else 0


if __name__ == "__main__":
    main()
