"""Plans that repeat published comparisons, and what their results say beside the published figures."""

import json
import re
from pathlib import Path

import pytest

import zoo
from compare.arguments import run_parser
from compare.listing import written
from compare.plan import plan_runs
from compare.plans import PLANS, Plan, get
from compare.record import read_records
from compare.report import write_report
from tests.here import compare_here
from tests.make_records import make_record, write_folder

PLAN = Plan(
    summary="an invented comparison",
    words=("--variants", "full,linear,performer"),
    published={"A": {"full": 0.9, "linear": 0.5, "performer": 0.7}, "B": {"full": 0.4, "linear": 0.6}},
    departures=("Ours has fewer layers.",),
    reasons={"full": "theirs trains longer."},
)


def run(variant: str, score: float, seed: int, size: int) -> dict[str, object]:
    record = make_record(variant, task="mqar", seq_len=64, seed=seed)
    spec = record["spec"] | {"task_options": [["vocab_size", size]]}
    return record | {"test_score": score, "plan": "invented", "spec": spec, "run_id": f"{variant}{seed}{size}"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two settings, three seeds; one seed of performer has no score in the second setting."""
    monkeypatch.setitem(PLANS, "invented", PLAN)
    means = {"full": 0.7, "linear": 0.5, "performer": 0.52}
    records = [
        run(variant, mean + 0.01 * seed + (0.1 if size == 256 else -0.1), seed, size)
        for variant, mean in means.items()
        for seed in range(3)
        for size in (256, 512)
        if (variant, seed, size) != ("performer", 2, 512)
    ]
    return write_folder(tmp_path, records)


def told(folder: Path) -> str:
    return "\n".join(write_report(folder).sentences)


def test_scores_are_means_over_all_settings_beside_the_published_ones(folder):
    text = told(folder)
    assert "full · ours, % 71.0 ± 2.5 · seeds 3 · A, % 90.0 · B, % 40.0" in text
    assert "performer · ours, % 52.5 ± 6.4 · seeds 2 · A, % 70.0 · B, % –" in text
    assert "An invented comparison." in text
    assert "vocab_size=256" in text
    assert "vocab_size=512" in text
    assert "Ours has fewer layers." in text


def test_each_source_is_told_which_orders_are_the_same(folder):
    text = told(folder)
    assert "A orders 3 pairs; the same here: full above linear; inconclusive here" in text
    assert "B orders 1 pair; reversed here: linear above full." in text


def test_what_lies_beyond_our_interval_has_a_reason_or_is_said_to_have_none(folder):
    text = told(folder)
    assert "full differs from every published figure by more than our interval: theirs trains longer." in text
    assert "for unknown reasons: performer." in text


def test_page_and_markdown_hold_the_table(folder):
    write_report(folder)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "invented, beside published figures" in text
        assert "Ours has fewer layers." in text


def test_a_page_shows_the_table_and_what_is_said_of_it(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "findings.md"
    (tmp_path / "results").symlink_to(folder)
    page.write_text("<!-- results/. published -->\nold\n<!-- /results/. published -->\n")
    lines = written(page).splitlines()
    assert lines[1] == "| variant | ours, % | seeds | A, % | B, % |"
    assert "| `full` | 71.0 ± 2.5 | 3 | 90.0 | 40.0 |" in lines
    assert "- Ours has fewer layers." in lines
    (folder / "records.jsonl").write_text(json.dumps(make_record("full", task="mqar", seq_len=64)) + "\n")
    with pytest.raises(ValueError, match="has no runs of python -m compare reproduce"):
        written(page)


@pytest.mark.parametrize("plan_name", list(PLANS))
def test_every_plan_can_be_run(plan_name):
    plan = get(plan_name)
    specs = plan_runs(run_parser().parse_args(plan.words), "cpu", 2).specs
    compared = {spec.variant for spec in specs}
    assert set(plan.reasons) <= compared
    for source in plan.published.values():
        assert set(source) <= compared <= set(zoo.available())
        assert all(0 < score < 1 for score in source.values())


def test_the_command_lists_plans_and_names_the_closest():
    listed = compare_here("reproduce").stdout
    assert all(f"{name}: " in listed for name in PLANS)
    done = compare_here("reproduce", "mad-memorise")
    assert done.returncode == 2
    assert "did you mean 'mad-memorize'?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_reason_for_gated_deltanet_is_measured() -> None:
    results = Path(__file__).parents[1] / "results/cpu-2core"

    def printed(file: str, start: str) -> float:
        lines = map(json.loads, (results / "initialisation" / file).read_text(encoding="utf-8").splitlines())
        (score,) = (line["test"] for line in lines if line["start"] == start)
        return float(score)

    (ours,) = (
        record["test_score"]
        for record in read_records(results / "mad_memorize/records.jsonl")[0]
        if record["variant"] == "gated_deltanet"
        and record["spec"]["task_options"] == [["vocab_size", 4096]]
        and record["seed"] == 0
    )
    one, four = "gated_deltanet_1_head.jsonl", "gated_deltanet_4_heads.jsonl"
    measured = [ours, printed(one, "ours"), printed(four, "authors"), printed(one, "authors")]
    figures = re.findall(r"[\d.]+(?= %)", PLANS["mad-memorize"].reasons["gated_deltanet"])
    assert figures == [f"{100 * score:.1f}" for score in measured]
