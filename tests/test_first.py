"""What a newcomer reads first: what was asked, who can do it, at what cost; and no more than the numbers say."""

from dataclasses import replace
from pathlib import Path

import pytest

import tasks
from compare.report import write_report
from compare.report.facts.overview import Overview
from compare.report.sections.lead import lead_of
from compare.report.sections.results import notes
from compare.runs.outcome import new_record
from tests.learning import small_spec
from tests.make_records import CANNOT, RECALL, Record, make_recall, make_record, swept_recall, write_folder
from tests.test_report import groups_of

pytestmark = pytest.mark.usefixtures("blank_charts")

SPACE = "\N{NO-BREAK SPACE}"


def first(records: list[Record]) -> list[str]:
    lead = lead_of(Overview(groups_of(records)))
    return [words.replace(SPACE, " ") for words in lead.sentences] if lead else []


def scored(**scores: float) -> str:
    """The second sentence of a report on these scores."""
    return first([make_recall(variant, score=score) for variant, score in scores.items()])[1]


def test_three_sentences_say_what_was_asked_who_can_and_at_what_cost() -> None:
    asked, solved, cost = first([make_recall(variant) for variant in RECALL])
    assert asked == (
        "Task: say which value stands beside each of 16 keys that are hidden in noise. "
        "Each model trained for 60 s; inputs have 8,192 tokens."
    )
    assert solved == (
        "In this run full reaches 100.0 % test accuracy; linear (97.5 %) stays within 5 points of full; linformer "
        "(0.9 %) does not solve the task: at most 5 points above the control without attention (0.9 %; most frequent "
        "value 1.7 %)."
    )
    assert cost == (
        "A training step of full takes 1.31 s (memory of training 10.9 GiB); linear takes 0.34 times the time and 0.1 "
        "times the memory; linformer (22 % more parameters than full) takes 0.28 times the time and 0.13 times the "
        "memory."
    )


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"full": 0.4, "linear": 0.9, "none": 0.01}, "linear (90.0 %) is more than 5 points above full."),
        (
            {"full": 0.9, "linear": 0.4, "none": 0.01},
            "full reaches 90.0 % test accuracy; linear (40.0 %) falls behind full.",
        ),
        (
            {"full": 0.49, "linear": 0.57, "none": 0.57},
            "In this run no model solves the task: none is more than 5 points above the control without attention "
            "(57.0 %; most frequent value 1.7 %); test accuracy: linear (57.0 %) and full (49.0 %).",
        ),
        (
            {"full": 0.52, "linear": 0.46, "none": 0.44},
            "all models are too near the control without attention (44.0 %; most frequent value 1.7 %) to say",
        ),
        (
            {"full": 0.03, "linear": 0.8, "none": 0.01},
            "In this run linear (80.0 %) beats the control without attention by more than 5 points in test accuracy; "
            "full (3.0 %) does not solve the task",
        ),
        ({"linear": 0.8, "none": 0.01}, "In this run linear (80.0 %) beats the control without attention (1"),
        (
            {"full": 0.9, "linear": 0.02},
            "5 points above the best trivial predictor (most frequent value 1.7 %).",
        ),
    ],
)
def test_scores_are_told_beside_full_and_beside_what_needs_no_attention(scores: dict[str, float], words: str) -> None:
    assert words in scored(**scores)


def test_without_a_control_and_baselines_nobody_is_said_to_fail() -> None:
    records = [make_recall("full", score=0.9) | {"baselines": {}}, make_recall("linear", score=0.1) | {"baselines": {}}]
    assert first(records)[1] == "In this run full reaches 90.0 % test accuracy; linear (10.0 %) falls behind full."


def test_a_baseline_above_the_control_does_not_measure_who_solves_it() -> None:
    records = [make_recall(variant, score=score) for variant, score in (("full", 0.9), ("linear", 0.85), ("none", 0.6))]
    told = first([record | {"baselines": {"logistic regression": 0.95}} for record in records])[1]
    assert told == "In this run full reaches 90.0 % test accuracy; linear (85.0 %) stays within 5 points of full."


def test_a_record_that_does_not_know_what_was_asked_names_its_task() -> None:
    asked = first([make_recall(variant) | {"task_summary": None} for variant in RECALL])[0]
    assert asked == "Task: noisy_recall. Each model trained for 60 s; inputs have 8,192 tokens."


def test_full_without_a_score_is_told_and_no_cost_beside_it() -> None:
    records = [make_recall(variant) for variant in RECALL]
    records[0] |= {"status": "oom", "test_score": None, "step_seconds": None}
    asked, solved = first(records)
    assert solved.startswith("In this run full has no score (oom); linear (97.5 %) beats the control without attention")
    assert (
        first([record | dict.fromkeys(("peak_memory_bytes", "train_memory_bytes"), 0) for record in records[1:]])[0]
        == asked
    )


def test_several_seeds_are_told_as_their_mean() -> None:
    assert first([make_recall(variant, seed=seed) for variant in RECALL for seed in range(3)])[1].startswith(
        "On the mean of 3 seeds full reaches"
    )


def test_of_many_variants_the_fastest_and_the_lightest_that_solve_it_stand_for_their_cost() -> None:
    records = [make_recall(variant) for variant in RECALL]
    records += [
        make_recall("linear", score=score) | {"variant": name, "label": name, "step_seconds": step, "run_id": name}
        for name, score, step in (("luna", 0.96, 0.2), ("bigbird", 0.06, 0.1), ("reformer", 0.9, 0.9))
    ]
    cost = first(records)[2]
    assert "; luna takes 0.15 times the time" in cost
    assert "; linear takes 0.34 times" in cost
    assert not any(name in cost for name in ("bigbird", "reformer", "linformer"))


def test_a_report_of_several_comparisons_begins_with_the_longest_and_says_so() -> None:
    records = [make_recall(variant) for variant in RECALL] + [make_record(v, seq_len=512) for v in ("full", "none")]
    assert first(records)[3] == "These lines describe noisy_recall, length 8,192; 1 other comparison below."
    assert first(swept_recall())[1].startswith("Accuracy of 90 % or more with pairs")
    assert first([record | {"test_score": None} for record in records]) == []
    scale = {"unit": "bits", "lower_is_better": True, "bounds": [0, None]}
    bits = [record | {"metric": "bits per byte", "metric_scale": scale} for record in records]
    assert "test bits per byte" in first(bits)[1]


def test_why_a_variant_fails_is_told_where_it_failed() -> None:
    (group,) = groups_of([make_recall(variant) for variant in RECALL])
    told = f"Why linformer cannot: {CANNOT}."
    assert told in notes(group)
    (group,) = groups_of([make_recall(variant, score=0.9 if variant == "linformer" else None) for variant in RECALL])
    assert told not in notes(group)
    (group,) = groups_of([make_recall(variant, score=0.01) for variant in RECALL])
    assert told not in notes(group), "nobody has learned it, so nothing shows why"


def test_every_record_bears_what_its_task_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.get("mqar"), "remarks", {"full": "for no reason"})
    of_full, of_none = (
        new_record(replace(small_spec("mqar", 64, steps=1), variant=variant), "ok", "") for variant in ("full", "none")
    )
    assert (of_full["task_summary"], of_full["remark"]) == (tasks.get("mqar").summary, "for no reason")
    assert of_none["remark"] == ""


def test_both_reports_begin_with_the_sentences_and_their_chart(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("peak_memory_bytes", "train_memory_bytes"))
    records = [make_recall(variant) | {"curve": []} | unknown for variant in RECALL]
    told = write_report(write_folder(tmp_path, records)).sentences
    assert len(told) == 2, "a cost without a memory"
    text = (tmp_path / "report.md").read_text()
    places = [text.index(words) for words in told]
    assert places == sorted(places)
    assert places[-1] < text.index("(charts/accuracy_speed") < text.index("Machine:") < text.index("## In short")
    assert text.count("(charts/accuracy_speed") == 1
    page = (tmp_path / "report.html").read_text()
    start = page.index('<section class="first"')
    assert start < page.index(told[0]) < page.index("<img") < page.index("<nav")
    assert page.index("Test score against training speed") < page.index("<nav")
    assert page.count("accuracy_speed_noisy-recall_8192.svg") == 2  # the file's name to save, and where it is
