"""Rows to bars, tables and a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers._worker import Shape
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


class Label(NamedTuple):
    """Of a row of the tables. setting: "" where it failed before it was known."""

    backend: str
    package: str
    setting: str


def label(row: Row) -> Label:
    return Label(row["backend"], row["package"], row.get("setting", ""))


def title_of(row: Row) -> str:
    against = "full attention" if row["kind"] == "full" else row.get("package") or "its peer"
    dtype = "" if row["dtype"] == "float32" else f" in {row['dtype']}"
    return f"{row['backend']} against {against} at {shape_of(row)}{dtype}"


def by_dtype(rows: Iterable[Row]) -> list[Results]:
    """float32 first."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["dtype"], []).append(row)
    return [Results(parts[dtype]) for dtype in sorted(parts, reverse=True)]


class Results:
    """What the rows of one dtype say, in the order of the tables."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.dtype: str = rows[0]["dtype"]
        self.against_full = sorted((r for r in rows if r["kind"] == "full"), key=lambda r: r["backend"])
        self.rows = sorted((r for r in rows if r["kind"] == "peer"), key=lambda r: (label(r), shape_of(r)))
        self.shapes = sorted({shape_of(r) for r in self.rows}, key=lambda s: (s.batch * s.length, s.length))
        named = [label(r) for r in self.rows if r["package"]]
        ours = {r["backend"] for r in self.rows} - {each.backend for each in named}
        self.labels = list(dict.fromkeys([*named, *(Label(backend, "", "") for backend in sorted(ours))]))
        self.at = {(each, shape_of(r)): r for r in self.rows for each in self.labels if could_be(r, each)}

    def peer(self, of: Label) -> str:
        """The package, with the setting where it has several."""
        alike = [each for each in self.labels if each[:2] == of[:2]]
        return (of.package or "?") if len(alike) == 1 else f"{of.package}: {of.setting}"

    def ratios(self, measure: Measure, of: Label) -> dict[Shape, float]:
        """Shape -> ratio, where there is one."""
        found = {shape: measure.ratio(self.at[of, shape]) for shape in self.shapes if (of, shape) in self.at}
        return {shape: ratio for shape, ratio in found.items() if ratio is not None}

    def median(self, measure: Measure, of: Label) -> float | None:
        return middle(self.ratios(measure, of).values())

    def median_at(self, measure: Measure, shape: Shape) -> float | None:
        found = (self.ratios(measure, of).get(shape) for of in self.labels)
        return middle(ratio for ratio in found if ratio is not None)

    def overall(self, measure: Measure) -> float | None:
        medians = (self.median(measure, of) for of in self.labels)
        return middle(m for m in medians if m is not None)

    def misses(self) -> list[str]:
        """The bars that are missed, in words. What the peer cannot do is no miss of ours."""
        found = [
            f"{title_of(row)}: {row['status']}, {row['reason']}"
            for row in self.rows
            if row["status"] not in ("ok", "unsupported") and row["side"] != "theirs"
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
            body.append([of.backend, self.peer(of), *cells, told(self.median(measure, of))])
        medians = [told(self.median_at(measure, shape)) for shape in self.shapes]
        body.append(["median", "", *medians, told(self.overall(measure))])
        return ["backend", "peer", *map(short, self.shapes), "median"], body

    def cell(self, measure: Measure, of: Label, shape: Shape) -> str:
        row = self.at.get((of, shape))
        if row is None:
            return "–"
        return row["status"] if row["status"] != "ok" else told(measure.ratio(row))

    def details(self, measure: Measure) -> tuple[list[str], list[list[str]]]:
        """Heading, and both sides of each ratio in units."""
        body = []
        for of in self.labels:
            rows = [self.at.get((of, shape), {}) for shape in self.shapes]
            body.append([of.backend, self.peer(of), *(measure.detail(row) for row in rows)])
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


def could_be(row: Row, each: Label) -> bool:
    """Whether a row has this label; one that failed before its package was known has all of its backend."""
    return label(row) == each or (not row["package"] and row["backend"] == each.backend)


def short(shape: Shape) -> str:
    return f"{shape.batch}×{shape.length:,}×{shape.d_model}/{shape.n_heads}"


def middle(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def told(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


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
            body.append([of.backend, f"{of.package} {rows[0]['version'] or ''}".strip(), of.setting, widest])
    return body


def machine(environment: Row) -> str:
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads, "
        f"Python {environment['python']}, torch {environment['torch']}, commit {environment['git_commit']}"
    )


def markdown(heading: list[str], body: list[list[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
