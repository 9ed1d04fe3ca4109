"""The parsers of commands that read folders of results: diff, report, merge, publish. Nothing here imports torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from compare.flags import add_match
from compare.parser import PROGRAM, Make, Parser


def diff_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare diff``."""
    diff = make(
        prog=f"{PROGRAM} diff",
        description="Show what changed between two folders of results, beyond noise:\n"
        "scores, times, memory, FLOPs, parameters and status of every variant in both.",
        epilog="examples:\n  python -m compare diff results/before results/after\n"
        "  python -m compare diff results/main results/branch --markdown --fail-on-regression\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    diff.add_argument("before", type=Path, metavar="A", help="folder with the records.jsonl from before the change")
    diff.add_argument("after", type=Path, metavar="B", help="folder with the records.jsonl from after the change")
    diff.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    diff.add_argument(
        "--fail-on-regression",
        action="store_true",
        help="exit with code 1 if anything got worse: a score, time or memory, or the share of runs with status ok",
    )
    return diff


def report_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare report``."""
    report = make(prog=f"{PROGRAM} report", description="Draw charts and pages again from records, running nothing.")
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with a records.jsonl")
    report.add_argument("--out", type=Path, metavar="DIR", help="draw one report of all folders into this folder")
    add_match(report)
    return report


def merge_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare merge``."""
    merge = make(
        prog=f"{PROGRAM} merge",
        description="Join folders of results into a new one, and draw its report. Of runs that were repeated on one\n"
        "machine the latest counts; runs of different machines stay apart.",
        epilog="examples:\n  python -m compare merge results/laptop results/cluster --out results/both\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    merge.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders with a records.jsonl")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    return merge


def publish_parser(make: Make = Parser) -> Parser:
    """Make the parser of ``python -m compare publish``."""
    publish = make(
        prog=f"{PROGRAM} publish",
        description="Upload a folder of results to the Hugging Face hub as a dataset: records, machine, tables, page,\n"
        "charts and a card. The records hold the typed commands, with their paths. It needs a login: hf auth login.",
        epilog="examples:\n  python -m compare publish results/mine --repo me/attention-at-8192 --dry-run\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    publish.add_argument("folder", type=Path, metavar="DIR", help="folder with a records.jsonl")
    publish.add_argument("--repo", required=True, metavar="NAME", help="the dataset, as user/name")
    publish.add_argument("--license", metavar="NAME", help="the license of the card, such as mit or cc-by-4.0")
    publish.add_argument("--private", action="store_true", help="a new dataset is private")
    publish.add_argument("--dry-run", action="store_true", help="print the card and the files, and upload nothing")
    return publish
