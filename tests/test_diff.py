"""What changed between two folders: nothing where nothing did, all that was planted, and what cannot be judged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from compare.__main__ import main
from compare.diff import Diff, MeasuredPair, comparisons_of, diff, pair_up
from compare.moderation import Evidence, holm, inverse_trigamma, moderate
from compare.report.facts.grouping import Source
from tests.make_records import ENVIRONMENT, MANY, Record, make_record, write_folder

DRAWS = 200
VARIANTS = MANY[:25]


def draw(seed: int, *, seeds: int = 3, even: bool = True) -> Source:
    """A folder of 25 variants, always of the same truth; the noise of scores is alike, or up to tenfold apart."""
    noise = np.random.default_rng(seed)
    records = []
    for rank, variant in enumerate(VARIANTS):
        spread = 0.006 if even else 0.002 * 10 ** (rank / 24)
        for each in range(seeds):
            step, forward = (1 + rank) * 0.01 * np.exp(noise.normal(0, 0.03, 2))
            records.append(
                {
                    **{
                        "variant": variant,
                        "label": variant,
                        "task": "mqar",
                        "seq_len": 64,
                        "seed": each,
                        "status": "ok",
                    },
                    **{"run_id": f"{variant}-{each}", "spec": {"seed": each, "lr": 1e-3}},
                    "test_score": 0.5 + 0.01 * rank + noise.normal(0, spread),
                    "step_seconds": step,
                    "step_seconds_spread": [0.98 * step, 1.03 * step],
                    "forward_seconds": forward,
                    "forward_seconds_spread": [0.98 * forward, 1.03 * forward],
                    "peak_memory_bytes": 10**8 * math.exp(noise.normal(0, 0.02)),
                    **{"saved_bytes": 10**7, "flops": 10**9, "params": 10**6},
                }
            )
    return Source(records, ENVIRONMENT)


def planted(source: Source, variant: str, change: Callable[[Record], object]) -> Source:
    records = copy.deepcopy(source.records)
    for record in records:
        if record["variant"] == variant:
            change(record)
    return Source(records, source.environment)


def slow(factor: float) -> Callable[[Record], object]:
    def change(record: Record) -> None:
        for field in ("step_seconds", "forward_seconds"):
            record[field] *= factor
            record[f"{field}_spread"] = [factor * end for end in record[f"{field}_spread"]]

    return change


def told(found: Diff) -> list[tuple[str, str, str]]:
    return [(change.variant, change.what, change.verdict) for change in found.changes]


@pytest.mark.parametrize("even", [True, False], ids=["alike", "tenfold apart"])
def test_two_runs_of_one_truth_have_not_changed_in_95_of_100_cases(*, even: bool) -> None:
    folders = [draw(i, even=even) for i in range(DRAWS + 1)]
    quiet = [not diff(before, after).changes for before, after in pairwise(folders)]
    assert np.mean(quiet) >= 0.95


def test_planted_changes_are_found_with_their_direction_and_nothing_else() -> None:
    planted_changes = {
        ("linear", "step", "worse"): slow(1.2),
        ("reformer", "test score", "worse"): lambda record: record.update(test_score=record["test_score"] - 0.05),
        ("performer", "test score", "better"): lambda record: record.update(test_score=record["test_score"] + 0.05),
        ("luna", "peak memory", "better"): lambda record: record.update(peak_memory_bytes=8e7),
    }
    expected = {*planted_changes, ("linear", "forward", "worse")}
    found = []
    for i in range(20):
        after = draw(2000 + i)
        for (variant, _, _), change in planted_changes.items():
            after = planted(after, variant, change)
        lines = set(told(diff(draw(1000 + i), after)))
        found += lines & expected
        assert lines <= expected
    assert all(found.count(line) >= 18 for line in expected), {line: found.count(line) for line in expected}


def test_runs_of_other_seeds_are_compared_as_welch_does() -> None:
    noise = np.random.default_rng(0)
    before, after = noise.normal(0.5, 0.01, 3), noise.normal(0.6, 0.03, 4)
    records = [make_record("full", seed=seed) | {"test_score": float(score)} for seed, score in enumerate(before)]
    others = [make_record("full", seed=7 + seed) | {"test_score": float(score)} for seed, score in enumerate(after)]
    (score, *_) = comparisons(records, others)
    welch = stats.ttest_ind(after, before, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    (tested,) = moderate([evidence] if (evidence := score.evidence()) else [])
    assert tested.chance == pytest.approx(welch.pvalue)
    assert (tested.change - tested.half, tested.change + tested.half) == pytest.approx((low, high))


def test_shared_seeds_are_paired() -> None:
    before, after = [0.2, 0.5, 0.8, 0.1], [0.23, 0.54, 0.82, 0.9]
    records = [make_record("full", seed=seed) | {"test_score": score} for seed, score in enumerate(before)]
    others = [make_record("full", seed=seed) | {"test_score": score} for seed, score in enumerate(after)]
    others[3]["seed"] = 9
    (score, *_) = comparisons(records, others)
    (tested,) = moderate([evidence] if (evidence := score.evidence()) else [])
    assert tested.chance == pytest.approx(stats.ttest_rel(after[:3], before[:3]).pvalue)


def comparisons(before: list[Record], after: list[Record]) -> list[MeasuredPair]:
    ((pair,), _, _, _) = pair_up(before, after)
    return comparisons_of(pair)


def test_variances_that_agree_are_pooled_and_others_stay_as_they_are() -> None:
    alike = [Evidence(0.02, 1e-4, 2, 1 / 3)] * 20
    (first, *_) = moderate(alike)
    (alone,) = moderate(alike[:1])
    assert first.chance < alone.chance / 20
    assert first.half < alone.half / 2
    unlike = [Evidence(0.02, 10.0**-power, 2, 1 / 3) for power in np.linspace(2, 8, 20)]
    for found, own in zip(moderate(unlike), (moderate([each])[0] for each in unlike), strict=True):
        assert 0.2 < found.half / own.half < 5
    assert [found.chance for found in moderate([Evidence(0.0, 0.0, 2, 1 / 3), Evidence(0.1, 0.0, 2, 1 / 3)])] == [1, 0]


@pytest.mark.parametrize("value", [1e-3, 0.1, 1.0, 30.0])
def test_trigamma_is_inverted(value: float) -> None:
    assert special.polygamma(1, inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)


def test_holm_lets_each_stand_against_those_that_are_left() -> None:
    assert holm([0.01, 0.04, 0.03]) == 0.01
    assert holm([0.01, 0.02, 0.03]) == 0.03
    assert holm([0.02, 0.04, 0.03]) == -1
    assert holm([]) == -1


def small(**fields: object) -> list[Record]:
    """Two variants, three seeds, the second changed."""
    records = [make_record(variant, seed=seed) for variant in ("full", "linear") for seed in range(3)]
    for record in records[3:]:
        record |= {name: value for name, value in fields.items() if name in record}
        record["spec"] |= {name: value for name, value in fields.items() if name in record["spec"]}
    return records


def against_small(records: list[Record], environment: Record = ENVIRONMENT) -> Diff:
    return diff(Source(small(), ENVIRONMENT), Source(records, environment))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"status": "oom"}, [("status", "ok", "3 oom", "worse")]),
        ({"params": 1_240_001}, [("parameters", "1,240,000", "1,240,001", "changed")]),
        ({"flops": 1.2e11}, [("FLOPs/step", "240,000,000,000", "120,000,000,000", "changed")]),
        ({"kernel": "triton"}, [("kernel", "torch", "triton", "changed")]),
        ({"lr": 3e-3}, [("learning rate", "0.001", "0.003", "changed")]),
    ],
)
def test_what_has_no_noise_is_told_exactly(fields: dict[str, object], expected: list[tuple[str, ...]]) -> None:
    changes = against_small(small(**fields)).changes
    assert [(c.what, c.before, c.after, c.verdict) for c in changes] == expected
    assert {c.variant for c in changes} <= {"linear"}


def test_a_run_that_is_ok_again_is_better_and_some_that_fail_are_worse() -> None:
    failed = small()
    failed[4] |= {"status": "diverged", "test_score": None}
    (change,) = against_small(failed).changes
    assert (change.before, change.after, change.verdict) == ("ok", "2 ok, 1 diverged", "worse")
    (change,) = diff(Source(failed, ENVIRONMENT), Source(small(), ENVIRONMENT)).changes
    assert change.verdict == "better"


def test_new_and_vanished_rows_are_named() -> None:
    records = small()[:3] + [make_record("luna", seed=seed) for seed in range(3)]
    records += [make_record("full", task="mqar")]
    found = against_small(records)
    assert found.new == ["luna (bytes, length 1,024)", "all of mqar, length 1,024 (1)"]
    assert found.vanished == ["linear (bytes, length 1,024)"]
    assert found.changes == []


def test_a_side_of_two_machines_is_said_and_its_times_are_not_judged() -> None:
    records = small()
    for record in records:
        record["machine"] = ENVIRONMENT | ({"cpu": "Other"} if record["seed"] == 0 else {})
        record["step_seconds"] *= 3
    found = against_small(records)
    assert "Other" in found.remarks[0]
    assert found.remarks[0].endswith("Times are shown, not judged.")
    assert {change.verdict for change in found.changes if change.what == "step"} == {"other machine"}


def test_other_conditions_data_and_machines_are_said_first() -> None:
    records = small()
    for record in records:
        record["spec"] = record["spec"] | {"budget": 30.0, "d_model": 64}
        record["data"] = {"corpus_sha256": "00" * 32}
    found = against_small(records, ENVIRONMENT | {"cores": 4})
    machine, conditions, data = found.remarks
    assert "2 cores" in machine
    assert "4 cores" in machine
    assert conditions == "bytes, length 1,024: conditions differ: budget=90, d_model=128 → budget=30, d_model=64."
    assert "the data differ" in data
    for record in records:
        record["spec"]["budget"] = 90.0
        record["spec"]["d_model"] = 128
    assert against_small(records).remarks == [data], "90 and 90.0 are one budget"


def test_times_of_another_machine_are_no_regression() -> None:
    before, after = draw(1), planted(draw(2), "linear", slow(3))
    assert diff(before, after).regressed
    found = diff(before, Source(after.records, ENVIRONMENT | {"cpu": "another"}))
    assert told(found) == [("linear", "step", "other machine"), ("linear", "forward", "other machine")]
    assert not found.regressed


@pytest.mark.parametrize(
    ("factor", "spread", "expected"),
    [(1.15, 0.01, False), (1.25, 0.01, True), (1.25, 0.3, False), (0.75, 0.01, True)],
)
def test_single_runs_are_told_from_twice_the_floor_with_quartiles_apart(
    factor: float, spread: float, *, expected: bool
) -> None:
    def one(step: float) -> Source:
        record = make_record("full") | {"step_seconds": step, "test_score": 0.5 * step}
        return Source([record | {"step_seconds_spread": [(1 - spread) * step, (1 + spread) * step]}], ENVIRONMENT)

    found = diff(one(1.0), one(factor))
    assert told(found) == ([("full", "step", "worse" if factor > 1 else "better")] if expected else [])
    assert found.unjudged == 1, "a single score was judged"
    assert "Test scores not judged, because a side has fewer than two seeds: 1." in found.summary


def test_changes_below_the_floor_are_not_told_however_sure() -> None:
    records = small()
    for record in records[3:]:
        record["saved_bytes"] = 1.04 * record["saved_bytes"]
        record["step_seconds"] *= 1.09
    assert against_small(records).changes == []


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["diff", *words])
    return int(stop.value.code or 0)


def test_the_command_tells_and_fails_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = draw(1), planted(draw(2), "linear", slow(2))
    folders = [
        str(write_folder(tmp_path / name, list(source.records))) for name, source in (("a", before), ("b", after))
    ]
    assert run(*folders) == 0
    said = capsys.readouterr().out
    assert "linear" in said
    assert "worse" in said
    assert "Changed beyond noise: 2 of " in said
    assert run(*folders, "--fail-on-regression") == 1
    assert run(*reversed(folders), "--fail-on-regression") == 0, "faster is no regression"
    capsys.readouterr()
    assert run(*folders, "--markdown") == 0
    written = capsys.readouterr().out
    assert "| mqar, length 64 | linear | step | " in written
    assert "**worse** |" in written
    assert run(folders[0], folders[0], "--fail-on-regression") == 0
    assert "Nothing changed beyond noise" in capsys.readouterr().out


def test_what_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, small())
    (folder / "environment.json").unlink()
    with (folder / "records.jsonl").open("a") as file:
        file.write("{damaged\n")
    assert run(str(folder), str(folder)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "line 7 is damaged and was skipped" in said
    assert "the machine is unknown" in said


def test_what_cannot_be_compared_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_folder(tmp_path / "good", [make_record("full")])
    other = write_folder(tmp_path / "other", [make_record("linear")])
    search = make_record("full")
    search["spec"] |= {"search": True}
    empty = write_folder(tmp_path / "empty", [search])
    for words, message in (
        ((str(good), str(tmp_path)), f"{tmp_path} has no records.jsonl"),
        ((str(good), str(empty)), "records.jsonl has no readable result"),
        ((str(good), str(other)), "expected a variant that ran on the same task at the same length in both folders"),
        ((str(good),), "required: B"),
    ):
        assert run(*words) == 2
        complaint = capsys.readouterr().err
        assert message in complaint
        assert complaint.count("\n") == 1


def test_a_variant_with_other_options_is_another_one() -> None:
    """Though a report of either folder alone would call it by the variant."""

    def folder(label: str) -> Source:
        return Source([make_record("linformer", label=label), make_record("full")], ENVIRONMENT)

    pairs, _, vanished, new = pair_up(folder("linformer rank=16").records, folder("linformer rank=32").records)
    assert [pair.before.name for pair in pairs] == ["full"]
    assert "linformer rank=16" in " ".join(vanished)
    assert "linformer rank=32" in " ".join(new)
