"""The results as LaTeX tables for papers, one for each group."""

import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from compare.quantities import QUANTITIES, TEST_SCORE, Latex, Quantity
from compare.report.facts.groups import Group, Row
from compare.report.facts.stats import Difference, Estimate
from compare.report.render.csv_table import flags, measured
from compare.report.sections.wording import options_set

Part = list[list[str]]
"""A head and rows of cells, as LaTeX."""
LEAST_LINES, MOST_LINES = 12, 46  # of a table on one page, with its caption and notes
LINE = 345  # width of an article's line, in points
WIDEST_NAME = 110  # points; a longer name wraps
WIDTHS = {
    **dict.fromkeys(".,:;'il|![]()", 3.4),
    **dict.fromkeys("mwMW%@", 7.5),
    **dict.fromkeys("{}$\\", 0.0),
    " ": 3.0,
}
UNSET = re.compile("[^\\x00-\\u017f]")  # letters that plain LaTeX lacks
LONGEST_WORD = 20  # letters
BREAK = r"\allowbreak{}"
BREAKS = frozenset("_=/-")
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


def latex_tables(groups: Sequence[Group]) -> str:
    """A booktabs table for each group; the best value is bold where all others are worse beyond noise."""
    head = f"% Means over seeds, with half of the 95 % t interval. {NEEDS}\n"
    return head + "".join(f"\n{latex_table(group)}" for group in groups)


class Shown(NamedTuple):
    """A column of a LaTeX table."""

    quantity: Quantity
    latex: Latex
    better: str


def shown_in(group: Group) -> list[Shown]:
    """The columns in which some row has a value, with the score in this group's unit."""
    scale = group.scale
    columns = [
        Shown(quantity, quantity.latex, quantity.better)
        for quantity in QUANTITIES
        if quantity.latex and any(row.over_seeds(quantity) for row in group.rows)
    ]
    if scale.is_fraction:
        return columns
    own = Latex(f"test {group.metric}", scale.factor, scale.decimals)
    better = "low" if scale.lower_is_better else "high"
    return [Shown(TEST_SCORE, own, better) if each.quantity is TEST_SCORE else each for each in columns]


def latex_table(group: Group) -> str:
    """The table of a group. Columns that do not fit into the line follow below, again with the variants."""
    shown = shown_in(group)
    scored = [group.against_full.get(row.name) for row in group.rows]
    best = [best_of(group, column) for column in shown]
    headings = ["variant", *(column.latex.heading for column in shown)]
    if any(scored):
        headings.insert(2, f"Δ to full ({group.scale.points})")
    footnotes: list[str] = []
    lines = []
    for row, difference in zip(group.rows, scored, strict=True):
        marks = []
        for flag in flags(row, group):
            if flag not in footnotes:
                footnotes.append(flag)
            marks.append(letter(footnotes.index(flag)))
        name = breakable(row.name)
        if width_of(name) > WIDEST_NAME:
            name = rf"\parbox[t]{{{WIDEST_NAME}pt}}{{\raggedright {name}\strut}}"
        cells = [name + (rf"\textsuperscript{{{','.join(marks)}}}" if marks else "")]
        cells += [
            number(measured(quantity, row, group), latex.factor, latex.decimals, bold=winner is row)
            for (quantity, latex, _), winner in zip(shown, best, strict=True)
        ]
        if any(scored):
            cells.insert(2, number(difference, group.scale.factor, group.scale.decimals, sign=True))
        lines.append(cells)
    head = [escape_tex(heading) for heading in headings]
    caption = breakable(" ".join([f"{group.title}. {group.machine}.", *options_set(group)]))
    label = rf"\label{{tab:{group.slug}}}"
    notes = "; ".join(rf"\textsuperscript{{{letter(i)}}}\,{breakable(text)}" for i, text in enumerate(footnotes))
    room = max(LEAST_LINES, MOST_LINES - math.ceil((1.2 * width_of(caption) + width_of(notes)) / LINE))
    pages = [lines[i : i + room] for i in range(0, len(lines), room)]
    floats: list[list[Part]] = []
    for part in (part for page in pages for part in fold([head, *page])):
        if not floats or sum(map(height_of, [*floats[-1], part])) > room:
            floats.append([])
        floats[-1].append(part)
    again = breakable(f"{group.title} (continued)")
    return "\n".join(
        latex_float(parts, again if index else caption, "" if index else label, notes)
        for index, parts in enumerate(floats)
    )


def latex_float(parts: Sequence[Part], caption: str, label: str, notes: str) -> str:
    """A table whose parts stand one below the other in one set of columns. label: "" continues the previous table."""
    columns = max(len(part[0]) for part in parts)
    body = []
    for index, (head, *rows) in enumerate(parts):
        rule = rf"\cmidrule{{1-{columns}}}" if index else r"\midrule"
        body += [r"\addlinespace"] * (index > 0)
        body += [in_a_line(head, columns), rule, *(in_a_line(row, columns) for row in rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            *([] if label else [r"\addtocounter{table}{-1}"]),
            rf"\caption{{{caption}}}",
            *([label] if label else []),
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip\parbox{{\linewidth}}{{\raggedright {notes}.}}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def fold(table: Sequence[Sequence[str]]) -> list[Part]:
    """The table in parts, each with the first column and as many others as fit into a line.

    Args:
        table: the head and the rows, as LaTeX.
    """
    widths = [max(map(width_of, column)) + 8 for column in zip(*table, strict=True)]
    widths[0] = min(widths[0], WIDEST_NAME + 20)
    parts: list[list[int]] = [[]]
    for index in range(1, len(widths)):
        # The parts stand below one another in one set of columns, each as wide as its widest cell.
        if parts[-1] and widths[0] + columns_width([*parts[:-1], [*parts[-1], index]], widths) > LINE:
            parts.append([])
        parts[-1].append(index)
    while widths[0] + columns_width(parts, widths) > LINE and (most := max(map(len, parts))) > 1:
        order = [index for part in parts for index in part]
        parts = [order[i : i + most - 1] for i in range(0, len(order), most - 1)]
    return [[[line[0], *(line[index] for index in part)] for line in table] for part in parts]


def height_of(part: Part) -> int:
    """About how many lines a part takes."""
    return 1 + sum(math.ceil(width_of(row[0]) / (WIDEST_NAME + 60)) for row in part)


def columns_width(parts: Sequence[Sequence[int]], widths: Sequence[float]) -> float:
    return sum(max(widths[i] for i in column if i) for column in zip_longest(*parts, fillvalue=0))


def in_a_line(cells: Sequence[str], columns: int) -> str:
    return " & ".join([*cells, *[""] * (columns - len(cells))]) + r" \\"


def width_of(tex: str) -> float:
    """About how many points wide a text is in 8 point type, rather overestimated."""
    plain = re.sub(r"\\(mathbf|textsuperscript|allowbreak)\b|\{,\}", lambda match: "," * (match[0] == "{,}"), tex)
    plain = re.sub(r"\\pm", "wi", plain)  # with the space on either side
    plain = re.sub(r"\\[A-Za-z]+(\{\})?", "w", plain)
    return sum(WIDTHS.get(sign, 4.6 if sign.islower() or sign.isdigit() else 6.5) for sign in plain)


def breakable(text: str) -> str:
    """A text whose long words can wrap after a sign of `BREAKS` or after some letters."""
    return " ".join(broken(word) if len(word) > LONGEST_WORD else escape_tex(word) for word in text.split(" "))


def broken(word: str) -> str:
    pieces = re.findall(rf"[^\W_]{{1,{LONGEST_WORD // 2}}}|[\W_]", word)
    ends = [BREAK if piece in BREAKS or len(piece) == LONGEST_WORD // 2 else "" for piece in pieces]
    return "".join(escape_tex(piece) + end for piece, end in zip(pieces, ends, strict=True)).removesuffix(BREAK)


def best_of(group: Group, column: Shown) -> Row | None:
    """The best row that attends, if all others are worse beyond noise, which needs enough seeds of each."""
    quantity = column.quantity
    rows = [row for row in group.rows if row.attends]
    means = [(row, measured.mean) for row in rows if (measured := row.fair(quantity).over_seeds(quantity))]
    if len(means) < 2 or not column.better:
        return None
    best, _ = (max if column.better == "high" else min)(means, key=lambda item: item[1])
    behind = group.score_differences(best) if quantity is TEST_SCORE else group.differences(best, quantity)
    return best if all(row is best or (row.name in behind and behind[row.name].beyond) for row, _ in means) else None


def number(
    estimate: Estimate | Difference | None, factor: float, decimals: int, *, bold: bool = False, sign: bool = False
) -> str:
    """A mean and its half interval in LaTeX; no interval where all runs agree, for example on parameters."""
    if estimate is None:
        return "--"
    mean = f"{round(factor * estimate.mean, decimals) or 0.0:{'+' if sign else ''},.{decimals}f}".replace(",", "{,}")
    half = "" if not estimate.half else rf" \pm {factor * estimate.half:,.{decimals}f}".replace(",", "{,}")
    if estimate.solved is not None:
        sides = estimate.solved if isinstance(estimate, Difference) else (estimate.solved,)
        return " vs. ".join(f"{solved} of {estimate.n}" for solved in sides) + " solved"
    if estimate.is_cut:
        low, high = (f"{factor * end:{'+' if sign else ''},.{decimals}f}" for end in estimate.ends)
        half = rf"\ ({low} \mbox{{ to }} {high})"
    shown = rf"\mathbf{{{mean}}}" if bold else mean
    return f"${shown}{half}$"


def letter(index: int) -> str:
    """a to z, then aa, ab …"""
    return ("" if index < 26 else letter(index // 26 - 1)) + chr(ord("a") + index % 26)


def escape_tex(text: str) -> str:
    return UNSET.sub(lambda match: f"[U+{ord(match[0]):04X}]", text.translate(TEX))
