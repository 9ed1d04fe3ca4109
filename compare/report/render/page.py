"""One self-contained HTML page, without network or files beside it, for screens, phones, paper and screen readers."""

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compare.report.render.families import colour_of, in_order
from compare.report.render.runs import details_of, list_runs
from compare.report.sections import TITLE, Document
from compare.report.sections.section import Section

HERE = Path(__file__).parent
IN_A_URL = {ord(sign): f"%{ord(sign):02X}" for sign in "%#'&:"}
RUNS = Section("Every run", "runs")
COMMANDS = Section("Commands that produced this report", "commands")


class Drawing(NamedTuple):
    """An SVG file as a data URL within single quotes, and its width and height as attributes of the image.

    With its size known, nothing on the page moves when the image loads.
    """

    data: Markup
    size: Markup


def html_page(report: Document, folder: Path) -> str:
    """The whole page. folder: holds the SVG files of the charts, which the page embeds."""
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
            group_numbers={f"table-{number}": number for number in range(len(groups))},
            first_run_anchors={run.row_id: run.anchor for run in reversed(runs)},
            drawing=lambda stem: embedded(folder / f"{stem}.svg"),
            runs_section=RUNS,
            runs_by_group=[(group, [run for run in runs if run.group is group]) for group in groups],
            commands_section=COMMANDS,
            run_details=Markup(details_of(runs)),
            style=Markup(asset("page.css")),
            script=Markup(asset("page.js")),
        )
    )


@cache
def environment() -> Environment:
    """The Jinja2 environment of the templates beside this file."""
    jinja = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.globals["zip"] = zip
    jinja.filters["breakable"] = breakable
    return jinja


def breakable(name: str) -> Markup:
    """A name as HTML that can wrap after an underscore."""
    return Markup(escape(name).replace("_", "_<wbr>"))


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def embedded(path: Path) -> Drawing:
    """The drawing in an SVG file, with its coordinates cut to two decimals of a point."""
    lines = re.compile(r' d="[^"]*"')
    text = lines.sub(lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), path.read_text(encoding="utf-8"))
    data = " ".join(text.split()).translate(IN_A_URL)
    view_box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', data)
    size = 'width="{:.0f}" height="{:.0f}"'.format(*map(float, view_box.groups())) if view_box else ""
    return Drawing(Markup(data), Markup(size))
