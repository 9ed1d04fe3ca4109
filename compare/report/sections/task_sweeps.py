"""A task at several values of one of its options: up to which value each variant scores well, and with what state."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.facts.stats import ENOUGH_SEEDS
from compare.report.facts.task_sweeps import TaskSweep, baseline_lines
from compare.report.render.axes import log_ticks, memory_ticks, score_axis
from compare.report.render.canvas import (
    SMALL,
    SOFT,
    TRIVIAL,
    WIDTH,
    MarginLabel,
    Sheet,
    Style,
    draw_margin,
    folded,
    margin_height,
    margin_width,
    text_size,
    write,
)
from compare.report.sections.groups import of_group
from compare.report.sections.section import Chart, Section, Table
from compare.report.sections.wording import NAMED, no_ranking, score_text, short
from compare.units import MISSING, SPACE, joined, plural, sentence, size

HELD = 0.9  # the score that counts as good
DOUBLING = 1.5  # values that grow by this factor or more from one to the next get a logarithmic axis
MOST_TICKS = 10
LINE = 20.0  # pixels for each variant in the panel of states


def held(sweep: TaskSweep) -> str:
    """One sentence: the values at which each variant scores `HELD` or more; "" where scores are not fractions."""
    if not sweep.groups[0].scale.is_fraction:
        return ""
    rows = {name: row for name, row in sweep.rows.items() if next(iter(row.values())).attends}
    values = [value for value, _ in sweep.points]
    reached: dict[str, list[str]] = {}
    scores = {name: by_value for name, by_value in sweep.scores.items() if name in rows}
    for name, by_value in scores.items():
        good = [value for value in values if value in by_value and by_value[value].mean >= HELD]
        reached.setdefault(range_words(values, good), []).append(name)
    parts = "; ".join(f"{joined(names, NAMED)} {words}" for words, names in reached.items())
    fewest = min((score.n for by_value in scores.values() for score in by_value.values()), default=0)
    unsure = "" if fewest >= ENOUGH_SEEDS else f" {no_ranking(fewest)}"
    tried = f"with {sweep.option} from {values[0]:g} to {values[-1]:g}"
    return f"{sentence(sweep.groups[0].metric)} of {100 * HELD:g}{SPACE}% or more {tried}: {parts}{unsure}."


def range_words(values: Sequence[float], good: Sequence[float]) -> str:
    """The good ones among the rising values, in words."""
    if not good:
        return "at none"
    if len(good) == len(values):
        return "at every value"
    if list(values[: len(good)]) == list(good):
        return f"up to {good[-1]:g}"
    if list(values[-len(good) :]) == list(good):
        return f"from {good[0]:g} on"
    return f"at {', '.join(f'{value:g}' for value in good)}"


def kept_state(sweep: TaskSweep) -> str:
    """One sentence on the state of each variant, the largest first; "" where no record has it."""
    states = {name: state.mean for name in sweep.rows if (state := sweep.state(name))}
    ranked = sorted(states, key=lambda name: -states[name])
    sizes = short([f"{name} {size(states[name])}" for name in ranked])
    return f"State of one layer, per sample: {sizes}." if states else ""


def describe_sweep(sweep: TaskSweep) -> str:
    """The chart in words: the first and the last point of each line."""
    lines = []
    for name, by_value in sweep.scores.items():
        scored = [(value, score.mean) for value, score in by_value.items()]
        if scored:
            (first, start), (last, end) = scored[0], scored[-1]
            lines.append(f"{name} from {sweep.scale.show(start)} at {first:g} to {sweep.scale.show(end)} at {last:g}")
    return f"{sweep.heading}. {short(lines)}. {kept_state(sweep)}".strip()


def sections(overview: Overview) -> list[Section]:
    return [
        Section(
            *(sweep.heading, f"sweep-{number}"),
            sentences=[words for words in (held(sweep), kept_state(sweep)) if words],
            tables=[Table(sweep.heading, *task_sweep_table(sweep), anchor=sweep.stem)],
            charts=[sweep_chart(sweep)] if any(sweep.scores.values()) else [],
            parts=[value_section(overview, sweep, value, group) for value, group in sweep.points],
            charts_first=True,
        )
        for number, sweep in enumerate(overview.sweeps)
    ]


def value_section(overview: Overview, sweep: TaskSweep, value: float, group: Group) -> Section:
    """The results at one value, without charts, folded."""
    section = of_group(group, overview.anchor(group))
    return replace(section, title=f"{sweep.option}={value:g}", folded=True, charts=())


def sweep_chart(sweep: TaskSweep) -> Chart:
    return Chart(sweep.stem, describe_sweep(sweep), partial(draw_sweep, sweep), sweep.stem)


def draw_sweep(sweep: TaskSweep, styles: Mapping[str, Style]) -> Figure:
    """Draws the score against the option, a line for each variant; below, the state of each variant."""
    lines = {name: line for name, line in sweep.scores.items() if line}
    trivial = baseline_lines(sweep.points)
    texts = {name: folded(name) for name in lines}
    trivial_texts = {name: folded(f"{name} {sweep.scale.show(line[-1][1])}", 20) for name, line in trivial.items()}
    margin = [*texts.values(), *trivial_texts.values()]
    states = {name: state.mean for name in lines if (state := sweep.state(name))}
    plot, panel = max(330.0, 1.1 * margin_height(margin)), LINE * len(states)
    below = panel + 84 if states else 0.0
    shown = [next(iter(sweep.rows[name].values())) for name in lines]
    sheet = Sheet(sweep.heading, sweep.groups[0].machine, sweep_notes(sweep), shown, body=plot + below + 86)
    axes = sheet.axes(78, below + 62, WIDTH - 78 - margin_width(margin), plot)
    set_axes(axes, sweep)
    labels = []
    for name, baseline in trivial.items():
        axes.plot(*zip(*baseline, strict=True), color=SOFT, linewidth=1.0, linestyle=TRIVIAL, zorder=1)
        labels.append(MarginLabel(*baseline[-1], trivial_texts[name], Style(SOFT, TRIVIAL, "")))
    for name, line in reversed(lines.items()):
        draw_line(axes, sweep, name, styles[name])
        value, score = list(line.items())[-1]
        labels.append(MarginLabel(value, score.mean, texts[name], styles[name]))
    draw_margin(axes, labels)
    if states:
        draw_states(sheet, states, styles, panel)
    return sheet.figure


def set_axes(axes: Axes, sweep: TaskSweep) -> None:
    values = [value for value, _ in sweep.points]
    ticks = values[:: -(-len(values) // MOST_TICKS)]
    if values[0] > 0 and all(high >= DOUBLING * low for low, high in pairwise(values)):
        axes.set_xlim(values[0] / 1.1, values[-1] * 1.1)
        log_ticks(axes, "x", ticks, lambda value: f"{value:g}")
        axes.set_xlabel(f"{sweep.option} (logarithmic)")
    else:
        axes.set_xticks(ticks, labels=[f"{value:g}" for value in ticks])
        axes.set_xlabel(sweep.option)
    scores = [
        *(
            score
            for name, by_value in sweep.scores.items()
            for value in by_value
            for score in seeds_at(sweep, name, value)
        ),
        *(value for line in baseline_lines(sweep.points).values() for _, value in line),
    ]
    score_axis(axes, sweep.score_words, scores, sweep.scale)


def seeds_at(sweep: TaskSweep, name: str, value: float) -> list[float]:
    return list(sweep.rows[name][value].scores.values())


def draw_line(axes: Axes, sweep: TaskSweep, name: str, style: Style) -> None:
    """Draws the means of one variant and its seeds."""
    scores = sweep.scores[name]
    axes.plot(
        *(list(scores), [score.mean for score in scores.values()]),
        color=style.colour,
        linestyle=style.dash,
        linewidth=style.width,
        marker=style.marker,
        markersize=6,
        zorder=3,
    )
    for value, score in scores.items():
        if score.n > 1:
            seeds = seeds_at(sweep, name, value)
            axes.plot([value] * score.n, seeds, color=style.colour, linewidth=0.9, marker=".", alpha=0.6, zorder=2)


def draw_states(sheet: Sheet, states: Mapping[str, float], styles: Mapping[str, Style], height: float) -> None:
    """Draws a line for each variant, the largest state on top: its name, a mark at its bytes, the bytes in words."""
    order = sorted(states, key=lambda name: -states[name])
    left = 26 + max(text_size(name, SMALL)[0] for name in order)
    right = 26 + max(text_size(size(state), SMALL)[0] for state in states.values())
    axes = sheet.axes(left, 48, WIDTH - left - right, height)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("state of one layer, per sample (logarithmic)")
    positive = [state for state in states.values() if state > 0] or [1.0]
    low, high = min(positive) / 2, max(positive) * 1.2
    axes.set_xlim(low, high)
    log_ticks(axes, "x", memory_ticks(low, high), size)
    box = axes.get_window_extent()
    for line, name in enumerate(order):
        style, state = styles[name], states[name]
        if state > 0:
            axes.plot([low, state], [line, line], color=style.colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
            axes.plot([state], [line], color=style.colour, marker=style.marker, markersize=6)
        middle = float(axes.transData.transform((low, line))[1])
        write(sheet.figure, name, box.x0 - 8, middle, ha="right", weight=style.weight)
        write(sheet.figure, size(state), box.x1 + 8, middle, ha="left")


def sweep_notes(sweep: TaskSweep) -> list[str]:
    counts = sorted({score.n for by_value in sweep.scores.values() for score in by_value.values()})
    most = counts[-1]
    note = f"Mean of {most} seeds; dots: each seed." if most > 1 else "One seed."
    if len(counts) > 1:
        note = f"Mean of {counts[0]} to {most} {plural(most, 'seed')}; dots: each seed."
    missing = [name for name, by_value in sweep.scores.items() if len(by_value) < len(sweep.rows[name])]
    return [note, *([f"Without a score at some values: {', '.join(missing)}."] if missing else [])]


def task_sweep_table(sweep: TaskSweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the state of each variant, and its score at each value."""
    body = []
    for name, by_value in sweep.rows.items():
        state = sweep.state(name)
        rows, scores = [by_value.get(value) for value, _ in sweep.points], sweep.scores[name]
        texts = [score_text(scores.get(value), sweep.scale) for value, _ in sweep.points]
        cells = [row.status if row and not row.scores else text for row, text in zip(rows, texts, strict=True)]
        body.append([name, size(state.mean) if state else MISSING, *cells])
    return [
        "variant",
        "state a layer",
        *(f"{sweep.option}={value:g}, {sweep.scale.unit}" for value, _ in sweep.points),
    ], body
