"""The command line: ``python -m compare``. Arguments only; the work is in the modules beside it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from compare.plan import CONTROL, DEFAULT_BUDGET, UsageError, find, make_specs

if TYPE_CHECKING:
    from rich.console import Console

    from compare.spec import DataId, RunSpec

EPILOG = """other commands:
  python -m compare list             backends and tasks, with traits and cost
  python -m compare list NAME        all about one backend, its options explained
  python -m compare report DIR ...   draw charts and pages again, from records alone

examples:
  python -m compare --variants full,linformer --seq-len 8192
  python -m compare --variants all --tasks mqar --seq-len 256 --seeds 3 --budget 60
  python -m compare --variants full,linformer --set linformer.rank=128 --steps 500
  python -m compare --variants all --seq-len 512,1024,2048,4096 --batch-size 1 --steps 0
  python -m compare --variants full,linear,performer --tasks quick
  python -m compare --variants full,linear --task classify --data reviews.csv --label-column stars --seq-len 1024
  python -m compare --variants full,my_module:MyAttention --set my_attention.scale=5
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; exit code 0 done, 1 no run succeeded, 2 usage, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["list"]:
            code = command_list(words[1:])
        elif words[:1] == ["report"]:
            code = command_report(words[1:])
        else:
            code = command_run(words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (python -m compare --help lists the options)")


def parser() -> Parser:
    run = Parser(
        prog="python -m compare",
        description="Train and measure attention variants under the same conditions, and chart what came out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = run.add_argument_group("what to compare")
    what.add_argument(
        "--variants",
        default="full,linformer",
        metavar="A,B",
        help="names, module:Class of your own, or all (%(default)s)",
    )
    what.add_argument(
        "--tasks",
        "--task",
        default="bytes",
        metavar="A,B",
        help="names, suites (quick, lra, diagnostics), or all (%(default)s)",
    )
    what.add_argument(
        "--seq-len", type=positive_list, metavar="N,M", help="lengths, for every task (each task's own; bytes: 8192)"
    )
    what.add_argument("--seeds", type=positive, default=1, metavar="K", help="seeds 0 to K-1; 3 or more to rank (1)")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="change an option of a variant or a task; again for more",
    )
    what.add_argument("--no-control", action="store_true", help=f"do not add the {CONTROL!r} control to the variants")

    data = run.add_argument_group("data of your own (--task classify), or a public data set that lies on this machine")
    data.add_argument("--data", metavar="PATH", help="a file (csv, tsv, jsonl, parquet, arrow), a folder, or a hub id")
    data.add_argument("--text-column", metavar="NAME", help="of the text (the only column of text, where there is one)")
    data.add_argument("--label-column", metavar="NAME", help="of the class (the column label, where there is one)")
    data.add_argument(
        "--tokenizer", metavar="NAME", help="a tokenizer.json, a folder, or a hub id (bytes are the tokens)"
    )

    train = run.add_argument_group("training, the same for every variant (defaults depend on the task)")
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        type=positive_float,
        metavar="SECONDS",
        help=f"training time of each run ({DEFAULT_BUDGET:g}; a suite's own)",
    )
    length.add_argument(
        "--steps", type=natural, metavar="K", help="optimizer steps of each run, not a budget; 0 measures cost alone"
    )
    train.add_argument("--batch-size", type=positive, metavar="B", help="samples in a micro-batch at full length")
    train.add_argument("--accumulate", type=positive, default=1, metavar="K", help="micro-batches in a step (1)")
    train.add_argument("--lr", type=positive_float, metavar="RATE", help="peak learning rate")
    train.add_argument("--d-model", type=positive, metavar="C", help="width of the encoder")
    train.add_argument("--n-heads", type=positive, metavar="H", help="attention heads")
    train.add_argument("--n-layers", type=positive, metavar="L", help="encoder layers")
    train.add_argument(
        "--positions",
        choices=("sinusoidal", "learned", "rotary", "none"),
        help="position embedding (rotary; sinusoidal for pictures)",
    )
    train.add_argument(
        "--length-warmup",
        action=argparse.BooleanOptionalAction,
        help="train half the time at N/16, a quarter at N/4, the rest at N (where the task allows it, from N 2048)",
    )

    where = run.add_argument_group("where")
    where.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    where.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(%(default)s)")
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (results/DATE-TIME)")
    where.add_argument("--resume", action="store_true", help="continue in --out: runs with a record are not repeated")
    return run


def command_run(words: list[str]) -> int:
    options = parser().parse_args(words)
    from rich.console import Console

    console = Console()
    command = shlex.join(["python", "-m", "compare", *words])
    console.print("attention zoo: comparing", options.variants, "on", options.tasks, highlight=False, soft_wrap=True)
    if options.resume and options.out is None:
        raise UsageError("--resume needs --out DIR: the folder to continue in")

    import torch

    from compare.prepare import prepare_data
    from compare.record import describe_machine

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here; use --device cpu")
    specs = make_specs(options, device, torch.get_num_threads())
    out = prepare_folder(options.out, resume=options.resume)
    unprepared = prepare_data(specs, console)
    if len(unprepared) == len({spec.data_id for spec in specs}):
        with suppress(OSError):  # it holds something
            out.rmdir()
        return 2  # each was told
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    machine = describe_machine(device=device, threads=torch.get_num_threads(), gpu=gpu, command=command)
    return run_and_report(specs, unprepared, machine, out, console)


def run_and_report(
    specs: list[RunSpec], unprepared: dict[DataId, str], machine: dict[str, object], out: Path, console: Console
) -> int:
    import json

    from compare.record import read_records, write_atomically
    from compare.report import write_report
    from compare.run import run_all

    write_atomically(out / "environment.json", json.dumps(machine, indent=1) + "\n")
    records = out / "records.jsonl"
    console.print(f"{len(specs)} runs, one after another; results in {out}", highlight=False, soft_wrap=True)
    interrupted = False
    try:
        run_all(specs, records, console, unprepared)
    except KeyboardInterrupt:
        interrupted = True
    finished = read_records(records)[0] if records.exists() else []
    if finished:
        write_report(out)
        console.print(f"charts and tables: {out / 'report.html'}", highlight=False, soft_wrap=True)
    if interrupted:
        again = f"--out {shlex.quote(str(out))} --resume"
        console.print(
            f"interrupted: {len(finished)} finished runs are kept; continue with {again}",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    wanted = {spec.run_id for spec in specs}
    return 0 if any(r["status"] == "ok" for r in finished if r["run_id"] in wanted) else 1


def prepare_folder(out: Path | None, *, resume: bool) -> Path:
    """Create the folder of the results and see that it can be written to."""
    folder = out or Path("results") / datetime.now().strftime("%Y%m%d-%H%M%S")
    if (folder / "records.jsonl").exists() and not resume:
        raise UsageError(f"--out {folder} holds results already: add --resume to continue them, or name another folder")
    if resume and not folder.exists():
        raise UsageError(f"--resume: there is no folder {folder} to continue in")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be written: {error.strerror}") from error
    return folder


def command_list(words: list[str]) -> int:
    listing = Parser(prog="python -m compare list", description="List backends and tasks, or tell all of one backend.")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("name", nargs="?", metavar="NAME", help="a backend, or module:Class of your own")
    form.add_argument("--markdown", action="store_true", help="the zoo's own, as the Markdown tables of the README")
    form.add_argument("--write", type=Path, metavar="FILE", help="put those tables into FILE, between its markers")
    options = listing.parse_args(words)
    from compare.listing import markdown, show, write

    if options.name is not None:
        print(find(options.name, "list"))
    elif options.write is not None:
        try:
            write(options.write)
        except (OSError, ValueError) as error:
            raise UsageError(f"--write {options.write}: {error}") from error
    elif options.markdown:
        print(*markdown().values(), sep="\n\n")
    else:
        show()
    return 0


def command_report(words: list[str]) -> int:
    report = Parser(prog="python -m compare report", description="Draw charts and pages again, from records alone.")
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that hold a records.jsonl")
    report.add_argument("--out", type=Path, metavar="DIR", help="draw all folders together into this one")
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
    if options.out is not None:
        out = prepare_folder(options.out, resume=False)
        write_report_many(options.folders, out)
        print(out / "report.html")
        return 0
    for folder in options.folders:
        write_report(folder)
        print(folder / "report.html")
    return 0


def positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")


def natural(text: str) -> int:
    return 0 if text == "0" else positive(text)


def positive_list(text: str) -> list[int]:
    return list(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 < value < float("inf"):
        return value
    raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")


if __name__ == "__main__":
    main()
