"""Sweeps of a task: one of its options at several values, how far each variant holds its score, and on what state."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from matplotlib.figure import Figure

from compare.quantities import LAYER_STATE
from compare.units import SPACE, joined, plural, sentence, size

from .aggregate import Group, Row, as_key, as_number, conditions_in_words, distinct_slugs, slug
from .canvas import (
    SMALL,
    SOFT,
    TRIVIAL,
    WIDTH,
    MarginLabel,
    Sheet,
    Style,
    draw_margin,
    folded,
    log_ticks,
    margin_height,
    margin_width,
    memory_ticks,
    score_axis,
    text_size,
    write,
)
from .scale import Scale
from .stats import ENOUGH_SEEDS, Estimate, estimate
from .summary import NAMED, no_ranking, short

HELD = 0.9  # the score that a variant is said to hold
DOUBLING = 1.5  # from one value to the next, at the least: on a logarithmic axis
MOST_TICKS = 10
LINE = 20.0  # pixels, of a variant in the panel of states


@dataclass(frozen=True)
class TaskSweep:
    """Groups that differ in one option of their task, by its rising value.

    Attributes:
        option: of the task.
        points: the values and their groups.
        title: what all of them share.
        slug: what its files are called; no two sweeps of a report share it.
    """

    option: str
    points: tuple[tuple[float, Group], ...]
    title: str
    slug: str = ""

    @property
    def scale(self) -> Scale:
        return self.points[0][1].scale

    @property
    def groups(self) -> list[Group]:
        return [group for _, group in self.points]

    @property
    def task(self) -> str:
        return self.groups[0].task

    @property
    def seq_len(self) -> int:
        return self.groups[0].seq_len

    @property
    def stem(self) -> str:
        return f"task_sweep_{self.slug}"

    @property
    def score_words(self) -> str:
        """What is scored; of what it was read at only as much as all values share."""
        first = self.groups[0]
        if len({group.basis for group in self.groups}) == 1:
            return first.basis.words(first.metric)
        return f"{first.basis.split} {first.metric} at equal terms"

    @property
    def heading(self) -> str:
        return f"{sentence(self.score_words)} against {self.option}: {self.title}"

    @property
    def rows(self) -> dict[str, dict[float, Row]]:
        """Name -> value -> the row there; the reference first, the control last."""
        found: dict[str, dict[float, Row]] = {}
        for value, group in self.points:
            for row in group.rows:
                found.setdefault(row.name, {})[value] = row
        return dict(sorted(found.items(), key=lambda item: next(iter(item[1].values())).is_control))

    @property
    def scores(self) -> dict[str, dict[float, Estimate]]:
        """Name -> value -> the score there, where there is one."""
        groups = dict(self.points)
        return {
            name: {value: found for value, row in rows.items() if (found := groups[value].score(row))}
            for name, rows in self.rows.items()
        }

    def state(self, name: str) -> Estimate | None:
        """Bytes that one layer keeps of the other positions."""
        values = [found.mean for row in self.rows[name].values() if (found := row.over_seeds(LAYER_STATE))]
        return estimate(values)


def task_sweeps(groups: Sequence[Group]) -> list[TaskSweep]:
    """Every option of a task that has two numbers or more among scored groups, all other conditions being equal."""
    found: dict[tuple[str, str, int, str, str], list[tuple[float, Group]]] = {}
    for group in groups:
        if any(row.scores for row in group.rows):
            for option, value in group.task_options.items():
                if (number := as_number(value)) is not None:
                    key = (*place_of(group), option, without(group, option))
                    found.setdefault(key, []).append((number, group))
    sweeps = []
    for (machine, task, seq_len, option, own), points in found.items():
        if len({value for value, _ in points}) > 1:
            rivals = [without(group, option) for group in groups if place_of(group) == (machine, task, seq_len)]
            extra = "; ".join(part for part in (conditions_in_words(own, rivals), points[0][1].where) if part)
            title = f"{task}, length {seq_len:,}" + (f" ({extra})" if extra else "")
            sweeps.append(TaskSweep(option, tuple(sorted(points, key=lambda point: point[0])), title))
    slugs = distinct_slugs([(slug(sweep.option), sweep.title) for sweep in sweeps])
    return [replace(sweep, slug=name) for sweep, name in zip(sweeps, slugs, strict=True)]


def place_of(group: Group) -> tuple[str, str, int]:
    return group.machine, group.task, group.seq_len


def without(group: Group, option: str) -> str:
    return as_key({name: value for name, value in json.loads(group.setting).items() if name != option})


def unswept(groups: Sequence[Group], sweeps: Sequence[TaskSweep]) -> list[Group]:
    """The groups that are no value of a sweep."""
    swept = {id(group) for sweep in sweeps for group in sweep.groups}
    return [group for group in groups if id(group) not in swept]


def representatives(groups: Sequence[Group], sweeps: Sequence[TaskSweep]) -> list[Group]:
    """As `groups`, but of each sweep only its largest value: what a step costs is told once."""
    others = {id(group) for sweep in sweeps for group in sweep.groups[:-1]}
    return [group for group in groups if id(group) not in others]


def held(sweep: TaskSweep) -> str:
    """One sentence: at which values each variant scores `HELD` or more; nothing where scores are no fractions."""
    if not sweep.groups[0].scale.is_fraction:
        return ""
    rows = {name: row for name, row in sweep.rows.items() if next(iter(row.values())).attends}
    values = [value for value, _ in sweep.points]
    reached: dict[str, list[str]] = {}
    scores = {name: found for name, found in sweep.scores.items() if name in rows}
    for name, found in scores.items():
        good = [value for value in values if value in found and found[value].mean >= HELD]
        reached.setdefault(range_words(values, good), []).append(name)
    parts = "; ".join(f"{joined(names, NAMED)} {words}" for words, names in reached.items())
    fewest = min((score.n for found in scores.values() for score in found.values()), default=0)
    unsure = "" if fewest >= ENOUGH_SEEDS else f" {no_ranking(fewest)}"
    tried = f"with {sweep.option} from {values[0]:g} to {values[-1]:g}"
    return f"{sentence(sweep.groups[0].metric)} of {100 * HELD:g}{SPACE}% or more {tried}: {parts}{unsure}."


def range_words(values: Sequence[float], good: Sequence[float]) -> str:
    """Which of the rising values are good."""
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
    """One sentence on what each variant keeps, the most first; nothing where no record tells it."""
    states = {name: state.mean for name in sweep.rows if (state := sweep.state(name))}
    ranked = sorted(states, key=lambda name: -states[name])
    told = short([f"{name} {size(states[name])}" for name in ranked])
    return f"What a layer keeps of one sample: {told}." if states else ""


def describe_sweep(sweep: TaskSweep) -> str:
    """The chart in words: where each line begins and ends."""
    told = []
    for name, found in sweep.scores.items():
        scored = [(value, score.mean) for value, score in found.items()]
        if scored:
            (first, start), (last, end) = scored[0], scored[-1]
            told.append(f"{name} from {sweep.scale.show(start)} at {first:g} to {sweep.scale.show(end)} at {last:g}")
    return f"{sweep.heading}. {short(told)}. {kept_state(sweep)}".strip()


def sweep_chart(sweep: TaskSweep, styles: Mapping[str, Style]) -> Figure | None:
    """The score against the option, a line a variant; below it the bytes of state that it has for that."""
    lines = {
        name: [(value, score, list(sweep.rows[name][value].scores.values())) for value, score in found.items()]
        for name, found in sweep.scores.items()
    }
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return None
    values = [value for value, _ in sweep.points]
    trivial = baseline_lines(sweep.points)
    texts = {name: folded(name) for name in lines}
    trivial_texts = {name: folded(f"{name} {sweep.scale.show(line[-1][1])}", 20) for name, line in trivial.items()}
    margin = [*texts.values(), *trivial_texts.values()]
    states = {name: state.mean for name in lines if (state := sweep.state(name))}
    plot, panel = max(330.0, 1.1 * margin_height(margin)), LINE * len(states)
    below = panel + 84 if states else 0.0
    shown = [next(iter(sweep.rows[name].values())) for name in lines]
    sheet = Sheet(sweep.heading, sweep.groups[0].machine, sweep_notes(sweep, lines), shown, body=plot + below + 86)
    axes = sheet.axes(78, below + 62, WIDTH - 78 - margin_width(margin), plot)
    ticks = values[:: -(-len(values) // MOST_TICKS)]
    if values[0] > 0 and all(high >= DOUBLING * low for low, high in pairwise(values)):
        axes.set_xlim(values[0] / 1.1, values[-1] * 1.1)
        log_ticks(axes, "x", ticks, lambda value: f"{value:g}")
        axes.set_xlabel(f"{sweep.option} (logarithmic)")
    else:
        axes.set_xticks(ticks, labels=[f"{value:g}" for value in ticks])
        axes.set_xlabel(sweep.option)
    score_axis(
        axes,
        sweep.score_words,
        [
            *(score for line in lines.values() for _, _, seeds in line for score in seeds),
            *(value for line in trivial.values() for _, value in line),
        ],
        sweep.scale,
    )
    labels = []
    for name, baseline in trivial.items():
        axes.plot(*zip(*baseline, strict=True), color=SOFT, linewidth=1.0, linestyle=TRIVIAL, zorder=1)
        labels.append(MarginLabel(*baseline[-1], trivial_texts[name], Style(SOFT, TRIVIAL, "")))
    for name, line in reversed(lines.items()):
        style = styles[name]
        axes.plot(
            *([value for value, _, _ in line], [score.mean for _, score, _ in line]),
            color=style.colour,
            linestyle=style.dash,
            linewidth=style.width,
            marker=style.marker,
            markersize=6,
            zorder=3,
        )
        for value, score, seeds in line:
            if score.n > 1:
                axes.plot([value] * score.n, seeds, color=style.colour, linewidth=0.9, marker=".", alpha=0.6, zorder=2)
        value, score, _ = line[-1]
        labels.append(MarginLabel(value, score.mean, texts[name], style))
    draw_margin(axes, labels)
    if states:
        draw_states(sheet, states, styles, panel)
    return sheet.figure


def draw_states(sheet: Sheet, states: Mapping[str, float], styles: Mapping[str, Style], height: float) -> None:
    """A line a variant, the most on top: its name, a mark at its bytes, and the bytes in words."""
    order = sorted(states, key=lambda name: -states[name])
    left = 26 + max(text_size(name, SMALL)[0] for name in order)
    right = 26 + max(text_size(size(state), SMALL)[0] for state in states.values())
    axes = sheet.axes(left, 48, WIDTH - left - right, height)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("state: what one layer keeps of a sample (logarithmic)")
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


def baseline_lines(points: Sequence[tuple[float, Group]]) -> dict[str, list[tuple[float, float]]]:
    """Trivial predictors and their scores at each value."""
    found: dict[str, list[tuple[float, float]]] = {}
    for value, group in points:
        for name, score in group.baselines.items():
            found.setdefault(name, []).append((value, score))
    return found


def sweep_notes(sweep: TaskSweep, lines: Mapping[str, Iterable[tuple[float, Estimate, list[float]]]]) -> list[str]:
    counts = sorted({score.n for line in lines.values() for _, score, _ in line})
    most = counts[-1]
    note = f"Mean of {most} seeds; dots: each seed." if most > 1 else "One seed."
    if len(counts) > 1:
        note = f"Mean of {counts[0]} to {most} {plural(most, 'seed')}; dots: each seed."
    missing = [name for name, found in sweep.scores.items() if len(found) < len(sweep.rows[name])]
    return [note, *([f"Without a score at some values: {', '.join(missing)}."] if missing else [])]
