"""The results table, defined once and written as markdown here and as HTML by the page."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compare.load import LIMIT, WAVERS, is_known, wavered
from compare.quantities import PARAMETERS, QUANTITIES, TEST_SCORE, TRAINING_STEPS, Quantity
from compare.units import MISSING, count, plural, seconds, sentence, size

from .aggregate import Chart, Group, Row, ScoreBasis, as_mapping, as_number, numbers, status_of
from .answer import BUSY, answer
from .beyond import table_by_length
from .decoding import DECODING, decode_tables
from .families import colour_of
from .first import lead_of, remarks
from .flags import flag_notes, marked, parameters
from .heatmap import HEAT
from .published import published_tables
from .scale import FRACTION, Scale
from .scaling import CostTable, cost_tables
from .stats import APART, ENOUGH_SEEDS, FAR, SOLVED, Difference, Estimate, binomial_half
from .summary import summarise
from .sweeps import sweep_table
from .task_sweeps import TaskSweep, representatives, task_sweeps, unswept
from .views import MATCHES, match_scores, scored

SIGNS = str.maketrans({"\\": r"\\", "`": r"\`", "&": "&amp;", "<": "&lt;"})
BRACKETS = str.maketrans({"[": r"\[", "]": r"\]"})


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


def measured(quantity: Quantity) -> Callable[[Row, Group], Cell]:
    """A column of one quantity: its mean over seeds, with quartiles where the record has them."""

    def cell(row: Row, group: Group) -> Cell:
        del group
        found = row.over_seeds(quantity)
        if found is None:
            return Cell(MISSING, None)
        quartiles = row.spread(quantity)
        tail = f" [{quantity.show(quartiles[0])}, {quantity.show(quartiles[1])}]" if quartiles else ""
        return Cell(quantity.show(found.mean) + tail, found.mean)

    return cell


def variant(row: Row, group: Group) -> Cell:
    return Cell(marked(row, group), row.name)


def family(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.family, row.family, colour_of(row.family))


def score(row: Row, group: Group) -> Cell:
    found = group.score(row)
    return Cell(score_text(found, group.scale), found.mean if found else None)


def test_score(row: Row, group: Group) -> Cell:
    found = group.estimate_of(row.by_seed(TEST_SCORE))
    return Cell(score_text(found, group.scale), found.mean if found else None)


def score_text(found: Estimate | None, scale: Scale) -> str:
    if found is None:
        return MISSING
    if found.solved is not None:
        return f"{scale.number(found)} (mean {scale.factor * found.mean:.{scale.decimals}f})"
    return f"{scale.number(found)} (n={found.n})"


def against_full(row: Row, group: Group) -> Cell:
    found = group.against_full.get(row.name)
    if found:
        return Cell(verdict(found, group.scale), found.mean)
    of = [each for each in (row, group.reference) if each and each.scores and not group.fair_scores(each)]
    return Cell("no verdict: on a busy machine", None) if of and row is not group.reference else Cell(MISSING, None)


def verdict(found: Difference, scale: Scale = FRACTION) -> str:
    """In plain words, what may be said of a row's paired difference to full."""
    if found.n < ENOUGH_SEEDS:
        return f"no verdict: {found.n} shared {plural(found.n, 'seed')} ({scale.change(found)})"
    if found.solved:
        mine, theirs = (f"{count} of {found.n}" for count in found.solved)
        told = f"{mine} seeds solved, full {theirs}"
        return f"{'above' if found.mean > 0 else 'below'} full: {told}" if found.beyond else f"no verdict: {told}"
    if found.beyond:
        amount = scale.change(found).lstrip("+−")
        where = "above" if found.mean > 0 else "below"
        better = f" ({'better' if scale.better(found.mean) > 0 else 'worse'})" if scale.lower_is_better else ""
        return f"{amount} {scale.points} {where} full{better}"
    return f"within noise of full ({scale.change(found)})"


def params(row: Row, group: Group) -> Cell:
    found = row.over_seeds(PARAMETERS)
    if found is None:
        return Cell(MISSING, None)
    unlike = parameters(row, group)
    return Cell(count(found.mean) + (f" {unlike.mark}" if unlike else ""), found.mean)


def steps(row: Row, group: Group) -> Cell:
    """Where a budget in seconds decided how many there were."""
    return measured(TRAINING_STEPS)(row, group) if row.by_budget else Cell(MISSING, None)


def kernel(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.kernels or MISSING, row.kernels or None)


def status(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.status, row.status)


COLUMNS = (
    Column("variant", variant),
    Column("family", family),
    Column("test score", score),
    Column("against full", against_full),
    Column("steps trained", steps),
    *(
        Column(quantity.column, params if quantity is PARAMETERS else measured(quantity))
        for quantity in QUANTITIES
        if quantity.column is not None
    ),
    Column("kernel", kernel),
    Column("status", status),
)


def unit_of(group: Group) -> str:
    """Of the scores in a head of a table, and which way is better where that is not what all expect."""
    return group.scale.axis(group.metric) if group.scale.lower_is_better else group.scale.unit


def columns_of(group: Group) -> list[Column]:
    """The columns in which at least one row has something: no scores where nothing was trained."""
    columns, unit = list(COLUMNS), unit_of(group)
    columns[2] = Column(f"{group.basis.words('score')}, {unit}", score)
    if group.basis != ScoreBasis():
        columns.append(Column(f"test score at the end, {unit}", test_score))
    return [column for column in columns if any(column.cell(row, group).key is not None for row in group.rows)]


def notes(group: Group) -> list[str]:
    """How to read one group's table."""
    lines = []
    counts = {len(row.scores) for row in group.rows if row.scores}
    if counts and min(counts) < ENOUGH_SEEDS:
        lines.append(f"Some variants have fewer than {ENOUGH_SEEDS} seeds: read no ranking from their scores.")
    if group.test_size:
        half = binomial_half(0.5, group.test_size)
        lines.append(
            f"Scored on {group.scored_on}, which alone leaves up to "
            f"± {100 * half:.1f} points (95 %, binomial, at a score of 50 %; more where predictions depend on "
            "one another)."
        )
    if group.scale.lower_is_better:
        lines.append(
            f"{sentence(group.metric)}: lower is better. What the test set itself adds to the noise is not known, "
            "and in no interval."
        )
    if group.basis.note and not scored(group):
        lines.append(group.basis.note)
    unturned = [row.name for row in group.rows if any(r.get("rotary_without_effect") is True for r in row.records)]
    if unturned:
        lines.append(f"Rotary positions have no effect on {', '.join(unturned)}.")
    finished = [row for row in group.rows if row.finished]
    if unknown := [row.name for row in finished if not all(map(is_known, row.finished))]:
        who = ", ".join(unknown) if len(unknown) < len(finished) else "any run"
        lines.append(f"Not recorded, whether other processes disturbed {who}.")
    if ratios := sorted(ratio for row in finished for record in row.finished if (ratio := wavered(record))):
        spread = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (ratios[0], ratios[-1])))
        lines.append(
            f"Steps of {len(ratios)} {plural(len(ratios), 'run')} took {spread} times as long in training as measured, "
            "though hardly any CPU time was lost to other processes: times of this machine waver by so much."
        )
    return [*lines, *remarks(group), *flag_notes(group.rows, group), *search_notes(group), *group.data_notes]


def search_notes(group: Group) -> list[str]:
    """How the learning rates were found, where they were searched for: a line for each grid."""
    grids: dict[str, list[str]] = {}
    costs: list[float] = []
    for row in group.rows:
        found = next((search for r in row.records if (search := as_mapping(r.get("lr_search")))), {})
        chosen, grid = as_number(found.get("chosen")), found.get("grid")
        if chosen is None or not isinstance(grid, list):
            continue
        remark = f" ({found['note']})" if found.get("note") else ""
        decays, decay = found.get("weight_decay_grid"), as_number(found.get("chosen_weight_decay"))
        words = ", ".join(map(str, grid))
        if decay is not None and isinstance(decays, list):
            words += f", with a weight decay of {', '.join(map(str, decays))},"
            remark = f" with {decay:g}{remark}"
        if isinstance(found.get("at"), str):
            words += f" at {found['at']}"
        grids.setdefault(words, []).append(f"{row.name} {chosen:g}{remark}")
        costs += numbers([found], "seconds")
    took = f" The search took {seconds(sum(costs) / len(costs))} a variant." if costs else ""
    return [f"Learning rate chosen of {grid} on validation: {', '.join(names)}.{took}" for grid, names in grids.items()]


class Equal(NamedTuple):
    """Scores at equal terms: header, rows, and at what they were read."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def equal_table(group: Group) -> Equal | None:
    """Each variant's score at equal steps, time and FLOPs; None where no run was validated."""
    views = [match_scores(group, match) for match in MATCHES]
    if not any(map(scored, views)):
        return None
    header, columns = ["variant"], [[marked(row, group) for row in group.rows]]
    for view in filter(scored, views):
        header += [f"{view.basis.at}, {unit_of(group)}", f"Δ to full, {group.scale.points}"]
        columns.append([score_text(view.score(row), group.scale) for row in view.rows])
        columns.append(
            [group.scale.change(d) if (d := view.against_full.get(row.name)) else MISSING for row in view.rows]
        )
    return Equal(header, [list(cells) for cells in zip(*columns, strict=True)], [view.basis.note for view in views])


def slice_table(group: Group) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: the score of each variant on each slice of the test set; None where there are no slices."""
    found = {row.name: row.slices() for row in group.rows}
    names = list(dict.fromkeys(name for slices in found.values() for name in slices))
    if not names:
        return None
    body = [
        [
            label,
            *(score_text(part and part._replace(bounds=group.bounds), group.scale) for part in map(slices.get, names)),
        ]
        for label, slices in found.items()
    ]
    return ["variant", *(f"{name}, {unit_of(group)}" for name in names)], body


def task_sweep_table(sweep: TaskSweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what each variant keeps, and its score at each value."""
    body = []
    for name, rows in sweep.rows.items():
        state = sweep.state(name)
        found, scores = [rows.get(value) for value, _ in sweep.points], sweep.scores[name]
        texts = [score_text(scores.get(value), sweep.scale) for value, _ in sweep.points]
        cells = [row.status if row and not row.scores else text for row, text in zip(found, texts, strict=True)]
        body.append([name, size(state.mean) if state else MISSING, *cells])
    return [
        "variant",
        "state a layer",
        *(f"{sweep.option}={value:g}, {sweep.scale.unit}" for value, _ in sweep.points),
    ], body


BUSY_HEADER = ("task", "variant", "seed", "by what", "repeat it on an idle machine")
READING = (
    "Score: mean over seeds ± half of the 95 % t interval, or its ends where it is cut at 0 or 100 %; n is the number "
    "of seeds. The test split is scored once, after training. Fewer than 3 seeds allow no ranking.",
    "k of n solved: where seeds fall apart, their mean and its interval say nothing of a seed. A seed solved the task "
    f"if it has {100 * SOLVED:g} % of the gain of the table's best run over the best trivial baseline. Seeds fall "
    f"apart where one did and another has less than {100 * FAR:g} % of that gain and {100 * APART:g} points less. "
    "What is said of such a variant rests on the exact sign test of seeds that just one side solved (McNemar).",
    "Against full: the mean difference on the same seeds ± half of its 95 % interval, in percentage points. All seeds "
    "share one test set, so its luck is not in their spread: the interval adds the binomial noise that two scores have "
    "on a test set of that size, as if their mistakes were independent, which is rather too much, as models find the "
    "same samples hard.",
    "Above or below full is said where that is beyond noise, judged for all variants of a table together "
    "(Benjamini-Hochberg at 5 %): of those named, one in twenty is so by chance on average, at the most; if none "
    "differed from full, one table in twenty would name any. So of many variants one may be within noise although its "
    "own interval leaves out 0. Who leads is decided in the same way. Controls do not count in a table's tests: each "
    "is judged by itself.",
    "At equal terms: validation scores at the largest number of steps, time or FLOPs that every finished run of the "
    "table reached, read from the learning curves between the two nearest validations. The learning rate was annealed "
    "for each run's own budget, so a score read in mid-course is below what a run of that length would end with; "
    "where shorter samples come first, it may be from before the run saw its full length.",
    "tokens/s: tokens of one step at full length over its median time.",
    "step, forward, forward + backward: median [quartiles] of timed repetitions after warm-up, averaged over seeds.",
    "Memory of training: weights, gradients, optimizer state and what a step adds at its peak: all that is held. "
    "Peak memory of a step: what a step adds to weights and optimizer state, gradients included. Saved for backward: "
    "bytes that autograd keeps between the forward and the backward pass.",
    "State a layer: what stands between the positions of one sample and a query, the keys and values that it attends "
    "to or what takes their place; it bounds what the query can recall (Zoology, arXiv:2312.04927).",
    "FLOPs: counted for one training step.",
    "Test length: the model that was trained at one length, tested at others, at most half a million tokens at each. "
    "Costs are measured at the training length; every encoder is built for the longest test length.",
    f"Disturbed: a run that lost more than {100 * LIMIT:g} % of the CPU time that it was ready to use, while it was "
    "measured or trained, or whose steps in training took a time that differs by as much from what was measured; by "
    f"{100 * WAVERS:g} % where the system counted hardly any lost time, as times waver on virtual machines. "
    "No verdict by time rests on it: neither on speed nor on crossovers, nor on scores where the budget is in seconds. "
    "Where the records do not tell, as older ones do not, that is unknown. A run that was repeated counts instead of "
    "the disturbed one where both folders are reported together, the newer one last.",
    "none (control) mixes no tokens by attention at all. What does not beat it gains nothing from attention here.",
)


def busy_runs(groups: Sequence[Group]) -> list[tuple[str, str, str, str, str]]:
    """Every run that others disturbed: group, variant, seed, by what, and the command that repeats it."""
    return [
        (group.title, row.name, str(record.get("seed")), words, str(record.get("command") or MISSING))
        for group in groups
        for row in group.rows
        for record in row.finished
        if (words := row.disturbed.get(str(record.get("seed"))))
    ]


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
    return [(group.title, name, group.scale.show(value)) for group in groups for name, value in group.baselines.items()]


def commands(groups: Sequence[Group]) -> list[str]:
    """The exact commands the runs came from, each once, in order."""
    found = [str(record["command"]) for group in groups for record in group.records if record.get("command")]
    stamps = [as_mapping(record.get("machine")) or group.environment for group in groups for record in group.records]
    asked = [str(stamp["command"]) for stamp in stamps if stamp.get("command")]
    return list(dict.fromkeys(asked or found))


def markdown(text: str) -> str:
    """Words in one line of Markdown as they are: no HTML, no code, no link or picture, no second line."""
    return " ".join(text.translate(SIGNS).replace("](", "]\\(").splitlines())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def code(command: str) -> str:
    """A command as a block, fenced by more backticks than it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"{fence}sh\n{command}\n{fence}"


def markdown_report(groups: Sequence[Group], charts: Sequence[Chart], warnings: Sequence[str]) -> str:
    """The whole of report.md."""
    sweeps = task_sweeps(groups)
    lead = lead_of(groups, sweeps)
    parts = ["# Comparison of attention variants", *(f"> **Warning:** {markdown(w)}" for w in warnings)]
    if lead:
        parts += [*map(markdown, lead.sentences), *(image(chart) for chart in charts if chart.stem == lead.stem)]
        parts.append(bullets(lead.remarks))
        charts = [chart for chart in charts if chart.stem != lead.stem]
    parts += [f"Machine: {markdown(machine)}" for machine in dict.fromkeys(group.machine for group in groups)]
    parts += map(code, commands(groups))
    if not groups:
        parts.append("There are no records to report on.")
    if groups:
        parts += ["## In short", bullets(answer(groups))]
    for told in published_tables(groups):
        parts += [f"## {markdown(told.title)}", markdown_table(told.header, told.body), bullets(told.notes)]
    for sweep in sweeps:
        parts += [f"## {markdown(sweep.heading)}", *(image(chart) for chart in charts if chart.stem == sweep.stem)]
        parts.append(markdown_table(*task_sweep_table(sweep)))
        for value, group in sweep.points:
            parts += [f"### {markdown(f'{sweep.option}={value:g}')}", *group_parts(group, charts, "####")]
    for group in unswept(groups, sweeps):
        parts += [f"## {markdown(group.title)}", *group_parts(group, charts)]
    once = representatives(groups, sweeps)
    if across := [image(chart) for chart in charts if not chart.group]:
        parts += ["## Cost against length", *across, *map(with_notes, cost_tables(once))]
    if decoded := [image(chart) for chart in charts if chart.group == DECODING]:
        parts += ["## Decoding, token by token", *decoded, *map(with_notes, decode_tables(once))]
    if maps := [image(chart) for chart in charts if chart.group == HEAT]:
        parts += ["## Tasks and variants", *maps]
    if trivial := baseline_rows(groups):
        parts += ["## Trivial baselines", markdown_table(("task", "baseline", "score"), trivial)]
    if failed := failures(groups):
        header = ("task", "variant", "seed", "status", "reason")
        parts += ["## Runs that did not finish", markdown_table(header, failed)]
    if busy := busy_runs(groups):
        parts += [f"## {BUSY}", markdown_table(BUSY_HEADER, busy)]
    parts += ["## How to read this", bullets(READING)]
    return "\n\n".join(part for part in parts if part) + "\n"


def group_parts(group: Group, charts: Sequence[Chart], level: str = "###") -> list[str]:
    """One group without its heading: what came out in words, its tables, its charts; `level` of headings within it."""
    shown = columns_of(group)
    table = [[column.cell(row, group).text for column in shown] for row in group.rows]
    parts = [bullets(summarise(group))]
    parts += [markdown_table([column.title for column in shown], table), bullets(notes(group))]
    if sliced := slice_table(group):
        parts.append(markdown_table(*sliced))
    if swept := sweep_table(group):
        parts.append(markdown_table(*swept))
    if longer := table_by_length(group):
        parts.append(markdown_table(*longer))
    if equal := equal_table(group):
        parts += [f"{level} At equal terms", markdown_table(equal.header, equal.rows), bullets(equal.notes)]
    return parts + [image(chart) for chart in charts if chart.group == group.slug]


def with_notes(table: CostTable) -> str:
    return "\n\n".join([f"### {markdown(table.title)}", markdown_table(table.header, table.body), bullets(table.notes)])


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def image(chart: Chart) -> str:
    return f"![{markdown(chart.alt).translate(BRACKETS)}](charts/{chart.stem}.png)"
