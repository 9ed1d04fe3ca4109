"""docs/scale.md: what 10,000 runs at a million tokens need beside time, computed again from records and tasks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.parallel import markdown, table
from compare.record import read_records
from tasks.generated import Generated

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())

KINDS = ("one process", "data=2")


def test_records_have_the_size_of_committed_ones() -> None:
    lines = (ROOT / "results/cpu-2core/recall_8192/records.jsonl").read_bytes().splitlines()
    trained = [len(line) for line in lines if json.loads(line).get("curve")]
    assert f"{10_000 * sum(trained) / len(trained) / 1e6:.0f} MB of records" in PAGE


def test_samples_of_a_million_tokens_would_be_few() -> None:
    train, test = (Generated.max_tokens[split] // 2**20 for split in ("train", "test"))
    assert f"{train} training samples and {test} test samples" in PAGE


def test_the_table_of_processes_is_that_of_the_records() -> None:
    rows = table(read_records(ROOT / "results/cpu-2core/parallel/records.jsonl")[0])
    assert {row["status"] for row in rows} == {"ok"}
    assert markdown(rows).rstrip() in TEXT
    one, two = (next(r for r in rows if (r["variant"], r["parallel"]) == ("full", kind)) for kind in KINDS)
    speed, memory = (two[field] / one[field] for field in ("tokens_per_second", "train_memory_bytes"))
    assert f"`data=2` is {speed:.2f} times as fast as one process for `full`, and holds {memory:.2f} of its" in PAGE
