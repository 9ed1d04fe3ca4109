"""The results of a group as a table, with notes on how to read it."""

from collections.abc import Callable
from dataclasses import dataclass

from compare.load import is_known, wavered
from compare.quantities import PARAMETERS, QUANTITIES, TEST_SCORE, TRAINING_STEPS, Quantity
from compare.report.facts.equal_terms import scored
from compare.report.facts.groups import Group, Row, ScoreBasis
from compare.report.facts.scale import FRACTION, Scale
from compare.report.facts.stats import ENOUGH_SEEDS, Difference, binomial_half
from compare.report.facts.values import as_mapping, as_number, numbers
from compare.report.render.families import colour_of
from compare.report.sections.flags import flag_notes, marked, parameters
from compare.report.sections.section import Cell, Section, Table
from compare.report.sections.solved import remarks
from compare.report.sections.summary import summarise
from compare.report.sections.wording import score_text
from compare.units import MISSING, count, plural, seconds, sentence


@dataclass(frozen=True)
class Column:
    title: str
    cell: Callable[[Row, Group], Cell]


def measured(quantity: Quantity) -> Callable[[Row, Group], Cell]:
    """A column of one quantity: its mean over seeds, with quartiles where the record has them."""

    def cell(row: Row, group: Group) -> Cell:
        del group
        estimate = row.over_seeds(quantity)
        if estimate is None:
            return Cell(MISSING, None)
        quartiles = row.spread(quantity)
        tail = f" [{quantity.show(quartiles[0])}, {quantity.show(quartiles[1])}]" if quartiles else ""
        return Cell(quantity.show(estimate.mean) + tail, estimate.mean)

    return cell


def variant(row: Row, group: Group) -> Cell:
    return Cell(marked(row, group), row.name)


def family(row: Row, group: Group) -> Cell:
    del group
    return Cell(row.family, row.family, colour_of(row.family))


def score(row: Row, group: Group) -> Cell:
    estimate = group.score(row)
    return Cell(score_text(estimate, group.scale), estimate.mean if estimate else None)


def test_score(row: Row, group: Group) -> Cell:
    estimate = group.estimate_of(row.by_seed(TEST_SCORE))
    return Cell(score_text(estimate, group.scale), estimate.mean if estimate else None)


def against_full(row: Row, group: Group) -> Cell:
    difference = group.against_full.get(row.name)
    if difference:
        return Cell(verdict(difference, group.scale), difference.mean)
    of = [each for each in (row, group.reference) if each and each.scores and not group.fair_scores(each)]
    return Cell("no verdict: on a busy machine", None) if of and row is not group.reference else Cell(MISSING, None)


def verdict(difference: Difference, scale: Scale = FRACTION) -> str:
    """A row's verdict against full in plain words, with its paired difference."""
    if difference.n < ENOUGH_SEEDS:
        return f"no verdict: {difference.n} shared {plural(difference.n, 'seed')} ({scale.change(difference)})"
    where = "above" if difference.mean > 0 else "below"
    if difference.solved:
        mine, theirs = (f"{count} of {difference.n}" for count in difference.solved)
        counts = f"{mine} seeds solved, full {theirs}"
        return f"{where} full: {counts}" if difference.beyond else f"no verdict: {counts}"
    if difference.beyond:
        change = scale.change(difference if difference.mean > 0 else mirrored(difference))
        mean, _, interval = change.replace("+", "").partition(", ")
        amount = f"{mean} ({interval})" if interval else mean
        better = f" ({'better' if scale.better(difference.mean) > 0 else 'worse'})" if scale.lower_is_better else ""
        return f"{amount} {scale.points} {where} full{better}"
    return f"within noise of full ({scale.change(difference)})"


def mirrored(difference: Difference) -> Difference:
    """The difference of the second score from the first."""
    low, high = difference.bounds
    return difference._replace(mean=-difference.mean, bounds=(-high, -low))


def params(row: Row, group: Group) -> Cell:
    estimate = row.over_seeds(PARAMETERS)
    if estimate is None:
        return Cell(MISSING, None)
    unlike = parameters(row, group)
    return Cell(count(estimate.mean) + (f" {unlike.mark}" if unlike else ""), estimate.mean)


def steps(row: Row, group: Group) -> Cell:
    """The number of training steps, where a budget in seconds decided it."""
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
    """The unit of scores in a table's header; says so where lower is better."""
    return group.scale.axis(group.metric) if group.scale.lower_is_better else group.scale.unit


def columns_of(group: Group) -> list[Column]:
    """The columns in which at least one row has a value."""
    columns, unit = list(COLUMNS), unit_of(group)
    columns[2] = Column(f"{group.basis.words('score')}, {unit}", score)
    if group.basis != ScoreBasis():
        columns.append(Column(f"test score at the end, {unit}", test_score))
    return [column for column in columns if any(column.cell(row, group).key is not None for row in group.rows)]


def part(group: Group) -> Section:
    return Section(sentences=summarise(group), tables=[results_table(group)])


def results_table(group: Group) -> Table:
    columns = columns_of(group)
    cells = [[column.cell(row, group) for column in columns] for row in group.rows]
    texts = [[cell.text for cell in line] for line in cells]
    header = [column.title for column in columns]
    return Table(f"Results: {group.title}", header, texts, notes(group), of=group, cells=cells)


def notes(group: Group) -> list[str]:
    """How to read one group's table."""
    lines = []
    counts = {len(row.scores) for row in group.rows if row.scores}
    if counts and min(counts) < ENOUGH_SEEDS:
        lines.append(f"Some variants have fewer than {ENOUGH_SEEDS} seeds: their scores allow no ranking.")
    if group.test_size:
        half = binomial_half(0.5, group.test_size)
        lines.append(
            f"Scored on {group.scored_on}: their sampling noise is up to "
            f"± {100 * half:.1f} points (95 %, binomial, at a score of 50 %; more where predictions depend on "
            "one another)."
        )
    if group.scale.lower_is_better:
        lines.append(
            f"{sentence(group.metric)}: lower is better. Intervals leave out the sampling noise of the test set, which "
            "is not known."
        )
    if group.basis.note and not scored(group):
        lines.append(group.basis.note)
    unturned = [row.name for row in group.rows if any(r.get("rotary_without_effect") is True for r in row.records)]
    if unturned:
        lines.append(f"Rotary positions have no effect on {', '.join(unturned)}.")
    finished = [row for row in group.rows if row.finished]
    if unknown := [row.name for row in finished if not all(map(is_known, row.finished))]:
        who = ", ".join(unknown) if len(unknown) < len(finished) else "any run"
        lines.append(f"The records do not say whether other processes disturbed {who}.")
    if ratios := sorted(ratio for row in finished for record in row.finished if (ratio := wavered(record))):
        spread = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (ratios[0], ratios[-1])))
        lines.append(
            f"Training steps of {len(ratios)} {plural(len(ratios), 'run')} took {spread} times as long as measured, "
            "though they lost hardly any CPU time to other processes: times on this machine vary by that much."
        )
    return [*lines, *remarks(group), *flag_notes(group.rows, group), *search_notes(group), *group.data_notes]


def search_notes(group: Group) -> list[str]:
    """For each grid that was searched, a line with the learning rates chosen from it."""
    grids: dict[str, list[str]] = {}
    costs: list[float] = []
    for row in group.rows:
        search = next((each for r in row.records if (each := as_mapping(r.get("lr_search")))), {})
        chosen, grid = as_number(search.get("chosen")), search.get("grid")
        if chosen is None or not isinstance(grid, list):
            continue
        remark = f" ({search['note']})" if search.get("note") else ""
        decays, decay = search.get("weight_decay_grid"), as_number(search.get("chosen_weight_decay"))
        words = ", ".join(map(str, grid))
        if decay is not None and isinstance(decays, list):
            words += f", with a weight decay of {', '.join(map(str, decays))},"
            remark = f" with {decay:g}{remark}"
        if isinstance(search.get("at"), str):
            words += f" at {search['at']}"
        grids.setdefault(words, []).append(f"{row.name} {chosen:g}{remark}")
        costs += numbers([search], "seconds")
    took = f" The search took {seconds(sum(costs) / len(costs))} per variant." if costs else ""
    chosen_from = "Learning rate chosen on validation from"
    return [f"{chosen_from} {grid}: {', '.join(names)}.{took}" for grid, names in grids.items()]
