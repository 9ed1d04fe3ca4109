"""The results as files for papers: one tidy CSV of all groups, and a LaTeX table for each."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from .aggregate import Group, Row
from .flags import flags_of
from .stats import ENOUGH_SEEDS, Difference, Estimate
from .summary import options_set
from .sweeps import options_in_words


@dataclass(frozen=True)
class Quantity:
    """A field of the records: raw in the CSV, and in LaTeX times a factor with so many decimals.

    Attributes:
        better: "high" or "low" where the best is worth marking.
        heading: of its column in LaTeX; "" where it has none.
    """

    field: str
    title: str
    unit: str
    heading: str = ""
    factor: float = 1.0
    decimals: int = 0
    better: str = ""


QUANTITIES = (
    Quantity("test_score", "test score", "fraction", "test score (%)", 100, 1, "high"),
    Quantity("val_score", "validation score", "fraction"),
    Quantity("test_loss", "test loss", "nats"),
    Quantity("tokens_per_second", "training speed", "tokens/s", "tokens/s", better="high"),
    Quantity("step_seconds", "step", "s", "step (ms)", 1e3, 1, "low"),
    Quantity("forward_seconds", "forward", "s"),
    Quantity("forward_backward_seconds", "forward + backward", "s", "fwd + bwd (ms)", 1e3, 1, "low"),
    Quantity("peak_memory_bytes", "peak memory", "B", "peak memory (MiB)", 2**-20, 1, "low"),
    Quantity("saved_bytes", "saved for backward", "B"),
    Quantity("flops", "step cost", "FLOP"),
    Quantity("token_seconds", "time per token", "s", "token (ms)", 1e3, 3, "low"),
    Quantity("cache_bytes", "state of a sample", "B", "state (KiB)", 2**-10, 1, "low"),
    Quantity("params", "parameters", "count", "parameters"),
    Quantity("train_steps", "training steps", "count"),
    Quantity("train_seconds", "training time", "s"),
)
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

FORMULA = ("=", "+", "-", "@", "\t")  # how a cell begins that spreadsheets run
NEEDS = r"Needs \usepackage{booktabs}."
TEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "\N{NO-BREAK SPACE}": "~"},
        **{"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "²": r"$^2$", "Δ": r"$\Delta$", "†": r"\dag{}"},
        **{"µ": r"\textmu{}", "…": r"\ldots{}", "·": r"$\cdot$", "→": r"$\to$", "\n": " "},
    }
)


def csv_table(groups: Sequence[Group]) -> str:
    """One line for each variant of each group: means and half intervals in plain units, empty where not measured."""
    numbers = [f"{q.title}{half} [{q.unit}]" for q in QUANTITIES for half in ("", " half")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*TEXT, *COUNTS, *numbers, *DIFFERENCE))
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
            found = [number for q in QUANTITIES for number in pair(row.over_seeds(q.field))]
            difference = group.against_full.get(row.name)
            words.append("; ".join(flags(row, group)))
            counts = (len(row.records), len(row.finished))
            seeds = difference.n if difference else ""
            writer.writerow((*map(as_text, words), *counts, *found, *pair(difference), seeds))
    return out.getvalue()


def as_text(value: str | int) -> str | int:
    """A text in one line that no spreadsheet runs as a formula; numbers stay."""
    if not isinstance(value, str):
        return value
    line = " ".join(value.splitlines())
    return f"'{line}" if line.startswith(FORMULA) else line


def pair(found: Estimate | Difference | None) -> tuple[float | str, float | str]:
    if found is None:
        return "", ""
    return found.mean, "" if found.half is None else found.half


def flags(row: Row, group: Group) -> list[str]:
    """What must be said beside a row's numbers."""
    told = [flag.words for flag in flags_of(row, group)]
    if 0 < len(row.finished) < ENOUGH_SEEDS:
        told.append(f"fewer than {ENOUGH_SEEDS} seeds: no ranking")
    return told


def latex_tables(groups: Sequence[Group]) -> str:
    """A booktabs table for each group; the best is bold where no other comes near it beyond noise."""
    head = f"% Means over seeds, with half of the 95 % t interval. {NEEDS}\n"
    return head + "".join(f"\n{latex_table(group)}" for group in groups)


def latex_table(group: Group) -> str:
    shown = [q for q in QUANTITIES if q.heading and any(row.over_seeds(q.field) for row in group.rows)]
    scored = [group.against_full.get(row.name) for row in group.rows]
    best = {q.field: best_of(group, q) for q in shown if q.better}
    headings = ["variant", *(q.heading for q in shown)]
    if any(scored):
        headings.insert(2, "Δ to full (points)")
    footnotes: list[str] = []
    lines = []
    for row, difference in zip(group.rows, scored, strict=True):
        marks = []
        for flag in flags(row, group):
            if flag not in footnotes:
                footnotes.append(flag)
            marks.append(letter(footnotes.index(flag)))
        cells = [escape_tex(row.name) + (rf"\textsuperscript{{{','.join(marks)}}}" if marks else "")]
        cells += [number(row.over_seeds(q.field), q.factor, q.decimals, bold=best.get(q.field) is row) for q in shown]
        if any(scored):
            cells.insert(2, number(difference, 100, 1, sign=True))
        lines.append(" & ".join(cells) + r" \\")
    caption = " ".join([f"{group.title}. {group.machine}.", *options_set(group)])
    notes = "; ".join(
        rf"\textsuperscript{{{letter(index)}}}\,{escape_tex(text)}" for index, text in enumerate(footnotes)
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape_tex(caption)}}}",
            rf"\label{{tab:{group.slug}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(escape_tex(heading) for heading in headings) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}.}}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def best_of(group: Group, quantity: Quantity) -> Row | None:
    """The best of those that attend, if every other lies behind it beyond noise, and all have seeds enough."""
    field = quantity.field
    rows = [row for row in group.rows if row.attends]
    found = [(row, measured.mean) for row in rows if (measured := row.over_seeds(field))]
    if len(found) < 2:
        return None
    best, _ = (max if quantity.better == "high" else min)(found, key=lambda item: item[1])
    behind = group.score_differences(best) if field == "test_score" else group.differences(best, field)
    return best if all(row is best or (row.name in behind and behind[row.name].beyond) for row, _ in found) else None


def number(
    found: Estimate | Difference | None, factor: float, decimals: int, *, bold: bool = False, sign: bool = False
) -> str:
    """A mean and its half interval in LaTeX; no interval where all runs agree, as they do on parameters."""
    if found is None:
        return "--"
    mean = f"{round(factor * found.mean, decimals) or 0.0:{'+' if sign else ''},.{decimals}f}".replace(",", "{,}")
    half = "" if not found.half else rf" \pm {factor * found.half:,.{decimals}f}".replace(",", "{,}")
    shown = rf"\mathbf{{{mean}}}" if bold else mean
    return f"${shown}{half}$"


def letter(index: int) -> str:
    """a to z, then aa and on."""
    return ("" if index < 26 else letter(index // 26 - 1)) + chr(ord("a") + index % 26)


def escape_tex(text: str) -> str:
    return text.translate(TEX)
