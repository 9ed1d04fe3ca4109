"""Train short, test long: accuracy against the length of test samples, in a chart, a table and words."""

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.report.facts.groups import Group, Row
from compare.report.facts.scale import Scale
from compare.report.facts.stats import ENOUGH_SEEDS, Estimate, estimate
from compare.report.facts.test_lengths import baseline_at, changes, courses, seeds_at, size_at, test_lengths, tested_at
from compare.report.render.axes import log_ticks, score_axis
from compare.report.render.canvas import (
    SMALL,
    SOFT,
    TRIVIAL,
    WIDTH,
    MarginLabel,
    Sheet,
    Style,
    draw_margin,
    figure_of,
    folded,
    margin_height,
    margin_width,
    text_size,
    write,
)
from compare.report.render.labels import spread
from compare.report.sections.section import Chart, Section, Table
from compare.report.sections.wording import NAMED, fallback_notes, seeds_note, shown_name
from compare.units import MISSING, plain, plural

BASELINE = "best trivial predictor"


def failures_at(group: Group) -> list[str]:
    """ "naive at 65,536 (oom)", each once."""
    failures = [
        f"{row.name} at {length:,} ({status})"
        for row in group.rows
        for record in row.finished
        for length in test_lengths(group)
        if (status := str(tested_at(record, length).get("status", "not tested"))) != "ok"
    ]
    return list(dict.fromkeys(failures))


def part(group: Group) -> Section:
    if not test_lengths(group) or not courses(group):
        return Section()
    return Section(
        sentences=carried_over(group),
        tables=[Table(f"Score by test length: {group.title}", *table_by_length(group))],
        charts=[chart_by_length(group)],
    )


def chart_by_length(group: Group) -> Chart:
    alt = f"Test {group.metric} against test length: {group.title}. {describe_by_length(group)}".strip()
    return Chart(f"test_length_{group.slug}", alt, partial(draw_by_length, group))


def draw_by_length(group: Group, styles: Mapping[str, Style]) -> Figure:
    by_name, baseline = courses(group), baselines_of(group)
    rows = [row for row in group.rows if row.name in by_name]
    texts = {row.name: folded(shown_name(row)) for row in rows}
    column = [*texts.values(), *([BASELINE] if baseline else [])]
    plot = max(370.0, 1.15 * margin_height(column))
    title = f"Test {group.metric} against test length: {group.title}"
    sheet = Sheet(title, group.machine, chart_notes(group), rows, body=plot + 92)
    axes = sheet.axes(78, 62, WIDTH - 78 - margin_width(column), plot)
    set_axes(axes, group)
    margin = []
    if baseline:
        axes.plot(*zip(*baseline.items(), strict=True), color=SOFT, linewidth=1.0, linestyle=TRIVIAL, zorder=1)
        margin.append(MarginLabel(*list(baseline.items())[-1], BASELINE, Style(SOFT, TRIVIAL, "")))
    for row in rows:
        style, scores = styles[row.name], by_name[row.name]
        axes.errorbar(
            list(scores),
            [mean.mean for mean in scores.values()],
            yerr=[mean.half or 0.0 for mean in scores.values()],
            color=style.colour,
            linestyle=style.dash,
            linewidth=style.width,
            elinewidth=1,
            marker=style.marker,
            markersize=5,
            zorder=4 if row.is_reference else 3,
        )
        longest = max(scores)
        margin.append(MarginLabel(longest, scores[longest].mean, texts[row.name], style))
    draw_margin(axes, margin)
    return sheet.figure


def set_axes(axes: Axes, group: Group) -> None:
    """Sets the axes, with a vertical line at the training length."""
    lengths = test_lengths(group)
    axes.set_xlim(lengths[0] / 1.12, lengths[-1] * 1.04)
    log_ticks(axes, "x", lengths, lambda n: f"{n:,.0f}")
    axes.set_xlabel("length of test samples, tokens (logarithmic)")
    means = [mean.mean for scores in courses(group).values() for mean in scores.values()]
    score_axis(axes, f"test {group.metric}", [*means, *baselines_of(group).values()], group.scale)
    axes.axvline(group.seq_len, color="#bbbbbb", linewidth=1, zorder=1)
    box, label = axes.get_window_extent(), f"trained at {group.seq_len:,}"
    middle = float(axes.transData.transform((group.seq_len, 0))[0])
    (centre,) = spread([middle], [text_size(label, SMALL)[0]], box.x0, box.x1)
    write(figure_of(axes), label, centre, box.y1 + 9, ha="center")


def chart_notes(group: Group) -> list[str]:
    by_name = courses(group)
    rows = [row for row in group.rows if row.name in by_name]
    sizes = [f"{plain(size)} at {n:,}" for n in test_lengths(group) if (size := size_at(group, n))]
    notes = [
        f"Vertical line: the training length. {seeds_note({row.name: max_seeds(by_name[row.name]) for row in rows})}",
        f"Predictions scored: {', '.join(sizes)}.",
    ]
    if baselines_of(group):
        notes.append(f"Dashed: the {BASELINE} of each length.")
    if failed := failures_at(group):
        notes.append(f"Without a score: {', '.join(failed)}.")
    return notes + fallback_notes(rows)


def baselines_of(group: Group) -> dict[int, float]:
    """Length -> the best trivial predictor's score, where it is recorded."""
    return {n: value for n in test_lengths(group) if (value := baseline_at(group, n)) is not None}


def max_seeds(scores: Mapping[int, Estimate]) -> Estimate:
    return max(scores.values(), key=lambda mean: mean.n)


def table_by_length(group: Group) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the score of each variant at each length."""
    lengths, by_name = test_lengths(group), courses(group)
    header = ["variant", *(f"{n:,}{' (trained)' * (n == group.seq_len)}, {group.scale.unit}" for n in lengths)]
    body = [[row.name, *(cell(row, n, group.scale) for n in lengths)] for row in group.rows if row.name in by_name]
    baselines = [baseline_at(group, n) for n in lengths]
    if any(value is not None for value in baselines):
        scores = (MISSING if value is None else group.scale.number(Estimate(value, None, 1)) for value in baselines)
        body.append([BASELINE, *scores])
    return header, body


def cell(row: Row, length: int, scale: Scale) -> str:
    if mean := estimate(list(seeds_at(row, length).values())):
        return f"{scale.number(mean)} (n={mean.n})"
    statuses = (tested_at(record, length).get("status") for record in row.finished)
    return ", ".join(sorted({str(status) for status in statuses if status})) or MISSING


def carried_over(group: Group) -> list[str]:
    """A sentence on the longest test length: which variants keep the score of the training length there."""
    lengths, by_name = test_lengths(group), courses(group)
    if not lengths or lengths[-1] == group.seq_len:
        return []
    longest = lengths[-1]
    rows = [row for row in group.rows if row.attends and {group.seq_len, longest} <= by_name.get(row.name, {}).keys()]
    if not rows:
        return []
    drops = changes(group, rows, longest)
    words = {row.name: ends(row.name, group.scale, by_name[row.name], group.seq_len, longest) for row in rows}
    better = {name: group.scale.better(change.mean) for name, change in drops.items()}
    times = longest / group.seq_len
    begin = f"Trained at {group.seq_len:,} tokens and tested at {longest:,}, {times:.3g} times as long"
    few = [row.name for row in rows if row.name not in drops or drops[row.name].n < ENOUGH_SEEDS]
    if len(few) == len(rows):
        n = max((change.n for change in drops.values()), default=0)
        return [f"{begin}: {some(words, few)} ({n} {plural(n, 'seed')}: no verdict)."]
    judged = {name: change for name, change in drops.items() if name not in few}
    parts = [
        ("lose", [name for name, change in judged.items() if change.beyond and better[name] < 0]),
        ("gain", [name for name, change in judged.items() if change.beyond and better[name] > 0]),
        ("stay within noise", [name for name, change in judged.items() if not change.beyond]),
        ("too few seeds for a verdict", few),
    ]
    return [f"{begin}: " + "; ".join(f"{what}: {some(words, names)}" for what, names in parts if names) + "."]


def ends(name: str, scale: Scale, scores: Mapping[int, Estimate], *lengths: int) -> str:
    """ "full 99.8 % → 20.1 %"."""
    return f"{name} " + " → ".join(scale.show(scores[n].mean) for n in lengths)


def some(words: Mapping[str, str], names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    shown = [words[name] for name in names[: NAMED if rest > 1 else None]]
    return ", ".join(shown) + (f" and {rest} more" if rest > 1 else "")


def describe_by_length(group: Group) -> str:
    """The chart in words."""
    return " ".join(
        f"At {n:,}: {', '.join(f'{name} {group.scale.show(scores[n].mean)}' for name, scores in shown)}."
        for n in test_lengths(group)
        if (shown := [(name, scores) for name, scores in courses(group).items() if n in scores][:NAMED])
    )
