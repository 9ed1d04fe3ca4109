"""The files of a comparison: its page, and a chart for each dtype."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from benchmarks.peers._report import MEMORY, TIME, Label, Measure, Results, Row, by_dtype, chart_of, page, short, told
from compare.record import write_atomically

INK, FAINT, GOOD, MISSED = "#222222", "#8a8a8a", "#0072B2", "#D55E00"  # Okabe-Ito blue and vermillion


def write_files(rows: list[Row], out: Path) -> None:
    """peers.md beside the rows, and a chart for each dtype."""
    for results in by_dtype(rows):
        if results.rows:
            draw(results, out / chart_of(results))
    write_atomically(out / "peers.md", page(rows))


def draw(results: Results, path: Path) -> None:
    """A dot for each shape, in the order of the tables; two panels, time and memory of a training step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, step = len(results.labels), 0.105
    height = step * (len(results.shapes) + 2)  # of one row, in inches
    figure = Figure(figsize=(9, rows * height + 1.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    pitch = len(results.shapes) + 2
    low, high = limits(results)
    for axis, measure in zip(axes, (TIME, MEMORY), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xlim(low, high)
        axis.set_title(f"{measure.title.split(', ')[1].capitalize()}: ours / theirs", fontsize=11, color=INK)
        axis.axvline(1, color=FAINT, linewidth=0.9, zorder=1)
        for number, of in enumerate(results.labels):
            top = number * pitch
            if number % 2:
                axis.axhspan(top - 1, top + pitch - 1, color="#f4f4f4", zorder=0, linewidth=0)
            draw_row(axis, results, measure, of, top, named=number == 0)
        ticks = [t for t in (2.0**e for e in range(-6, 5)) if low <= t <= high]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=9, color=INK)
        axis.minorticks_off()
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        overall = results.overall(measure)
        axis.set_xlabel(f"median of the rows {told(overall)}", fontsize=9.5, color=INK)
    centres = [number * pitch + (len(results.shapes) - 1) / 2 for number in range(rows)]
    axes[0].set_yticks(centres, [f"{of.backend}\nagainst {results.peer(of)}" for of in results.labels], fontsize=9)
    axes[0].set_ylim(rows * pitch - 1, -1.6)
    figure.suptitle(
        f"Forward + backward of one layer against public packages, {results.dtype};\n"
        "in each row a dot for each shape (batch×length×width/heads), the number is their median",
        fontsize=9.5,
        color=INK,
    )
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    os.replace(part, path)


def draw_row(axis: Any, results: Results, measure: Measure, of: Label, top: float, *, named: bool) -> None:
    from matplotlib.patheffects import withStroke

    ratios = results.ratios(measure, of)
    heights = {n: top + i for i, n in enumerate(results.shapes)}
    axis.plot(list(ratios.values()), [heights[n] for n in ratios], color=FAINT, linewidth=0.8, zorder=2)
    for n, ratio in ratios.items():
        missed = round(ratio, 2) > measure.bar
        style = {"marker": "D", "facecolor": MISSED} if missed else {"marker": "o", "facecolor": GOOD}
        axis.scatter([ratio], [heights[n]], s=26, edgecolor="white", linewidth=0.6, zorder=3, **style)
        if named:
            axis.annotate(
                short(n),
                (ratio, heights[n]),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color=INK,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    middle_height = top + (len(results.shapes) - 1) / 2
    median = results.median(measure, of)
    words = told(median)
    if median is None:
        words = ", ".join(dict.fromkeys(results.at[of, s]["status"] for s in results.shapes if (of, s) in results.at))
    axis.annotate(
        words,
        (1, middle_height),
        (-2, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9.5,
        color=INK,
        fontweight="bold" if median is not None else "normal",
    )


def limits(results: Results) -> tuple[float, float]:
    """A range for both panels that holds every ratio and 1, with room for the medians at the right."""
    found = [r for m in (TIME, MEMORY) for of in results.labels for r in results.ratios(m, of).values()] + [1.0]
    low, high = math.log2(min(found)), math.log2(max(found))
    room = high - low
    return 2 ** (low - 0.06 * room - 0.05), 2 ** (high + 0.3 * room + 0.1)
