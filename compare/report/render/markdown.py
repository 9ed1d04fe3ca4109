"""The report as Markdown."""

import re
from collections.abc import Sequence

from compare.report.sections import TITLE, Document
from compare.report.sections.section import Chart, Section, Table

SIGNS = str.maketrans({"\\": r"\\", "`": r"\`", "&": "&amp;", "<": "&lt;"})
BRACKETS = str.maketrans({"[": r"\[", "]": r"\]"})


def markdown(text: str) -> str:
    """A text in one line of Markdown, escaped: no HTML, no code, no link or image, no second line."""
    return " ".join(text.translate(SIGNS).replace("](", "]\\(").splitlines())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def code(command: str) -> str:
    """A command as a code block, with a fence longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"{fence}sh\n{command}\n{fence}"


def markdown_report(report: Document) -> str:
    """The whole text of report.md."""
    parts = [f"# {TITLE}", *(f"> **Warning:** {markdown(warning)}" for warning in report.warnings)]
    for section in report.opening:
        parts += section_parts(section, 2)
    if lead := report.lead:
        parts += [*map(markdown, lead.sentences), *map(image, lead.charts), bullets(lead.notes)]
    parts += [f"Machine: {markdown(machine)}" for machine in report.machines]
    parts += map(code, report.commands)
    if not report.groups:
        parts.append("There are no records to report on.")
    for section in (*report.before, *report.results, *report.after):
        parts += section_parts(section, 2)
    return "\n\n".join(part for part in parts if part) + "\n"


def section_parts(section: Section, level: int) -> list[str]:
    """A section under a heading of this level; without a heading if it consists of titled parts only."""
    tables = [part for table in section.tables if not table.folded for part in table_parts(table, level + 1)]
    images = [image(chart) for chart in section.charts]
    words = [bullets(section.sentences)] if section.sentences else []
    body = [*images, *tables] if section.charts_first else [*words, *tables, *images]
    if section.parts and not body and all(part.title for part in section.parts):
        return [each for part in section.parts for each in section_parts(part, level)]
    head = [f"{'#' * level} {markdown(section.title)}"] if section.title else []
    return [*head, *body, *(each for part in section.parts for each in section_parts(part, level + 1))]


def table_parts(table: Table, level: int) -> list[str]:
    head = [f"{'#' * level} {markdown(table.title)}"] if table.title else []
    return [*head, markdown_table(table.header, table.rows), bullets(table.notes), bullets(table.findings)]


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def image(chart: Chart) -> str:
    return f"![{markdown(chart.alt).translate(BRACKETS)}](charts/{chart.stem}.png)"
