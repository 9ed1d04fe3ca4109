"""The charts of a report: ticks, colours, and names that touch neither one another nor what is drawn."""

import math
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
from compare.report.facts.groups import Group, Row
from compare.report.facts.scaling import find_crossovers, rows_by_length, series_of
from compare.report.render.axes import memory_ticks, nice_ticks
from compare.report.render.canvas import SOFT, STYLE, choose_styles, folded
from compare.report.render.charts import write_charts
from compare.report.render.families import COLOURS, EXTERNAL, colour_of, in_order
from compare.report.render.labels import Anchor, Box, place, spread
from compare.report.sections.accuracy import SPEED, Against, accuracy_chart, near_baselines, weight_of
from compare.report.sections.curves import PANEL_FOLD, course_name, course_of, learning_curves
from compare.report.sections.flags import marked
from compare.report.sections.lengths import TIME, cost_against_length
from tests.drawn import charts_of, drawn
from tests.make_records import FAMILIES, MANY, PROFILES, Record, make_record, many_records
from tests.test_report import groups_of

CROWD = (
    *("bigbird", "cosformer", "fnet", "fourier mixer", "gated linear", "hyena", "linear", "linformer rank=128"),
    *("local", "longformer", "luna", "mamba", "nystromformer", "performer features=256", "reformer hashes=4"),
    *("routing", "sinkhorn", "skyformer", "sparse", "synthesizer dense", "synthesizer random", "tensorized"),
    *("full", "xformers", "none"),
)


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
