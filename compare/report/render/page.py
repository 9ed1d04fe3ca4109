"""One self-contained HTML page: no network, no files beside it, readable on a phone, on paper and by ear."""

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compare.report.render.families import colour_of, in_order
from compare.report.render.runs import list_runs, told_of
from compare.report.sections import TITLE, Document
from compare.report.sections.section import Section

HERE = Path(__file__).parent
IN_A_URL = {ord(sign): f"%{ord(sign):02X}" for sign in "%#'&:"}
RUNS = Section("Every run", "runs")
COMMANDS = Section("The commands that made this", "commands")


class Drawing(NamedTuple):
    """An SVG file fit for a data URL in single quotes, and its width and height as attributes, so that nothing on the
    page moves when it appears."""

    data: Markup
    size: Markup


def html_page(report: Document, folder: Path) -> str:
    """The whole page. folder: where the charts' SVG files lie, to be embedded."""
    groups = report.groups
    runs = list_runs(groups)
    families = in_order({row.family for group in groups for row in group.rows})
    contents = [*report.opening, *report.before, *report.results, *report.after]
    contents += ([RUNS] if runs else []) + ([COMMANDS] if report.commands else [])
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=TITLE,
            report=report,
            contents=contents,
            families=[(family, colour_of(family)) for family in families],
            numbers={f"table-{number}": number for number in range(len(groups))},
            first_runs={run.row_id: run.anchor for run in reversed(runs)},
            drawing=lambda stem: embedded(folder / f"{stem}.svg"),
            runs=RUNS,
            run_groups=[(group, [run for run in runs if run.group is group]) for group in groups],
            commands=COMMANDS,
            told=Markup(told_of(runs)),
            style=Markup(asset("page.css")),
            script=Markup(asset("page.js")),
        )
    )


@cache
def environment() -> Environment:
    """Of the templates beside this file."""
    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["zip"] = zip
    found.filters["breakable"] = breakable
    return found


def breakable(name: str) -> Markup:
    """A name that may go on in the next line behind an underscore."""
    return Markup(escape(name).replace("_", "_<wbr>"))


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def embedded(path: Path) -> Drawing:
    """Two decimals of a point are enough on a page."""
    lines = re.compile(r' d="[^"]*"')
    text = lines.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), path.read_text(encoding="utf-8"))
    data = " ".join(text.split()).translate(IN_A_URL)
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', data)
    size = 'width="{:.0f}" height="{:.0f}"'.format(*map(float, found.groups())) if found else ""
    return Drawing(Markup(data), Markup(size))
