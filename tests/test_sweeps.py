"""Sweeps in the report: what belongs together, the charts of capacity, and charts and tables that do not drown."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from compare.report import write_report
from compare.report.facts.groups import Group
from compare.report.facts.sweeps import capacity_group, sweeps_of
from compare.report.render.canvas import STYLE
from compare.report.sections.accuracy import SPEED, accuracy_chart, weight_of
from compare.report.sections.capacity import sweep_table
from compare.report.sections.flags import MEANINGS
from tests.drawn import charts_of, drawn
from tests.make_records import Record, make_record, write_folder
from tests.test_charts import assert_readable, labels_of
from tests.test_report import groups_of

pytestmark = pytest.mark.usefixtures("blank_charts")

FAMILIES = {
    ("performer", "features"): (16, 32, 64, 128, 256, 512, 1024),
    ("linformer", "rank"): (4, 8, 16, 32, 64, 128, 256),
    ("local", "window"): (4, 8, 16, 32, 64, 128, 256),
}


def swept(seeds: int = 3, others: Sequence[str] = ("full", "linear", "none")) -> list[Record]:
    """Three families at seven values, whose score rises to a level that the third or fourth value nearly has."""
    records = []
    for seed in range(seeds):
        for variant in others:
            record = make_record(variant, seed=seed)
            records.append(record | {"state_bytes": {"full": 2**20, "none": 0}.get(variant, 2**14)})
        for (variant, option), values in FAMILIES.items():
            for rank, value in enumerate(values):
                record = make_record(variant, seed=seed, label=f"{variant} {option}={value}")
                record["spec"]["options"] = [[option, value]]
                noise = random.Random(f"{variant} {value} {seed}")
                record["test_score"] = 0.5 - 0.2 * math.exp(-1.5 * rank) + noise.gauss(0, 0.002)
                record["tokens_per_second"] /= 1.15**rank
                record["step_seconds"] *= 1.15**rank
                records.append(record | {"state_bytes": 1024 * value})
    return records


def group_of(records: list[Record]) -> Group:
    (group,) = groups_of(records)
    return group


def chart(records: list[Record], stem: str) -> Figure:
    groups = groups_of(records)
    with matplotlib.rc_context(STYLE):
        (swept,) = charts_of(groups, stem)
        figure = drawn(swept, groups)
    assert figure is not None
    return figure


def test_a_sweep_is_rows_that_differ_in_one_number() -> None:
    def with_options(**options: object) -> Record:
        label = " ".join(f"{name}={value}" for name, value in options.items())
        record = make_record("reformer", label=f"reformer {label}")
        record["spec"]["options"] = [[name, value] for name, value in options.items()]
        return record

    records = [with_options(n_hashes=16), with_options(n_hashes=2), with_options(n_hashes=4, bucket=8)]
    records += [with_options(n_hashes=4, bucket=16), with_options(kind="a"), with_options(kind="b")]
    found = {(s.name, tuple(value for value, _ in s.points)) for s in sweeps_of(group_of(records).rows)}
    assert found == {("reformer n_hashes", (2, 16)), ("reformer n_hashes=4 bucket", (8, 16))}
    assert sweeps_of(group_of([make_record("full"), with_options(n_hashes=2)]).rows) == []


def test_rows_stand_in_the_order_of_their_values() -> None:
    names = [row.name for row in group_of(swept(1)).rows]
    assert names[0] == "full"
    assert names[1] == "linear"
    assert names[2:9] == [f"linformer rank={value}" for value in FAMILIES["linformer", "rank"]]
    assert names[-1] == "none (control)"


@pytest.mark.parametrize("stem", ["accuracy_speed", "accuracy_memory", "capacity_state", "capacity_time"])
def test_a_swept_variant_is_one_line_named_once_and_every_text_is_readable(stem: str) -> None:
    figure = chart(swept(), stem)
    assert_readable(figure)
    labels = [label.replace("\n", " ").rstrip("".join(MEANINGS)) for label, _ in labels_of(figure)]
    ends = [f"{variant} {option}={values[-1]}" for (variant, option), values in FAMILIES.items()]
    assert [label for label in labels if "=" in label] == sorted(ends, key=labels.index)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 7]
    assert len(lines) == 3
    values = {str(value) for values in FAMILIES.values() for value in values[:-1]}
    numbers = [label for label in labels if label.isdecimal()]
    assert set(numbers) <= values
    assert len(numbers) >= 9, "hardly a point bears its value"


def test_where_two_sweeps_cross_both_lines_are_named() -> None:
    records = [make_record("full"), make_record("none")]
    for rank, (hashes, bucket) in enumerate([(1, 16), (2, 16), (4, 16), (2, 8), (2, 32)]):
        record = make_record("reformer", label=f"reformer bucket_size={bucket} n_hashes={hashes}")
        record["spec"]["options"] = [["bucket_size", bucket], ["n_hashes", hashes]]
        records.append(record | {"test_score": 0.4 + 0.02 * rank, "step_seconds": 0.1 * (rank + 1)})
    figure = chart(records, "capacity_time")
    labels = {label.replace("\n", " ") for label, _ in labels_of(figure)}
    assert {"reformer bucket_size=16 n_hashes=4", "reformer bucket_size=32 n_hashes=2"} <= labels
    assert sorted(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_zorder() == 2.2) == [3, 3]


def test_capacity_shows_what_is_swept_and_what_it_is_measured_by() -> None:
    capacity = capacity_group(group_of(swept()))
    assert capacity is not None
    assert {row.variant for row in capacity.rows} == {"full", "performer", "linformer", "local", "none"}
    assert len(capacity.rows) == 23
    assert capacity_group(group_of([make_record("full"), make_record("local", label="local window=64")])) is None


def test_capacity_is_against_state_or_for_all_alike_against_saved_bytes() -> None:
    records = swept()
    figure = chart(records, "capacity_state")
    assert "state of one layer" in figure.axes[0].get_xlabel()
    texts = [text.replace("\n", " ") for text, _ in labels_of(figure)]
    assert any(text.startswith("none (control)") and text.endswith("at 0") for text in texts), (
        "0 has no place on the axis"
    )
    points = {line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 7}
    assert points == {16 * 1024, 4 * 1024}
    del records[5]["state_bytes"]
    figure = chart(records, "capacity_state")
    assert "saved for backward, as not all recorded their state" in figure.axes[0].get_xlabel()
    assert min(point for line in figure.axes[0].lines for point in line.get_xdata() if point > 1) > 1e7


def test_nothing_swept_leaves_the_charts_as_they_are(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [make_record(name) for name in ("full", "linear", "none")]))
    assert not list((tmp_path / "charts").glob("capacity*"))
    assert "smallest value within noise" not in (tmp_path / "report.md").read_text()


def test_the_table_names_the_smallest_value_within_noise_of_the_best() -> None:
    records = swept()
    table = sweep_table(group_of(records))
    assert table is not None
    for line in table.rows:
        assert line[1].count(",") == 6
        assert line[2].startswith("50.")
        value = float(line[3].rpartition(" ")[2])
        variant, option = line[0].split()
        assert list(FAMILIES[variant, option]).index(int(value)) in (3, 4, 5, 6)
        assert line[4] == f"{value:g}\N{NO-BREAK SPACE}KiB" or value == 1024
        assert line[5].endswith("ms")
    few = sweep_table(group_of(swept(2)))
    assert few is not None
    assert all(line[3:] == ["–"] * 3 for line in few.rows), "two seeds claim something"


def test_reports_in_both_forms_hold_table_and_charts(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, swept()))
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "smallest value within noise of that" in text
        assert "Capacity: test score against bytes of state" in text


def test_a_sweep_whose_runs_fail_is_drawn_as_far_as_it_goes() -> None:
    records = swept()
    for record in records:
        if record["label"] in ("performer features=1024", "local window=4") or record["variant"] == "linformer":
            record |= {"status": "oom", "test_score": None, "tokens_per_second": None, "step_seconds": None}
    group = group_of(records)
    for against in (SPEED, weight_of(group.rows)):
        figure = drawn(accuracy_chart(group, against), [group])
        assert figure is not None
        labels = [label.replace("\n", " ") for label, _ in labels_of(figure)]
        assert {label for label in labels if "=" in label} == {"local window=256", "performer features=512"}
