"""The parsers of the command line. Nothing here imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from compare.flags import (
    add_device,
    add_field,
    add_fields,
    add_match,
    add_run_options,
    add_switches,
    add_what,
    add_where,
)
from compare.folder_arguments import diff_parser, merge_parser, publish_parser, report_parser
from compare.parser import PROGRAM, Make, Parser, Version
from compare.tips import TIPS
from compare.values import amounts, folders, length, lengths, natural, positive, positive_float, rates, seeds

DEFAULT_BUDGET = 100.0  # seconds
COST_LENGTHS = "512:8192"
LONGEST = 65_536
EPILOG = """other commands:
  python -m compare plan ...         estimate time, memory and energy of a comparison, from records of earlier runs
  python -m compare cost ...         measure cost against length, without training (--help lists its options)
  python -m compare list             list backends and tasks, with traits and cost
  python -m compare list NAME        describe one backend and its options
  python -m compare report DIR ...   draw charts and pages again, from records alone
  python -m compare diff A B         show what changed between two folders of results, beyond noise
  python -m compare ablate ...       measure what each tip of the trade buys: warm-up, dropout, bfloat16 ...
  python -m compare reproduce NAME   run a named plan, and show its results beside published figures
  python -m compare evaluate ...     score a model that --save kept, at other lengths
  python -m compare predict ...      classify new texts by such a model
  python -m compare merge A B ...    join folders of results, also of different machines
  python -m compare publish ...      upload a folder of results to the Hugging Face hub

examples:
  python -m compare                  which of three variants keeps its accuracy at 8192 tokens, and at what cost
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
ABLATE_EXAMPLES = """

examples:
  python -m compare ablate --variants full,linformer --tips amp,checkpoint,accumulate,compile
  python -m compare ablate --variants full,linformer,linear --tasks digits,mqar --tips all --seeds 3
  python -m compare ablate --variants full --tips amp,checkpoint,amp+checkpoint
"""
PLAN_EPILOG = """examples:
  python -m compare plan --variants full,linear --seq-len 8192 --seeds 3 --lr-grid 1e-3,3e-3,1e-2
  python -m compare plan --variants full,linear --seq-len 512:8192 --steps 0   # measurements of cost, no training
  python -m compare plan --variants full,linear --seeds 3 --workers 4 --watts 300 --price-per-hour 1.50
"""
COST_EPILOG = """examples:
  python -m compare cost --variants full,linformer,linear --seq-len 512:65536
  python -m compare cost --variants all --seq-len 512:16384 --seeds 3 --out results/cost
  python -m compare cost --variants full,naive --memory-limit 4GB     # and the longest length that fits in 4 GiB
  python -m compare cost --decode --variants all --seq-len 512:16384  # time per token and bytes of state
"""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words after ``python -m compare``. The ``command`` is ``run`` where they name none.

    Raises:
        UsageError: the words cannot be parsed.
    """
    root = Parser(prog=PROGRAM)
    commands = root.add_subparsers(dest="command")
    for name, parser in PARSERS.items():
        parser(partial(commands.add_parser, name))
    return root.parse_args(words if words and words[0] in PARSERS else ["run", *words])


def run_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare`` itself."""
    run = make(
        prog=PROGRAM,
        description="Train and measure attention variants under the same conditions, and chart the results.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument(
        "--version",
        action=Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the versions of the zoo, torch and Python",
    )
    add_training(run)
    run.commands = list(PARSERS)
    return run


def add_training(run: Parser) -> None:
    """Add the flags of comparisons that train."""
    what = add_what(run)
    what.add_argument(
        "--seq-len",
        type=lengths,
        metavar="N,M",
        help="lengths of samples, for every task; 8k is 8192, LOW:HIGH doubles from LOW up to HIGH (default: each "
        "task's own)",
    )
    what.add_argument(
        "--seeds",
        type=seeds,
        default=1,
        metavar="K",
        help="run seeds 0 to K-1; ranking variants needs 3 or more (default: %(default)s)",
    )
    what.add_argument(
        "--test-len",
        type=lengths,
        default=[],
        metavar="N,M",
        help="also test the trained models at these lengths, such as 16k,64k; every encoder is built for the longest",
    )

    data = run.add_argument_group("your own data (--task classify), or a public data set stored on this machine")
    data.add_argument("--data", metavar="PATH", help="a file (csv, tsv, json, parquet, arrow), a folder, or a hub id")
    data.add_argument("--text-column", metavar="NAME", help="column of the text (default: the only column of text)")
    data.add_argument("--label-column", metavar="NAME", help="column of the class (default: label, class or the like)")
    data.add_argument(
        "--test-split",
        metavar="NAME",
        help="split to test on, such as validation if the test split has no labels (default: test)",
    )
    data.add_argument(
        "--tokenizer", metavar="NAME", help="a tokenizer.json, a folder, or a hub id (default: bytes are the tokens)"
    )

    train = run.add_argument_group("training, the same for every variant (defaults depend on the task)")
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        type=positive_float,
        metavar="SECONDS",
        help=f"training time of each run (default: that of the suite or the task, else {DEFAULT_BUDGET:g})",
    )
    length.add_argument(
        "--steps",
        type=natural,
        metavar="K",
        help="optimizer steps of each run, instead of a budget; 0 measures the cost and trains nothing",
    )
    rate = train.add_mutually_exclusive_group()
    add_field(rate, "lr")
    rate.add_argument(
        "--lr-grid",
        type=rates,
        default=(),
        metavar="R,S",
        help="choose the learning rate of each variant among these, by the validation scores of runs with seed 0",
    )
    train.add_argument(
        "--grid-at",
        action="append",
        default=[],
        metavar="TASK.OPTION=VALUE",
        help="where --sweep varies a task option: choose the rate at this value, and use it at all values (default: "
        "choose at each value)",
    )
    decay = train.add_mutually_exclusive_group()
    add_field(decay, "weight_decay")
    decay.add_argument(
        "--weight-decay-grid",
        type=amounts,
        default=(),
        metavar="V,W",
        help="choose the weight decay of each variant among these, in the same search as --lr-grid",
    )
    add_fields(train, "shape")
    add_fields(train, "training", apart=("lr", "weight_decay"))

    add_switches(run)

    add_match(run)
    add_where(run)
    add_run_options(run)
    run.set_defaults(decode=False, plan=None, tips=())


def plan_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare plan``: that of a comparison, and what its estimates rest on."""
    plan = make(
        prog=f"{PROGRAM} plan",
        description="Estimate what a comparison will take before it runs: time, memory and FLOPs of each run; time, "
        "energy and money in total. Takes the options of the comparison, and trains nothing.",
        epilog=PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    basis = plan.add_argument_group("estimate")
    basis.add_argument(
        "--records",
        type=folders,
        metavar="DIR,DIR",
        help="folders with records of earlier runs, searched in depth (default: results/ here, and beside the package)",
    )
    basis.add_argument(
        "--calibrate", action="store_true", help="also measure a step of each variant on this machine, on short samples"
    )
    basis.add_argument(
        "--workers", type=positive, default=1, metavar="K", help="runs at the same time (default: %(default)s)"
    )
    basis.add_argument(
        "--watts", type=positive_float, metavar="W", help="power of one worker while it runs: adds the energy"
    )
    basis.add_argument(
        "--price-per-hour", type=positive_float, metavar="P", help="price of an hour of one worker: adds the money"
    )
    add_training(plan)
    return plan


def ablate_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare ablate``."""
    width = max(map(len, TIPS))
    ablate = make(
        prog=f"{PROGRAM} ablate",
        description="Measure what each tip of the trade buys in memory, speed and accuracy: a baseline, and the same "
        "with each tip, on the same seeds. A tip that a variant cannot have is a run with status unsupported.",
        epilog="\n".join(["tips:", *(f"  {name:{width}}  {tip.summary}" for name, tip in TIPS.items())])
        + ABLATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    tips = ablate.add_argument_group("tips")
    tips.add_argument(
        "--tips",
        default="all",
        metavar="A,B+C",
        help="names of tips, A+B for several at once, or all (default: %(default)s)",
    )
    add_training(ablate)
    ablate.set_defaults(tips="all")
    return ablate


def cost_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare cost``; options it lacks have the defaults of ``python -m compare``."""
    cost = make(
        prog=f"{PROGRAM} cost",
        description="Measure what attention variants cost at each length, without training: time, memory, FLOPs, how "
        "they grow, and from which length a variant is cheaper than full.",
        epilog=COST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = add_what(cost)
    what.add_argument(
        "--seq-len",
        type=lengths,
        metavar="N,M",
        help=f"lengths of samples; 8k is 8192, LOW:HIGH doubles from LOW up to HIGH (default: {COST_LENGTHS})",
    )
    what.add_argument(
        "--seeds",
        type=seeds,
        metavar="K",
        help="measure each point in K fresh processes; 3 or more show the spread between them (default: 1)",
    )
    what.add_argument(
        "--decode",
        action="store_true",
        help="measure causal decoding step by step: time per token, and bytes of state after N tokens. Skips variants "
        "without a step form; one that --variants names gets status unsupported",
    )
    shape = cost.add_argument_group(
        "encoder (default: that of the task) and batch (default: 1), the same for every variant"
    )
    add_fields(shape, "shape")
    switches = add_switches(cost)
    switches.add_argument(
        "--longest",
        type=length,
        metavar="N",
        help=f"with --memory-limit: search the longest length that fits, up to this one (default: {LONGEST}; not with "
        "--decode)",
    )
    add_where(cost)
    add_run_options(cost)
    cost.set_defaults(**vars(run_parser().parse_args([])))
    cost.set_defaults(seq_len=lengths(COST_LENGTHS), steps=0, batch_size=1, length_schedule="constant")
    return cost


def add_model(parser: Parser) -> None:
    """Add the flag of a kept model, and of its device."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a folder that --save wrote")
    parser.add_argument("--attn", metavar="module:Class", help="your own class, where the model has this attention")
    add_device(parser)


def evaluate_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare evaluate``."""
    evaluate = make(
        prog=f"{PROGRAM} evaluate",
        description="Score a kept model at any length, on its task or on another with the same inputs and answers.",
        epilog="examples:\n  python -m compare evaluate --model results/mine/models/full_mqar_256_seed-0_1a2b3c4d5e6f\n"
        "  python -m compare evaluate --model DIR --seq-len 512,1k,2k\n"
        "  python -m compare evaluate --model DIR --set noisy_recall.pairs=64\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(evaluate)
    evaluate.add_argument("--task", metavar="NAME", help="a task (default: that of the model)")
    evaluate.add_argument(
        "--set", action="append", default=[], metavar="TASK.OPTION=VALUE", help="an option of the task"
    )
    evaluate.add_argument(
        "--seq-len", type=lengths, default=[], metavar="N,M", help="lengths of samples (default: that of the training)"
    )
    evaluate.add_argument("--json", action="store_true", help="print each result as a line of JSON")
    return evaluate


def predict_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare predict``."""
    predict = make(
        prog=f"{PROGRAM} predict",
        description="Classify new texts by a kept model. A model of the task bytes fills in each [MASK] of a text. The "
        "rows get two columns: prediction and probability.",
        epilog="examples:\n  python -m compare predict --model DIR --data new.csv --out answers.csv\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(predict)
    predict.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="a csv, tsv, json, parquet or arrow file"
    )
    predict.add_argument("--text-column", metavar="NAME", help="column of the text (default: as in training)")
    predict.add_argument("--out", type=Path, metavar="FILE", help="the csv to write (default: standard output)")
    return predict


def list_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare list``."""
    listing = make(prog=f"{PROGRAM} list", description="List backends and tasks, or describe one backend.")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("name", nargs="?", metavar="NAME", help="a backend, or your own module:Class")
    form.add_argument("--markdown", action="store_true", help="print the Markdown tables of README and docs")
    form.add_argument(
        "--write", type=Path, nargs="+", metavar="FILE", help="write tables and results between the markers in files"
    )
    return listing


def reproduce_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare reproduce``; ``run_parser`` parses the words after the name."""
    reproduce = make(
        prog=f"{PROGRAM} reproduce",
        usage=f"{PROGRAM} reproduce [NAME [OPTION ...]]",
        description="Run a named plan and show its results beside published figures.",
    )
    reproduce.add_argument("name", nargs="?", metavar="NAME", help="name of a plan (without it: list the plans)")
    reproduce.add_argument(
        "changes",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help=f"changes the plan: any option of {PROGRAM}, such as --seeds 1, --variants full,linear, --out DIR "
        "--resume, --device cuda ...",
    )
    return reproduce


PARSERS: dict[str, Callable[[Make], Parser]] = {
    "run": run_parser,
    "plan": plan_parser,
    "cost": cost_parser,
    "list": list_parser,
    "report": report_parser,
    "diff": diff_parser,
    "ablate": ablate_parser,
    "reproduce": reproduce_parser,
    "evaluate": evaluate_parser,
    "predict": predict_parser,
    "merge": merge_parser,
    "publish": publish_parser,
}
"""Command -> the function that makes its parser."""
