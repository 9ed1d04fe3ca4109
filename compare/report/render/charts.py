"""The files of charts."""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from compare.record import naming, write_atomically
from compare.report.facts.groups import Group
from compare.report.facts.scaling import length_series, longest_decoded, series_note
from compare.report.facts.sweeps import capacity_group
from compare.report.facts.task_sweeps import representatives, task_sweeps, unswept
from compare.report.facts.test_lengths import test_lengths
from compare.report.facts.values import distinct_slugs
from compare.report.render.canvas import DPI, STYLE, Style, choose_styles, fonts
from compare.report.sections.accuracy import SPEED, accuracy_chart, describe_accuracy, weight_of
from compare.report.sections.capacity import STEP, state_of
from compare.report.sections.curves import describe_curves, learning_curves
from compare.report.sections.decoding import DECODING, describe_decoding, time_against_state
from compare.report.sections.heat_map import HEAT, draw_heat_map, heat_maps
from compare.report.sections.lengths import (
    STATE,
    TIME,
    TOKEN,
    cost_against_length,
    crossover_chart,
    describe_cost,
    describe_crossovers,
    memory_cost,
)
from compare.report.sections.section import Chart
from compare.report.sections.task_sweeps import describe_sweep, sweep_chart
from compare.report.sections.test_lengths import chart_by_length, describe_by_length
from compare.units import sentence

SUFFIXES = (".png", ".svg")


def write_charts(groups: Sequence[Group], out: Path) -> list[Chart]:
    """Draw everything the groups allow, as PNG and SVG, into the folder ``charts``.

    Of the files there those go that an earlier report drew, as charts.txt lists them; all others stay.
    """
    folder, written = out / "charts", out / "charts.txt"
    folder.mkdir(parents=True, exist_ok=True)
    styles = choose_styles(groups)
    drawn: list[Chart] = []
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # not those of a user's matplotlibrc
        matplotlib.rcParams.update(STYLE | {"font.family": fonts()})
        # A letter that no font here has is a box on the chart, and not a line for each time that it is drawn.
        warnings.filterwarnings("ignore", r"Glyph .* missing from|Matplotlib currently does not support .* natively")
        for chart, draw in plan(groups, styles):
            figure = draw()
            if figure is not None:
                save(figure, folder / chart.stem)
                drawn.append(chart)
    kept = [f"{chart.stem}{suffix}" for chart in drawn for suffix in SUFFIXES]
    for old in listed(written) - set(kept):
        (folder / old).unlink(missing_ok=True)
    write_atomically(written, "".join(f"{name}\n" for name in kept))
    return drawn


def listed(path: Path) -> set[str]:
    """The charts that a list names, whatever else was written into it."""
    if not path.is_file():
        return set()
    names = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name for name in names if re.fullmatch(r"[\w.=-]+", name, re.ASCII) and name.endswith(SUFFIXES)}


def plan(groups: Sequence[Group], styles: Mapping[str, Style]) -> list[tuple[Chart, Callable[[], Figure | None]]]:
    """Each chart and how to draw it; drawing gives None where there is nothing to show."""
    sweeps = task_sweeps(groups)
    charts: list[tuple[Chart, Callable[[], Figure | None]]] = [
        (Chart(sweep.stem, describe_sweep(sweep), sweep.stem), partial(sweep_chart, sweep, styles)) for sweep in sweeps
    ]
    for group in unswept(groups, sweeps):
        for against in (SPEED, weight_of(group.rows)):
            title = f"{sentence(group.basis.words('score'))} against {against.words}: {group.title}"
            alt = f"{title}. {describe_accuracy(group, against)}"
            chart = Chart(f"{against.stem}_{group.slug}", alt.strip(), group.slug)
            charts.append((chart, partial(accuracy_chart, group, against, styles)))
        if capacity := capacity_group(group):
            for against in (state_of(capacity.rows), STEP):
                title = f"Capacity: {group.basis.words('score')} against {against.words}: {group.title}"
                alt = f"{title}. {describe_accuracy(capacity, against)}"
                chart = Chart(f"{against.stem}_{group.slug}", alt.strip(), group.slug)
                charts.append((chart, partial(accuracy_chart, capacity, against, styles)))
        for axis, words in (("step", "steps"), ("seconds", "seconds")):
            alt = f"Learning curves by {words}: {group.title}. {describe_curves(group, axis)}"
            chart = Chart(f"curves_{words}_{group.slug}", alt.strip(), group.slug)
            charts.append((chart, partial(learning_curves, group, axis, styles)))
        if test_lengths(group):
            alt = f"Test {group.metric} against test length: {group.title}. {describe_by_length(group)}"
            chart = Chart(f"test_length_{group.slug}", alt.strip(), group.slug)
            charts.append((chart, partial(chart_by_length, group, styles)))
    groups = representatives(groups, sweeps)
    found = length_series(groups)
    names = distinct_slugs([(series[0].task, series[0].where, series_note(series, groups)) for series in found])
    for series, name in zip(found, names, strict=True):
        decoded = series[0].decodes
        place, time, other = (DECODING, TOKEN, STATE) if decoded else ("", TIME, memory_cost(series))
        for cost in (time, other):
            alt = f"{cost.title}: {series[0].task}. {describe_cost(series, cost)}"
            chart = Chart(f"{cost.stem}_{name}", alt.strip(), place)
            charts.append((chart, partial(cost_against_length, series, cost, styles)))
        stem, words = ("decode_crossover", "decodes") if decoded else ("crossover", "is")
        alt = f"Length from which a variant {words} faster than full: {series[0].task}. "
        chart = Chart(f"{stem}_{name}", alt + describe_crossovers(series, time), place)
        charts.append((chart, partial(crossover_chart, series, time, styles)))
    for group in longest_decoded(groups):
        alt = f"Time per token against state: {group.title}. {describe_decoding(group)}"
        chart = Chart(f"decode_{group.slug}", alt.strip(), DECODING)
        charts.append((chart, partial(time_against_state, group, styles)))
    charts += [(Chart(heat.stem, heat.alt, HEAT), partial(draw_heat_map, heat)) for heat in heat_maps(groups)]
    return charts


def save(figure: Figure, path: Path) -> None:
    for suffix, dpi, metadata in zip(SUFFIXES, (2 * DPI, DPI), ({"Software": None}, {"Date": None}), strict=True):
        temporary = path.with_name(f".{path.name}{suffix}.tmp")
        with naming(path.with_name(path.name + suffix)):
            try:
                figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)
                os.replace(temporary, path.with_name(path.name + suffix))
            finally:
                temporary.unlink(missing_ok=True)
