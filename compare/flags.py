"""Flags that several parsers of the command line share, and those of the fields of ``RunSpec``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from compare.parser import Named, Parser
from compare.spec import FLAGS
from compare.values import engine, positive_float

Container: TypeAlias = argparse._ArgumentGroup
CONTROL = "none"
DEFAULT_VARIANTS = "full,linformer,linear"
DEFAULT_TASK = "noisy_recall"
MATCHES = ("end", "time", "steps", "flops")


def add_what(parser: Parser) -> argparse._ArgumentGroup:
    """Add the flags that choose variants and tasks."""
    what = parser.add_argument_group("what to compare")
    what.set_defaults(named=False)
    what.add_argument(
        "--variants",
        action=Named,
        default=DEFAULT_VARIANTS,
        metavar="A,B",
        help="names, your own module:Class, or all (default: %(default)s)",
    )
    what.add_argument(
        "--tasks",
        "--task",
        default=DEFAULT_TASK,
        metavar="A,B",
        help="names, suites (quick, lra, diagnostics, mad), or all (default: %(default)s)",
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="set an option of a variant or a task; repeat the flag to set several",
    )
    what.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME.OPTION=A:B",
        help="run a variant at each value of its option, or all variants at each value of a task's option. A:B is A, "
        "2A, 4A … up to B; A,B,C is a list; repeat the flag to sweep several",
    )
    what.add_argument("--no-control", action="store_true", help=f"do not add the {CONTROL!r} control to the variants")
    return what


def add_where(parser: Parser) -> None:
    """Add the flags for the device and the folder of results."""
    where = parser.add_argument_group("device and results")
    add_device(where)
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: results/DATE-TIME)")
    where.add_argument(
        "--resume",
        action="store_true",
        help="continue in --out: skip finished runs, retry those with status error or timeout",
    )


def add_device(container: argparse._ActionsContainer) -> None:
    """Add the flag for the device."""
    container.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes the GPU if there is one (default: %(default)s)",
    )


def add_run_options(parser: Parser) -> None:
    """Add the flags for the execution of runs and for what is printed."""
    how = parser.add_argument_group("execution (does not change any result)")
    how.add_argument(
        "--engine",
        type=engine,
        default="local",
        metavar="WHERE",
        help="where runs are executed: local, one after another; ray, on this machine by Ray; ray://HOST:PORT, on a "
        "Ray cluster; slurm, as jobs of a Slurm cluster (default: %(default)s)",
    )
    how.add_argument(
        "--timeout", type=positive_float, metavar="SECONDS", help="stop a run that takes longer (default: never)"
    )
    how.add_argument(
        "--checkpoint-every",
        type=positive_float,
        default=30.0,
        metavar="SECONDS",
        help="seconds of training between checkpoints, at least; --resume continues a killed run from its last "
        "checkpoint (default: %(default)g)",
    )
    how.add_argument("--track", metavar="A,B", help="also log to tensorboard, wandb (offline) (default: none)")
    how.add_argument("--save", action="store_true", help="keep each trained model, in the folder models of --out")
    shown = how.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print only errors and the path of the report")
    shown.add_argument("--json", action="store_true", help="print each event as a line of JSON")


def add_switches(parser: Parser) -> argparse._ArgumentGroup:
    """Add the flags that change the cost of every variant alike."""
    same = parser.add_argument_group("switches, the same for every variant")
    add_fields(same, "switches", apart=("checkpointing", "reversible"))
    same.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="bfloat16 and float16 turn on autocast (default: %(default)s)",
    )
    kept = same.add_mutually_exclusive_group()
    add_field(kept, "checkpointing")
    add_field(kept, "reversible")
    return same


def add_match(parser: Parser) -> None:
    """Add the flag for the score that the report compares."""
    parser.add_argument(
        "--match",
        choices=MATCHES,
        default="end",
        help="score that charts and verdicts compare. end: test score at the end of each run's training; time, steps, "
        "flops: validation score after equal time, steps or FLOPs of training (default: %(default)s)",
    )


def add_fields(group: Container, name: str, apart: Sequence[str] = ()) -> None:
    """Add the flags of a group of ``RunSpec`` fields, except those in ``apart``."""
    for field, flag in FLAGS.items():
        if flag.group == name and field not in apart:
            add_field(group, field)


def add_field(group: Container, field: str) -> None:
    """Add the flag of a field of ``RunSpec``."""
    flag = FLAGS[field]
    if isinstance(flag.unasked, bool) and flag.choices:
        group.add_argument(
            flag.option,
            nargs="?",
            const=True,
            default=False,
            choices=flag.choices,
            metavar=flag.metavar,
            help=flag.help,
        )
    elif isinstance(flag.unasked, bool):
        group.add_argument(flag.option, action="store_true", help=flag.help)
    else:
        group.add_argument(
            flag.option,
            type=flag.read or str,
            choices=flag.choices or None,
            default=flag.unasked,
            metavar=flag.metavar,
            help=flag.help,
        )
