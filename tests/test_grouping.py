"""Which records stand in one group and one row of a report, and what these are called."""

import csv
from pathlib import Path

from compare.report import write_report, write_report_many
from compare.report.facts.grouping import Source, group_records
from compare.report.render.csv_table import csv_table
from compare.report.render.latex import latex_tables
from tests.drawn import sentences_of
from tests.make_records import ENVIRONMENT, make_record, write_folder
from tests.test_report import groups_of


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
