"""The report: its arithmetic, its caution, its labels, and that nothing a record lacks brings it down."""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from compare.quantities import FORWARD_BACKWARD, TRAINING_MEMORY
from compare.report import write_report, write_report_many
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group, Row
from compare.report.facts.learning import learning_curve
from compare.report.facts.scaling import find_crossovers, rows_by_length, series_of
from compare.report.facts.stats import pareto_front
from compare.report.render.axes import memory_ticks, nice_ticks
from compare.report.render.canvas import SOFT, STYLE, choose_styles, folded
from compare.report.render.charts import write_charts
from compare.report.render.csv_table import csv_table
from compare.report.render.families import COLOURS, EXTERNAL, colour_of, in_order
from compare.report.render.labels import Anchor, Box, place, spread
from compare.report.render.latex import latex_tables
from compare.report.sections.accuracy import SPEED, Against, accuracy_chart, near_baselines, weight_of
from compare.report.sections.curves import PANEL_FOLD, course_name, course_of, learning_curves
from compare.report.sections.flags import marked
from compare.report.sections.lengths import TIME, cost_against_length
from compare.report.sections.results import columns_of
from compare.runs.outcome import new_record
from compare.spec import RunSpec
from compare.units import MISSING, count, percent, seconds, size
from tests.drawn import answer_to, charts_of, drawn, sentences_of
from tests.here import compare_here
from tests.make_records import (
    ENVIRONMENT,
    FAMILIES,
    MANY,
    PROFILES,
    Record,
    make_record,
    many_records,
    write_folder,
)

CROWD = (
    *("bigbird", "cosformer", "fnet", "fourier mixer", "gated linear", "hyena", "linear", "linformer rank=128"),
    *("local", "longformer", "luna", "mamba", "nystromformer", "performer features=256", "reformer hashes=4"),
    *("routing", "sinkhorn", "skyformer", "sparse", "synthesizer dense", "synthesizer random", "tensorized"),
    *("full", "xformers", "none"),
)


def groups_of(records: list[Record]) -> list[Group]:
    return group_records([Source(records, ENVIRONMENT)])


def overlaps(boxes: list[Box]) -> list[tuple[Box, Box]]:
    return [
        (a, b)
        for a, b in combinations(boxes, 2)
        if min(a.right, b.right) > max(a.left, b.left) and min(a.top, b.top) > max(a.bottom, b.bottom)
    ]


def render(figure: Figure) -> None:
    """Lay everything out at the size of the PNG."""
    figure.set_dpi(200)
    FigureCanvasAgg(figure).draw()


def box_of(text: Text) -> Box:
    return Box(*(float(edge) for edge in text.get_window_extent().extents))


def labels_of(figure: Figure) -> list[tuple[str, Box]]:
    return [(text.get_text(), box_of(text)) for text in figure.texts if text.get_gid() == "label"]


def texts_of(figure: Figure) -> list[tuple[str, Box]]:
    """Everything that is written: titles, notes, labels, legends, axes and their ticks."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=False)
            texts += [axis.label, *(tick.label1 for tick, place in ticks if low <= place <= high)]
    return [(text.get_text(), box_of(text)) for text in texts if text.get_text()]


def points_of(axes: Axes) -> list[tuple[float, float]]:
    """Where the axes hold a mark, in pixels."""
    found = [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)]
    found += [line.get_xydata() for line in axes.lines if line.get_marker() not in ("", "None", None)]
    return [tuple(point) for points in found if len(points) for point in axes.transData.transform(points)]


def assert_readable(figure: Figure) -> None:
    """No text over another, over a point, or over a trivial predictor's line, and none off the page."""
    render(figure)
    texts = texts_of(figure)
    clashes = [(a[0], b[0]) for a, b in combinations(texts, 2) if overlaps([a[1], b[1]])]
    assert clashes == []
    width, height = figure.bbox.size
    assert [t for t, b in texts if b.left < 0 or b.bottom < 0 or b.right > width or b.top > height] == []
    for axes in figure.axes:
        area = axes.get_window_extent()
        names = [(t, b) for t, b in labels_of(figure) if area.x0 < b.right and b.left < area.x1 and b.bottom < area.y1]
        names = [(t, b) for t, b in names if b.top > area.y0]
        for x, y in points_of(axes):
            assert [t for t, b in names if b.left < x < b.right and b.bottom < y < b.top] == []
        for line in axes.lines:
            if line.get_color() == SOFT:
                y = float(axes.transData.transform((0.5, line.get_ydata()[0]))[1])
                assert [t for t, b in names if b.bottom < y < b.top] == []


def test_pareto_front_holds_exactly_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (1.5, 3.0), (3.0, 4.0), (4.0, 1.0), (4.0, 0.5)]
    assert pareto_front(points) == [0, 3, 4]
    assert pareto_front([]) == []


@pytest.mark.parametrize("ticks_of", [nice_ticks, memory_ticks])
def test_ticks_are_few_and_never_near_one_another(ticks_of: Callable[[float, float], list[float]]) -> None:
    for low in (0.003, 1.0, 64e3, 9.5e6):
        for share in (1.05, 1.3, 1.9, 4.0, 70.0, 1e4, 1e9):
            ticks = ticks_of(low, low * share)
            places = [math.log(tick / low) / math.log(share) for tick in ticks]
            assert 2 <= len(ticks) <= 9
            assert min(places) > -1e-9
            assert max(places) < 1 + 1e-9
            assert min(b - a for a, b in pairwise(places)) > 0.11


def test_units() -> None:
    assert (percent(-0.0001), percent(0.4567)) == ("0.0\N{NO-BREAK SPACE}%", "45.7\N{NO-BREAK SPACE}%")
    assert [seconds(x).replace("\xa0", " ") for x in (2e-5, 0.0123, 1.6, 600)] == [
        "20 µs",
        "12.3 ms",
        "1.6 s",
        "10 min",
    ]
    assert [size(x).replace("\xa0", " ") for x in (0, 512, 1.5 * 2**20, 3 * 2**30)] == [
        "0 B",
        "512 B",
        "1.5 MiB",
        "3 GiB",
    ]
    assert [count(x).replace("\xa0", " ") for x in (9_999, 1_234_567, 1.2e12)] == ["9,999", "1.23 M", "1.2 T"]


def test_runs_under_other_conditions_are_never_averaged_together() -> None:
    groups = groups_of([make_record("full", budget=budget, seed=seed) for budget in (60, 90) for seed in range(2)])
    assert [group.title for group in groups] == ["bytes, length 1,024 (budget=60)", "bytes, length 1,024 (budget=90)"]
    assert len({group.slug for group in groups}) == 2


def test_other_learning_rates_are_rows_of_their_own() -> None:
    fast = make_record("full")
    fast["spec"]["lr"] = 0.01
    (group,) = groups_of([make_record("full"), fast])
    assert sorted(row.name for row in group.rows) == ["full lr=0.001", "full lr=0.01"]


def test_machines_are_kept_apart(tmp_path: Path) -> None:
    elsewhere = {**ENVIRONMENT, "cpu": "Other", "cores": 64}
    first = write_folder(tmp_path / "a", [make_record("full")])
    second = write_folder(tmp_path / "b", [make_record("full")], elsewhere)
    write_report_many([first, second], tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    assert "## bytes, length 1,024 (Other, 64 cores)" in report
    assert len(list((tmp_path / "out/charts").glob("accuracy_speed_*.png"))) == 2


def test_records_of_one_folder_are_kept_apart_by_the_machine_they_bear(tmp_path: Path) -> None:
    here, there = ENVIRONMENT | {"command": "here"}, ENVIRONMENT | {"cpu": "Other", "command": "there"}
    records = [make_record("full", seed=seed) | {"machine": (here, there)[seed]} for seed in (0, 1)]
    records += [make_record("linear", seed=seed) | {"machine": (here, there)[seed]} for seed in (0, 1)]
    write_report(write_folder(tmp_path, records, there))
    report = (tmp_path / "report.md").read_text()
    assert "## bytes, length 1,024 (Intel Xeon @ 2.60GHz, 2 cores)" in report
    assert "## bytes, length 1,024 (Other, 2 cores)" in report
    assert report.index("```sh\nhere\n```") < report.index("```sh\nthere\n```")
    assert len(list((tmp_path / "charts").glob("accuracy_speed_*.png"))) == 2
    assert '"cpu":"Other"' in (tmp_path / "report.html").read_text()


def test_older_records_belong_to_the_machine_that_had_begun_when_they_did() -> None:
    first = ENVIRONMENT | {"cpu": "First", "started": "2026-01-01T00:00:00+00:00"}
    second = ENVIRONMENT | {"cpu": "Second", "started": "2026-01-03T00:00:00+00:00"}
    third = ENVIRONMENT | {"cpu": "Third", "started": "2026-01-05T00:00:00+00:00", "earlier": [first, second]}
    records = [
        make_record("full", seed=seed) | {"started": f"2026-01-0{day}T12:00:00+00:00"}
        for seed, day in enumerate((2, 3, 4, 6))
    ]
    groups = group_records([Source(records, third)])
    seeds = {group.environment["cpu"]: [record["seed"] for record in group.records] for group in groups}
    assert seeds == {"First": [0], "Second": [1, 2], "Third": [3]}


def test_summary_claims_only_what_stands_beyond_noise() -> None:
    clear = sentences_of(groups_of([make_record(v, seed=s) for v in ("full", "linear", "none") for s in range(3)])[0])
    assert any(line.startswith("Most accurate: full") for line in clear)
    assert any(line.startswith("Fastest: linear") for line in clear)

    level = sentences_of(groups_of([make_record(v, seed=s) for v in ("full", "xformers") for s in range(3)])[0])
    assert "within noise of" in level[0]

    few = sentences_of(groups_of([make_record(v) for v in ("full", "linear", "none")])[0])
    assert not any(line.startswith(("Most accurate", "Fastest", "Lightest")) for line in few)
    assert all("no ranking" in line for line in few if not line.startswith("Not on equal terms"))


def test_spread_keeps_order_bounds_and_distance() -> None:
    wishes, heights = [50.0, 52.0, 51.0, 3.0, 99.0], [10.0, 12.0, 10.0, 10.0, 10.0]
    centres = spread(wishes, heights, 0, 100)
    assert sorted(range(5), key=centres.__getitem__) == sorted(range(5), key=wishes.__getitem__)
    edges = sorted((c - h / 2, c + h / 2) for c, h in zip(centres, heights, strict=True))
    assert edges[0][0] >= 0
    assert edges[-1][1] <= 100
    assert all(below[1] <= above[0] + 1e-9 for below, above in pairwise(edges))


def test_placed_names_touch_neither_marks_nor_each_other() -> None:
    rng = np.random.default_rng(0)
    anchors = [
        Anchor(float(x), float(y), 8.0, 90.0, 14.0)
        for x, y in zip(rng.normal(300, 60, 25), rng.normal(200, 50, 25), strict=True)
    ]
    area = Box(0, 0, 640, 420)
    marks = [Box(a.x - 8, a.y - 8, a.x + 8, a.y + 8) for a in anchors]
    boxes = place(anchors, area, marks, [])
    assert overlaps(boxes) == []
    assert all(not overlaps([box, mark]) for box in boxes for mark in marks)
    assert all(b.left >= 0 and b.bottom >= 0 and b.right <= 640 and b.top <= 420 for b in boxes)
    assert boxes == place(anchors, area, marks, [])


def test_a_name_between_two_marks_is_no_riddle() -> None:
    """The name of the second fits between the two, as near to either; above it there is room."""
    anchors = [Anchor(100.0, 100.0, 17.0, 68.0, 14.0), Anchor(180.0, 97.0, 17.0, 38.0, 14.0)]
    marks = [Box(a.x - 17, a.y - 17, a.x + 17, a.y + 17) for a in anchors]
    for anchor, box in zip(anchors, place(anchors, Box(0, 0, 230, 200), marks, []), strict=True):
        (other,) = (each for each in anchors if each is not anchor)
        own, far = (math.dist((a.x, a.y), (np.clip(a.x, *box[::2]), np.clip(a.y, *box[1::2]))) for a in (anchor, other))
        assert far > own + 8


def crowd() -> list[Record]:
    rng = np.random.default_rng(1)
    records = []
    for label in CROWD:
        score, speed, memory = rng.uniform(0.40, 0.50), rng.uniform(12e3, 20e3), rng.uniform(15e7, 5e8)
        for seed in range(3):
            record = make_record(label.split()[0], label=label, seed=seed)
            record["test_score"] = score + rng.normal(0, 0.004)
            record |= {"tokens_per_second": speed * rng.uniform(0.98, 1.02)}
            record |= {"peak_memory_bytes": memory, "train_memory_bytes": 1.1 * memory}
            records.append(record)
    return records


@pytest.mark.parametrize("against_of", [lambda rows: SPEED, weight_of], ids=["speed", "memory"])
def test_25_names_close_together_do_not_overlap(against_of: Callable[[Sequence[Row]], Against]) -> None:
    (group,) = groups_of(crowd())
    figure = drawn(accuracy_chart(group, against_of(group.rows)), [group])
    assert figure is not None
    assert_readable(figure)
    labels = [name for name, _ in labels_of(figure)]
    assert len(labels) == len(set(labels)) >= 25 + len(group.baselines)
    assert {"none (control)†", "linformer†", "xformers*"} <= set(labels)


@pytest.mark.parametrize("axis", ["step", "seconds"])
def test_25_names_of_one_family_do_not_overlap_on_learning_curves(axis: str) -> None:
    records = [record | {"family": "kernel"} for record in crowd()]
    (group,) = groups_of(records)
    figure = drawn(learning_curves(group, axis), [group])
    assert figure is not None
    assert_readable(figure)
    assert len(figure.axes) == 1
    labels = [name for name, _ in labels_of(figure)]
    assert len([name for name in labels if not name.startswith("length ")]) == 25 + len(group.baselines)


def expected_names(stem: str, groups: list[Group]) -> set[str]:
    """How each variant that has a value must be named on a chart of many."""
    if stem.startswith("cost"):
        quantity = FORWARD_BACKWARD if "time" in stem else TRAINING_MEMORY
        starred = {row.label for group in groups for row in group.rows if row.fell_back}
        rows = [row for group in groups for row in group.rows if row.over_seeds(quantity)]
        return {folded(row.name + ("*" if row.label in starred else "")) for row in rows}
    if stem.startswith("crossover"):
        cells = rows_by_length(groups)
        return {cells[label][1024].name for label in find_crossovers(cells, FORWARD_BACKWARD)}
    (group,) = (group for group in groups if stem.endswith(group.slug))
    if stem.startswith("accuracy"):
        return {folded(marked(row, group)) for row in group.rows if row.scores}
    return {folded(course_name(row), PANEL_FOLD) for row in group.rows if course_of(row, "step")}


MANY_GROUPS = groups_of(many_records())
MANY_CHARTS = {chart.stem: chart for chart in charts_of(MANY_GROUPS)}


@pytest.mark.parametrize("stem", MANY_CHARTS)
def test_every_one_of_26_variants_is_named_on_every_chart_and_every_text_is_readable(stem: str) -> None:
    with matplotlib.rc_context(STYLE):
        figure = drawn(MANY_CHARTS[stem], MANY_GROUPS)
        assert figure is not None
        assert_readable(figure)
    names = {name for name, _ in labels_of(figure)}
    expected = expected_names(stem, MANY_GROUPS)
    assert len(expected) >= 23
    assert expected - names == set()
    assert set(FAMILIES) - {"control"} <= names


def test_learning_curves_of_many_have_a_panel_for_each_family() -> None:
    figure = drawn(MANY_CHARTS["curves_steps_bytes_1024"], MANY_GROUPS)
    assert figure is not None
    assert len(figure.axes) == len(FAMILIES) - 1
    names = [name for name, _ in labels_of(figure)]
    assert names.count("full") == names.count("none (control)") == len(figure.axes)
    assert names.count("linear") == 1


@pytest.mark.bench
def test_all_charts_of_26_variants_are_drawn_in_20_seconds(tmp_path: Path) -> None:
    assert len(MANY) == 26
    started = time.process_time()
    charts = charts_of(MANY_GROUPS)
    write_charts(charts, choose_styles(MANY_GROUPS), tmp_path)
    assert time.process_time() - started < 20
    assert len(charts) == 11


def oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    cones = linear @ np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]).T
    return (
        np.cbrt(cones) @ np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]).T
    )


# How others see linear RGB, after Machado et al. 2009.
SIGHTS = {
    "all cones": np.eye(3),
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_family_colours_can_be_told_apart(sight: str) -> None:
    colours = [*COLOURS.values(), *EXTERNAL]
    coded = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    seen = oklab(np.clip(linear @ np.array(SIGHTS[sight]).T, 0, 1))
    distances = {
        (a, b): float(np.linalg.norm(seen[i] - seen[j])) for (i, a), (j, b) in combinations(enumerate(colours), 2)
    }
    assert {pair: round(far, 3) for pair, far in distances.items() if far < 0.085} == {}
    assert all(1.05 / (line @ [0.2126, 0.7152, 0.0722] + 0.05) > 1.9 for line in linear)  # contrast with white


def test_families_from_elsewhere_keep_their_colours() -> None:
    assert colour_of("wavelets") == colour_of("wavelets")
    assert colour_of("wavelets") in EXTERNAL
    assert in_order({"control", "wavelets", "other", "kernel", "exact"}) == [
        *("exact", "kernel", "wavelets", "other", "control"),
    ]


def test_no_two_variants_of_a_family_look_alike_and_full_is_the_reference() -> None:
    styles = choose_styles(MANY_GROUPS)
    looks = [styles[row.name] for row in MANY_GROUPS[0].rows]
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)
    assert styles["full"].weight == "bold"
    assert styles["full"].width > max(look.width for name, look in styles.items() if name != "full")
    assert styles["naive"].colour == styles["full"].colour
    assert styles["none (control)"].colour == COLOURS["control"]


def test_a_record_without_its_family_takes_it_from_another_or_is_other() -> None:
    old, new, unknown, control = (
        make_record(v, seed=s) for v, s in (("linear", 0), ("linear", 1), ("full", 0), ("none", 0))
    )
    for record in (old, unknown, control):
        del record["family"]
    unknown["family"] = None
    rows = {row.variant: row.family for row in groups_of([old, unknown, control])[0].rows}
    assert rows == {"linear": "other", "full": "other", "none": "control"}
    assert {row.family for row in groups_of([old, new])[0].rows} == {"kernel"}


@pytest.mark.parametrize(
    ("variant", "family", "unturned"),
    [("linformer", "low-rank", False), ("none", "control", True), ("no_such", None, None)],
)
def test_every_record_names_the_family_of_its_variant_and_says_where_rotary_positions_have_no_effect(
    variant: str, family: str | None, unturned: bool | None
) -> None:
    sizes = {"seq_len": 64, "seed": 0, "batch_size": 1, "d_model": 8, "n_heads": 1, "n_layers": 1, "threads": 1}
    training = {"budget": None, "steps": 1, "conv_width": None, "embedding_std": 0.1, "lr": 0.1}
    same = {"positions": "rotary", "device": "cpu", "dtype": "float32"}
    spec = RunSpec(variant=variant, task="mqar", **sizes, **training, **same)
    record = new_record(spec, "ok", "")
    assert (record["family"], record["rotary_without_effect"]) == (family, unturned)
    other = new_record(dataclasses.replace(spec, positions="sinusoidal"), "ok", "")
    assert not other["rotary_without_effect"]


def test_long_notes_stay_on_the_page() -> None:
    records = [
        make_record(v, label=f"{v} an_option={n} another={n}", seed=s) for v in MANY for n, s in ((512, 0), (64, 1))
    ]
    groups = groups_of(records)
    figure = drawn(accuracy_chart(groups[0], SPEED), groups)
    assert figure is not None
    render(figure)
    assert max(box.right for _, box in texts_of(figure)) < figure.bbox.width


def test_baselines_far_below_do_not_stretch_the_axis() -> None:
    assert near_baselines({"low": 0.1, "best": 0.45}, [0.46, 0.52]) == ({"best": 0.45}, ["low"])
    assert near_baselines({"low": 0.44, "best": 0.45}, [0.46, 0.52]) == ({"low": 0.44, "best": 0.45}, [])
    assert near_baselines({"best": 0.1}, [0.46, 0.52]) == ({"best": 0.1}, [])
    assert near_baselines({}, [0.5]) == ({}, [])


def test_failures_are_named_on_the_chart_of_cost() -> None:
    records = [
        make_record(variant, seq_len=n, status="oom" if variant == "full" and n == 4096 else "ok")
        for n in (1024, 4096)
        for variant in PROFILES
    ]
    records += [make_record("local", label="local window=0", seq_len=n, status="error") for n in (1024, 4096)]
    groups = groups_of(records)
    figure = drawn(cost_against_length(series_of(groups)[0], TIME), groups)
    assert figure is not None
    assert_readable(figure)
    assert "oom: full" in [name for name, _ in labels_of(figure)]
    assert any("Nothing measured at any length: local window=0 (error)." in text for text, _ in texts_of(figure))


def test_curves_prefer_validation_and_find_the_changes_of_length() -> None:
    record = make_record("full", seq_len=4096)
    curve = learning_curve(record, "seconds")
    assert curve is not None
    assert curve.validated
    assert [length for _, length in curve.changes] == [1024, 4096]
    for point in record["curve"]:
        point["val_score"] = None
    curve = learning_curve(record, "step")
    assert curve is not None
    assert not curve.validated
    assert len(curve.score) == len(record["curve"])


def test_a_full_report_names_everything(tmp_path: Path) -> None:
    records = [make_record(v, seq_len=n, seed=s) for n in (512, 1024) for v in PROFILES for s in range(2)]
    write_report(write_folder(tmp_path, records))
    stems = {"cost_time_bytes", "cost_memory_bytes", "crossover_bytes"}
    kinds = ("accuracy_speed", "accuracy_memory", "curves_steps", "curves_seconds")
    stems |= {f"{kind}_bytes_{n}" for kind in kinds for n in (512, 1024)}
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {s + e for s in stems for e in (".png", ".svg")}
    report = (tmp_path / "report.md").read_text()
    assert all(f"(charts/{stem}.png)" in report for stem in stems)
    assert "* another kernel ran: xformers (torch sdpa math)." in report
    assert "1.51\xa0M †" in report
    assert ENVIRONMENT["command"] in report
    assert "neighbour bigram" in report
    assert "fewer than 3 seeds" in report
    assert "(2 seeds: no ranking)" in report


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path, [make_record(variant) for variant in ("full", "none")])
    write_report(tmp_path)
    first = {path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))}
    write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))} == first


def test_the_state_is_a_column_where_a_record_holds_it() -> None:
    records = [make_record("full"), make_record("linformer"), make_record("linear") | {"state_bytes": None}]
    (group,) = group_records([Source(records, ENVIRONMENT)])
    (state,) = [column for column in columns_of(group) if column.title == "state a layer"]
    shown = {row.variant: state.cell(row, group).text for row in group.rows}
    assert shown == {"full": size(2**20), "linformer": size(2**16), "linear": MISSING}
    for record in records:
        del record["state_bytes"]
    (group,) = group_records([Source(records, ENVIRONMENT)])
    assert "state a layer" not in [column.title for column in columns_of(group)]


def test_only_failed_runs_leave_a_table_and_no_charts(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [make_record(v, status="oom") for v in ("full", "linear")]))
    report = (tmp_path / "report.md").read_text()
    assert list((tmp_path / "charts").iterdir()) == []
    assert "No run finished: full oom, linear oom." in report
    assert "oom after 3 steps &lt;at 1024>" in report
    assert "oom after 3 steps &lt;at 1024&gt;" in (tmp_path / "report.html").read_text()


def test_no_records_at_all(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, []))
    assert "There are no records" in (tmp_path / "report.md").read_text()


def test_old_charts_go_when_their_runs_have_gone(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [make_record("full")]))
    write_report(write_folder(tmp_path, [make_record("full", task="mqar")]))
    assert {path.stem.split("_")[2] for path in (tmp_path / "charts").iterdir()} == {"mqar"}


NEEDED = {"run_id", "variant", "task", "seq_len", "seed", "status"}


@pytest.mark.parametrize("field", sorted(set(make_record("full")) - NEEDED))
def test_any_field_may_be_absent_or_null(field: str) -> None:
    records = [make_record(v, seq_len=n) for n in (512, 1024) for v in ("full", "xformers", "none")]
    for record in records[::2]:
        del record[field]
    for record in records[1::2]:
        record[field] = None
    groups = groups_of(records)
    for group in groups:
        assert sentences_of(group)
        drawn(accuracy_chart(group, SPEED), [group])
        drawn(accuracy_chart(group, weight_of(group.rows)), [group])
        drawn(learning_curves(group, "step"), [group])
    for series in series_of(groups):
        drawn(cost_against_length(series, TIME), groups)


def test_the_barest_record_is_reported(tmp_path: Path) -> None:
    bare = {"run_id": "x", "variant": "full", "task": "bytes", "seq_len": 64, "seed": 0, "status": "ok"}
    write_folder(tmp_path, [bare])
    (tmp_path / "environment.json").unlink()
    write_report(tmp_path)
    assert "the machine is unknown" in (tmp_path / "report.md").read_text()
    assert "| full | other |" in (tmp_path / "report.md").read_text()


def test_damaged_lines_are_named_in_both_reports(tmp_path: Path) -> None:
    write_folder(tmp_path, [make_record("full")])
    with (tmp_path / "records.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"run_id": "cut of\n')
    write_report(tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Warning:" in text
        assert "line 2" in text


def test_different_data_under_one_task_is_a_warning(tmp_path: Path) -> None:
    other = make_record("linear")
    other["data"]["corpus_sha256"] = "a0" * 32
    write_report(write_folder(tmp_path, [make_record("full"), other]))
    assert "do not share one corpus_sha256" in (tmp_path / "report.md").read_text()


def test_reports_are_drawn_without_torch(tmp_path: Path) -> None:
    write_folder(tmp_path, [make_record("full")])
    script = (
        "import sys; from pathlib import Path; from compare.report import write_report; "
        f"write_report(Path({json.dumps(str(tmp_path))})); "
        "assert not {'torch', 'datasets', 'zoo', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("together", [False, True], ids=["in place", "--out"])
def test_nothing_is_drawn_of_records_that_are_all_damaged(tmp_path: Path, *, together: bool) -> None:
    folder = write_folder(tmp_path / "damaged", [])
    (folder / "records.jsonl").write_text('{"run_id": "cut of\n[]\n')
    before = sorted(tmp_path.rglob("*"))
    done = compare_here("report", str(folder), *(["--out", str(tmp_path / "out")] if together else []))
    assert done.returncode == 1
    assert done.stderr == f"error: {folder / 'records.jsonl'} has no readable record\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_options_are_in_a_name_only_where_they_tell_variants_apart() -> None:
    records = [
        make_record(v, label=label) for v, label in (("linformer", "linformer rank=128"), ("full", "full kernel=math"))
    ]
    records += [make_record("local", label=f"local window={w}") for w in (8, 16)]
    (group,) = groups_of(records)
    assert [row.name for row in group.rows] == ["full kernel=math", "linformer", "local window=8", "local window=16"]
    assert "Options set: linformer rank=128." in sentences_of(group)
    read = list(csv.DictReader(csv_table([group]).splitlines()))[1]
    assert (read["variant"], read["options"], read["name"]) == ("linformer", "rank=128", "linformer")
    assert "Options set: linformer rank=128." in latex_tables([group])


EVIL = "<script>alert(1)</script> <img src=x onerror=y> `code` ![](http://a.b/c.png) &lt; | end]"


def test_names_are_words_in_the_markdown_and_no_markup(tmp_path: Path) -> None:
    """Of variants, options, data, metrics, reasons, notes, machines and commands."""
    records = [
        make_record("full", task=EVIL, seq_len=n) | {"label": f"full {EVIL}", "metric": EVIL, "kernel": EVIL}
        for n in (256, 512)
    ]
    records += [make_record("linear", task=EVIL, seq_len=n, status="oom") | {"reason": EVIL} for n in (256, 512)]
    for record in records:
        record |= {"data_notes": [EVIL], "baselines": {EVIL: 0.3}, "family": EVIL, "test_slices": {EVIL: 0.2}}
        record["curve"] = record["curve"][:3]
        record["spec"]["task_options"] = [["data", f"{EVIL}\n\n# of {record['seq_len']}"]]
    environment = ENVIRONMENT | {"cpu": EVIL, "command": f"compare\n```\n{EVIL}\n````\n{EVIL}"}
    write_report(write_folder(tmp_path, records, environment))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    fenced = re.search(r"^`````sh\n.*?^`````$\n", text, re.DOTALL | re.MULTILINE)
    assert fenced
    outside = text.replace(fenced[0], "")
    assert not re.search(r"<|(?<!\\)`|&(?!(amp|lt|gt);)", outside)
    assert set(re.findall(r"\]\((.*?)\)", outside)) == {f"charts/{p.name}" for p in tmp_path.glob("charts/*.png")}
    heads = re.findall(r"^#+ .*", outside, re.MULTILINE)
    assert not any(head.startswith("# of") for head in heads)
    for table in re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<img src=x" not in page


def test_what_ran_alone_is_said_so() -> None:
    def short(*records: Record) -> str:
        return "\n".join(answer_to(groups_of(list(records))))

    full, failed = (make_record("full", seed=0), make_record("full", seed=1)), make_record("linear", status="oom")
    control = make_record("none")
    assert "Full is the only variant here that attends, so nothing can be compared with it." in short(*full)
    assert "Full is the only variant here that attends" in short(*full, control)
    assert "No variant but full has a score" in short(*full, failed)
    assert "No variant shares a seed with full" in short(full[0], make_record("linear", seed=1))
    assert "Only the control has a score: there is nothing to compare." in short(control)
    assert "Only the control has a score" in short(control, failed)
    cost = control | {"test_score": None, "curve": []}
    assert "Costs only, no scores." in short(cost)


def test_letters_that_no_font_has_flood_no_terminal(tmp_path: Path) -> None:
    record = make_record("full", label="full 数据 ትግርኛ עברית \U0001f600", task="classify") | {"curve": []}
    folder = write_folder(tmp_path, [record, record | {"seq_len": 512, "run_id": "longer"}])
    command = [sys.executable, "-m", "compare", "report", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "数据" in (folder / "report.md").read_text(encoding="utf-8")
