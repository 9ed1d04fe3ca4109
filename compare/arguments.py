"""What the command line takes. Nothing here imports torch."""

from __future__ import annotations

import argparse
import re
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from compare.choice import CONTROL, DEFAULT_BUDGET, DEFAULT_TASK, DEFAULT_VARIANTS
from compare.errors import UsageError
from compare.schedule import LENGTH_SCHEDULES, LR_SCHEDULES, SHORTEST_DEFAULT, in_words

MATCHES = ("end", "time", "steps", "flops")
COST_LENGTHS = "512:8192"
LONGEST = 65_536
PROGRAM = "python -m compare"
COMMANDS = ("cost", "list", "report", "diff", "reproduce")
UNKNOWN = "unrecognized arguments: "
EPILOG = """other commands:
  python -m compare cost ...         cost against length, without training (--help tells its options)
  python -m compare list             backends and tasks, with traits and cost
  python -m compare list NAME        all about one backend, its options explained
  python -m compare report DIR ...   draw charts and pages again, from records alone
  python -m compare diff A B         what changed between two folders of results, beyond noise
  python -m compare reproduce NAME   run a named plan, and show what came out beside published figures

examples:
  python -m compare                  which of three keeps its accuracy at 8192 tokens, and what that costs
  python -m compare --variants full,linformer --seq-len 8192
  python -m compare --variants all --tasks mqar --seq-len 256 --seeds 3 --budget 60
  python -m compare --variants full,linformer --set linformer.rank=128 --steps 500
  python -m compare cost --variants all --seq-len 512:16384
  python -m compare cost --decode --variants all --seq-len 512:16384
  python -m compare --variants full,linear,performer --tasks quick
  python -m compare --variants full,linear --task classify --data reviews.csv --label-column stars --seq-len 1024
  python -m compare --variants full --sweep performer.features=16:1024 --sweep linformer.rank=32,64,256 --tasks mqar
  python -m compare --variants full,linear --sweep noisy_recall.pairs=4:256
  python -m compare --variants full,linear --lr-grid 1e-3,3e-3,1e-2 --tasks mqar --seeds 3
  python -m compare --causal --variants full,linear,mamba2 --tasks mqar,bytes
  python -m compare --variants full,my_module:MyAttention --set my_attention.scale=5
"""
COST_EPILOG = """examples:
  python -m compare cost --variants full,linformer,linear --seq-len 512:65536
  python -m compare cost --variants all --seq-len 512:16384 --seeds 3 --out results/cost
  python -m compare cost --variants full,naive --memory-limit 4GB     # and the longest that fits in 4 GiB
  python -m compare cost --decode --variants all --seq-len 512:16384  # time per token and state, token by token
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        hint = self.hint(message.removeprefix(UNKNOWN)) if message.startswith(UNKNOWN) else ""
        raise UsageError(f"{message}{hint} ({self.prog} --help lists the options)")

    def hint(self, words: str) -> str:
        """What was meant by the first word that is much like an option or a command."""
        known = {option.lstrip("-"): option for action in self._actions for option in action.option_strings}
        known |= {command: command for command in COMMANDS if self.prog == PROGRAM}
        names = (word.partition("=")[0].lstrip("-–—") for word in words.split())
        close = next((found[0] for name in names if (found := get_close_matches(name, known, n=1, cutoff=0.7))), None)
        return f"; did you mean {known[close]}?" if close else ""


class Named(argparse.Action):
    """Keeps a value, and that it was typed."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, value: object, _option: object = None) -> None:
        setattr(namespace, self.dest, value)
        namespace.named = True


class Version(argparse.Action):
    """Prints what somebody who reports a bug has, and ends; looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import platform

        from compare.runs.machine import version_of

        parts = [f"{name} {version_of(name) or 'not installed'}" for name in ("attention-zoo", "torch")]
        print(f"{', '.join(parts)}, Python {platform.python_version()} on {platform.platform()}")
        parser.exit()


def run_parser() -> Parser:
    """Of ``python -m compare`` itself."""
    run = Parser(
        prog=PROGRAM,
        description="Train and measure attention variants under the same conditions, and chart what came out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument(
        "--version", action=Version, nargs=0, default=argparse.SUPPRESS, help="print versions: the zoo, torch, Python"
    )
    what = add_what(run)
    what.add_argument(
        "--seq-len",
        type=lengths,
        metavar="N,M",
        help="lengths, for every task, 8k being 8192; LOW:HIGH doubles from LOW on (each task's own)",
    )
    what.add_argument("--seeds", type=seeds, default=1, metavar="K", help="seeds 0 to K-1; 3 or more to rank (1)")
    what.add_argument(
        "--test-len",
        type=lengths,
        default=[],
        metavar="N,M",
        help="test the trained models at these lengths too, as 16k,64k; every encoder is then built for the longest",
    )

    data = run.add_argument_group("data of your own (--task classify), or a public data set that lies on this machine")
    data.add_argument("--data", metavar="PATH", help="a file (csv, tsv, json, parquet, arrow), a folder, or a hub id")
    data.add_argument("--text-column", metavar="NAME", help="of the text (the only column of text, where there is one)")
    data.add_argument("--label-column", metavar="NAME", help="of the class (the column label, where there is one)")
    data.add_argument("--test-split", metavar="NAME", help="to test on, as validation where test has no classes (test)")
    data.add_argument(
        "--tokenizer", metavar="NAME", help="a tokenizer.json, a folder, or a hub id (bytes are the tokens)"
    )

    train = run.add_argument_group("training, the same for every variant (defaults depend on the task)")
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        type=positive_float,
        metavar="SECONDS",
        help=f"training time of each run ({DEFAULT_BUDGET:g}, where a suite or a task has none of its own)",
    )
    length.add_argument(
        "--steps", type=natural, metavar="K", help="optimizer steps of each run, not a budget; 0 measures cost alone"
    )
    train.add_argument("--accumulate", type=positive, default=1, metavar="K", help="micro-batches in a step (1)")
    rate = train.add_mutually_exclusive_group()
    rate.add_argument("--lr", type=one_rate, metavar="RATE", help="peak learning rate")
    rate.add_argument(
        "--lr-grid",
        type=rates,
        default=(),
        metavar="R,S",
        help="choose it for each variant by the validation score, at each of these rates, of a run with seed 0",
    )
    train.add_argument(
        "--grid-at",
        action="append",
        default=[],
        metavar="TASK.OPTION=VALUE",
        help="where --sweep varies an option of a task: choose the rate at this value, for all (at each for itself)",
    )
    decay = train.add_mutually_exclusive_group()
    decay.add_argument("--weight-decay", type=amount, default=0.01, metavar="W", help="of matrices (%(default)g)")
    decay.add_argument(
        "--weight-decay-grid",
        type=amounts,
        default=(),
        metavar="V,W",
        help="choose it together with the rate of --lr-grid, as that is chosen",
    )
    add_shape(train)
    curves = "; ".join(f"{name}: {curve.words}" for name, curve in LR_SCHEDULES.items())
    train.add_argument(
        "--lr-schedule",
        choices=LR_SCHEDULES,
        metavar="NAME",
        help=f"of the learning rate; {escaped(curves)} (the task's own)",
    )
    train.add_argument(
        "--warmup",
        type=share,
        default=0.02,
        metavar="SHARE",
        help="share of the training in which the learning rate rises, below 1 (%(default)g)",
    )
    phases = "; ".join(f"{name}: {in_words(name)}" for name in LENGTH_SCHEDULES)
    train.add_argument(
        "--length-schedule",
        choices=LENGTH_SCHEDULES,
        metavar="NAME",
        help=f"how long training samples are; {escaped(phases)} (the task's own or, where that starts below "
        f"{SHORTEST_DEFAULT} tokens or the shortest that the task has, the next)",
    )

    add_switches(run)

    add_match(run)
    add_where(run)
    add_conduct(run)
    run.set_defaults(decode=False, plan=None)
    return run


def cost_parser() -> Parser:
    """Of ``python -m compare cost``: its own options; all else is as ``python -m compare`` has it by default."""
    cost = Parser(
        prog="python -m compare cost",
        description="Measure what attention variants cost at each length, without training: time, memory, FLOPs, how "
        "they grow, and from which length a variant is cheaper than full.",
        epilog=COST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cost.set_defaults(**vars(run_parser().parse_args([])))
    cost.set_defaults(seq_len=lengths(COST_LENGTHS), steps=0, batch_size=1, length_schedule="constant")
    what = add_what(cost)
    what.add_argument(
        "--seq-len",
        type=lengths,
        metavar="N,M",
        help=f"lengths, 8k being 8192; LOW:HIGH doubles from LOW on ({COST_LENGTHS})",
    )
    what.add_argument(
        "--seeds",
        type=seeds,
        metavar="K",
        help="measure each point in K fresh processes; 3 or more tell the spread between them (1)",
    )
    what.add_argument(
        "--decode",
        action="store_true",
        help="measure the causal forms token by token: time per token and bytes of state after N tokens; what has no "
        "step form is left out of all, and a row with status unsupported where it is named",
    )
    add_shape(cost.add_argument_group("encoder (as the task has it) and batch (1), the same for every variant"))
    switches = add_switches(cost)
    switches.add_argument(
        "--longest",
        type=length,
        metavar="N",
        help=f"with --memory-limit the longest length that fits is searched, up to this one ({LONGEST}; not to decode)",
    )
    add_where(cost)
    add_conduct(cost)
    return cost


def escaped(text: str) -> str:
    """As help takes it."""
    return text.replace("%", "%%")


def add_what(parser: Parser) -> argparse._ArgumentGroup:
    """Which variants on which tasks."""
    what = parser.add_argument_group("what to compare")
    what.set_defaults(named=False)
    what.add_argument(
        "--variants",
        action=Named,
        default=DEFAULT_VARIANTS,
        metavar="A,B",
        help="names, module:Class of your own, or all (%(default)s)",
    )
    what.add_argument(
        "--tasks",
        "--task",
        default=DEFAULT_TASK,
        metavar="A,B",
        help="names, suites (quick, lra, diagnostics, mad), or all (%(default)s)",
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="change an option of a variant or a task; again for more",
    )
    what.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME.OPTION=A:B",
        help="a variant once for each value, or of a task all variants at each value: A, 2A, 4A … up to B, or a list "
        "A,B,C; again for more",
    )
    what.add_argument("--no-control", action="store_true", help=f"do not add the {CONTROL!r} control to the variants")
    return what


def add_shape(group: argparse._ArgumentGroup) -> None:
    """Sizes of the encoder and of a batch."""
    group.add_argument("--batch-size", type=positive, metavar="B", help="samples in a micro-batch at full length")
    group.add_argument("--d-model", type=positive, metavar="C", help="width of the encoder")
    group.add_argument("--n-heads", type=positive, metavar="H", help="attention heads")
    group.add_argument("--n-layers", type=positive, metavar="L", help="encoder layers")
    group.add_argument(
        "--activation", choices=("gelu", "relu", "swiglu"), default="gelu", help="of the feed-forward (%(default)s)"
    )
    group.add_argument(
        "--positions",
        choices=("sinusoidal", "learned", "rotary", "none"),
        help="position embedding (rotary; sinusoidal for pictures)",
    )


def add_where(parser: Parser) -> None:
    """The device, and where results go."""
    where = parser.add_argument_group("where")
    where.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (results/DATE-TIME)")
    where.add_argument("--resume", action="store_true", help="continue in --out: runs with a record are not repeated")


def add_conduct(parser: Parser) -> None:
    """How runs go on and what is shown of them."""
    how = parser.add_argument_group("how it goes on (none of it changes a result)")
    how.add_argument("--timeout", type=positive_float, metavar="SECONDS", help="end a run that takes longer (none)")
    how.add_argument(
        "--checkpoint-every",
        type=positive_float,
        default=30.0,
        metavar="SECONDS",
        help="of training, at least: a killed run goes on from there with --resume (%(default)g)",
    )
    how.add_argument("--track", metavar="A,B", help="log to tensorboard, wandb (offline) too (none)")
    shown = how.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print errors and the path of the report alone")
    shown.add_argument("--json", action="store_true", help="print each event as a line of JSON")


def diff_parser() -> Parser:
    """Of ``python -m compare diff``."""
    diff = Parser(
        prog="python -m compare diff",
        description="What changed between two folders of results, beyond noise:\n"
        "scores, times, memory, FLOPs, parameters and status of every variant that both have.",
        epilog="examples:\n  python -m compare diff results/before results/after\n"
        "  python -m compare diff results/main results/branch --markdown --fail-on-regression\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    diff.add_argument("before", type=Path, metavar="A", help="a folder that holds a records.jsonl")
    diff.add_argument("after", type=Path, metavar="B", help="another, to be held against it")
    diff.add_argument("--markdown", action="store_true", help="as Markdown, for a pull request")
    diff.add_argument(
        "--fail-on-regression",
        action="store_true",
        help="exit code 1 where something got worse: a score, a time or memory higher, a run not ok",
    )
    return diff


def add_switches(parser: Parser) -> argparse._ArgumentGroup:
    """What every variant is given alike and what changes its cost."""
    same = parser.add_argument_group("switches, the same for every variant")
    same.add_argument(
        "--causal",
        action="store_true",
        help="the encoder sees the past alone; bytes becomes next_byte. What has no causal form or reading is left out "
        "of all",
    )
    same.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(%(default)s)")
    kept = same.add_mutually_exclusive_group()
    kept.add_argument("--checkpointing", action="store_true", help="run layers again in backward, not keep them")
    kept.add_argument("--reversible", action="store_true", help="two streams: layers are undone in backward, not kept")
    same.add_argument("--compile", action="store_true", help="torch.compile (compiling counts as training time)")
    same.add_argument(
        "--memory-limit", type=memory, metavar="SIZE", help="what a run may hold, as 16GB; beyond it is an oom row"
    )
    return same


def add_match(parser: Parser) -> None:
    """Which score the report is about."""
    parser.add_argument(
        "--match",
        choices=MATCHES,
        default="end",
        help="the score that charts and verdicts are about: on the test set at the end of each run's own training, or "
        "on validation where all runs had had equal time, steps or FLOPs (%(default)s)",
    )


def memory(text: str) -> int:
    """Bytes; KB, MB, GB and TB, with or without an i or the B, are powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?", text.strip().lower())
    size = float(found[1]) * 1024 ** " kmgt".index(found[2] or " ") if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size as 500MB or 16GB, got {text!r}")
    return int(size)


def positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")


def seeds(text: str) -> int:
    if re.fullmatch(r"\d+([,:]\d+)+", text):
        raise argparse.ArgumentTypeError(
            f"expected a positive integer, how many there are: 3 runs 0 to 2, got {text!r}"
        )
    return positive(text)


def natural(text: str) -> int:
    return 0 if text == "0" else positive(text)


def length(text: str) -> int:
    """``8192``, or ``8k``."""
    number = text.removesuffix("k").removesuffix("K")
    return positive(number) * 1024 if number != text and number.isdecimal() else positive(text)


def lengths(text: str) -> list[int]:
    """``512:2k,3000`` -> [512, 1024, 2048, 3000]."""
    found = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        start = length(low.strip())
        last = length(high.strip()) if colon else start
        if start > last:
            raise argparse.ArgumentTypeError(f"expected LOW:HIGH with LOW <= HIGH, got {part.strip()!r}")
        while start <= last:
            found.append(start)
            start *= 2
    return list(dict.fromkeys(found))


def rates(text: str) -> tuple[float, ...]:
    """Rising, each once."""
    found = tuple(sorted({positive_float(part.strip()) for part in text.split(",")}))
    if len(found) < 2:
        raise argparse.ArgumentTypeError(f"expected two rates or more, as 1e-3,3e-3, got {text!r}")
    return found


def amount(text: str) -> float:
    """0 or a positive number."""
    return 0.0 if text.strip() in ("0", "0.0") else positive_float(text)


def amounts(text: str) -> tuple[float, ...]:
    """Rising, each once."""
    return tuple(sorted({amount(part.strip()) for part in text.split(",")}))


def one_rate(text: str) -> float:
    if "," in text:
        raise argparse.ArgumentTypeError(f"expected one rate, got {text!r}; to choose among several: --lr-grid {text}")
    return positive_float(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < 1:
        return value
    raise argparse.ArgumentTypeError(f"expected a share of the training, from 0 to below 1, got {text!r}")


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 < value < float("inf"):
        return value
    raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
