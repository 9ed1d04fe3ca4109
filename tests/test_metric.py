"""A metric of which less is better: every sentence, table, chart and file names the lowest as the best."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from compare.diff import diff
from compare.display import outcome
from compare.fields import parse_record
from compare.record import SCHEMA
from compare.report import write_report
from compare.report.facts.equal_terms import match_scores
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.facts.overview import Overview
from compare.report.render.latex import latex_table
from compare.report.sections.accuracy import SPEED, accuracy_chart
from compare.report.sections.baselines import baseline_rows
from compare.report.sections.capacity import sweep_table
from compare.report.sections.curves import learning_curves
from compare.report.sections.equal_terms import equal_table
from compare.report.sections.heat_map import COLOURS, fill_of, furthest_of, heat_maps, heat_notes
from compare.report.sections.lead import lead_of
from compare.report.sections.results import columns_of
from compare.runs.rate_search import choose, make_grid
from tests.drawn import answer_to, drawn, sentences_of
from tests.make_records import ENVIRONMENT, Record, make_record, write_folder

BITS = {"unit": "bits", "lower_is_better": True, "bounds": [0.0, None]}
VARIANTS = ("full", "linear", "local", "performer", "none")


def in_bits(record: Record) -> Record:
    """The record with the same order of scores, as bits per byte: what was 52 % is 3.84."""

    def turned(score: float | None) -> float | None:
        return None if score is None else 8 * (1 - score)

    curve = [point | {name: turned(point[name]) for name in ("train_score", "val_score")} for point in record["curve"]]
    return record | {
        **{"metric": "bits per byte", "metric_scale": BITS, "curve": curve, "task": "next_byte", "causal": True},
        **{name: turned(record[name]) for name in ("test_score", "val_score")},
        "baselines": {"uniform": 8.0, "unigram": 4.733, "5-gram": 4.1},
        "spec": record["spec"] | {"task": "next_byte", "causal": True},
    }


def as_variance(record: Record) -> Record:
    """The record as it is, of a metric without binomial noise, as bits have none."""
    return record | {"metric": "explained variance", "baselines": {"worst": 0.0, "better": 0.40, "best": 0.4875}}


def runs(variants: Sequence[str] = VARIANTS, seeds: int = 3) -> list[Record]:
    return [make_record(variant, seed=seed) for variant in variants for seed in range(seeds)]


def groups_of(records: Sequence[Record]) -> list[Group]:
    return group_records([Source(records, ENVIRONMENT)])


def bits_group(variants: Sequence[str] = VARIANTS) -> Group:
    (group,) = groups_of([in_bits(record) for record in runs(variants)])
    return group


@pytest.fixture(scope="module")
def group() -> Group:
    return bits_group()


def names_in(sentence: str) -> list[str]:
    return re.findall(rf"\b({'|'.join(VARIANTS)})\b", sentence)


def test_each_sentence_names_whom_the_mirrored_scores_name(group: Group) -> None:
    (mirror,) = groups_of([as_variance(record) for record in runs()])
    for found, expected in zip(sentences_of(group), sentences_of(mirror), strict=True):
        assert names_in(found) == names_in(expected), (found, expected)
    assert (
        sentences_of(group)[0].startswith("Lowest test bits per byte: full, 3.8")
        or "within noise" in sentences_of(group)[0]
    )
    text = " ".join(sentences_of(group))
    assert "Best trivial baseline: 5-gram, 4.100 bits" in text
    assert "Better than it: full" in text
    assert "Above" not in text
    assert "%" not in re.sub(r"\d+ % (more|fewer) parameters", "", text)


def test_as_good_as_full_is_a_share_of_its_bits() -> None:
    records = [in_bits(record) for record in runs()]
    for record in records:
        near = {"linear": 1.004, "local": 1.03, "performer": 0.9, "none": 1.5}.get(record["variant"], 1.0)
        record["test_score"] = near * (2.0 + 0.001 * record["seed"])
    (group,) = groups_of(records)
    said = " ".join(answer_to([group]))
    assert "Within 1 % of full's bits (2.001 bits): linear, performer." in said
    assert "Clearly better than full: performer." in said
    assert "Clearly worse: local." in said
    assert "next_byte, length 1,024 (causal)" in said
    assert "No variant is shown to be" not in said
    for record in records:
        record["baselines"] = {"5-gram": 1.0}
    assert "No variant is shown to be better than the best trivial baseline (5-gram, 1.000 bits)" in " ".join(
        answer_to(groups_of(records))
    )


def test_charts_have_the_lowest_at_the_top(group: Group) -> None:
    for figure in (drawn(accuracy_chart(group, SPEED), [group]), drawn(learning_curves(group, "step"), [group])):
        assert figure is not None
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        assert low > high
        assert axes.get_ylabel().endswith("bits per byte (lower is better)")
        for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
            assert float(text.get_text()) == pytest.approx(place, abs=0.005)
    (plain,) = groups_of(runs())
    figure = drawn(accuracy_chart(plain, SPEED), [plain])
    assert figure is not None
    assert figure.axes[0].get_ylim()[0] < figure.axes[0].get_ylim()[1]
    assert figure.axes[0].get_ylabel() == "test accuracy, %"


def test_tables_tell_the_unit_and_which_way_is_better(group: Group) -> None:
    titles = [column.title for column in columns_of(group)]
    assert "test score, bits per byte (lower is better)" in titles
    column = columns_of(group)[titles.index("against full")]
    control = group.control
    assert control is not None
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3} bits above full \(worse\)", column.cell(control, group).text)
    assert [cells[1:] for cells in baseline_rows([group])][-1] == ("5-gram", "4.100 bits")
    table = latex_table(group)
    assert "test bits per byte" in table
    assert "Δ" not in table
    equal = equal_table(group)
    assert equal is not None
    assert "Δ to full, bits" in equal.header
    assert match_scores(group, "steps").scale.lower_is_better


def test_the_best_of_a_sweep_is_the_lowest() -> None:
    records = []
    for rank, score in ((16, 2.9), (32, 2.4), (64, 2.399)):
        for seed in range(3):
            record = in_bits(make_record("linformer", label=f"linformer rank={rank}", seed=seed))
            record["spec"]["options"] = [["rank", rank]]
            turn = 0.01 * (seed if rank == 64 else 2 - seed)
            records.append(record | {"test_score": score + turn, "run_id": f"{rank}-{seed}"})
    found = sweep_table(groups_of(records)[0])
    assert found is not None
    header, ((_, values, best, smallest, *_),) = found.header, found.rows
    assert header[2] == "lowest test score"
    assert (values, best, smallest) == ("16, 32, 64", "2.409 bits at 64", "2.410 bits at 32")


def test_a_heat_map_is_blue_where_fewer_bits_are_better() -> None:
    records = [*runs(), *(in_bits(record) for record in runs())]
    records = [record | {"run_id": f"{record['task']}-{record['run_id']}"} for record in records]
    (heat,) = heat_maps(groups_of(records))
    column = [group.task for group in heat.groups].index("next_byte")
    control = next(line for line in heat.lines if line.rows[0].is_control)
    worse = control.cells[column]
    assert worse.estimate is not None
    assert worse.estimate.mean > 0
    assert worse.words.startswith("+0.")
    assert " bits (" in worse.words
    red, _, blue, _ = COLOURS(0.15)
    assert red > blue
    fill = fill_of(worse, furthest_of(heat, "bits"))
    assert int(fill[1:3], 16) > int(fill[5:7], 16)
    assert any(
        "Lower is better" in note and "next_byte 1,024 causal (in bits, full colour at ± 0.633)" in note
        for note in heat_notes(heat)
    )
    assert "Furthest behind full: none (control) on next_byte +0." in heat.alt


def test_more_bits_are_a_regression() -> None:
    before = [in_bits(record) for record in runs(("full", "linear"))]
    after = [record | {"test_score": record["test_score"] + 0.3} for record in before]
    worse, better = (
        diff(Source(before, ENVIRONMENT), Source(after, ENVIRONMENT)),
        diff(Source(after, ENVIRONMENT), Source(before, ENVIRONMENT)),
    )
    assert {(c.verdict, c.what) for c in worse.changes} == {("worse", "test score (lower is better)")}
    assert {c.verdict for c in better.changes} == {"better"}
    assert worse.regressed
    assert not better.regressed
    assert all(c.change.startswith("+") and "%" in c.change for c in worse.changes)
    assert float(worse.changes[0].after) - float(worse.changes[0].before) == pytest.approx(0.3, abs=0.002)


def test_a_grid_takes_the_rate_with_the_fewest_bits() -> None:
    tried = [in_bits(make_record("full")) | {"val_score": score} for score in (3.1, 2.2, 2.9)]
    grid = make_grid((1e-3, 3e-3, 1e-2), ())
    assert choose(tried, grid)["chosen"] == 3e-3
    assert choose([run | {"metric_scale": None} for run in tried], grid)["chosen"] == 1e-3


def test_files_and_lines_do_not_call_bits_a_percentage(tmp_path: Path) -> None:
    record = in_bits(make_record("full"))
    assert "bits per byte 3.8" in outcome(record)
    few = runs(("full", "linear"))
    records = [*few, *(in_bits(record) | {"run_id": f"bits-{record['run_id']}"} for record in few)]
    write_report(write_folder(tmp_path, records))
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        filled = [name for name in line if name.startswith("test score [") and line[name]]
        assert filled == ["test score [bits]" if line["task"] == "next_byte" else "test score [fraction]"]
        assert bool(line["difference to full [bits]"]) == (line["task"] == "next_byte" and line["variant"] != "full")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "bits per byte (lower is better)" in page
    assert "next_byte, length 1,024 (causal)" in page


def test_both_readings_of_a_task_stand_apart() -> None:
    both = runs(("full", "linear"))
    causal = [
        record | {"run_id": f"causal-{record['run_id']}", "spec": record["spec"] | {"causal": True}, "causal": True}
        for record in both
    ]
    titles = [group.title for group in groups_of([*both, *causal])]
    assert sorted(titles) == ["bytes, length 1,024", "bytes, length 1,024 (causal)"]
    found = diff(Source(both, ENVIRONMENT), Source([*both[:3], *causal[3:]], ENVIRONMENT))
    assert found.vanished
    assert found.new == ["all of bytes, length 1,024 (causal) (1)"]


@pytest.mark.parametrize("scale", [{"unit": "bits"}, BITS | {"lower_is_better": "yes"}, BITS | {"bounds": [0]}, "bits"])
def test_a_scale_that_says_nothing_is_a_damaged_line(scale: object) -> None:
    import json

    line = json.dumps(in_bits(make_record("full")) | {"metric_scale": scale}).encode()
    with pytest.raises(ValueError, match="metric_scale: expected an object of unit, lower_is_better and bounds"):
        parse_record(line, SCHEMA)


def test_the_first_sentences_rank_by_fewer_bits() -> None:
    records = [in_bits(record) for record in runs()]
    for record in records:
        record["test_score"] = {"full": 2.0, "linear": 2.06, "local": 2.5, "performer": 3.9, "none": 4.0}[
            record["variant"]
        ]
    lead = lead_of(Overview(groups_of(records)))
    assert lead is not None
    said = lead.sentences[1]
    assert "full reaches 2.000 test bits per byte" in said
    assert "linear (2.060) stays within 5 % of full" in said
    assert "local (2.500) falls behind full" in said
    assert "performer (3.900) does not solve the task: at most 5 % better than the control without attention" in said
    assert "the control without attention (4.000" in said
