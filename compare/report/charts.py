"""Which charts a report has, and their files."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .accuracy import SPEED, WEIGHT, accuracy_chart
from .aggregate import Chart, Group, slug
from .canvas import DPI, STYLE, Style, choose_styles
from .curves import learning_curves
from .lengths import MEMORY, TIME, cost_against_length, crossover_chart
from .scaling import length_series, series_note


def write_charts(groups: Sequence[Group], folder: Path) -> list[Chart]:
    """Draw everything the groups allow, as PNG and SVG, and remove charts of earlier reports from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    styles = choose_styles(groups)
    drawn: list[Chart] = []
    with matplotlib.rc_context(STYLE):
        for chart, draw in plan(groups, styles):
            figure = draw()
            if figure is not None:
                save(figure, folder / chart.stem)
                drawn.append(chart)
    kept = {chart.stem for chart in drawn}
    for old in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        if old.stem not in kept:
            old.unlink()
    return drawn


def plan(groups: Sequence[Group], styles: Mapping[str, Style]) -> list[tuple[Chart, Callable[[], Figure | None]]]:
    """Each chart and how to draw it; drawing gives None where there is nothing to show."""
    charts: list[tuple[Chart, Callable[[], Figure | None]]] = []
    for group in groups:
        for against in (SPEED, WEIGHT):
            title = f"Test score against {against.words}: {group.title}"
            chart = Chart(f"{against.stem}_{group.slug}", title, group.slug)
            charts.append((chart, partial(accuracy_chart, group, against, styles)))
        for axis, words in (("step", "steps"), ("seconds", "seconds")):
            chart = Chart(f"curves_{words}_{group.slug}", f"Learning curves by {words}: {group.title}", group.slug)
            charts.append((chart, partial(learning_curves, group, axis, styles)))
    for series in length_series(groups):
        name = slug(series[0].task, series[0].where, series_note(series, groups))
        for stem, cost in (("cost_time", TIME), ("cost_memory", MEMORY)):
            chart = Chart(f"{stem}_{name}", f"{cost.title}: {series[0].task}", "")
            charts.append((chart, partial(cost_against_length, series, cost, styles)))
        chart = Chart(f"crossover_{name}", f"Length from which a variant is faster than full: {series[0].task}", "")
        charts.append((chart, partial(crossover_chart, series, styles)))
    return charts


def save(figure: Figure, path: Path) -> None:
    for suffix, dpi, metadata in ((".png", 2 * DPI, {"Software": None}), (".svg", DPI, {"Date": None})):
        temporary = path.with_name(f".{path.name}{suffix}.tmp")
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)
        os.replace(temporary, path.with_name(path.name + suffix))
