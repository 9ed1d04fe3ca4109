"""Rows to bars, tables and a chart."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers._worker import Shape
from compare.record import write_atomically
from compare.units import significant

Row = dict[str, Any]
TIME_BAR, MEMORY_BAR, OVERALL = 1.0, 1.05, 0.7  # at most, ours over theirs
RULES = (
    f"Bars: each cell at most {TIME_BAR:g} in time and {MEMORY_BAR} in memory; the median over the rows of a table at "
    f"most {OVERALL}; every sub-quadratic backend faster than fused full attention."
)


@dataclass(frozen=True)
class Measure:
    """What is compared: the figure of one side of a row, the most that the ratio of a cell may be, and the unit."""

    title: str
    figure: Callable[[Row, str], float | None]
    bar: float
    unit: float

    def ratio(self, row: Row) -> float | None:
        ours, theirs = self.figure(row, "ours"), self.figure(row, "theirs")
        return ours / theirs if ours is not None and theirs else None

    def detail(self, row: Row) -> str:
        sides = [self.figure(row, side) for side in ("ours", "theirs")]
        return " / ".join("–" if figure is None else significant(figure / self.unit) for figure in sides)


@dataclass(frozen=True)
class Time(Measure):
    """Time of a mode: the ratio is the median of those of the rounds, not the ratio of the medians."""

    mode: str

    def ratio(self, row: Row) -> float | None:
        return row["times"][self.mode]["time_ratio"][1] if "times" in row else None


def milliseconds(mode: str) -> Callable[[Row, str], float | None]:
    return lambda row, side: row["times"][mode][f"{side}_ms"][1] if "times" in row else None


def size(field: str) -> Callable[[Row, str], float | None]:
    return lambda row, side: row.get(f"{side}_{field}")


TITLES = {"train": "Forward + backward", "forward": "Forward of a training", "inference": "Inference"}
TIMES = tuple(Time(f"{title}, time", milliseconds(mode), TIME_BAR, 1, mode) for mode, title in TITLES.items())
TIME = TIMES[0]
MEMORY = Measure("Forward + backward, peak memory", size("peak_bytes"), MEMORY_BAR, 2**20)
SAVED = Measure("Saved for backward", size("saved_bytes"), MEMORY_BAR, 2**20)
MEASURES = (*TIMES, MEMORY)


def read_rows(path: Path) -> list[Row]:
    """The rows of the latest run of each backend at each shape and dtype; a line that was cut off is skipped."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    latest: dict[tuple[object, ...], str] = {}
    for row in rows:
        latest[key(row)] = max(row["run"], latest.get(key(row), ""))
    return [row for row in rows if row["run"] == latest[key(row)]]


def key(row: Row) -> tuple[object, ...]:
    return row["kind"], row["backend"], row["dtype"], shape_of(row)


def shape_of(row: Row) -> Shape:
    return Shape(*row["shape"])


def label(row: Row) -> tuple[str, str]:
    return row["backend"], row["package"] or "?"


def title_of(row: Row) -> str:
    against = "full attention" if row["kind"] == "full" else row.get("package") or "its peer"
    dtype = "" if row["dtype"] == "float32" else f" in {row['dtype']}"
    return f"{row['backend']} against {against} at {shape_of(row)}{dtype}"


def by_dtype(rows: Iterable[Row]) -> list[Results]:
    """float32 first."""
    rows = list(rows)
    return [
        Results(r for r in rows if r["dtype"] == dtype) for dtype in sorted({r["dtype"] for r in rows}, reverse=True)
    ]


class Results:
    """What the rows of one dtype say, in the order of the tables."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.dtype: str = rows[0]["dtype"]
        self.against_full = sorted((r for r in rows if r["kind"] == "full"), key=lambda r: r["backend"])
        self.rows = sorted((r for r in rows if r["kind"] == "peer"), key=lambda r: (*label(r), shape_of(r)))
        self.shapes = sorted({shape_of(r) for r in self.rows}, key=lambda s: (s.batch * s.length, s.length))
        self.labels = list(dict.fromkeys(label(r) for r in self.rows))
        self.at = {(*label(r), shape_of(r)): r for r in self.rows}

    def ratios(self, measure: Measure, of: tuple[str, str]) -> dict[Shape, float]:
        """Shape -> ratio, where there is one."""
        found = {shape: measure.ratio(self.at[(*of, shape)]) for shape in self.shapes if (*of, shape) in self.at}
        return {shape: ratio for shape, ratio in found.items() if ratio is not None}

    def median(self, measure: Measure, of: tuple[str, str]) -> float | None:
        return middle(self.ratios(measure, of).values())

    def median_at(self, measure: Measure, shape: Shape) -> float | None:
        found = (self.ratios(measure, of).get(shape) for of in self.labels)
        return middle(ratio for ratio in found if ratio is not None)

    def overall(self, measure: Measure) -> float | None:
        medians = (self.median(measure, of) for of in self.labels)
        return middle(m for m in medians if m is not None)

    def misses(self) -> list[str]:
        """The bars that are missed, in words. What only the peer cannot do is no miss of ours."""
        found = [
            f"{title_of(row)}: {row['status']}, {row['reason']}"
            for row in self.rows
            if row["status"] != "ok" and row["side"] != "theirs"
        ]
        for measure in MEASURES:
            title = measure.title.lower()
            for row in self.rows:
                ratio = measure.ratio(row)
                if ratio is not None and round(ratio, 2) > measure.bar:
                    found.append(f"{title_of(row)}: {title} {ratio:.2f}")
            overall = self.overall(measure)
            if overall is not None and round(overall, 2) > OVERALL:
                found.append(f"{title}, median over the rows: {overall:.2f}")
        for row in self.against_full:
            ratio = TIME.ratio(row)
            if ratio is None:
                found.append(f"{title_of(row)}: {row['status']}, {row['reason']}")
            elif ratio >= 1:
                found.append(f"{title_of(row)}: time {ratio:.2f}")
        return found

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, heading and rows of each table of ratios, and of that against full attention."""
        found = []
        if self.rows:
            found = [(f"{m.title}, ours over theirs, {self.dtype}", *self.table(m)) for m in MEASURES]
        if self.against_full:
            found.append(self.full_table())
        return found

    def table(self, measure: Measure) -> tuple[list[str], list[list[str]]]:
        """Heading and rows of the ratios of one measure; the last row is the median over the others."""
        body = []
        for of in self.labels:
            cells = [self.cell(measure, of, shape) for shape in self.shapes]
            body.append([*of, *cells, told(self.median(measure, of))])
        medians = [told(self.median_at(measure, shape)) for shape in self.shapes]
        body.append(["median", "", *medians, told(self.overall(measure))])
        return ["backend", "peer", *map(short, self.shapes), "median"], body

    def cell(self, measure: Measure, of: tuple[str, str], shape: Shape) -> str:
        row = self.at.get((*of, shape))
        if row is None:
            return "–"
        return row["status"] if row["status"] != "ok" else told(measure.ratio(row))

    def details(self, measure: Measure) -> tuple[list[str], list[list[str]]]:
        """Heading, and both sides of each ratio in units."""
        body = []
        for of in self.labels:
            rows = [self.at.get((*of, shape), {}) for shape in self.shapes]
            body.append([*of, *(measure.detail(row) for row in rows)])
        return ["backend", "peer", *map(short, self.shapes)], body

    def full_table(self) -> tuple[str, list[str], list[list[str]]]:
        body = []
        for row in self.against_full:
            ratio = TIME.ratio(row)
            sides = [TIME.figure(row, side) for side in ("ours", "theirs")]
            cells = ["–" if figure is None else significant(figure) for figure in sides]
            body.append([row["backend"], *cells, row["status"] if ratio is None else told(ratio)])
        at = ", ".join(map(str, sorted({shape_of(row) for row in self.against_full})))
        return f"Time against fused full attention at {at}", ["backend", "ms", "ms of full", "ratio"], body


def short(shape: Shape) -> str:
    return f"{shape.batch}×{shape.length:,}×{shape.d_model}/{shape.n_heads}"


def middle(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def told(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def write_files(rows: list[Row], out: Path) -> None:
    """peers.md beside the rows, and a chart for each dtype."""
    for results in by_dtype(rows):
        if results.rows:
            draw(results, out / chart_of(results))
    write_atomically(out / "peers.md", page(rows))


def chart_of(results: Results) -> str:
    return "peers.png" if results.dtype == "float32" else f"peers_{results.dtype}.png"


def page(rows: list[Row]) -> str:
    lines = ["# Against public implementations", ""]
    machines = dict.fromkeys(machine(row["environment"]) for row in rows)
    commands = dict.fromkeys(row["environment"]["command"] for row in rows)
    lines += [f"- machine: {each}" for each in machines]
    lines += [f"- command: `{each}`" for each in commands]
    parts = by_dtype(rows)
    lines += [
        "- one self-attention layer with its projections, the same weights on both sides; a column is batch × length × "
        "d_model / heads",
        "- ratios are ours over theirs, below 1 in our favour; time: median over rounds of one step of each in turn; "
        "memory: high-water of resident memory over one step, each side in a process of its own",
        "",
        RULES,
        "",
    ]
    misses = [miss for results in parts for miss in results.misses()]
    lines += ["All bars are met." if not misses else "Missed:", *(f"- {miss}" for miss in misses), ""]
    for results in parts:
        if results.rows:
            lines += [f"![ratios of time and memory, {results.dtype}]({chart_of(results)})", ""]
        for title, heading, body in results.tables():
            if body[-1][0] == "median":
                body[-1] = [f"**{cell}**" if cell else "" for cell in body[-1]]
            lines += [f"## {title}", "", *markdown(heading, body), ""]
    for results in parts:
        if results.rows:
            for measure in (*MEASURES, SAVED):
                unit = "ms" if measure.unit == 1 else "MiB"
                title = f"{measure.title} in {unit}, ours / theirs, {results.dtype}"
                lines += [f"## {title}", "", *markdown(*results.details(measure)), ""]
    settings = [cells for results in parts for cells in settings_of(results)]
    settings = [list(cells) for cells in dict.fromkeys(map(tuple, settings))]
    if settings:
        lines += ["## Settings", "", *markdown(["backend", "peer", "set to", "tolerance"], settings), ""]
    failed = [row for results in parts for row in results.rows if row["status"] != "ok"]
    if failed:
        lines += ["## Not measured", ""]
        lines += [f"- {title_of(row)}: {row['status']}, {row['reason']}" for row in failed]
        lines += [""]
    return "\n".join(lines)


def settings_of(results: Results) -> list[list[str]]:
    """How each pair was set, and how far it may differ: the widest tolerance over the shapes."""
    body = []
    for of in results.labels:
        rows = [r for r in results.rows if label(r) == of and "setting" in r]
        if rows:
            widest = f"{max(r['tolerance'] for r in rows):.2g}" + (f": {rows[0]['why']}" if rows[0]["why"] else "")
            body.append([of[0], f"{of[1]} {rows[0]['version'] or ''}".strip(), rows[0]["setting"], widest])
    return body


def machine(environment: Row) -> str:
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads, "
        f"Python {environment['python']}, torch {environment['torch']}, commit {environment['git_commit']}"
    )


def markdown(heading: list[str], body: list[list[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


INK, FAINT, GOOD, MISSED = "#222222", "#8a8a8a", "#0072B2", "#D55E00"  # Okabe-Ito blue and vermillion


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
    axes[0].set_yticks(centres, [f"{backend}\nagainst {package}" for backend, package in results.labels], fontsize=9)
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


def draw_row(axis: Any, results: Results, measure: Measure, of: tuple[str, str], top: float, *, named: bool) -> None:
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
        words = ", ".join(dict.fromkeys(r["status"] for r in results.rows if label(r) == of))
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
