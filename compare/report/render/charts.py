"""The chart files."""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from compare.record import naming, write_atomically
from compare.report.render.canvas import DPI, STYLE, Style, fonts
from compare.report.sections.section import Chart

SUFFIXES = (".png", ".svg")


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
        for chart in charts:
            save(chart.draw(styles), folder / chart.stem)
    kept = [f"{chart.stem}{suffix}" for chart in charts for suffix in SUFFIXES]
    for old in listed(written) - set(kept):
        (folder / old).unlink(missing_ok=True)
    write_atomically(written, "".join(f"{name}\n" for name in kept))


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
