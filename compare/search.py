"""A learning rate for each variant from one grid, chosen on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compare.spec import RunSpec

if TYPE_CHECKING:
    from compare.record import Record

SEED = 0  # of the runs that search


def search_rates(
    specs: Sequence[RunSpec],
    grid: Sequence[float],
    run: Callable[[list[RunSpec]], list[Record]],
    say: Callable[[str], None],
) -> tuple[list[RunSpec], dict[str, Record]]:
    """Run the search; its runs are records like others, so that ``--resume`` finds them.

    Args:
        specs: the runs that need a rate.
        grid: the rates, rising.
        run: runs specs and returns their records.
        say: tells a line.

    Returns:
        the specs with their learning rates, and what to add to the record of each: run_id -> {"lr_search": …}.
    """
    wanted = search_specs(specs, grid)
    say(f"choosing learning rates: {len(wanted)} runs with seed {SEED}, validated and not tested")
    found = {record["run_id"]: record for record in run(wanted)}
    chosen, notes = [], {}
    for spec in specs:
        search = choose([found[tried.run_id] for tried in search_specs([replace(spec, seed=SEED)], grid)], grid)
        chosen.append(replace(spec, lr=search["chosen"]))
        notes[chosen[-1].run_id] = {"lr_search": search}
        if spec.seed == SEED:
            note = f" ({search['note']})" if search["note"] else ""
            say(f"learning rate of {spec.label} · {spec.task} · N {spec.seq_len}: {search['chosen']:g}{note}")
    return chosen, notes


def search_specs(specs: Sequence[RunSpec], grid: Sequence[float]) -> list[RunSpec]:
    """A run for each rate of everything that is to run with the seed of the search."""
    return [replace(spec, lr=rate, search=True) for spec in specs if spec.seed == SEED for rate in grid]


def choose(runs: Sequence[Record], grid: Sequence[float]) -> Record:
    """The rate with the best validation score at the end, of two the smaller.

    Args:
        runs: a record for each rate of the grid; one that failed has lost.
        grid: the rates, rising.

    Returns:
        the grid, the rate chosen (the middle one where every run failed), how many runs it took and their seconds,
        the validation scores (None where a run failed), and a note where there is something to know.
    """
    scores = [run.get("val_score") if run["status"] == "ok" else None for run in runs]
    lower = any((run.get("metric_scale") or {}).get("lower_is_better") for run in runs)
    ranked = [(score if lower else -score, rate) for score, rate in zip(scores, grid, strict=True) if score is not None]
    best = min(ranked)[1] if ranked else grid[(len(grid) - 1) // 2]
    note = ""
    if not ranked:
        note = "every run of the search failed: the middle of the grid"
    elif best in (grid[0], grid[-1]):
        note = "at the edge of the grid: a wider one may hold a better rate"
    return {
        "grid": list(grid),
        "chosen": best,
        "runs": len(runs),
        "seconds": sum(run.get("wall_seconds") or 0.0 for run in runs),
        "scores": scores,
        "note": note,
    }
