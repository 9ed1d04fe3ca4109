"""The chart files."""

import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from compare.record import naming, write_atomically
from compare.report.render.canvas import DPI, STYLE, Style, fonts
from compare.report.sections.section import Chart

SUFFIXES = (".png", ".svg")
FEWEST_SHARED = 4  # charts that are worth further processes
shared: Sequence[Callable[[], None]] = ()
"""What forked processes draw: functions that no message could carry."""


def write_charts(charts: Sequence[Chart], styles: Mapping[str, Style], out: Path) -> None:
    """Draw the charts as PNG and SVG into the folder ``charts``.

    Removes the charts of an earlier report, which charts.txt lists, and no other file.
    """
    folder, written = out / "charts", out / "charts.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # ignores the user's matplotlibrc
        matplotlib.rcParams.update(STYLE | {"font.family": fonts()})
        # A letter that no font has shows as a box on the chart; a warning for each drawing of it would only be noise.
        warnings.filterwarnings("ignore", r"Glyph .* missing from|Matplotlib currently does not support .* natively")
        draw_all([partial(draw, chart, styles, folder) for chart in charts])
    kept = [f"{chart.stem}{suffix}" for chart in charts for suffix in SUFFIXES]
    for old in listed(written) - set(kept):
        (folder / old).unlink(missing_ok=True)
    write_atomically(written, "".join(f"{name}\n" for name in kept))


def draw(chart: Chart, styles: Mapping[str, Style], folder: Path) -> None:
    save(chart.draw(styles), folder / chart.stem)


def draw_all(drawings: Sequence[Callable[[], None]]) -> None:
    """Draw in as many processes as there are cores, where the system can copy this one; a chart takes a second."""
    if sys.platform != "linux" or len(drawings) < FEWEST_SHARED:
        for each in drawings:
            each()
        return
    global shared
    shared = drawings
    warnings.filterwarnings("ignore", r"This process .* is multi-threaded")  # threads that no drawing needs
    fork, cores = multiprocessing.get_context("fork"), len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, fork, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        deque(pool.map(draw_shared, range(len(drawings))), maxlen=0)


def draw_shared(number: int) -> None:
    shared[number]()


def listed(path: Path) -> set[str]:
    """The chart files that the list at `path` names; other lines are ignored."""
    if not path.is_file():
        return set()
    names = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name for name in names if re.fullmatch(r"[\w.=-]+", name, re.ASCII) and name.endswith(SUFFIXES)}


def save(figure: Figure, path: Path) -> None:
    for suffix, dpi, metadata in zip(SUFFIXES, (2 * DPI, DPI), ({"Software": None}, {"Date": None}), strict=True):
        temporary = path.with_name(f".{path.name}{suffix}.tmp")
        with naming(path.with_name(path.name + suffix)):
            try:
                figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)
                os.replace(temporary, path.with_name(path.name + suffix))
            finally:
                temporary.unlink(missing_ok=True)
