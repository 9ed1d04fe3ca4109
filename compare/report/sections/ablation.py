"""What each tip of the trade buys in memory, speed and score, for each variant."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.report.facts.ablation import Ablation, Effect, tip_of
from compare.report.facts.groups import CONTROL_FAMILY, Row
from compare.report.facts.overview import Overview
from compare.report.facts.scale import Scale
from compare.report.facts.stats import ENOUGH_SEEDS, Difference, Estimate
from compare.report.facts.values import numbers, status_of
from compare.report.render.axes import log_ticks, nice_ticks
from compare.report.render.canvas import DASHES, FAINT, MARKERS, SMALL, WIDTH, Sheet, Style, text_size, write
from compare.report.render.families import COLOURS
from compare.report.sections.curves import learning_curves
from compare.report.sections.section import Chart, Section, Table
from compare.report.sections.wording import short
from compare.tips import TIPS
from compare.units import MISSING, SPACE, percent, seconds, slug

LINE = 12.0  # pixels for each variant
BETWEEN = 10.0  # pixels between tips
KEY_LINE = 20.0  # pixels
LEAST_RANGE = 1.1  # an axis of ratios reaches at least so far on either side of 1
MOST_TICKS = 4
LINES = [colour for family, colour in COLOURS.items() if family != CONTROL_FAMILY]
"""Colours of lines that stand for tips, not families."""


class Mark(NamedTuple):
    """A value with its interval, on an axis."""

    value: float
    low: float
    high: float


def sections(overview: Overview) -> list[Section]:
    parts = [part(ablation) for ablation in overview.ablations]
    return [Section("What each tip buys", "tips", parts=parts, notes=NOTES)] if parts else []


NOTES = (
    "Each tip is one change to the baseline, with the same seeds and at the baseline's learning rate. Memory: weights, "
    "gradients, optimizer state and what a step adds. Speed: tokens a second in training. The tables name exceptions. "
    "Scores: those after each run's own training. Intervals: 95 %, over seeds.",
)


def part(ablation: Ablation) -> Section:
    group = ablation.group
    tables = [
        Table(f"{name}: {group.title}", *table_of(effects, group.scale), title=name)
        for name, effects in ablation.effects.items()
    ]
    alt = f"What each tip changes: {group.title}. {' '.join(sentences(ablation))}"
    drawn = any(on_chart(effect) for effects in ablation.effects.values() for effect in effects)
    charts = [Chart(f"tips_{group.slug}", alt, partial(draw, ablation))] if drawn else []
    title = f"What each tip buys: {group.title}"
    courses = [course for name in ablation.effects if (course := courses_of(ablation, name))]
    return Section(title, sentences=sentences(ablation), tables=tables, charts=charts + courses)


def courses_of(ablation: Ablation, name: str) -> Chart | None:
    """The learning curves of a variant and of its runs that learned from more than the task; None without such runs."""
    group, own = ablation.group, next(row for row in ablation.group.rows if row.name == name)
    learned = [
        replace(effect.row, family=own.family)  # one family: lines, not colours of families, tell them apart
        for effect in ablation.effects[name]
        if any(TIPS[part].elsewhere for part in effect.tip.split("+") if part in TIPS)
    ]
    where = "; ".join(part for part in (group.where, f"{name}, pretrained or taught") if part)
    alone = replace(group, rows=(own, *learned), where=where, slug=f"{group.slug}_tips_{slug(name)}")
    chart = learning_curves(alone, "step") if learned else None
    if chart is None:
        return None
    styles = {
        row.name: Style(LINES[i % len(LINES)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, row in enumerate(alone.rows)
    }
    return chart._replace(draw=lambda _styles: chart.draw(styles))


def sentences(ablation: Ablation) -> list[str]:
    """Which tips save the most memory and time, and which change the score beyond noise, for each variant."""
    said = []
    for name, effects in ablation.effects.items():
        scale = ablation.group.scale
        better = [e for e in effects if e.score and e.score.beyond and scale.better(e.score.mean) > 0]
        worse = [e for e in effects if e.score and e.score.beyond and scale.better(e.score.mean) < 0]
        few = all(e.score is None or e.score.n < ENOUGH_SEEDS for e in effects)
        parts = [
            ("least memory of training", best(effects, lambda e: e.memory, -1)),
            ("fastest training", best(effects, lambda e: e.speed, 1)),
            ("better score", short([f"{e.tip} ({change(e.score, scale)})" for e in better])),
            ("worse score", short([f"{e.tip} ({change(e.score, scale)})" for e in worse])),
            ("unsupported", short([e.tip for e in effects if {*map(status_of, e.row.records)} == {"unsupported"}])),
            ("no verdicts", f"fewer than {ENOUGH_SEEDS} seeds" if few else ""),
        ]
        words = "; ".join(f"{what}: {which}" for what, which in parts if which)
        said.append(f"{name}: {words}.")
    return said


def best(effects: Sequence[Effect], of: Callable[[Effect], Estimate | None], side: int) -> str:
    """The tip with the largest gain in the training, of those whose interval has no change on its other end.

    side: 1 where a larger ratio is a gain, -1 where a smaller one is.
    """
    gains = []
    for effect in effects:
        ratio = of(effect)
        if ratio is None or ratio.half is None or ratio.n < ENOUGH_SEEDS or not tip_of(effect.tip).by_training:
            continue
        if side * ratio.mean > ratio.half:
            gains.append((side * ratio.mean, f"{effect.tip} ({times(ratio)})"))
    return max(gains)[1] if gains else ""


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
            *(a.group.scale.change_in_words(e.score) if e.score else MISSING, status(e.row)),
        ]
        for a in ablations
        for name, effects in a.effects.items()
        for e in effects
        if e.tip == tip
    ]
    return header, body


def status(row: Row) -> str:
    """How its runs ended and why, what compiling took, and the share of the parameters that were trained."""
    fields = ("compile_seconds", "graph_breaks", "trained_params", "params")
    took, breaks, trained, params = (numbers(row.finished, field) for field in fields)
    words = [row.status]
    words += list(dict.fromkeys(str(r["reason"]) for r in row.records if status_of(r) != "ok" and r.get("reason")))
    if took and breaks:
        words.append(f"compiled in {seconds(max(took))}, graph breaks: {max(breaks):.0f}")
    if trained and params and trained[0] < params[0]:
        words.append(f"trains {percent(trained[0] / params[0])} of the parameters")
    return "; ".join(words)


def summary(name: str) -> str:
    """What a tip changes, and which memory and speed count where they are not those of the training."""
    words = "; ".join(TIPS[part].summary for part in name.split("+") if part in TIPS)
    tip = tip_of(name)
    if tip.by_training:
        return words
    memory, speed = (
        f"{quantity.told} against {before.told}" if tip.before else quantity.told
        for quantity, before in zip((tip.memory, tip.speed), tip.before or (tip.memory, tip.speed), strict=True)
    )
    return f"{words} (memory: {memory}; speed: {speed})"


def draw(ablation: Ablation, styles: Mapping[str, Style]) -> Figure:
    """Draws three panels, memory, speed and score, with a line for each tip and a mark for each variant."""
    group, names = ablation.group, list(ablation.effects)
    found = {(e.tip, name): e for name, effects in ablation.effects.items() for e in effects if on_chart(e)}
    tips = list(dict.fromkeys(tip for tip, _ in found))
    step = LINE * len(names) + BETWEEN
    left = 26 + max(text_size(tip, SMALL)[0] for tip in tips)
    gap, height = 26.0, step * len(tips)
    width = (WIDTH - left - 20 - 2 * gap) / 3
    rows = [row for row in group.rows if row.name in names]
    title = f"What each tip changes: {group.title}"
    keys = key_places(names, styles, WIDTH - left - 20)
    above = KEY_LINE * (1 + max(line for _, _, line in keys))
    sheet = Sheet(title, group.machine, chart_notes(ablation), rows, body=height + 68 + above)
    panels: list[tuple[str, Callable[[Effect], Mark | None]]] = [
        ("memory, × baseline", lambda e: as_mark(e.memory)),
        ("speed, × baseline", lambda e: as_mark(e.speed)),
        (score_words(group.scale), lambda e: in_points(e.score, group.scale)),
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
    draw_key(sheet, keys, styles, left, 54 + height + 8, above)
    return sheet.figure


def on_chart(effect: Effect) -> bool:
    """A tip that is compared within its run has other ranges: the table has it."""
    return tip_of(effect.tip).before is None


def score_words(scale: Scale) -> str:
    return f"score − baseline, {scale.points}{' (lower is better)' * scale.lower_is_better}"


def set_axis(axes: Axes, words: str, marks: Sequence[Mark], *, is_ratio: bool) -> None:
    ends = [end for mark in marks for end in mark]
    if is_ratio:
        low, high = min([*ends, 1 / LEAST_RANGE]) / 1.05, max([*ends, LEAST_RANGE]) * 1.05
        axes.set_xlim(low, high)
        log_ticks(axes, "x", nice_ticks(low, high)[:: -(-len(nice_ticks(low, high)) // MOST_TICKS)], ratio_text)
    else:
        reach = max([abs(end) for end in ends] + [1.0]) * 1.08
        axes.set_xlim(-reach, reach)
        axes.locator_params(axis="x", nbins=MOST_TICKS)
    axes.axvline(1.0 if is_ratio else 0.0, color=FAINT, linewidth=1.2, zorder=1)
    axes.set_xlabel(words)


def ratio_text(value: float) -> str:
    return f"{value:.3g}"


def draw_mark(axes: Axes, mark: Mark, y: float, style: Style) -> None:
    axes.plot([mark.low, mark.high], [y, y], color=style.colour, linewidth=1.4, alpha=0.6, zorder=2)
    axes.plot([mark.value], [y], color=style.colour, marker=style.marker, markersize=5, zorder=3)


def as_mark(ratio: Estimate | None) -> Mark | None:
    if ratio is None:
        return None
    half = ratio.half or 0.0 if ratio.n >= ENOUGH_SEEDS else 0.0  # that of two seeds spans decades
    return Mark(math.exp(ratio.mean), math.exp(ratio.mean - half), math.exp(ratio.mean + half))


def in_points(score: Difference | None, scale: Scale) -> Mark | None:
    if score is None:
        return None
    ends = score.ends if score.n >= ENOUGH_SEEDS else (score.mean, score.mean)
    return Mark(*(scale.factor * value for value in (score.mean, *ends)))


def key_places(names: Sequence[str], styles: Mapping[str, Style], width: float) -> list[tuple[str, float, int]]:
    """Name, place and line of each variant in the key, over as many lines as they need."""
    places, x, line = [], 6.0, 0
    for name in names:
        needed = 28 + text_size(name, SMALL, styles[name].weight)[0]
        if x + needed > width and x > 6.0:
            x, line = 6.0, line + 1
        places.append((name, x, line))
        x += needed
    return places


def draw_key(
    sheet: Sheet, places: Sequence[tuple[str, float, int]], styles: Mapping[str, Style], left: float, bottom: float,
    height: float,
) -> None:  # fmt: skip
    """Writes the names of the variants with their marks above the panels."""
    axes = sheet.axes(left, bottom, WIDTH - left - 20, height)
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH - left - 20)
    axes.set_ylim(height, 0)
    box = axes.get_window_extent()
    for name, x, line in places:
        style, y = styles[name], (line + 0.5) * KEY_LINE
        axes.plot([x], [y], color=style.colour, marker=style.marker, markersize=6)
        write(sheet.figure, name, box.x0 + x + 10, box.y1 - y, ha="left", weight=style.weight)


def chart_notes(ablation: Ablation) -> list[str]:
    effects = [e for own in ablation.effects.values() for e in own]
    seeds = max((len(e.row.finished) for e in effects), default=0)
    notes = ["Left of 1 is less memory; right of 1 is faster."]
    enough = f"Lines: 95 % intervals over {seeds} seeds."
    notes.append(enough if seeds >= ENOUGH_SEEDS else f"Fewer than {ENOUGH_SEEDS} seeds: no intervals.")
    if apart := list(dict.fromkeys(e.tip for e in effects if not on_chart(e))):
        notes.append(f"Not drawn: {', '.join(apart)} (see the table).")
    failed = {name: [e.tip for e in own if not e.row.finished] for name, own in ablation.effects.items()}
    said = "; ".join(f"{name}: {', '.join(tips)}" for name, tips in failed.items() if tips)
    return [" ".join(notes), *([f"Without a result: {said}."] if said else [])]
