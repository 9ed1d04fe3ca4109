"""The report: its arithmetic, its caution, its labels, and that nothing a record lacks brings it down."""

import json
import math
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compare.report import write_report, write_report_many
from compare.report.aggregate import (
    Estimate,
    Group,
    Source,
    apart,
    binomial_half,
    estimate,
    group_records,
    learning_curve,
    pareto_front,
)
from compare.report.charts import TIME, accuracy_speed, choose_styles, cost_against_length, families, learning_curves
from compare.report.labels import Anchor, Box, place, spread
from compare.report.summary import summarise
from compare.report.units import count, seconds, size
from tests.make_records import ENVIRONMENT, PROFILES, Record, make_record, write_folder

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


def rendered_labels(figure: Figure) -> dict[str, Box]:
    """Boxes of the labels as they come out at the size of the PNG."""
    figure.set_dpi(200)
    FigureCanvasAgg(figure).draw()
    return {
        text.get_text(): Box(*(float(edge) for edge in text.get_window_extent().extents))
        for text in figure.texts
        if text.get_gid() == "label"
    }


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042), (61, 2.000), (121, 1.980)])
def test_interval_is_students(n: int, t: float) -> None:
    values = [float(value) for value in np.linspace(0, 1, n)]
    found = estimate(values)
    assert found is not None
    assert found.half is not None
    assert found.mean == pytest.approx(0.5)
    assert found.half == pytest.approx(t * np.std(values, ddof=1) / math.sqrt(n), rel=1e-3)


def test_one_seed_has_no_interval_and_none_no_estimate() -> None:
    assert estimate([0.4]) == (0.4, None, 1)
    assert estimate([]) is None


def test_apart_needs_three_seeds_disjoint_intervals_and_more_than_the_floor() -> None:
    low, high = Estimate(0.41, 0.02, 3), Estimate(0.61, 0.02, 3)
    two, one = Estimate(0.61, 0.02, 2), Estimate(0.61, None, 1)
    assert apart(low, high)
    assert not apart(low, high, floor=0.3)
    assert not apart(low, two)
    assert not apart(low, one)
    assert not apart(low, low)


def test_binomial_noise() -> None:
    assert binomial_half(0.5, 2000) == pytest.approx(0.0219, abs=1e-4)
    assert binomial_half(0.5, 10_000) == pytest.approx(0.0098, abs=1e-4)


def test_pareto_front_holds_exactly_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (1.5, 3.0), (3.0, 4.0), (4.0, 1.0), (4.0, 0.5)]
    assert pareto_front(points) == [0, 3, 4]
    assert pareto_front([]) == []


def test_units() -> None:
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


def test_difference_to_full_is_paired_by_seed() -> None:
    records = [make_record(variant, seed=seed) for variant in ("full", "linear") for seed in range(3)]
    for record in records:
        record["test_score"] = 0.5 + 0.1 * record["seed"] - (0.02 if record["variant"] == "linear" else 0)
    full, linear = groups_of(records)[0].rows
    found = linear.difference(full, "test_score")
    assert found is not None
    assert found.mean == pytest.approx(-0.02)
    assert found.half == pytest.approx(0, abs=1e-12)


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


def test_summary_claims_only_what_stands_beyond_noise() -> None:
    clear = summarise(groups_of([make_record(v, seed=s) for v in ("full", "linear", "none") for s in range(3)])[0])
    assert any(line.startswith("Most accurate: full") for line in clear)
    assert any(line.startswith("Fastest: linear") for line in clear)

    level = summarise(groups_of([make_record(v, seed=s) for v in ("full", "xformers") for s in range(3)])[0])
    assert "within noise of" in level[0]

    few = summarise(groups_of([make_record(v) for v in ("full", "linear", "none")])[0])
    assert not any(line.startswith(("Most accurate", "Fastest", "Lightest")) for line in few)
    assert all("no ranking" in line for line in few)


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


def crowd() -> list[Record]:
    rng = np.random.default_rng(1)
    records = []
    for label in CROWD:
        score, speed, memory = rng.uniform(0.40, 0.50), rng.uniform(12e3, 20e3), rng.uniform(15e7, 5e8)
        for seed in range(3):
            record = make_record(label.split()[0], label=label, seed=seed)
            record["test_score"] = score + rng.normal(0, 0.004)
            record |= {"tokens_per_second": speed * rng.uniform(0.98, 1.02), "peak_memory_bytes": memory}
            records.append(record)
    return records


def test_25_names_do_not_overlap_on_the_chart_of_accuracy_against_speed() -> None:
    (group,) = groups_of(crowd())
    figure = accuracy_speed(group, choose_styles([group]))
    assert figure is not None
    labels = rendered_labels(figure)
    assert len(labels) == 25 + len(group.baselines)
    assert overlaps(list(labels.values())) == []
    assert "none (control)" in labels
    assert "xformers*" in labels


@pytest.mark.parametrize("axis", ["step", "seconds"])
def test_25_names_do_not_overlap_on_learning_curves(axis: str) -> None:
    (group,) = groups_of(crowd())
    figure = learning_curves(group, axis, choose_styles([group]))
    assert figure is not None
    labels = rendered_labels(figure)
    assert overlaps(list(labels.values())) == []
    assert len([name for name in labels if not name.startswith("length ")]) == 25 + len(group.baselines)


def test_failures_are_named_on_the_chart_of_cost() -> None:
    records = [
        make_record(variant, seq_len=n, status="oom" if variant == "full" and n == 4096 else "ok")
        for n in (1024, 4096)
        for variant in PROFILES
    ]
    groups = groups_of(records)
    figure = cost_against_length(families(groups)[0], TIME, choose_styles(groups))
    assert figure is not None
    labels = rendered_labels(figure)
    assert "oom: full" in labels
    assert overlaps(list(labels.values())) == []


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
    stems = {"cost_time_bytes", "cost_memory_bytes"}
    stems |= {f"{kind}_bytes_{n}" for kind in ("accuracy_speed", "curves_steps", "curves_seconds") for n in (512, 1024)}
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {s + e for s in stems for e in (".png", ".svg")}
    report = (tmp_path / "report.md").read_text()
    assert all(f"(charts/{stem}.png)" in report for stem in stems)
    assert "xformers (ran torch sdpa math)" in report
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
@pytest.mark.parametrize("how", ["missing", "null"])
def test_any_field_may_be_absent(field: str, how: str) -> None:
    records = [make_record(v, seq_len=n) for n in (512, 1024) for v in ("full", "xformers", "none")]
    for record in records:
        if how == "missing":
            del record[field]
        else:
            record[field] = None
    groups = groups_of(records)
    styles = choose_styles(groups)
    for group in groups:
        assert summarise(group)
        accuracy_speed(group, styles)
        learning_curves(group, "step", styles)
    for family in families(groups):
        cost_against_length(family, TIME, styles)


def test_the_barest_record_is_reported(tmp_path: Path) -> None:
    bare = {"run_id": "x", "variant": "full", "task": "bytes", "seq_len": 64, "seed": 0, "status": "ok"}
    write_folder(tmp_path, [bare])
    (tmp_path / "environment.json").unlink()
    write_report(tmp_path)
    assert "the machine is unknown" in (tmp_path / "report.md").read_text()
    assert "| full |" in (tmp_path / "report.md").read_text()


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
