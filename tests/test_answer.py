"""The answer that a report begins with: what it says, and what it does not dare to say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.drawn import answer_to, markdown_of, page_of, sentences_of
from tests.make_records import Record, make_record
from tests.test_fairness import NO_BREAK, groups_of, runs


def set_scores(records: Sequence[Record], scores: dict[str, float], spread: float = 0.0005) -> list[Record]:
    """The records with these test scores, seeds apart by the spread, on a test set without noise of its own."""
    for record in records:
        if record["variant"] in scores:
            shift = spread * np.sin(record["seed"] + len(record["variant"]))
            record |= {"test_score": scores[record["variant"]] + shift, "test_size": 10**9}
    return list(records)


def test_the_answer_names_the_fastest_and_the_lightest_that_are_as_good() -> None:
    names = ("full", "linear", "local", "xformers", "performer", "none")
    scores = {"full": 0.9, "linear": 0.6, "local": 0.896, "xformers": 0.9, "performer": 0.95, "none": 0.3}
    (group,) = groups_of(set_scores(runs(names), scores))
    line = answer_to([group])[0].replace(NO_BREAK, " ")
    assert line.startswith("bytes, length 1,024: Within 1 point of full (90.0 %): local, performer, xformers. ")
    assert "Fastest of these: local, 2.17 times full's training speed;" in line
    assert "lightest of these: local, 0.506 times full's memory of training." in line
    assert "Clearly better than full: performer. Clearly worse: linear." in line
    assert "control" not in line


def test_the_answer_says_what_embarrasses_everybody() -> None:
    scores = {"full": 0.4, "linear": 0.41, "local": 0.42, "none": 0.44}
    (group,) = groups_of(set_scores(runs(), scores))
    line = answer_to([group])[0].replace(NO_BREAK, " ")
    assert "No variant is shown to be above the best trivial baseline (neighbour bigram, 45.1 %)." in line
    assert "No variant is shown to be above the control without attention (44.0 %)" in line


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (runs(seeds=[0, 1]), "2 seeds cannot show which variants are as accurate as full"),
        (runs(seeds=[0]), "1 seed cannot show which variants are as accurate as full"),
        (runs(("linear", "local")), "Full was not run, so nothing can be compared with it."),
        (
            runs(("linear",)) + runs(("full",), status="oom"),
            "Full has no score (3 oom), so nothing can be compared with it.",
        ),
        (runs(status="oom"), "No run finished."),
        (runs(("full", "none")), "Full is the only variant here that attends, so nothing can be compared with it."),
    ],
    ids=["two seeds", "one seed", "no full", "full failed", "all failed", "full alone"],
)
def test_the_answer_says_where_it_cannot_say(records: list[Record], words: str) -> None:
    (line,) = answer_to(groups_of(records))
    assert words in line
    assert "Within" not in line
    assert "Clearly" not in line


def test_the_answer_on_cost_alone_claims_no_accuracy() -> None:
    records = runs(seeds=[0])
    for record in records:
        record |= {"test_score": None, "curve": []}
    (line,) = answer_to(groups_of(records))
    assert line.startswith("bytes, length 1,024: Costs only, no scores. Fastest: linear, ")


def test_the_answer_counts_the_tasks_on_which_a_variant_is_as_good() -> None:
    names = ("full", "linear", "local")
    first = set_scores(runs(names), {"full": 0.9, "linear": 0.9, "local": 0.9})
    second = set_scores(runs(names, task="mqar"), {"full": 0.9, "linear": 0.5, "local": 0.9})
    third = set_scores(runs(names, seq_len=64), {"full": 0.9, "linear": 0.5, "local": 0.2})
    too_few = runs(names, [0], seq_len=128)
    line = "Over the 3 comparisons with enough seeds, within 1 point of full: local on 2 of 3, linear on 1 of 3."
    assert line in answer_to(groups_of([*first, *second, *third, *too_few]))


def test_the_answer_stands_first_in_both_reports(tmp_path: Path) -> None:
    groups = groups_of(runs())
    line = answer_to(groups)[0]
    page, report = page_of(groups), markdown_of(groups)
    assert report.index("## In short") < report.index(line) < report.index(sentences_of(groups[0])[0])
    assert page.index(">In short</h2>") < page.index("<table")


def test_the_answer_says_from_which_length_a_variant_is_faster() -> None:
    def at(variant: str, seq_len: int, seconds: float) -> Record:
        spread = [0.999 * seconds, 1.001 * seconds]
        times = {"forward_backward_seconds": seconds, "forward_backward_seconds_spread": spread}
        return make_record(variant, seq_len=seq_len) | times

    lengths = (256, 512, 1024, 2048, 4096)
    records = [at("full", n, n**2 * 1e-7) for n in lengths] + [at("linear", n, n * 1e-7 * 700) for n in lengths]
    records += [at("local", n, n * 1e-7 * 20) for n in lengths] + [at("performer", n, n**2 * 4e-7) for n in lengths]
    said = next(line for line in answer_to(groups_of(records)) if "against length" in line)
    assert "at every length from 256 on: local; from some length on: linear from 70" in said.replace(NO_BREAK, " ")
    assert "not at the longest length measured (up to 4,096): performer." in said
