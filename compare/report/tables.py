"""The results table, defined once and written as markdown here and as HTML by the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .aggregate import ENOUGH_SEEDS, Chart, Estimate, Group, Row, binomial_half, status_of
from .families import colour_of
from .scaling import cost_tables
from .summary import summarise
from .units import count, percent, plain, seconds, size

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """What is shown, what it sorts by (None: missing, sorts last), and the colour that stands for it on charts."""

    text: str
    key: float | str | None
    colour: str | None = None


@dataclass(frozen=True)
class Column:
    title: str
    cell: Callable[[Row, Group], Cell]


def measured(field: str, show: Callable[[float], str]) -> Callable[[Row, Group], Cell]:
    """A column of one field: its mean over seeds, with quartiles where the record has them."""

    def cell(row: Row, group: Group) -> Cell:
        del group
        found = row.over_seeds(field)
        if found is None:
            return Cell(MISSING, None)
        quartiles = row.spread(field)
        tail = f" [{show(quartiles[0])}, {show(quartiles[1])}]" if quartiles else ""
        return Cell(show(found.mean) + tail, found.mean)

    return cell


def variant(row: Row, group: Group) -> Cell:
    del group
    return Cell(f"{row.name} (ran {row.kernels or 'another kernel'})" if row.fell_back else row.name, row.name)


def family(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.family, row.family, colour_of(row.family))


def score(row: Row, group: Group) -> Cell:
    del group
    found = row.over_seeds("test_score")
    if found is None:
        return Cell(MISSING, None)
    return Cell(score_text(found), found.mean)


def score_text(found: Estimate) -> str:
    half = "" if found.half is None else f" ± {100 * found.half:.1f}"
    return f"{100 * found.mean:.1f}{half} (n={found.n})"


def difference(row: Row, group: Group) -> Cell:
    if group.reference is None or row is group.reference:
        return Cell(MISSING, None)
    found = row.difference(group.reference, "test_score")
    if found is None:
        return Cell(MISSING, None)
    half = "" if found.half is None else f" ± {100 * found.half:.1f}"
    return Cell(f"{100 * found.mean:+.1f}{half}".replace("-", "−"), found.mean)


def params(row: Row, group: Group) -> Cell:
    found = row.over_seeds("params")
    if found is None:
        return Cell(MISSING, None)
    reference = group.reference.over_seeds("params") if group.reference else None
    unlike = reference is not None and abs(found.mean - reference.mean) > 0.1 * reference.mean
    return Cell(count(found.mean) + (" †" if unlike else ""), found.mean)


def kernel(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.kernels or MISSING, row.kernels or None)


def status(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.status, row.status)


COLUMNS = (
    Column("variant", variant),
    Column("family", family),
    Column("test score, %", score),
    Column("Δ to full, points", difference),
    Column("tokens/s", measured("tokens_per_second", plain)),
    Column("step", measured("step_seconds", seconds)),
    Column("forward", measured("forward_seconds", seconds)),
    Column("forward + backward", measured("forward_backward_seconds", seconds)),
    Column("peak memory", measured("peak_memory_bytes", size)),
    Column("saved for backward", measured("saved_bytes", size)),
    Column("FLOPs/step", measured("flops", count)),
    Column("parameters", params),
    Column("kernel", kernel),
    Column("status", status),
)


def columns_of(group: Group) -> list[Column]:
    """The columns in which at least one row has something: no scores where nothing was trained."""
    return [column for column in COLUMNS if any(column.cell(row, group).key is not None for row in group.rows)]


def notes(group: Group) -> list[str]:
    """How to read one group's table."""
    lines = []
    counts = {found.n for row in group.rows if (found := row.over_seeds("test_score")) is not None}
    if counts and min(counts) < ENOUGH_SEEDS:
        lines.append(f"Some variants have fewer than {ENOUGH_SEEDS} seeds: read no ranking from their scores.")
    if group.test_size:
        half = binomial_half(0.5, group.test_size)
        lines.append(
            f"Scored on {plain(group.test_size)} test predictions, which alone leaves up to "
            f"± {100 * half:.1f} points (95 %, binomial, at a score of 50 %; more where predictions depend on "
            "one another)."
        )
    if any(params(row, group).text.endswith("†") for row in group.rows):
        lines.append("† more than 10 % more or fewer parameters than full.")
    return lines + group.data_notes


def slice_table(group: Group) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: the score of each variant on each slice of the test set; None where there are no slices."""
    found = {row.name: row.slices() for row in group.rows}
    names = list(dict.fromkeys(name for slices in found.values() for name in slices))
    if not names:
        return None
    body = [
        [label, *(score_text(slices[name]) if name in slices else MISSING for name in names)]
        for label, slices in found.items()
    ]
    return ["variant", *(f"{name}, %" for name in names)], body


READING = (
    "Test score: mean over seeds ± half of the 95 % t interval; n is the number of seeds. The test split is scored "
    "once, after training. Fewer than 3 seeds allow no ranking.",
    "Δ to full: the difference on the same seeds, with its own interval.",
    "tokens/s: tokens of one step at full length over its median time.",
    "step, forward, forward + backward: median [quartiles] of timed repetitions after warm-up, averaged over seeds.",
    "Peak memory: the most held during a training step; saved for backward: bytes autograd keeps between "
    "the forward and the backward pass.",
    "FLOPs: counted for one training step.",
    "none (control) mixes no tokens by attention at all. What does not beat it gains nothing from attention here.",
)


def failures(groups: Sequence[Group]) -> list[tuple[str, str, str, str, str]]:
    """Every run that did not finish: group, variant, seed, status, reason."""
    return [
        (
            group.title,
            row.name,
            str(record.get("seed", MISSING)),
            status_of(record),
            str(record.get("reason") or MISSING),
        )
        for group in groups
        for row in group.rows
        for record in row.records
        if status_of(record) != "ok"
    ]


def baseline_rows(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Every trivial predictor: group, name, score."""
    return [(group.title, name, percent(value)) for group in groups for name, value in group.baselines.items()]


def commands(groups: Sequence[Group]) -> list[str]:
    """The exact commands the runs came from, each once, in order."""
    found = [str(record["command"]) for group in groups for record in group.records if record.get("command")]
    asked = [str(group.environment["command"]) for group in groups if group.environment.get("command")]
    return list(dict.fromkeys(asked or found))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        return "| " + " | ".join(" ".join(cell.split("\n")) for cell in escaped) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def markdown_report(groups: Sequence[Group], charts: Sequence[Chart], warnings: Sequence[str]) -> str:
    """The whole of report.md."""
    parts = ["# Comparison of attention variants", *(f"> **Warning:** {warning}" for warning in warnings)]
    parts += [f"Machine: {machine}" for machine in dict.fromkeys(group.machine for group in groups)]
    parts += [f"```sh\n{command}\n```" for command in commands(groups)]
    if not groups:
        parts.append("There are no records to report on.")
    for group in groups:
        parts += [f"## {group.title}", bullets(summarise(group))]
        shown = columns_of(group)
        table = [[column.cell(row, group).text for column in shown] for row in group.rows]
        parts += [markdown_table([column.title for column in shown], table), bullets(notes(group))]
        if sliced := slice_table(group):
            parts.append(markdown_table(*sliced))
        parts += [image(chart) for chart in charts if chart.group == group.slug]
    if across := [image(chart) for chart in charts if not chart.group]:
        parts += ["## Cost against length", *across]
        for costs in cost_tables(groups):
            parts += [f"### {costs.title}", markdown_table(costs.header, costs.body), bullets(costs.notes)]
    if trivial := baseline_rows(groups):
        parts += ["## Trivial baselines", markdown_table(("task", "baseline", "score"), trivial)]
    if failed := failures(groups):
        header = ("task", "variant", "seed", "status", "reason")
        parts += ["## Runs that did not finish", markdown_table(header, failed)]
    parts += ["## How to read this", bullets(READING)]
    return "\n\n".join(part for part in parts if part) + "\n"


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def image(chart: Chart) -> str:
    return f"![{chart.alt}](charts/{chart.stem}.png)"
