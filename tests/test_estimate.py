"""Costs of runs are foreseen from records of earlier ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from compare.arguments import run_parser
from compare.estimate import run_time
from compare.estimate.command import grows_with_pairs
from compare.estimate.forecast import Forecast, Forecaster, Range, Unknown, makespan
from compare.estimate.law import Basis, Estimator
from compare.estimate.points import Cost, Done, Machine, Point, Shape, classes_of, read_folder
from compare.estimate.run_time import parts_of, timed, validations
from compare.estimate.show import Line, Prices, add_up, as_json, duration
from compare.estimate.splits import split_sizes
from compare.plan import plan_runs
from compare.runs import train
from compare.spec import RunSpec
from tests.make_records import write_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
HERE = Machine("cpu", "one processor", 2, 2)
THERE = Machine("cpu", "another processor", 2, 2)
LENGTHS = (256, 512, 1024, 2048)


def specs(*words: str) -> list[RunSpec]:
    base = ["--no-control", "--tasks", "mqar", "--variants", "linear"]
    return plan_runs(run_parser().parse_args([*base, *words]), "cpu", 2).specs


def shape(variant: str = "linear", length: int = 512, batch: int = 1, d_model: int = 64) -> Shape:
    spec = specs("--variants", variant, "--seq-len", "512", "--d-model", str(d_model))[0]
    return Shape.of(spec, length, batch)


def point(at: Shape, machine: Machine = HERE, **values: float) -> Point:
    return Point(at, machine, {cost: [value] for cost, value in values.items()}, {"a"})  # type: ignore[misc]


def estimator(points: Sequence[Point]) -> Estimator:
    return Estimator(points, grows_with_pairs)


def value(points: Sequence[Point], cost: Cost, at: Shape, machine: Machine = HERE) -> float:
    found = estimator(points).estimate(cost, at, machine)
    assert found is not None
    assert found.low <= found.value <= found.high
    return found.value


LAWS: list[tuple[str, Callable[[int], float]]] = [
    ("linear", lambda n: 1e-5 * n),
    ("linear", lambda n: 0.02 + 1e-5 * n),
    ("full", lambda n: 1e-8 * n**2 + 1e-5 * n),
    ("full", lambda n: 2e-8 * n**2 + 0.01),
]


@pytest.mark.parametrize(("variant", "law"), LAWS)
def test_laws_are_found_and_continued(variant: str, law: Callable[[int], float]) -> None:
    points = [point(shape(variant, n), step=law(n)) for n in LENGTHS]
    for length in (64, 768, 8192, 65_536):
        assert value(points, "step", shape(variant, length)) == pytest.approx(law(length), rel=0.12), length
    for length in LENGTHS:
        assert value(points, "step", shape(variant, length)) == pytest.approx(law(length))


def test_batches_and_widths_are_followed() -> None:
    points = [
        point(shape(length=n, batch=b), step=1e-6 * n * b, flops=64.0**2 * n * b) for n, b in ((256, 4), (512, 4))
    ]
    assert value(points, "step", shape(length=512, batch=16)) == pytest.approx(1e-6 * 512 * 16, rel=0.05)
    assert value(points, "step", shape(length=512, batch=4, d_model=128)) == pytest.approx(2e-6 * 512 * 4, rel=0.05)
    assert value(points, "flops", shape(length=512, batch=4, d_model=128)) == pytest.approx(
        128.0**2 * 512 * 4, rel=0.05
    )


def test_linear_variants_never_become_quadratic() -> None:
    bent = [point(shape("linear", n), step=1e-8 * n**2 + 1e-5 * n) for n in LENGTHS]
    assert value(bent, "step", shape("linear", 65_536)) == pytest.approx(32 * bent[-1].median("step"), rel=0.3)


def test_no_number_without_a_basis() -> None:
    one = estimator([point(shape("full", 512), step=0.1)])
    assert one.estimate("step", shape("linear"), HERE) is None, "another variant"
    assert one.estimate("memory", shape("full"), HERE) is None, "another quantity"
    assert one.estimate("step", replace(shape("full"), same="bfloat16"), HERE) is None, "other switches"
    assert one.estimate("step", shape("full", 4096), HERE) is None, "one length says nothing of a quadratic cost"
    assert one.estimate("step", shape("full", 512), HERE) is not None


def test_a_basis_says_what_it_is() -> None:
    points = [point(shape("linear", n), step=1e-5 * n) for n in LENGTHS]

    def basis(at: Shape, machine: Machine = HERE) -> Basis:
        found = estimator(points).estimate("step", at, machine)
        assert found is not None
        return found.basis

    assert basis(shape("linear", 512)).words == "measured at this length"
    assert basis(shape("linear", 700)).words == "interpolated between 512 and 1,024"
    assert basis(shape("linear", 8192)).words == "extrapolated from 2,048 by its order of cost"
    assert basis(shape("linear", 512, d_model=128)).words == "measured at this length, of another encoder or task"
    assert basis(shape("linear", 512), THERE).words.endswith("; times of one processor, 2 threads, not scaled")


def test_ranges_widen_with_the_distance() -> None:
    source = estimator([point(shape("linear", n), step=1e-5 * n) for n in LENGTHS])

    def width(at: Shape, machine: Machine = HERE) -> float:
        found = source.estimate("step", at, machine)
        assert found is not None
        return found.high / found.low

    widths = [width(shape("linear", n)) for n in (2048, 4096, 65_536)]
    assert widths == sorted(set(widths))
    assert width(shape("linear", 2048, d_model=128)) > widths[0]
    assert width(shape("linear", 2048), THERE) > widths[0]


def test_machines_are_scaled_by_what_both_measured() -> None:
    shared = [point(shape("linear", n), machine, step=each * n) for n in LENGTHS for machine, each in MACHINES]
    only_there = [point(shape("full", n), THERE, step=2e-5 * n) for n in LENGTHS]
    found = estimator([*shared, *only_there]).estimate("step", shape("full", 512), HERE)
    assert found is not None
    assert found.value == pytest.approx(1e-5 * 512)
    assert found.basis.words.endswith("× 0.50")
    few = [p for p in shared if p.shape.seq_len < 1024]
    assert value([*few, *only_there], "step", shape("full", 512)) == pytest.approx(2e-5 * 512), "too few to tell"


MACHINES = ((HERE, 1e-5), (THERE, 2e-5))


def test_a_forward_is_a_share_of_the_step() -> None:
    points = [point(shape("linear", n), step=1e-5 * n) for n in LENGTHS]
    points.append(point(replace(shape("linear", 2048), batch=2), step=4e-2, forward=1e-2))
    assert value(points, "forward", shape("linear", 1024)) == pytest.approx(0.25e-5 * 1024)


def constant_pace(step: float) -> Callable[[Cost, int, int], float]:
    """A step takes as long at every length, a forward a tenth of it."""
    return lambda cost, _length, _batch: {"step": step, "forward": step / 10, "memory": 1.0, "flops": 1e9}[cost]


def eight(_spec: RunSpec, _split: str, _length: int) -> float:
    """Each split has eight samples."""
    return 8.0


def test_steps_give_seconds_and_seconds_give_steps() -> None:
    (by_steps,) = specs("--seq-len", "64", "--steps", "50", "--batch-size", "4")
    parts = parts_of(by_steps, constant_pace(2.0), eight)
    assert (parts.steps, parts.training, parts.flops) == (50, 100, 50e9)
    assert parts.measuring == pytest.approx(3 * 2.0 + 2 * 4 * 2.0 + 0.2 * (1 + 15))
    (by_time,) = specs("--seq-len", "64", "--budget", "100", "--batch-size", "4")
    parts = parts_of(by_time, constant_pace(2.0), eight)
    assert (parts.steps, parts.training) == (50, 101), "the last step begins within the budget"
    assert parts.evaluating == pytest.approx(11 * 8 / 4 * 0.2), "ten validations and the test"
    accumulated = parts_of(replace(by_steps, accumulate=4), constant_pace(0.5), eight)
    assert (accumulated.training, accumulated.flops) == (100, 200e9)


def test_phases_of_short_samples_count_with_their_own_pace() -> None:
    (spec,) = specs("--seq-len", "2048", "--budget", "100", "--length-schedule", "from-16th", "--batch-size", "4")

    def pace(cost: Cost, length: int, batch: int) -> float:
        return 1e-3 * length * batch if cost == "step" else 1e-3

    full = 1e-3 * 2048 * 4
    assert parts_of(spec, pace, eight).steps == pytest.approx(50 / (full / 4) + 25 / (full / 4) + 25 / full)


def test_searches_are_validated_and_costs_are_only_measured() -> None:
    (spec,) = specs("--seq-len", "64", "--steps", "50", "--batch-size", "4")
    search = parts_of(replace(spec, search=True), constant_pace(2.0), eight)
    train = parts_of(spec, constant_pace(2.0), eight)
    assert search.measuring == 0
    assert train.evaluating - search.evaluating == pytest.approx(8 / 4 * 0.2)
    cost = parts_of(replace(spec, steps=0), constant_pace(2.0), eight)
    assert (cost.training, cost.evaluating, cost.steps) == (0, 0, 0)


@pytest.mark.parametrize(("seconds", "calls"), [(0.01, 21), (0.5, 7), (2.0, 4), (60.0, 4)])
def test_timing_repeats_as_the_measurement_does(seconds: float, calls: int) -> None:
    assert timed(seconds) == pytest.approx(calls * seconds)


def test_constants_are_those_of_the_runs() -> None:
    assert run_time.CURVE_POINTS == train.CURVE_POINTS
    assert run_time.VALIDATIONS == train.VALIDATIONS
    assert run_time.VALIDATION_SHARE == train.VALIDATION_SHARE
    assert run_time.at_length is train.at_length


def test_validations_are_those_of_the_trainer() -> None:
    """Predicted from the recorded time of a forward, against the points of the recorded curves."""
    off = []
    for run in read_folder(RESULTS / "cpu-2core/recall_pairs"):
        if curve := run.record.get("curve"):
            seen = sum("val_loss" in at for at in curve)
            size = split_sizes([])(run.spec, "validation", run.spec.seq_len)
            assert size is not None
            one = size / run.spec.batch_size * run.record["forward_seconds"]
            off.append(validations(run.spec, run.record["train_seconds"], run.record["train_steps"], one) - seen)
    assert len(off) > 90
    assert sum(abs(each) <= 1 for each in off) > 0.9 * len(off)


def test_sizes_of_splits_are_those_of_the_records() -> None:
    runs = read_folder(RESULTS / "cpu-2core/recall_8192") + read_folder(RESULTS / "cpu-2core/cost")
    size = split_sizes(runs)
    for run in (runs[0], runs[-1]):
        for split in ("validation", "test"):
            data = run.record["data"]
            wanted = data.get(f"{split}_samples") or data[f"{split}_tokens"] / run.spec.seq_len
            assert size(run.spec, split, run.spec.seq_len) == pytest.approx(wanted)
    assert size(runs[0].spec, "test", 2**20) == 1, "beyond the longest samples of the task"
    assert size(replace(runs[0].spec, task="classify"), "test", 512) is None


def test_classes_of_a_task() -> None:
    assert classes_of("mad_memorize", 32, (("vocab_size", 512),)) == 512
    assert classes_of("noisy_recall", 2**20, ()) == 64
    assert classes_of("classify", 512, (("data", "x.csv"),)) == classes_of("of another version", 64, ()) == 0


@pytest.mark.parametrize(
    ("stages", "workers", "seconds"),
    [([[1, 2, 3]], 1, 6), ([[1, 2, 3]], 2, 4), ([[3, 3], [1]], 2, 4), ([[], [5]], 3, 5), ([[2] * 10_000], 100, 200)],
)
def test_makespan(stages: list[list[float]], workers: int, seconds: float) -> None:
    assert makespan(stages, workers) == seconds


def forecast(seconds: float) -> Forecast:
    each = Range(1.0, 1.0, 1.0)
    basis = Basis("measured", (64,), True, HERE, 1.0, ("a",))
    took = Range(seconds, seconds / 2, seconds * 2)
    return Forecast(took, 1.0, each, each, each, each, 1e9, True, basis, frozenset({"a"}))


def test_totals_add_up() -> None:
    (spec,) = specs("--seq-len", "64", "--steps", "5")
    lines = [
        Line(replace(spec, search=True), 3, forecast(1200)),
        Line(spec, 5, forecast(3600)),
        Line(replace(spec, variant="full"), 7, Unknown("no record")),
    ]
    totals = add_up(lines, Prices(2, 500.0, 3.0))
    assert (totals.runs, totals.unknown) == (8, 7)
    assert totals.hours == Range(6.0, 3.0, 12.0)
    assert totals.wall.value == 2 * 1200 + 3 * 3600, "the search ends first; two workers share the rest"
    assert totals.energy == Range(3.0, 1.5, 6.0)
    assert totals.money == Range(18.0, 9.0, 36.0)
    assert totals.flops == 8e9
    unpriced = add_up(lines, Prices(1, None, None))
    assert unpriced.energy is None
    assert unpriced.money is None
    rows = as_json(lines, totals, [])["rows"]
    assert [row.get("unknown") for row in rows] == [None, None, "no record"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9.5, "9.5 s"), (600, "10 min"), (36_000, "10 h"), (864_000, "10 days"), (31_560_000 * 3, "3 years")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_disturbed_and_failed_records_are_no_basis(tmp_path: Path) -> None:
    lines = (RESULTS / "cpu-2core/main/records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[0]["train_lost_share"] = 0.9
    records[1] |= {"status": "oom", "reason": "no memory"}
    folder = write_folder(tmp_path / "a", records)
    assert [run.record["run_id"] for run in read_folder(folder)] == [record["run_id"] for record in records[2:]]


def test_memory_of_older_records_gets_weights_and_moments() -> None:
    runs: list[Done] = read_folder(RESULTS / "cpu-2core/cost")
    record = next(run.record for run in runs if "train_memory_bytes" not in run.record)
    source = Forecaster(runs, grows_with_pairs, split_sizes(runs))
    spec = next(run.spec for run in runs if run.record is record)
    found = source.forecast(spec, runs[0].machine)
    assert isinstance(found, Forecast)
    assert found.memory is not None
    assert math.isclose(found.memory.value, record["peak_memory_bytes"] + 12 * record["params"])
