"""A swept task in the report: one section with one chart and one table, whatever the number of its values."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from compare.report import write_report
from compare.report.facts.task_sweeps import TaskSweep, task_sweeps
from compare.report.render.canvas import STYLE
from compare.report.sections.task_sweeps import held, range_words, task_sweep_table
from compare.units import size
from tests.drawn import answer_to, charts_of, drawn
from tests.make_records import RECALL, Record, make_recall, swept_recall, write_folder
from tests.test_charts import assert_readable, labels_of
from tests.test_report import groups_of

SPACE = "\N{NO-BREAK SPACE}"


BITS = {"unit": "bits", "lower_is_better": True, "bounds": [0.0, None]}


def sweep_of(records: list[Record]) -> TaskSweep:
    (sweep,) = task_sweeps(groups_of(records))
    return sweep


def chart(records: list[Record]) -> Figure:
    groups = groups_of(records)
    with matplotlib.rc_context(STYLE):
        (swept,) = charts_of(groups, "task_sweep")
        figure = drawn(swept, groups)
    assert figure is not None
    return figure


def test_a_sweep_is_groups_that_differ_in_one_number_of_their_task() -> None:
    records = [*swept_recall(), make_recall("full", pairs=16, values=32)]
    records += [make_recall("full", pairs=pairs) | {"seq_len": 2048} for pairs in (8, 4)]
    found = {(s.title, s.option, tuple(value for value, _ in s.points)) for s in task_sweeps(groups_of(records))}
    assert found == {
        ("noisy_recall, length 2,048", "pairs", (4, 8)),
        ("noisy_recall, length 8,192 (values=null)", "pairs", (4, 16, 64, 256)),
    }


def test_other_conditions_make_other_sweeps_and_only_words_or_unscored_runs_make_none() -> None:
    records = swept_recall() + swept_recall()
    for record in records[: len(records) // 2]:
        record["spec"]["budget"] = 30
        record["run_id"] += "-30"
    assert [s.title for s in task_sweeps(groups_of(records))] == [
        *("noisy_recall, length 8,192 (budget=30)", "noisy_recall, length 8,192 (budget=60)")
    ]
    words = [make_recall("full", pairs=1), make_recall("full", pairs=2)]
    for record, value in zip(words, "ab", strict=True):
        record["spec"]["task_options"] = [["kind", value]]
    assert task_sweeps(groups_of(words)) == []
    assert task_sweeps(groups_of([record | {"test_score": None} for record in swept_recall()])) == []


def test_the_sentence_says_up_to_which_value_each_variant_holds() -> None:
    told = held(sweep_of(swept_recall()))
    assert told == (
        f"Accuracy of 90{SPACE}% or more with pairs from 4 to 256: full at every value; linear up to 16; "
        "linformer at none (1 seed: no ranking)."
    )
    assert held(sweep_of(swept_recall(3))) == told.replace(" (1 seed: no ranking)", "")
    assert (
        held(sweep_of([record | {"metric": "bits per byte", "metric_scale": BITS} for record in swept_recall()])) == ""
    )


@pytest.mark.parametrize(
    ("good", "words"),
    [
        ((1, 2, 4, 8), "at every value"),
        ((1, 2), "up to 2"),
        ((4, 8), "from 4 on"),
        ((2, 8), "at 2, 8"),
        ((), "at none"),
    ],
)
def test_which_values_in_words(good: tuple[float, ...], words: str) -> None:
    assert range_words((1, 2, 4, 8), good) == words


def test_the_table_has_a_row_a_variant_and_a_column_a_value() -> None:
    records = swept_recall()
    records[-1] |= {"status": "oom", "test_score": None}
    del records[3]
    header, body = task_sweep_table(sweep_of(records))
    assert header == ["variant", "state a layer", *(f"pairs={value}, %" for value in (4, 16, 64, 256))]
    table = {line[0]: line[1:] for line in body}
    assert list(table) == ["full", "linear", "linformer", "none (control)"]
    assert table["linear"] == [size(2**13), *(f"{score} (n=1)" for score in (98.1, 91.7, 69.8, 23.1))]
    assert table["full"][-1] == "–"
    assert table["none (control)"][-1] == "oom"


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_chart_has_a_line_a_variant_and_its_state(seeds: int) -> None:
    figure = chart(swept_recall(seeds))
    assert_readable(figure)
    scores, states = figure.axes
    assert (scores.get_xscale(), scores.get_xlabel()) == ("log", "pairs (logarithmic)")
    lines = {tuple(line.get_ydata()) for line in scores.lines if len(line.get_xdata()) == 4 and line.get_zorder() == 3}
    assert len(lines) == len(RECALL)
    if seeds == 1:
        assert (0.981, 0.917, 0.698, 0.231) in lines
    else:
        each = [line for line in scores.lines if list(line.get_xdata()) == [16] * 3 and line.get_marker() == "."]
        assert [0.917, 0.9171, 0.9172] in [list(line.get_ydata()) for line in each]
    told = [text.replace("\n", " ") for text, _ in labels_of(figure)]
    assert {size(2**22), size(2**13), size(0)} <= set(told)
    assert sorted(line.get_xdata()[-1] for line in states.lines if len(line.get_xdata()) == 1) == [2**13, 2**17, 2**22]


def test_values_that_do_not_double_stand_on_an_even_axis_and_no_state_leaves_its_panel_away() -> None:
    records = [make_recall(v, score=s, pairs=p) for v in RECALL for p, s in ((10, 0.9), (11, 0.8), (12, 0.7))]
    figure = chart([record | {"state_bytes": None} for record in records])
    assert_readable(figure)
    (scores,) = figure.axes
    assert scores.get_xscale() == "linear"


def test_a_swept_task_is_one_section_with_one_chart(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, swept_recall()))
    (drawn,) = (path.stem for path in (tmp_path / "charts").glob("*.png"))
    assert drawn.startswith("task_sweep_pairs")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<section id="sweep-') == 1
    assert '<section id="group-' not in page
    found = [page.index(f"<summary><h3>pairs={value}</h3>") for value in (4, 16, 64, 256)]
    assert found == sorted(found)
    assert page.count('<table class="results"') == 4
    text = (tmp_path / "report.md").read_text()
    assert text.count("## Test accuracy against pairs: noisy_recall, length 8,192\n") == 1
    assert text.count("\n### pairs=64\n") == 1
    assert text.count("(charts/") == 1


def test_at_several_lengths_the_cost_is_told_once() -> None:
    lengths = (4096, 8192)
    records = [r | {"seq_len": n, "run_id": f"{r['run_id']}-{n}"} for n in lengths for r in swept_recall()]
    groups = groups_of(records)
    stems = sorted(chart.stem for chart in charts_of(groups))
    assert [stem.partition("_noisy")[0] for stem in stems] == [
        *("cost_memory", "cost_time", "crossover", "task_sweep_pairs", "task_sweep_pairs")
    ]


def test_the_answer_tells_a_sweep_once() -> None:
    lines = answer_to(groups_of(swept_recall(3)))
    assert len(lines) == 1
    assert lines[0].startswith("noisy_recall, length 8,192: Accuracy of 90")
    assert lines[0].endswith(f"linear {size(2**13)}, none (control) {size(0)}.")
