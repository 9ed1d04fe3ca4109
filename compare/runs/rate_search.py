"""Chooses a learning rate, and optionally a weight decay, for each variant from one grid, by validation score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from compare.record import Record
from compare.spec import Option, RunSpec

SEED = 0  # of the search runs
At = dict[str, tuple[str, Option]]
"""Task -> its swept option, and the value at which one search chooses the rates for all values."""


class GridPoint(NamedTuple):
    """A rate and a weight decay to try. weight_decay: None = that of the spec."""

    lr: float
    weight_decay: float | None = None

    def of(self, spec: RunSpec) -> RunSpec:
        return replace(spec, lr=self.lr, weight_decay=spec.weight_decay if (w := self.weight_decay) is None else w)

    @property
    def words(self) -> str:
        return f"{self.lr:g}" + ("" if self.weight_decay is None else f", weight decay {self.weight_decay:g}")


def make_grid(rates: Sequence[float], weight_decays: Sequence[float]) -> list[GridPoint]:
    """Every rate with every weight decay, rates in the outer loop, both rising."""
    return [GridPoint(rate, decay) for rate in rates for decay in weight_decays or (None,)]


def search_rates(
    specs: Sequence[RunSpec],
    grid: Sequence[GridPoint],
    run: Callable[[Sequence[RunSpec]], list[Record]],
    say: Callable[[str], None],
    at: At,
) -> tuple[tuple[RunSpec, ...], dict[str, Record]]:
    """Run the search. Its runs have records like all others, so that ``--resume`` finds them.

    Args:
        specs: the runs that need a rate.
        grid: from ``make_grid``.
        run: runs specs and returns their records.
        say: shows a line.
        at: swept tasks for which one search serves all values.

    Returns:
        The specs with their learning rates, and fields to add to the record of each: run_id -> {"lr_search": …}.
    """
    wanted = search_specs(specs, grid, at)
    say(f"choosing learning rates: {len(wanted)} runs with seed {SEED}, validated but not tested")
    by_id = {record["run_id"]: record for record in run(wanted)}
    chosen, notes = [], {}
    for spec in specs:
        tried = search_specs([replace(spec, seed=SEED)], grid, at)
        search = choose([by_id[run.run_id] for run in tried], grid)
        if spec.task in at:
            search["at"] = "{}={}".format(*at[spec.task])
        point = GridPoint(search["chosen"], search["chosen_weight_decay"])
        chosen.append(point.of(spec))
        notes[chosen[-1].run_id] = {"lr_search": search}
        if spec.seed == SEED and stand_in(spec, at) == spec:
            note = f" ({search['note']})" if search["note"] else ""
            say(f"learning rate of {spec.label} · {spec.task} · N {spec.seq_len}: {point.words}{note}")
    return tuple(chosen), notes


def search_specs(specs: Sequence[RunSpec], grid: Sequence[GridPoint], at: At) -> list[RunSpec]:
    """The search runs: one for each point of the grid, of every spec with the seed of the search."""
    searched = dict.fromkeys(stand_in(spec, at) for spec in specs if spec.seed == SEED)
    return [replace(point.of(spec), search=True) for spec in searched for point in grid]


def stand_in(spec: RunSpec, at: At) -> RunSpec:
    """The spec whose search serves this one: its task has the swept option at the value in ``at``."""
    if spec.task not in at:
        return spec
    option, value = at[spec.task]
    return replace(spec, task_options=tuple(sorted((dict(spec.task_options) | {option: value}).items())))


def choose(runs: Sequence[Record], grid: Sequence[GridPoint]) -> Record:
    """Choose the point with the best final validation score; of equal ones the smaller rate, then the smaller decay.

    Args:
        runs: one record for each point of the grid; a failed run cannot win.
        grid: from ``make_grid``.

    Returns:
        The rates and weight decays of the grid, the chosen ones (the middle of the grid where every run failed), the
        number of runs and their seconds, the validation scores (None where a run failed), and a note, which may be "".
    """
    rates = sorted({point.lr for point in grid})
    scores = [run.get("val_score") if run["status"] == "ok" else None for run in runs]
    lower = any((run.get("metric_scale") or {}).get("lower_is_better") for run in runs)
    ranked = [(score if lower else -score, place) for place, score in enumerate(scores) if score is not None]
    best = grid[min(ranked)[1] if ranked else (len(grid) - 1) // 2]
    note = ""
    if not ranked:
        note = "every run of the search failed: took the middle of the grid"
    elif len(rates) > 1 and best.lr in (rates[0], rates[-1]):
        note = "at the edge of the grid: a wider grid may hold a better rate"
    return {
        "grid": rates,
        "chosen": best.lr,
        "weight_decay_grid": sorted({point.weight_decay for point in grid if point.weight_decay is not None}),
        "chosen_weight_decay": best.weight_decay,
        "runs": len(runs),
        "seconds": sum(run.get("wall_seconds") or 0.0 for run in runs),
        "scores": scores,
        "note": note,
    }
