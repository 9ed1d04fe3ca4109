"""Capacity: what score each value of a swept option buys, and at what cost."""

from collections.abc import Sequence

from compare import quantities
from compare.report.facts.groups import Group, Row
from compare.report.facts.stats import ENOUGH_SEEDS
from compare.report.facts.sweeps import capacity_group, sweeps_of
from compare.report.facts.values import numbers
from compare.report.sections.accuracy import Against, accuracy_chart
from compare.report.sections.section import Section, Table
from compare.units import MISSING, seconds, size

STATE = Against(
    quantities.LAYER_STATE,
    "capacity_state",
    "state of one layer, per sample (logarithmic; further left is smaller)",
)
SAVED = Against(
    quantities.SAVED,
    "capacity_state",
    "saved for backward, as not all recorded their state (logarithmic; further left is smaller)",
)
STEP = Against(
    quantities.STEP,
    "capacity_time",
    "time of a training step (logarithmic; further left is faster)",
)


def state_of(rows: Sequence[Row]) -> Against:
    """The axis for the rows' state: its recorded size, or bytes saved for backward if a finished run lacks it."""
    finished = [record for row in rows for record in row.finished]
    return STATE if len(numbers(finished, STATE.quantity.field)) == len(finished) else SAVED


def part(group: Group) -> Section:
    table, shown = sweep_table(group), capacity_group(group)
    against = (state_of(shown.rows), STEP) if shown else ()
    charts = (accuracy_chart(shown, each, "Capacity: ") for each in against if shown)
    return Section(tables=[table] if table else [], charts=[chart for chart in charts if chart])


def sweep_table(group: Group) -> Table | None:
    """For each sweep, the best score and the smallest value whose score is within noise of it.

    None without a sweep that has two scores.
    """
    body, scale = [], group.scale
    for sweep in sweeps_of(group.rows):
        scored = [(value, row, score) for value, row in sweep.points if (score := group.score(row))]
        if len(scored) < 2:
            continue
        top, best, highest = max(scored, key=lambda point: scale.better(point[2].mean))
        line = [sweep.name, ", ".join(f"{value:g}" for value, _, _ in scored), f"{scale.show(highest.mean)} at {top:g}"]
        if min(score.n for _, _, score in scored) < ENOUGH_SEEDS:
            body.append([*line, *3 * [MISSING]])
            continue
        apart = group.score_differences(best)
        below = {name for name, difference in apart.items() if difference.beyond and scale.better(difference.mean) < 0}
        value, row, score = next(point for point in scored if point[1].name not in below)
        state, step = row.over_seeds(quantities.LAYER_STATE), row.over_seeds(quantities.STEP)
        line += [f"{scale.show(score.mean)} at {value:g}", size(state.mean) if state else MISSING]
        body.append([*line, seconds(step.mean) if step else MISSING])
    header = [
        "sweep",
        "values",
        f"{'lowest' if scale.lower_is_better else 'highest'} {group.basis.words('score')}",
        "smallest value within noise of that",
        "its state a layer",
        "its step",
    ]
    return Table(f"Capacity: {group.title}", header, body) if body else None
