"""Memory of training in all: weights, gradients and optimizer state count, and older records are unknown, not 0."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from compare.diff import diff
from compare.quantities import STEP_MEMORY, TRAINING_MEMORY
from compare.report.facts.grouping import Source
from compare.report.facts.memory import memory_of
from compare.report.facts.scaling import series_of
from compare.report.render.csv_table import csv_table
from compare.report.render.latex import latex_tables
from compare.report.sections.accuracy import weight_of
from compare.report.sections.lengths import cost_against_length, memory_cost
from compare.report.sections.results import columns_of
from compare.runs.score import Tally
from compare.runs.step_cost import measure_costs
from compare.runs.train import Trainer
from tasks import Batch
from tests.drawn import answer_to, drawn, markdown_of
from tests.make_records import ENVIRONMENT, Record, make_record
from tests.test_fairness import groups_of, runs, words_of
from tests.test_train import SPEC, fake


def trainer(accumulate: int = 1, d_model: int = 16) -> Trainer:
    batch = Batch(np.ones((4, 12), np.int64), np.array([0, 1, 2, 3]), None)
    task = fake("sequence", train_batches=lambda size, length, seed: iter([batch]), sample_lengths=lambda split: None)
    return Trainer(replace(SPEC, accumulate=accumulate, d_model=d_model), task)


def test_what_is_held_between_steps_is_weights_buffers_and_optimizer_state() -> None:
    new = trainer()
    buffers = sum(x.numel() * x.element_size() for x in new.model.buffers())
    assert new.held_bytes() == 4 * new.parameters + buffers
    (batch,) = new.task.train_batches(4, 12, 0)
    new.step(new.to_device(batch), Tally("sequence"))
    steps = 4 * len(list(new.model.parameters()))  # Adam counts them for each parameter
    assert new.held_bytes() == 3 * 4 * new.parameters + buffers + steps


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on a CPU is read from /proc")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_record_holds_what_training_holds(accumulate: int) -> None:
    """Weights and two moments are 12 bytes each, and the step adds a gradient of 4."""
    record: Record = {}
    measure_costs(trainer(accumulate, d_model=256), record)
    held = record["train_memory_bytes"] - record["peak_memory_bytes"]
    assert record["params"] > 5e5
    assert 12 <= held / record["params"] < 12.2
    assert record["peak_memory_bytes"] / record["params"] > 3.5


def test_memory_is_of_training_in_all_where_every_run_told_it() -> None:
    records = [record | {"test_score": 0.5 + 0.001 * record["seed"]} for record in runs()]
    (group,) = groups_of(records)
    assert memory_of(group.rows) == TRAINING_MEMORY
    assert "weights, gradients, optimizer state" in weight_of(group.rows).axis
    assert {"memory of training", "peak memory of a step"} <= {column.title for column in columns_of(group)}
    assert "times full's memory of training" in answer_to([group])[0]
    assert "memory of training [B]" in csv_table([group]).splitlines()[0]
    assert "memory (MiB)" in latex_tables([group])
    del records[4]["train_memory_bytes"]
    (group,) = groups_of(records)
    assert memory_of(group.rows) == STEP_MEMORY
    assert "which some records lack" in weight_of(group.rows).axis
    assert "times full's peak memory of a step" in answer_to([group])[0]


def test_old_records_of_a_table_lack_the_column() -> None:
    records = [record | {"train_memory_bytes": None} for record in runs()]
    (group,) = groups_of(records)
    assert "memory of training" not in {column.title for column in columns_of(group)}
    assert "0 B" not in markdown_of([group])


def test_many_parameters_cost_what_they_cost() -> None:
    records = runs(("full", "linformer"))
    for record in records:
        if record["variant"] == "linformer":
            record["train_memory_bytes"] = record["peak_memory_bytes"] + 12 * 40_000_000
    (group,) = groups_of(records)
    assert "lightest: linformer" not in answer_to([group])[0].replace("lightest of these", "lightest")
    assert not any(line.startswith("Lightest: linformer") for line in markdown_of([group]).splitlines())
    found = diff(Source(runs(("full", "linformer")), ENVIRONMENT), Source(records, ENVIRONMENT))
    assert [(change.variant, change.what, change.verdict) for change in found.changes] == [
        ("linformer", "memory of training", "worse")
    ]


def test_memory_against_length_is_of_training_in_all() -> None:
    records = [make_record(variant, seq_len=length) for variant in ("full", "linear") for length in (512, 1024, 2048)]
    (series,) = series_of(groups_of(records))
    chart = words_of(drawn(cost_against_length(series, memory_cost(series.groups)), series.groups))
    assert "Memory of training against length" in chart
    assert "weights, gradients, optimizer state and what a step adds" in chart
