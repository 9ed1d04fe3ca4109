"""The table of all variants and tasks: its verdicts, its links, and where it stands."""

import re

import pytest

from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.sections.matrix import sections
from compare.report.sections.section import Cell
from compare.units import percent
from tests.drawn import markdown_of, page_of
from tests.make_records import Record, make_record
from tests.test_heatmap import groups_of, scored
from tests.test_metric import in_bits


def cells_of(groups: list[Group]) -> dict[str, list[Cell]]:
    ((table,),) = (section.tables for section in sections(Overview(groups)))
    return {cells[0].text: list(cells[1:]) for cells in table.cells}


def two_tasks() -> list[Record]:
    records = scored("full", "bytes", [0.50, 0.51, 0.52]) + scored("full", "mqar", [0.9, 0.9, 0.9])
    for variant, scores, others in (
        ("linear", [0.40, 0.41, 0.42], [0.899, 0.901, 0.9]),
        ("local", [0.60, 0.61, 0.62], [0.99, 0.5, 0.8]),
    ):
        records += scored(variant, "bytes", scores) + scored(variant, "mqar", others)
    return records


def test_each_cell_has_the_verdict_against_full() -> None:
    cells = cells_of(groups_of(two_tasks()))
    verdicts = {name: [cell.verdict for cell in found] for name, found in cells.items()}
    assert verdicts == {"full": ["", ""], "linear": ["worse", "as good"], "local": ["better", "inconclusive"]}
    assert [cell.text for cell in cells["full"]] == [percent(0.51), percent(0.9)]
    assert [cell.text for cell in cells["linear"]] == ["▼ −10.0", "≈ +0.0"]
    assert cells["local"][0].text == "▲ +10.0"
    assert cells["local"][1].text.startswith("? −")


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_no_verdict(seeds: int) -> None:
    records = [record for record in two_tasks() if record["seed"] < seeds]
    cells = cells_of(groups_of(records))
    assert {cell.verdict for cell in cells["linear"]} == {"no verdict"}
    assert {cell.verdict for cell in cells["full"]} == {""}


def test_what_failed_or_did_not_run_leads_nowhere() -> None:
    records = two_tasks() + scored("linformer", "mqar", [0.0], status="oom")
    cells = cells_of(groups_of(records))["linformer"]
    assert [(cell.text, cell.anchor, cell.verdict) for cell in cells] == [("–", "", ""), ("oom", "", "")]


def test_where_lower_is_better_the_table_says_so() -> None:
    records = two_tasks()
    ((table,),) = (section.tables for section in sections(Overview(groups_of(records))))
    assert "ower is better" not in " ".join(table.notes)
    scores = {("full", seed): 2.0 + 0.01 * seed for seed in range(3)} | {("linear", seed): 1.5 for seed in range(3)}
    records += [in_bits(make_record(name, seed=seed)) | {"test_score": score} for (name, seed), score in scores.items()]
    groups = groups_of(records)
    ((table,),) = (section.tables for section in sections(Overview(groups)))
    name = next(title for title in table.header if title.startswith("next_byte"))
    assert f"Lower is better, so − is better than full: {name} (in bits)." in table.notes
    cell = cells_of(groups)["linear"][table.header.index(name) - 1]
    assert cell.verdict == "better"
    assert cell.text.startswith("▲ −0.51")


def test_one_task_has_no_table_of_all() -> None:
    records = [record for record in two_tasks() if record["task"] == "bytes"]
    assert sections(Overview(groups_of(records))) == []


def test_it_stands_first_and_each_cell_leads_to_the_table_of_its_task() -> None:
    groups = groups_of(two_tasks())
    page = page_of(groups)
    assert page.index('id="matrix"') < page.index('id="first"')
    for anchor in {cell.anchor for found in cells_of(groups).values() for cell in found}:
        assert len(re.findall(f'id="{anchor}"', page)) == 1
    cell = '<td class="worse"><a href="#table-0">▼ −10.0<span class="visually-hidden"> worse</span></a></td>'
    assert cell in page
    assert "| linear | ▼ −10.0 | ≈ +0.0 |" in markdown_of(groups)


def test_the_first_lines_name_the_machine_and_the_command() -> None:
    page = page_of(groups_of(two_tasks()))
    header = page[page.index("<header>") : page.index("</header>")]
    assert "2 cores" in header
    assert "<code>python -m compare " in header
