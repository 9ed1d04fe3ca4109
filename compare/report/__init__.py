"""Reports drawn from records alone: charts, a Markdown report, a self-contained page and tables.

Nothing here imports torch: a report needs only the records.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from compare.fields import parse_json
from compare.record import read_records, write_atomically
from compare.report.facts.ablation import Ablation, ablations, split_tips, tables_of_tips
from compare.report.facts.equal_terms import match_scores
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.overview import Overview
from compare.report.facts.scaling import length_series
from compare.report.render.canvas import choose_styles
from compare.report.render.charts import write_charts
from compare.report.render.csv_table import TEXT, csv_table
from compare.report.render.latex import NEEDS, latex_tables
from compare.report.render.markdown import markdown_report
from compare.report.render.page import html_page
from compare.report.sections import TITLE, document, roofline
from compare.report.sections.ablation import table_of_tip
from compare.report.sections.answer import crossovers
from compare.report.sections.data import mixed_data
from compare.report.sections.lead import lead_of
from compare.report.sections.published import in_lines, published_tables
from compare.report.sections.section import Section, Table

__all__ = [
    "Report",
    "foreign_files",
    "in_short",
    "of_plan",
    "of_roofline",
    "of_tip",
    "read_source",
    "write_report",
    "write_report_many",
]

# Each file that a report writes has this text near its beginning.
MARKS = {
    "report.md": f"# {TITLE}",
    "report.html": f"<title>{TITLE}</title>",
    "table.csv": ",".join(TEXT[:4]),
    "table.tex": NEEDS,
}
BEGINNING = 1000  # bytes


class Report(NamedTuple):
    """The warnings and the first sentences of a written report."""

    warnings: list[str]
    sentences: list[str]


def foreign_files(folder: Path) -> list[str]:
    """The files in a folder that a report would replace, though no report wrote them."""
    return [name for name, mark in MARKS.items() if (folder / name).exists() and mark not in beginning(folder / name)]


def beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(BEGINNING).decode("utf-8", errors="replace")


def write_report(folder: Path, match: str = "end") -> Report:
    """Draw the report of one folder into that folder.

    Args:
        folder: holds records.jsonl and environment.json; receives report.md, report.html, table.csv, table.tex,
            charts/ and charts.txt, which lists them.
        match: the score that charts and reports compare: the test score at the "end" of each run's own training, or
            the validation score at equal "steps", "time" or "flops". The tables for papers hold the test score.

    Returns:
        The warnings, and the sentences that the report begins with.
    """
    return write_report_many([folder], folder, match)


def write_report_many(folders: Sequence[Path], out: Path, match: str = "end") -> Report:
    """Draw one report of several folders. Runs of different machines are in different groups.

    Args:
        folders: each holds records.jsonl and environment.json.
        out: receives report.md, report.html, table.csv, table.tex, charts/ and charts.txt, which lists them.
        match: as in `write_report`.

    Returns:
        The warnings, on what could not be read or compared, and the sentences that the report begins with.
    """
    sources, warnings = [], []
    for folder in folders:
        records, damaged = read_records(folder / "records.jsonl")
        environment, complaint = read_environment(folder / "environment.json")
        sources.append(Source(records, environment))
        warnings += damaged + complaint
    plain, tipped = split_tips(sources)
    ended = group_records(plain)
    groups = [match_scores(group, match) for group in ended]
    warnings += mixed_data(groups)
    report = document(groups, warnings, ablations(ended, tipped))
    ended += tables_of_tips(tipped)
    write_charts(report.charts, choose_styles(groups), out)
    write_atomically(out / "report.md", markdown_report(report))
    write_atomically(out / "table.csv", csv_table(ended))
    write_atomically(out / "table.tex", latex_tables(ended))
    write_atomically(out / "report.html", html_page(report, out / "charts"))
    return Report(warnings, [*(report.lead.sentences if report.lead else []), *in_lines(groups)])


def of_tip(folder: Path, tip: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what a tip changes, for each variant on each task of a folder.

    Raises:
        ValueError: no run of the folder has the tip.
    """
    header, rows = table_of_tip(tips_in(folder, (folder / "records.jsonl").stat().st_mtime_ns), tip)
    if not rows:
        raise ValueError(f"{folder} has no runs with the tip {tip!r}")
    return header, rows


@lru_cache(maxsize=1)
def tips_in(folder: Path, _changed: int) -> list[Ablation]:
    """What all tips of a folder change, read once for a page that shows each. _changed: when its records were."""
    plain, tipped = split_tips([read_source(folder)])
    return ablations(group_records(plain), tipped)


def of_plan(folder: Path) -> Table:
    """Our scores beside published ones, with what the report says of them.

    Raises:
        ValueError: no run of the folder repeats a published comparison.
    """
    tables = published_tables(group_records([read_source(folder)]))
    if not tables:
        raise ValueError(f"{folder} has no runs of python -m compare reproduce")
    return tables[0]


def of_roofline(folder: Path) -> Section:
    """What limits each variant: a chart, the rates of the machine, and a table.

    Raises:
        ValueError: the folder has no runs of ``cost`` that measured the rates.
    """
    found = roofline.sections(Overview(group_records([read_source(folder)])))
    if not found:
        raise ValueError(f"{folder} has no runs of python -m compare cost with the rates of the machine")
    return found[0].parts[0]


def in_short(folder: Path) -> tuple[str, list[str]]:
    """The stem of the chart that the report of a folder begins with, and the report's first sentences.

    Without scores the stem is "", and each sentence names the lengths from which variants are faster than full.
    """
    groups = group_records(split_tips([read_source(folder)])[0])
    if lead := lead_of(Overview(groups)):
        return lead.stem, [*lead.sentences, *lead.remarks]
    return "", [crossovers(series) for series in length_series(groups)]


def read_source(folder: Path) -> Source:
    """The records of a folder and their environment, without warnings."""
    records, _ = read_records(folder / "records.jsonl")
    return Source(records, read_environment(folder / "environment.json")[0])


def read_environment(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The environment stamp, or an empty one with a warning."""
    try:
        stamp = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        return {}, [f"{path}: the environment could not be read ({error}); the machine is unknown."]
    return (stamp, []) if isinstance(stamp, dict) else ({}, [f"{path}: not a JSON object; the machine is unknown."])
