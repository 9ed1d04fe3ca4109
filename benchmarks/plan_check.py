"""How far the estimates of ``python -m compare plan`` are from real runs.

    python -m benchmarks.plan_check results/cpu-2core/main results/cpu-2core/recall_8192

Each folder is estimated from the records of all other folders under ``--records``, so that no run is estimated from
itself, and compared with what it took. Runs that other processes disturbed are left out. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from compare.estimate.check import QUANTITIES, WITHIN, Checked, Compared, Summary, check, is_close, misses
from compare.estimate.command import grows_with_pairs
from compare.estimate.law import Basis
from compare.estimate.points import find_folders
from compare.folder import check_records
from compare.report.render.markdown import markdown_table

NUMBERS = ("runs", "median", "worst", f"within {WITHIN:.0%}", "in its range")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of finished runs")
    parser.add_argument(
        "--records", type=Path, default=Path("results"), metavar="DIR", help="where all records are (default: results)"
    )
    options = parser.parse_args(arguments)
    check_records(options.folders)
    result = check(find_folders([options.records]), options.folders, grows_with_pairs)
    print("\n".join(page(result, [folder.name for folder in options.folders])))


def page(result: Checked, folders: Sequence[str]) -> Iterator[str]:
    """The lines of the page."""
    yield "# Estimates beside real runs\n"
    yield "Each folder is estimated from the records of all others; runs that other processes disturbed are left out."
    yield "Numbers are estimate / truth; the truth of a run is its wall time.\n"
    by_folder = grouped(result.compared, lambda each: each.folder)
    yield markdown_table(("folder", "estimate", *NUMBERS), [row for folder in folders for row in by_folder[folder]])
    yield "\n## Runs beside repeats of themselves\n"
    yield "Each run beside the median of the others of its folder that differ in seed and rate alone. No estimate can"
    yield "be closer.\n"
    again = [
        [folder, quantity, str(len(ratios)), f"{sum(map(is_close, ratios)) / len(ratios):.0%}"]
        for (folder, quantity), ratios in result.repeats.items()
        if ratios
    ]
    yield markdown_table(("folder", "quantity", "runs", f"within {WITHIN:.0%}"), again)
    yield "\n## By what the estimate of a step rests on\n"
    by_basis = grouped(result.compared, lambda each: basis_name(each.basis))
    yield markdown_table(("basis", "estimate", *NUMBERS), [row for name in sorted(by_basis) for row in by_basis[name]])
    yield "\n## Seconds of all runs of a folder\n"
    sums = [
        [folder, f"{estimated:,.0f}", f"{taken:,.0f}", f"{estimated / taken:.2f}", str(result.unknown.get(folder, 0))]
        for folder, (estimated, taken) in result.totals.items()
    ]
    yield markdown_table(("folder", "estimated", "taken", "ratio", "runs without estimate"), sums)
    yield f"\n## Variants whose median misses by more than {WITHIN:.0%}\n"
    for folder in folders:
        for quantity in QUANTITIES:
            if far := misses(result.compared, folder, quantity):
                yield f"- {folder}, {quantity}: {', '.join(f'{label} {ratio:.2f}' for label, ratio in far.items())}"


def grouped(compared: Sequence[Compared], name: Callable[[Compared], str]) -> dict[str, list[list[str]]]:
    """Name -> rows of the table, one for each quantity."""
    parts: dict[str, dict[str, list[Compared]]] = {}
    for each in compared:
        parts.setdefault(name(each), {}).setdefault(each.quantity, []).append(each)
    return {
        group: [[group, quantity, *numbers(own[quantity])] for quantity in QUANTITIES if quantity in own]
        for group, own in parts.items()
    }


def numbers(compared: Sequence[Compared]) -> list[str]:
    each = Summary.of(compared)
    shares = (f"{held / each.number:.0%}" for held in (each.close, each.inside))
    return [str(each.number), f"{each.median:.2f}", f"{each.worst:.2f}", *shares]


def basis_name(basis: Basis) -> str:
    """How far the basis is, without its lengths and machine."""
    encoder = "" if basis.encoder else ", another encoder or task"
    machine = (
        "" if basis.scaled == 1 else ", another machine" + (", not scaled" if basis.scaled is None else ", scaled")
    )
    return f"{basis.kind}{encoder}{machine}"


if __name__ == "__main__":
    main()
