"""The rooms of a report: facts, sections, renderers; what docs/extending.md adds to them."""

import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from compare import quantities
from compare.fields import FIELDS
from compare.quantities import QUANTITIES, Quantity
from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.render.csv_table import csv_table
from compare.report.sections import AFTER, BEFORE, RESULTS
from compare.report.sections.results import COLUMNS
from compare.report.sections.section import Chart, Section, Table
from tests.drawn import drawn
from tests.make_records import many_records, swept_recall
from tests.test_report import groups_of

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "compare/report"
EXTENDING = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


def imports_of(path: Path) -> list[str]:
    return re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_facts_know_neither_sections_nor_drawings() -> None:
    for path in (REPORT / "facts").glob("*.py"):
        wrong = [name for name in imports_of(path) if re.match(r"matplotlib|compare\.report\.(sections|render)", name)]
        assert wrong == [], path.name


def test_renderers_know_no_subject() -> None:
    known = {"section", "flags", "wording"}
    for path in (REPORT / "render").glob("*.py"):
        found = {name.split(".")[3] for name in imports_of(path) if name.startswith("compare.report.sections.")}
        assert found <= known, path.name


def test_each_subject_gives_titled_sections_with_anchors_of_their_own() -> None:
    overview = Overview(groups_of([*many_records((512, 1024), 1), *swept_recall()]))
    found = [section for subject in (*BEFORE, *RESULTS, *AFTER) for section in subject.sections(overview)]
    assert all(section.title for section in found)
    assert len({section.anchor for section in found}) == len(found)
    assert all(chart.alt for section in found for chart in section.all_charts)


def block(heading: str, language: str = "python") -> str:
    section = EXTENDING.partition(f"\n## {heading}\n")[2]
    found = re.search(rf"^ *```{language}\n(.*?)^ *```$", section, re.M | re.S)
    assert found
    return found[1]


def test_the_chart_of_the_documentation_is_drawn() -> None:
    groups = groups_of(many_records((1024,), 1))
    names: dict[str, object] = {}
    exec(compile(block("Add a chart"), "parameters.py", "exec"), names)
    part = names["part"]
    assert callable(part)
    section: Section = part(groups[0])
    (chart,) = section.charts
    figure = drawn(chart, groups)
    assert figure is not None
    assert any("parameters (logarithmic" in text.get_text() for text in figure.findobj(Text))


def test_the_quantity_of_the_documentation_is_one() -> None:
    found = eval(block("Add a quantity").strip(), vars(quantities))
    assert isinstance(found, Quantity)
    assert found.show(12_345) == "12.3\N{NO-BREAK SPACE}k"


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.field)
def test_a_quantity_is_read_and_written(quantity: Quantity) -> None:
    assert FIELDS[quantity.field] is quantity.kind
    assert (quantity.spread_field in FIELDS) is quantity.quartiles
    head = csv_table([]).splitlines()[0].split(",")
    assert (f"{quantity.title} [{quantity.unit}]" in head) is bool(quantity.unit)
    if quantity.column is not None:
        assert quantity.column in [column.title for column in COLUMNS]


def test_tables_and_charts_of_a_group_lead_to_its_numbers() -> None:
    overview = Overview(groups_of(many_records((1024,), 1)))
    (section,) = RESULTS[1].sections(overview)
    main = [table for table in section.tables if table.of]
    assert isinstance(main[0], Table)
    assert isinstance(main[0].of, Group)
    assert {chart.numbers for chart in section.charts} == {main[0].anchor}
    assert all(isinstance(chart, Chart) for chart in section.charts)
