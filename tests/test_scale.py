"""docs/scale.md: what 10,000 runs at a million tokens need, computed again from the committed records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tasks
import zoo
from tasks.generated import Generated

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs/scale.md").read_text(encoding="utf-8").split())
RUNS, STEPS, TOKENS = 10_000, 1_000, 2**20
YEAR = 365.25 * 24 * 3600


def longest(folder: str) -> dict[str, dict[str, Any]]:
    """Variant -> its record at the longest measured length."""
    lines = (ROOT / "results" / folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = sorted((r for line in lines if (r := json.loads(line))["status"] == "ok"), key=lambda r: r["seq_len"])
    return {record["variant"]: record for record in records}


def at_a_million(record: dict[str, Any]) -> float:
    """Seconds of a step at 2^20 tokens: the measured step grows with N², or with N for subquadratic variants."""
    power = 1 if zoo.describe(record["variant"]).traits.subquadratic else 2
    return float(record["step_seconds"]) * (TOKENS / record["seq_len"]) ** power


def row(name: str) -> list[float]:
    """The numbers of a row of the table."""
    (text,) = re.findall(rf"\| {re.escape(name)} \|([^\n]*?\|[^\n]*?\|)", PAGE)
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", text)]


def test_steps_and_machine_years_follow_from_the_records() -> None:
    for folder, machine in (("cpu-2core/cost", "2 cores"), ("h200/cost", "H200")):
        records = longest(folder)
        for variant in ("full", "linear"):
            step = at_a_million(records[variant])
            told, years = row(f"`{variant}`, {machine}")
            assert told == float(f"{step:.3g}")
            assert years == float(f"{RUNS * STEPS * step / YEAR:.3g}")
    steps = [at_a_million(record) for record in longest("h200/cost").values()]
    told, years = row(f"the mean of all {len(steps)} measured variants, H200")
    mean = sum(steps) / len(steps)
    assert told == float(f"{mean:.3g}")
    assert years == float(f"{RUNS * STEPS * mean / YEAR:.3g}")
    assert f"{years * 52.18:,.0f} GPUs for a week" in PAGE


def test_memory_and_records_follow_from_the_records() -> None:
    records = longest("h200/cost")
    most = max(records.values(), key=lambda r: r["peak_memory_bytes"] / r["seq_len"])
    for name in ("full", most["variant"]):
        gigabytes = records[name]["peak_memory_bytes"] * TOKENS / records[name]["seq_len"] / 1e9
        assert f"{gigabytes:.0f} GB for `{name}`" in PAGE
    lines = (ROOT / "results/cpu-2core/recall_8192/records.jsonl").read_bytes().splitlines()
    trained = [len(line) for line in lines if json.loads(line).get("curve")]
    assert f"{RUNS * sum(trained) / len(trained) / 1e6:.0f} MB of records" in PAGE


def test_samples_of_a_million_tokens_would_be_few() -> None:
    longest_task = max(tasks.get(name).max_len for name in tasks.available())
    assert f"No task here is longer than {longest_task:,} tokens so far" in PAGE
    train, test = (Generated.max_tokens[split] // TOKENS for split in ("train", "test"))
    assert f"{train} training samples and {test} test samples" in PAGE
