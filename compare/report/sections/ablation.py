"""What each tip of the trade buys in memory, speed and score, for each variant."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.report.facts.ablation import Ablation, Effect, ablations
from compare.report.facts.groups import Row
from compare.report.facts.overview import Overview
from compare.report.facts.scale import Scale
from compare.report.facts.stats import ENOUGH_SEEDS, Difference, Estimate
from compare.report.facts.values import numbers
from compare.report.render.axes import log_ticks
from compare.report.render.canvas import FAINT, SMALL, WIDTH, Sheet, Style, text_size, write
from compare.report.sections.section import Chart, Section, Table
from compare.report.sections.wording import short
from compare.tips import TIPS
from compare.units import MISSING, SPACE, percent, seconds

LINE = 12.0  # pixels for each variant
BETWEEN = 10.0  # pixels between tips
LEAST_RANGE = 1.1  # an axis of ratios reaches at least so far on either side of 1
RATIO_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)


class Mark(NamedTuple):
    """A value with its interval, on an axis."""

    value: float
    low: float
    high: float


def sections(overview: Overview) -> list[Section]:
    parts = [part(ablation) for ablation in ablations(overview.groups, overview.tips)]
    return [Section("What each tip buys", "tips", parts=parts, notes=NOTES)] if parts else []


NOTES = (
    "Each tip is one change to the baseline, with the same seeds and at the baseline's learning rate. Memory: weights, "
    "gradients, optimizer state and what a step adds; speed: tokens a second in training. Intervals: 95 %, over seeds.",
)


def part(ablation: Ablation) -> Section:
    group = ablation.group
    tables = [
        Table(f"{name}: {group.title}", *table_of(effects, group.scale), title=name)
        for name, effects in ablation.effects.items()
    ]
    alt = f"What each tip changes: {group.title}. {' '.join(sentences(ablation))}"
    chart = Chart(f"tips_{group.slug}", alt, partial(draw, ablation))
    title = f"What each tip buys: {group.title}"
    return Section(title, sentences=sentences(ablation), tables=tables, charts=[chart])


def sentences(ablation: Ablation) -> list[str]:
    """Which tips save the most memory and time, and which change the score beyond noise, for each variant."""
    said = []
    for name, effects in ablation.effects.items():
        scale = ablation.group.scale
        better = [e for e in effects if e.score and e.score.beyond and scale.better(e.score.mean) > 0]
        worse = [e for e in effects if e.score and e.score.beyond and scale.better(e.score.mean) < 0]
        few = all(e.score is None or e.score.n < ENOUGH_SEEDS for e in effects)
        parts = [
            ("least memory", best(effects, lambda e: e.memory and -e.memory.mean, lambda e: times(e.memory))),
            ("fastest", best(effects, lambda e: e.speed and e.speed.mean, lambda e: times(e.speed))),
            ("better score", short([f"{e.tip} ({change(e.score, scale)})" for e in better])),
            ("worse score", short([f"{e.tip} ({change(e.score, scale)})" for e in worse])),
            ("unsupported", short([e.tip for e in effects if e.row.status == "unsupported"])),
            ("scores", f"no verdict from fewer than {ENOUGH_SEEDS} seeds" if few else ""),
        ]
        words = "; ".join(f"{what}: {which}" for what, which in parts if which)
        said.append(f"{name}: {words}.")
    return said


def best(effects: Sequence[Effect], gain: Callable[[Effect], float | None], show: Callable[[Effect], str]) -> str:
    """The tip with the largest gain, if it is one."""
    gains = [(value, effect) for effect in effects if (value := gain(effect)) is not None and value > 0]
    if not gains:
        return ""
    _, top = max(gains, key=lambda pair: pair[0])
    return f"{top.tip} ({show(top)})"


def times(ratio: Estimate | None) -> str:
    """ "0.62 ×" with its interval."""
    if ratio is None:
        return MISSING
    text = f"{math.exp(ratio.mean):.2f}{SPACE}×"
    if ratio.half is None:
        return text
    low, high = (math.exp(ratio.mean + side * ratio.half) for side in (-1, 1))
    return f"{text} ({low:.2f} to {high:.2f})"


def change(score: Difference | None, scale: Scale) -> str:
    return MISSING if score is None else scale.change(score)


def table_of(effects: Sequence[Effect], scale: Scale) -> tuple[list[str], list[list[str]]]:
    header = ["tip", "what it changes", "memory", "speed", f"score, {scale.points}", "status"]
    body = [
        [e.tip, summary(e.tip), times(e.memory), times(e.speed), change(e.score, scale), status(e.row)] for e in effects
    ]
    return header, body


def table_of_tip(ablations: Sequence[Ablation], tip: str) -> tuple[list[str], list[list[str]]]:
    """What one tip changes, for each variant on each task."""
    header = ["variant", "task", "memory", "speed", "score", "status"]
    body = [
        [
            *(name, f"{a.group.task}, {a.group.seq_len:,}", times(e.memory), times(e.speed)),
            *(f"{change(e.score, a.group.scale)} {a.group.scale.points}" if e.score else MISSING, status(e.row)),
        ]
        for a in ablations
        for name, effects in a.effects.items()
        for e in effects
        if e.tip == tip
    ]
    return header, body


def status(row: Row) -> str:
    """How its runs ended, what compiling took, and the share of the parameters that were trained."""
    fields = ("compile_seconds", "graph_breaks", "trained_params", "params")
    took, breaks, trained, params = (numbers(row.finished, field) for field in fields)
    words = [row.status]
    if took and breaks:
        words.append(f"compiled in {seconds(max(took))}, graph breaks: {max(breaks):.0f}")
    if trained and params and trained[0] < params[0]:
        words.append(f"trains {percent(trained[0] / params[0])} of the parameters")
    return "; ".join(words)


def summary(tip: str) -> str:
    return "; ".join(TIPS[part].summary for part in tip.split("+") if part in TIPS)


def draw(ablation: Ablation, styles: Mapping[str, Style]) -> Figure:
    """Draws three panels, memory, speed and score, with a line for each tip and a mark for each variant."""
    group, names = ablation.group, list(ablation.effects)
    tips = list(dict.fromkeys(e.tip for effects in ablation.effects.values() for e in effects))
    found = {(e.tip, name): e for name, effects in ablation.effects.items() for e in effects}
    step = LINE * len(names) + BETWEEN
    left = 26 + max(text_size(tip, SMALL)[0] for tip in tips)
    gap, height = 26.0, step * len(tips)
    width = (WIDTH - left - 20 - 2 * gap) / 3
    rows = [row for row in group.rows if row.name in names]
    title = f"What each tip changes: {group.title}"
    sheet = Sheet(title, group.machine, chart_notes(ablation), rows, body=height + 84)
    panels: list[tuple[str, Callable[[Effect], Mark | None]]] = [
        ("memory, × baseline", lambda e: as_mark(e.memory)),
        ("speed, × baseline", lambda e: as_mark(e.speed)),
        (f"{group.metric}, {group.scale.points}", lambda e: in_points(e.score, group.scale)),
    ]
    for number, (words, mark) in enumerate(panels):
        axes = sheet.axes(left + number * (width + gap), 54, width, height)
        marks = {key: own for key, effect in found.items() if (own := mark(effect))}
        set_axis(axes, words, list(marks.values()), is_ratio=number < 2)
        axes.set_ylim(len(tips) * step, 0)
        axes.set_yticks([])
        for line, tip in enumerate(tips):
            middle = (line + 0.5) * step
            axes.axhline((line + 1) * step, color="#ececec", linewidth=0.8, zorder=0)
            if number == 0:
                place = float(axes.transData.transform((1, middle))[1])
                write(sheet.figure, tip, axes.get_window_extent().x0 - 8, place, ha="right")
            for place_of, name in enumerate(names):
                y = middle + (place_of - (len(names) - 1) / 2) * LINE
                if own := marks.get((tip, name)):
                    draw_mark(axes, own, y, styles[name])
    key(sheet, names, styles, left, 54 + height + 8)
    return sheet.figure


def set_axis(axes: Axes, words: str, marks: Sequence[Mark], *, is_ratio: bool) -> None:
    ends = [end for mark in marks for end in mark]
    if is_ratio:
        low, high = min([*ends, 1 / LEAST_RANGE]) / 1.05, max([*ends, LEAST_RANGE]) * 1.05
        axes.set_xlim(low, high)
        ticks = [tick for tick in RATIO_TICKS if low <= tick <= high]
        log_ticks(axes, "x", ticks if len(ticks) > 1 else [low, 1, high], lambda value: f"{value:.2g}")
    else:
        reach = max([abs(end) for end in ends] + [1.0]) * 1.08
        axes.set_xlim(-reach, reach)
    axes.axvline(1.0 if is_ratio else 0.0, color=FAINT, linewidth=1.2, zorder=1)
    axes.set_xlabel(words)


def draw_mark(axes: Axes, mark: Mark, y: float, style: Style) -> None:
    axes.plot([mark.low, mark.high], [y, y], color=style.colour, linewidth=1.4, alpha=0.6, zorder=2)
    axes.plot([mark.value], [y], color=style.colour, marker=style.marker, markersize=5, zorder=3)


def as_mark(ratio: Estimate | None) -> Mark | None:
    if ratio is None:
        return None
    half = ratio.half or 0.0
    return Mark(math.exp(ratio.mean), math.exp(ratio.mean - half), math.exp(ratio.mean + half))


def in_points(score: Difference | None, scale: Scale) -> Mark | None:
    return None if score is None else Mark(*(scale.factor * value for value in (score.mean, *score.ends)))


def key(sheet: Sheet, names: Sequence[str], styles: Mapping[str, Style], left: float, bottom: float) -> None:
    """Writes the names of the variants with their marks above the panels."""
    axes = sheet.axes(left, bottom, WIDTH - left - 20, 18)
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH - left - 20)
    axes.set_ylim(0, 1)
    x = 6.0
    for name in names:
        style = styles[name]
        axes.plot([x], [0.5], color=style.colour, marker=style.marker, markersize=6)
        box = axes.get_window_extent()
        write(sheet.figure, name, box.x0 + x + 10, (box.y0 + box.y1) / 2, ha="left", weight=style.weight)
        x += 34 + text_size(name, SMALL, style.weight)[0]


def chart_notes(ablation: Ablation) -> list[str]:
    effects = [e for own in ablation.effects.values() for e in own]
    seeds = max((e.score.n for e in effects if e.score), default=0)
    notes = [
        f"Left of 1 is less memory; right of 1 is faster. Lines: 95 % intervals over {seeds} seeds."
        if seeds > 1
        else "Left of 1 is less memory; right of 1 is faster. One seed: no intervals."
    ]
    failed = {name: [e.tip for e in own if e.row.status != "ok"] for name, own in ablation.effects.items()}
    said = "; ".join(f"{name}: {', '.join(tips)}" for name, tips in failed.items() if tips)
    return notes + ([f"Without a result: {said}."] if said else [])
