"""The page of tips: a paragraph and figures for each, and conclusions that are in the records."""

from __future__ import annotations

import re
from pathlib import Path

from compare.record import read_records
from compare.report import tips_in
from compare.tips import BASELINE, TIPS

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "results/cpu-2core/ablate"


def test_each_tip_has_a_paragraph_with_its_figures() -> None:
    """But for tips that change nothing on the tasks that were measured; the page says so."""
    page = (ROOT / "docs/tips.md").read_text(encoding="utf-8")
    measured = {record.get("tip") for record in read_records(MEASURED / "records.jsonl")[0]}
    assert set(re.findall(r"^\*\*([a-z0-9-]+)\*\* \(", page, re.M)) == set(TIPS)
    for name in TIPS:
        paragraph = re.search(rf"^\*\*{name}\*\* \(.*?(?=^\*\*|^## |\Z)", page, re.M | re.S)
        assert paragraph, name
        shown = f"<!-- ../results/cpu-2core/ablate tip:{name} -->" in paragraph[0]
        assert shown == (name in measured), name
        assert shown != ("No figures here" in " ".join(paragraph[0].split())), name


def test_what_the_page_of_tips_concludes_is_in_the_records() -> None:
    page = " ".join((ROOT / "docs/tips.md").read_text(encoding="utf-8").split())
    records = read_records(MEASURED / "records.jsonl")[0]
    scores: dict[str, list[float]] = {}
    for record in records:
        if record.get("tip") == BASELINE and record["task"] == "digits":
            scores.setdefault(record["variant"], []).append(100 * record["test_score"])
    assert {len(own) for own in scores.values()} == {3}
    told = [f"`{name}` {sum(scores[name]) / 3:.1f} %" for name in ("full", "linear", "linformer", "none")]
    assert f"{', '.join(told[:-1])} and the control {told[-1]}" in page
    (digits,) = [each for each in tips_in(MEASURED, 0) if each.group.task == "digits"]
    effects = {label.split(" ")[0]: {e.tip: e for e in own} for label, own in digits.effects.items()}
    for variant, own in effects.items():
        for word, sign in (("better", 1), ("worse", -1)):
            beyond = [tip for tip in TIPS if tip in own and (s := own[tip].score) and s.beyond and sign * s.mean > 0]
            said = f"`{variant}` is {word} with {', '.join(f'`{tip}`' for tip in beyond)}"
            assert re.search(rf"{said}[;.]", page) if beyond else f"`{variant}` is {word}" not in page, said
    for tip in ("accumulate", "checkpoint", "ff-chunk", "compile"):
        changes = [own[tip].score for own in effects.values()]
        assert all(change is not None and abs(change.mean) < 0.01 for change in changes), tip
    distilled = effects["linear"]["distil"].score
    assert distilled is not None
    assert not (distilled.beyond and distilled.mean > 0), "the page says that it is not better"
