"""The results of all groups as one tidy CSV."""

import csv
import io
from collections.abc import Sequence

from compare.quantities import FRACTION, QUANTITIES, TEST_SCORE, Quantity
from compare.report.facts.groups import Group, Row
from compare.report.facts.stats import ENOUGH_SEEDS, Difference, Estimate
from compare.report.facts.sweeps import options_in_words
from compare.report.sections.flags import flags_of

SCORES = ("test score", "validation score", "difference to full")
RECORDED = tuple(quantity for quantity in QUANTITIES if quantity.unit)  # in the CSV
TEXT = (
    "task",
    "length [tokens]",
    "conditions",
    "machine",
    "variant",
    "options",
    "name",
    "family",
    "status",
    "kernel",
    "flags",
)
COUNTS = ("runs", "finished runs")
DIFFERENCE = ("difference to full [fraction]", "difference to full half [fraction]", "seeds of the difference")
REACH = ("test score low [fraction]", "test score high [fraction]", "seeds that solved")
FORMULA = ("=", "+", "-", "@", "\t")  # a cell that begins so runs as a formula in spreadsheets


def csv_table(groups: Sequence[Group]) -> str:
    """One line for each variant of each group: means and half intervals in plain units, empty where not measured.

    A half interval is empty, too, where bounds cut the interval or only some seeds solve the task: the interval's ends
    and the number of seeds that solved have columns of their own.
    """
    numbers = [f"{q.title}{half} [{q.unit}]" for q in RECORDED for half in ("", " half")]
    units = list(dict.fromkeys(group.scale.unit for group in groups if not group.scale.is_fraction))
    beside = [f"{title}{half} [{unit}]" for unit in units for title in SCORES for half in ("", " half")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*TEXT, *COUNTS, *numbers, *DIFFERENCE, *REACH, *beside))
    for group in groups:
        for row in group.rows:
            place = (group.task, group.seq_len, group.conditions, group.machine)
            words: list[str | int] = [
                *place,
                row.variant,
                options_in_words(row),
                row.name,
                row.family,
                row.status,
                row.kernels,
            ]
            difference = group.against_full.get(row.name)
            scale = group.scale
            means = [(q, measured(q, row, group)) for q in RECORDED]
            cells = [n for q, mean in means for n in pair(mean if scale.is_fraction or q.unit != FRACTION else None)]
            scores = [
                n for mean in (*(mean for q, mean in means if q.unit == FRACTION), difference) for n in pair(mean)
            ]
            others = [n for unit in units for n in (scores if unit == scale.unit else [""] * len(scores))]
            words.append("; ".join(flags(row, group)))
            counts = (len(row.records), len(row.finished))
            seeds = difference.n if difference else ""
            fraction = pair(difference if scale.is_fraction else None)
            score = group.score(row) if scale.is_fraction else None
            reach = (*score.ends, "" if score.solved is None else score.solved) if score else ("", "", "")
            writer.writerow((*map(as_text, words), *counts, *cells, *fraction, seeds, *reach, *others))
    return out.getvalue()


def as_text(value: str | int) -> str | int:
    """A text in one line, escaped so that no spreadsheet runs it as a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    line = " ".join(value.splitlines())
    return f"'{line}" if line.startswith(FORMULA) else line


def pair(estimate: Estimate | Difference | None) -> tuple[float | str, float | str]:
    if estimate is None:
        return "", ""
    return (
        estimate.mean,
        "" if estimate.half is None or estimate.is_cut or estimate.solved is not None else estimate.half,
    )


def measured(quantity: Quantity, row: Row, group: Group) -> Estimate | None:
    return group.score(row) if quantity is TEST_SCORE else row.over_seeds(quantity)


def flags(row: Row, group: Group) -> list[str]:
    """The row's flags in words, and a warning of too few seeds."""
    words = [flag.words for flag in flags_of(row, group)]
    if 0 < len(row.finished) < ENOUGH_SEEDS:
        words.append(f"fewer than {ENOUGH_SEEDS} seeds: no ranking")
    return words
