"""Figures in the README are those of committed records."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_steps_on_a_gpu_are_those_of_the_records() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = readme.split("## What came out on a GPU")[1].split("The sparse family")[0]
    lines = (ROOT / "results/h200/cost/records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for line in lines if (record := json.loads(line))["status"] == "ok"]
    for length, part in zip((32768, 65536), told.split("At 65,536"), strict=True):
        times = {r["variant"]: 1e3 * r["step_seconds"] for r in records if r["seq_len"] == length}
        full = times.pop("full")
        assert re.search(rf"takes {full:.1f}\b", part)
        pairs = [(name, float(time)) for name, time in re.findall(r"`(\w+)` ([\d.]+\d)", part)]
        assert dict(pairs) == {name: float(f"{times[name]:.1f}") for name, _ in pairs}
        assert set(times) - dict(pairs).keys() <= {
            "mean",
            "xformers",
        }  # a control, and full's kernel under another name
        if length == 32768:
            faster, slower = part.split("Not faster")
            assert all(times[name] < full for name in re.findall(r"`(\w+)` \d", faster.split("Faster")[1]))
            assert all(times[name] >= full for name in re.findall(r"`(\w+)` \d", slower))
