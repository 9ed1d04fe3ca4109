"""docs/scale.md: what 10,000 runs at a million tokens need beside time, computed again from records and tasks."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.generated import Generated

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs/scale.md").read_text(encoding="utf-8").split())


def test_records_have_the_size_of_committed_ones() -> None:
    lines = (ROOT / "results/cpu-2core/recall_8192/records.jsonl").read_bytes().splitlines()
    trained = [len(line) for line in lines if json.loads(line).get("curve")]
    assert f"{10_000 * sum(trained) / len(trained) / 1e6:.0f} MB of records" in PAGE


def test_samples_of_a_million_tokens_would_be_few() -> None:
    train, test = (Generated.max_tokens[split] // 2**20 for split in ("train", "test"))
    assert f"{train} training samples and {test} test samples" in PAGE
