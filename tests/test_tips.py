"""The page of tips: a paragraph and figures for each, and conclusions that are in the records."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

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


VARIANTS = {
    "digits": ("full", "linear", "linformer"),
    "mqar": ("full", "linear", "linformer"),
    "noisy_recall": ("full", "linear", "luna", "cosformer"),
}
EXACT = {"digits": 1e-9, "mqar": 1e-3}
"""Task -> how far the scores of tips that must change nothing may be from the baseline's."""
UNCHANGING = ("accumulate", "checkpoint", "ff-chunk", "compile")


@pytest.mark.parametrize("task", VARIANTS)
def test_what_the_page_of_tips_concludes_is_in_the_records(task: str) -> None:
    page = " ".join((ROOT / "docs/tips.md").read_text(encoding="utf-8").split())
    means = {name: fmean(scores_of(task, name)) for name in (*VARIANTS[task], "none")}
    told = [f"`{name}` {mean:.1f} %" for name, mean in means.items()]
    assert f"{', '.join(told[:-1])} and the control {told[-1]}" in page
    (ablation,) = [each for each in tips_in(MEASURED, 0) if each.group.task == task]
    effects = {label.split(" ")[0]: {e.tip: e for e in own} for label, own in ablation.effects.items()}
    verdicts = re.search(rf"\*\*Beyond noise on `{task}`\*\*(.*?)( - \*\*|##)", page)
    assert verdicts
    for variant, own in effects.items():
        for word, sign in (("better", 1), ("worse", -1)):
            beyond = [tip for tip in TIPS if tip in own and (s := own[tip].score) and s.beyond and sign * s.mean > 0]
            said = f"`{variant}` is {word} with {', '.join(f'`{tip}`' for tip in beyond)}"
            assert re.search(rf"{said}[;.]", verdicts[1]) if beyond else f"`{variant}` is {word}" not in verdicts[1], (
                said
            )
    if task not in EXACT:
        return
    for tip in UNCHANGING:
        changes = [own[tip].score for own in effects.values()]
        assert all(change is not None and abs(change.mean) < EXACT[task] for change in changes), tip
    distilled = effects["linear"]["distil"].score
    assert distilled is not None
    assert not (distilled.beyond and distilled.mean > 0), "the page says that it is not better"


def test_what_the_page_says_of_mqar_is_in_the_records() -> None:
    page = " ".join((ROOT / "docs/tips.md").read_text(encoding="utf-8").split())
    seeds = ", ".join(f"{score:.1f}" for score in scores_of("mqar", "full"))
    assert f"after 300 steps the three seeds of `full` reach {seeds} %" in page
    converted, scratch = fmean(scores_of("mqar", "linear", "convert")), fmean(scores_of("mqar", "linear"))
    assert f"`linear` reaches {converted:.1f} % on `mqar` in 300 steps, and {scratch:.1f} % without" in page


def test_what_the_page_says_of_pretraining_is_in_the_records() -> None:
    page = " ".join((ROOT / "docs/tips.md").read_text(encoding="utf-8").split())
    half = read_records(ROOT / "results/cpu-2core/recall_2048_half/records.jsonl")[0]
    assert {record["spec"]["budget"] for record in half} == {20.0}
    fresh, after = [], []
    for name in VARIANTS["noisy_recall"]:
        scores = [100 * record["test_score"] for record in half if record["variant"] == name]
        assert len(scores) == 3
        fresh.append(f"`{name}` {fmean(scores):.1f} %" if name != "full" else f"`full` reaches {fmean(scores):.1f} %")
        after.append(f"{fmean(scores_of('noisy_recall', name, 'pretrain')):.1f} %")
        assert max(scores_of("noisy_recall", name, "full-length")) < 2, "the page says that it learns nothing"
    assert f"no pretraining {', '.join(fresh[:-1])} and {fresh[-1]}" in page
    assert f"20 seconds of pretraining and 20 of training {', '.join(after[:-1])} and {after[-1]}" in page
    restored = [
        next(point["restoring_loss"] for point in reversed(record["curve"]) if "restoring_loss" in point)
        for record in read_records(MEASURED / "records.jsonl")[0]
        if (record["task"], record["variant"], record.get("tip")) == ("noisy_recall", "full", "pretrain")
    ]
    assert f"the loss of restoring ends at {min(restored):.2f} to {max(restored):.2f} for `full`" in page


def scores_of(task: str, variant: str, tip: str = BASELINE) -> list[float]:
    """Test scores of a variant in percent, by seed."""
    records = [
        record
        for record in read_records(MEASURED / "records.jsonl")[0]
        if (record["task"], record["variant"], record.get("tip")) == (task, variant, tip)
    ]
    assert [record["seed"] for record in records] == [0, 1, 2]
    return [100 * record["test_score"] for record in records]
