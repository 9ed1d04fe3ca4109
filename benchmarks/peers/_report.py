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

from compare.record import write_atomically
from compare.units import significant

Row = dict[str, Any]
EACH, OVERALL = 1.05, 0.8  # at most, ours over theirs
RULES = (
    f"Bars: the median over the lengths of each row at most {EACH}, in time and in memory; the median over the rows at "
    f"most {OVERALL}; every sub-quadratic backend faster than fused full attention."
)


@dataclass(frozen=True)
class Measure:
    """What is compared: the ratio of a row, and the figure of one side."""

    title: str
    ratio: Callable[[Row], float | None]
    detail: Callable[[Row, str], str]


def time_ratio(row: Row) -> float | None:
    return row["time_ratio"][1] if "time_ratio" in row else None


def memory_ratio(row: Row) -> float | None:
    ours, theirs = row.get("ours_peak_bytes"), row.get("theirs_peak_bytes")
    return ours / theirs if ours is not None and theirs else None


def saved_ratio(row: Row) -> float | None:
    ours, theirs = row.get("ours_saved_bytes"), row.get("theirs_saved_bytes")
    return ours / theirs if ours is not None and theirs else None


def milliseconds(row: Row, side: str) -> str:
    return significant(row[f"{side}_ms"][1])


def mebibytes(field: str) -> Callable[[Row, str], str]:
    return lambda row, side: significant(row[f"{side}_{field}"] / 2**20)


TIME = Measure("Time", time_ratio, milliseconds)
MEMORY = Measure("Peak memory", memory_ratio, mebibytes("peak_bytes"))
SAVED = Measure("Saved for backward", saved_ratio, mebibytes("saved_bytes"))


def read_rows(path: Path) -> list[Row]:
    """The rows of the latest run of each backend at each length; a line that was cut off is skipped."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    latest: dict[tuple[str, str, int], str] = {}
    for row in rows:
        latest[key(row)] = max(row["run"], latest.get(key(row), ""))
    return [row for row in rows if row["run"] == latest[key(row)]]


def key(row: Row) -> tuple[str, str, int]:
    return row["kind"], row["backend"], row["seq_len"]


def label(row: Row) -> tuple[str, str]:
    return row["backend"], row["package"] or "?"


class Results:
    """What the rows say, in the order of the tables."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.against_full = sorted((r for r in rows if r["kind"] == "full"), key=lambda r: r["backend"])
        self.rows = sorted((r for r in rows if r["kind"] == "peer"), key=lambda r: (*label(r), r["seq_len"]))
        self.lengths = sorted({r["seq_len"] for r in self.rows})
        self.labels = list(dict.fromkeys(label(r) for r in self.rows))
        self.at = {(*label(r), r["seq_len"]): r for r in self.rows}

    def ratios(self, measure: Measure, of: tuple[str, str]) -> dict[int, float]:
        """Length -> ratio, where there is one."""
        found = {n: measure.ratio(self.at[(*of, n)]) for n in self.lengths if (*of, n) in self.at}
        return {n: ratio for n, ratio in found.items() if ratio is not None}

    def median(self, measure: Measure, of: tuple[str, str]) -> float | None:
        return middle(self.ratios(measure, of).values())

    def median_at(self, measure: Measure, length: int) -> float | None:
        found = (self.ratios(measure, of).get(length) for of in self.labels)
        return middle(ratio for ratio in found if ratio is not None)

    def overall(self, measure: Measure) -> float | None:
        medians = (self.median(measure, of) for of in self.labels)
        return middle(m for m in medians if m is not None)

    def misses(self) -> list[str]:
        """The bars that are missed, in words. What only the peer cannot do is no miss of ours."""
        found = []
        for row in self.rows:
            name = f"{row['backend']} against {row['package'] or 'its peer'} at {row['seq_len']:,}"
            if row["status"] != "ok" and row["side"] != "theirs":
                found.append(f"{name}: {row['status']}, {row['reason']}")
        for measure in (TIME, MEMORY):
            for of in self.labels:
                median = self.median(measure, of)
                if median is not None and median > EACH:
                    found.append(f"{of[0]} against {of[1]}: {measure.title.lower()}, median {median:.2f}")
            overall = self.overall(measure)
            if overall is not None and overall > OVERALL:
                found.append(f"{measure.title.lower()}, median over the rows: {overall:.2f}")
        for row in self.against_full:
            name = f"{row['backend']} against full attention at {row['seq_len']:,}"
            ratio = time_ratio(row)
            if ratio is None:
                found.append(f"{name}: {row['status']}, {row['reason']}")
            elif ratio >= 1:
                found.append(f"{name}: time {ratio:.2f}")
        return found

    def excesses(self) -> list[str]:
        """Single lengths at which ours is slower or larger, in words, whatever the median of the row says."""
        return [
            f"{of[0]} against {of[1]} at {length:,}: {measure.title.lower()} {ratio:.2f}"
            for measure in (TIME, MEMORY)
            for of in self.labels
            for length, ratio in self.ratios(measure, of).items()
            if ratio > EACH
        ]

    def table(self, measure: Measure) -> tuple[list[str], list[list[str]]]:
        """Heading and rows of the ratios of one measure; the last row is the median over the others."""
        body = []
        for of in self.labels:
            cells = [self.cell(measure, of, n) for n in self.lengths]
            body.append([*of, *cells, told(self.median(measure, of))])
        medians = [told(self.median_at(measure, n)) for n in self.lengths]
        body.append(["median", "", *medians, told(self.overall(measure))])
        return ["backend", "peer", *(f"{n:,}" for n in self.lengths), "median"], body

    def cell(self, measure: Measure, of: tuple[str, str], length: int) -> str:
        row = self.at.get((*of, length))
        if row is None:
            return "–"
        return row["status"] if row["status"] != "ok" else told(measure.ratio(row))

    def details(self, measure: Measure) -> list[list[str]]:
        """Both sides of each ratio, in units."""
        body = []
        for of in self.labels:
            cells = []
            for n in self.lengths:
                row = self.at.get((*of, n), {})
                known = measure.ratio(row) is not None
                cells.append(" / ".join(measure.detail(row, side) for side in ("ours", "theirs")) if known else "–")
            body.append([*of, *cells])
        return body

    def full_table(self) -> tuple[list[str], list[list[str]]]:
        body = []
        for row in self.against_full:
            ratio = time_ratio(row)
            sides = [milliseconds(row, side) if ratio is not None else "–" for side in ("ours", "theirs")]
            body.append([row["backend"], *sides, row["status"] if ratio is None else told(ratio)])
        return ["backend", "ms", "ms of full", "ratio"], body

    def full_title(self) -> str:
        lengths = sorted({row["seq_len"] for row in self.against_full})
        return f"against fused full attention at {', '.join(f'{n:,}' for n in lengths)}"


def middle(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def told(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def write_files(rows: list[Row], out: Path) -> None:
    """peers.md and peers.png beside the rows."""
    results = Results(rows)
    if results.rows:
        draw(results, out / "peers.png")
    write_atomically(out / "peers.md", page(results, rows))


def page(results: Results, rows: list[Row]) -> str:
    lines = ["# Against public implementations", ""]
    machines = dict.fromkeys(machine(row["environment"]) for row in rows)
    commands = dict.fromkeys(row["environment"]["command"] for row in rows)
    lines += [f"- machine: {each}" for each in machines]
    lines += [f"- command: `{each}`" for each in commands]
    lines += [
        "- one self-attention layer with its projections, d_model 256, 4 heads, batch 1, float32, the same weights on "
        "both sides; forward + backward",
        "- ratios are ours over theirs, below 1 in our favour; time: median over rounds of one step of each in turn; "
        "memory: high-water of resident memory over one step, each side in a process of its own",
        "",
        RULES,
        "",
    ]
    misses = results.misses()
    lines += ["All bars are met." if not misses else "Missed:", *(f"- {miss}" for miss in misses), ""]
    excesses = results.excesses()
    if excesses:
        lines += [f"Single lengths above {EACH}:", *(f"- {excess}" for excess in excesses), ""]
    if results.rows:
        lines += ["![ratios of time and memory](peers.png)", ""]
        for measure in (TIME, MEMORY):
            heading, body = results.table(measure)
            body[-1] = [f"**{cell}**" if cell else "" for cell in body[-1]]
            lines += [f"## {measure.title}, ours over theirs", "", *markdown(heading, body), ""]
        for title, measure in (("Milliseconds", TIME), ("MiB at the peak", MEMORY), ("MiB saved for backward", SAVED)):
            lines += [f"## {title}, ours / theirs", "", *markdown(heading[:-1], results.details(measure)), ""]
        lines += ["## Settings", "", *markdown(["backend", "peer", "set to", "tolerance"], settings(results)), ""]
    failed = [r for r in results.rows if r["status"] != "ok"]
    if failed:
        lines += ["## Not measured", ""]
        lines += [f"- {' · '.join(label(r))} at {r['seq_len']:,}: {r['status']}, {r['reason']}" for r in failed]
        lines += [""]
    if results.against_full:
        lines += [f"## Time {results.full_title()}", "", *markdown(*results.full_table()), ""]
    return "\n".join(lines)


def settings(results: Results) -> list[list[str]]:
    """How each pair was set, and how far it may differ: the widest tolerance over the lengths."""
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
    """A dot for each length, from the shortest at the top of its row; two panels, time and memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, step = len(results.labels), 0.105
    height = step * (len(results.lengths) + 2)  # of one row, in inches
    figure = Figure(figsize=(9, rows * height + 1.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    pitch = len(results.lengths) + 2
    low, high = limits(results)
    for axis, measure in zip(axes, (TIME, MEMORY), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xlim(low, high)
        axis.set_title(f"{measure.title}: ours / theirs", fontsize=11, color=INK)
        for bar, style in ((1.0, "-"), (EACH, (0, (3, 2)))):
            axis.axvline(bar, color=FAINT, linewidth=0.9, linestyle=style, zorder=1)
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
    centres = [number * pitch + (len(results.lengths) - 1) / 2 for number in range(rows)]
    axes[0].set_yticks(centres, [f"{backend}\nagainst {package}" for backend, package in results.labels], fontsize=9)
    axes[0].set_ylim(rows * pitch - 1, -1.6)
    figure.suptitle(
        f"Forward + backward of one layer against public packages; solid line 1, dashed {EACH};\n"
        "in each row the lengths run down, the number is their median",
        fontsize=9.5,
        color=INK,
    )
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    os.replace(part, path)


def draw_row(axis: Any, results: Results, measure: Measure, of: tuple[str, str], top: float, *, named: bool) -> None:
    from matplotlib.patheffects import withStroke

    ratios = results.ratios(measure, of)
    heights = {n: top + i for i, n in enumerate(results.lengths)}
    axis.plot(list(ratios.values()), [heights[n] for n in ratios], color=FAINT, linewidth=0.8, zorder=2)
    for n, ratio in ratios.items():
        missed = ratio > EACH
        style = {"marker": "D", "facecolor": MISSED} if missed else {"marker": "o", "facecolor": GOOD}
        axis.scatter([ratio], [heights[n]], s=26, edgecolor="white", linewidth=0.6, zorder=3, **style)
        if named:
            axis.annotate(
                f"{n:,}",
                (ratio, heights[n]),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color=INK,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    middle_height = top + (len(results.lengths) - 1) / 2
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
    found = [r for m in (TIME, MEMORY) for of in results.labels for r in results.ratios(m, of).values()] + [1.0, EACH]
    low, high = math.log2(min(found)), math.log2(max(found))
    room = high - low
    return 2 ** (low - 0.06 * room - 0.05), 2 ** (high + 0.3 * room + 0.1)
