"""The command line: ``python -m compare``. The modules beside it do the work."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # -m looks for modules in the current folder first
    HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.realpath(sys.path[0]) != os.path.realpath(HERE):  # a user's, whose random.py would hide the real one
        sys.path.append(sys.path.pop(0))

import argparse
import io
import shlex
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import floor
from pathlib import Path
from typing import NoReturn

from compare.arguments import LONGEST, parse, run_parser
from compare.errors import UsageError
from compare.launch import Launch, find_launch
from compare.runs.limits import usable_cores
from compare.runs.template import start_early

GPUS = "/dev/nvidiactl", "/dev/kfd"  # devices of the drivers of Nvidia and AMD
WHY_NOT_DECODED = {
    "longest": "decoding measures only the lengths of --seq-len",
    "compile": "decoding steps run uncompiled",
    "checkpointing": "decoding has no backward pass",
    "causal": "decoding always runs the causal encoder",
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 no run succeeded or a regression, 2 usage error, 130 interrupted."""
    if arguments is None:
        settle()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        launch = find_launch()
        if launch is not None and launch.rank > 0:
            from compare.runs.crew import follow

            sys.exit(follow(launch))
        with leading(launch):
            options = parse(words)
            code = COMMANDS[options.command](options, words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a folder cannot be written, or records cannot be read
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def leading(launch: Launch | None) -> AbstractContextManager[None]:
    """The context of a command, which lets the other commands of its launch go in the end."""
    if launch is None:
        return nullcontext()
    from compare.runs import crew

    return crew.leading()


def settle() -> None:
    """Make this process and its children independent of the terminal, notebook or folder that started it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ?
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend may not be installed here
    os.environ["PYTHONSAFEPATH"] = "1"  # children that build data import nothing from the current folder first
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # finished runs are reported, as after Ctrl-C


def command_reproduce(options: argparse.Namespace, words: list[str]) -> int:
    """Run a plan, changed by the options typed after its name; without a name, list the plans."""
    from compare.plans import PLANS, get

    if options.name is None:
        for name, plan in PLANS.items():
            print(f"{name}: {plan.summary}\n    python -m compare {shlex.join(plan.words)}")
        return 0
    try:
        plan = get(options.name)
    except ValueError as error:
        raise UsageError(f"reproduce: {error}") from error
    changed = run_parser().parse_args([*plan.words, *options.changes])
    changed.plan = options.name
    return execute(changed, words)


def command_ablate(options: argparse.Namespace, words: list[str]) -> int:
    from compare.tips import read_tips

    try:
        options.tips = read_tips(options.tips)
    except ValueError as error:
        raise UsageError(f"--tips: {error}") from error
    return execute(options, words)


def command_plan(options: argparse.Namespace, _words: list[str]) -> int:
    from compare.estimate.command import plan

    return plan(options)


def command_cost(options: argparse.Namespace, words: list[str]) -> int:
    if options.decode:
        for flag, reason in WHY_NOT_DECODED.items():
            if getattr(options, flag):
                raise UsageError(f"--{flag} cannot be combined with --decode: {reason}")
        return execute(options, words)
    if options.longest and not options.memory_limit:
        raise UsageError("--longest needs --memory-limit SIZE: the memory that the longest length must fit into")
    return execute(options, words, options.longest or LONGEST if options.memory_limit else None)


def execute(options: argparse.Namespace, words: list[str], longest: int | None = None) -> int:
    """Run the comparison that the options describe.

    Args:
        options: from ``run_parser`` or ``cost_parser``.
        words: the typed arguments.
        longest: search the longest length that fits into the memory limit, up to this one; None = no search.
    """
    from compare.display import choose_display

    display = choose_display(quiet=options.quiet, as_json=options.json)
    display.say(f"attention zoo: comparing {options.variants} on {options.tasks}")
    begin_imports(options)
    from compare.comparison import carry_out, make_comparison  # torch takes seconds to load: the line comes first

    return carry_out(make_comparison(options, words, longest, display), display)


def begin_imports(options: argparse.Namespace) -> None:
    """Let the process that the first run is forked from import while this one does: each takes seconds. Nothing is lost
    where the run turns out to need another one."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, floor(usable_cores())))
    on_gpu = options.device == "cuda" or (options.device == "auto" and any(map(os.path.exists, GPUS)))
    if sys.platform != "linux" or on_gpu or options.engine != "local" or options.memory_limit or find_launch():
        return
    if threads.isdecimal():
        start_early(int(threads))


def command_list(options: argparse.Namespace, _words: list[str]) -> int:
    from compare.choice import find
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


def command_report(options: argparse.Namespace, words: list[str]) -> int:
    from compare.folder import check_foreign, check_records, claim_folder
    from compare.record import read_records
    from compare.report import write_report, write_report_many

    check_records(options.folders)
    empty = [folder for folder in options.folders if not read_records(folder / "records.jsonl")[0]]
    if empty and (options.out is None or len(empty) == len(options.folders)):
        print(f"error: {empty[0] / 'records.jsonl'} has no readable record", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", "compare", *words])
    try:
        if options.out is not None:
            with claim_folder(options.out, command):
                print_report(options.out, write_report_many(options.folders, options.out, options.match).warnings)
            return 0
        for folder in options.folders:
            check_foreign(folder)
            print_report(folder, write_report(folder, options.match).warnings)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"error: the report cannot be written: {what}", file=sys.stderr)
        return 1
    return 0


def print_report(folder: Path, warnings: list[str]) -> None:
    """Print the path of the page to stdout, then the warnings to stderr."""
    print(folder / "report.html", flush=True)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def command_diff(options: argparse.Namespace, _words: list[str]) -> int:
    from compare.diff import diff_folders, show

    result = diff_folders(options.before, options.after)
    if options.markdown:
        print(result.markdown())
    else:
        show(result)
    return 1 if options.fail_on_regression and result.regressed else 0


def command_evaluate(options: argparse.Namespace, _words: list[str]) -> int:
    from compare.evaluate import score_kept

    return score_kept(options)


def command_predict(options: argparse.Namespace, _words: list[str]) -> int:
    from compare.predict import predict

    return predict(options)


def command_merge(options: argparse.Namespace, words: list[str]) -> int:
    from compare.merge import merge

    return merge(options.folders, options.out, shlex.join(["python", "-m", "compare", *words]))


def command_publish(options: argparse.Namespace, _words: list[str]) -> int:
    from compare.publish import publish

    return publish(options)


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "run": execute,
    "plan": command_plan,
    "cost": command_cost,
    "ablate": command_ablate,
    "list": command_list,
    "report": command_report,
    "diff": command_diff,
    "reproduce": command_reproduce,
    "evaluate": command_evaluate,
    "predict": command_predict,
    "merge": command_merge,
    "publish": command_publish,
}


if __name__ == "__main__":
    main()
