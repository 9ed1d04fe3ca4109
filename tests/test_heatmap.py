"""The map of all tasks: what it says of every cell, and that every text of it can be read."""

import re
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.render.canvas import STYLE
from compare.report.sections.heat_map import (
    COLUMNS,
    SMALLEST,
    HeatMap,
    draw_heat_map,
    heat_maps,
    heat_table,
    ink_on,
    luminance,
    shade,
)
from tests.make_records import ENVIRONMENT, MANY, PROFILES, Record, make_record, many_records, write_folder

pytestmark = pytest.mark.usefixtures("blank_charts")

TASKS = ("bytes", "mqar", "selective_copy", "digits", "needle", "listops", "pathfinder", "retrieval")


def groups_of(records: list[Record], environment: Record = ENVIRONMENT) -> list[Group]:
    return group_records([Source(records, environment)])


def scored(variant: str, task: str, scores: list[float], status: str = "ok") -> list[Record]:
    records = [make_record(variant, task=task, seed=seed, status=status) for seed in range(len(scores))]
    return [record | ({"test_score": s} if status == "ok" else {}) for record, s in zip(records, scores, strict=True)]


def the_map(records: list[Record]) -> HeatMap:
    (heat,) = heat_maps(groups_of(records))
    return heat


def cells_of(heat: HeatMap) -> dict[str, list[str]]:
    return {name: cells for name, *cells in heat_table(heat)[1]}


def drawn(heat: HeatMap) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = draw_heat_map(heat, {})
        figure.set_dpi(200)
        FigureCanvasAgg(figure).draw()
    return figure


def test_every_cell_is_the_paired_difference_to_full_with_its_interval() -> None:
    records = scored("full", "bytes", [0.50, 0.60, 0.70]) + scored("linear", "bytes", [0.40, 0.49, 0.61])
    records += scored("full", "mqar", [0.9, 0.9, 0.9]) + scored("linear", "mqar", [0.899, 0.901, 0.9])
    cells = cells_of(the_map(records))
    assert cells["full"] == ["60.0 ± 24.8 % (n=3)", "90.0 ± 0.0 % (n=3)"]
    assert cells["linear"] == ["−10.0 ± 2.1 points (n=3)", "+0.0 ± 0.4 points (n=3, within noise of full)"]


def test_few_seeds_failures_and_what_was_not_run_are_told_apart() -> None:
    records = scored("full", "bytes", [0.5, 0.5, 0.5]) + scored("full", "mqar", [0.5, 0.5, 0.5])
    records += scored("linear", "bytes", [0.1, 0.1]) + scored("linear", "mqar", [0, 0, 0], status="oom")
    records += scored("local", "mqar", [0.1, 0.1, 0.1])
    cells = cells_of(the_map(records))
    assert cells["linear"] == ["−40.0 ± 0.5 points (n=2, fewer than 3 seeds)", "3 oom"]
    assert cells["local"] == ["not run", "−40.0 ± 0.5 points (n=3)"]


def test_without_full_the_score_itself_is_shown() -> None:
    records = [record for task in ("bytes", "mqar") for record in scored("linear", task, [0.2, 0.2, 0.2])]
    heat = the_map(records)
    assert cells_of(heat) == {"linear": ["20.0 ± 0.0 % (n=3)"] * 2}
    assert drawn(heat)


def test_two_tasks_are_needed_and_scores_of_them() -> None:
    assert heat_maps(groups_of([make_record("full", seq_len=n) for n in (512, 1024)])) == []
    failed = [make_record("full"), make_record("full", task="mqar", status="oom")]
    assert heat_maps(groups_of(failed)) == []


def test_machines_are_never_on_one_map() -> None:
    sources = [
        Source([make_record("full", task=task) for task in ("bytes", "mqar")], ENVIRONMENT | {"cpu": cpu})
        for cpu in ("One", "Other")
    ]
    found = heat_maps(group_records(sources))
    assert [heat.groups[0].where for heat in found] == ["One, 2 cores", "Other, 2 cores"]
    assert len({heat.stem for heat in found}) == 2


def test_options_that_differ_between_tasks_share_a_line_and_are_marked() -> None:
    records = [make_record("full", task=task) for task in ("bytes", "mqar")]
    records += [make_record("linformer", label=f"linformer rank={n}", task=t) for n, t in ((16, "bytes"), (8, "mqar"))]
    assert list(cells_of(the_map(records))) == ["full", "linformer †"]
    records += [make_record("linformer", label="linformer rank=8", task="bytes")]
    assert list(cells_of(the_map(records))) == ["full", "linformer rank=16", "linformer rank=8"]


def test_lines_are_ordered_by_family_full_first_and_the_control_last() -> None:
    records = [make_record(variant, task=task) for variant in PROFILES for task in ("bytes", "mqar")]
    names = [line.name for line in the_map(records).lines]
    assert names == ["full", "xformers", "local", "linformer", "linear", "performer", "none (control)"]


def test_one_budget_written_as_25_and_as_25_0_is_one_condition() -> None:
    whole, point = make_record("full", budget=25), make_record("linear", budget=25)
    point["spec"]["budget"] = 25.0
    assert len(groups_of([whole, point])) == 1


@pytest.mark.parametrize("value", [-0.9, -0.3, -0.01, 0.0, 0.002, 0.2, 0.9])
def test_every_number_can_be_read_on_its_colour(value: float) -> None:
    colour = shade(value, 0.9)
    high, low = sorted((luminance(colour) + 0.05, luminance(ink_on(colour)) + 0.05), reverse=True)
    assert high / low >= 4.5


def test_colours_are_centred_at_full() -> None:
    assert luminance(shade(0.0, 0.5)) > 0.9
    below, above = shade(-0.5, 0.5), shade(0.5, 0.5)
    assert int(below[1:3], 16) > int(below[5:7], 16)
    assert int(above[1:3], 16) < int(above[5:7], 16)


@pytest.fixture(scope="module")
def full_map() -> HeatMap:
    return the_map([record for task in TASKS for record in many_records(lengths=(1024,), task=task)])


def test_26_variants_on_8_tasks_are_one_readable_figure(full_map: HeatMap) -> None:
    assert (len(full_map.lines), len(full_map.groups)) == (len(MANY), COLUMNS)
    figure = drawn(full_map)
    texts = [t for t in [*figure.texts, *(t for axes in figure.axes for t in axes.texts)] if t.get_text()]
    assert min(text.get_fontsize() for text in texts) >= SMALLEST
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert [(a[0], b[0]) for a, b in combinations(boxes, 2) if a[1].overlaps(b[1])] == []
    width, height = figure.bbox.size
    assert [t for t, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height] == []


def test_every_number_stays_in_its_cell(full_map: HeatMap) -> None:
    figure = drawn(full_map)
    cells = [patch.get_window_extent() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    numbers: list[Text] = [text for text in figure.axes[0].texts if text.get_gid() == "cell"]
    assert len(numbers) >= len(full_map.lines) * len(full_map.groups)
    for number in numbers:
        box = number.get_window_extent()
        assert any(c.x0 <= box.x0 and box.x1 <= c.x1 and c.y0 <= box.y0 and box.y1 <= c.y1 for c in cells)


def test_more_tasks_than_fit_make_several_figures() -> None:
    records = [make_record(v, task=task, seq_len=n) for v in ("full", "none") for task in TASKS for n in (64, 128)]
    maps = heat_maps(groups_of([*records, make_record("full", task="bytes", seq_len=256)]))
    assert [len(heat.groups) for heat in maps] == [6, 6, 5]
    assert len({heat.stem for heat in maps}) == 3


def test_the_words_name_the_extremes(full_map: HeatMap) -> None:
    assert re.search(r"Furthest below full: .+ on \w+ −\d+\.\d .+ points", full_map.alt)
    assert "26 variants on 8 tasks" in full_map.alt


def test_a_report_of_two_tasks_has_the_map_in_both_formats(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [make_record(v, task=t) for v in PROFILES for t in ("bytes", "mqar")]))
    assert {path.name for path in (tmp_path / "charts").glob("tasks*")} == {"tasks.png", "tasks.svg"}
