"""Train short, test long: what is asked, what is refused, what comes out, and how a report shows it."""

import csv
import json
import random
from pathlib import Path

import pytest

from compare.arguments import run_parser
from compare.errors import UsageError
from compare.plan import plan_runs
from compare.record import Record, read_records
from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from compare.report.sections.section import Section
from compare.report.sections.test_lengths import carried_over, part, table_by_length
from compare.spec import RunSpec
from tests.make_records import ENVIRONMENT, make_record, write_folder
from tests.test_compare import SPEC


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(run_parser().parse_args(["--no-control", *words]), "cpu", 1).specs


def make_tested(variant: str, seed: int, reached: dict[int, float | None]) -> Record:
    """A record tested at other lengths; None = out of memory there."""
    record = make_record(variant, seq_len=1024, seed=seed)
    noise = random.Random(f"{variant} {seed}")
    record["test_score"] = reached[1024]
    record["test_lens"] = {
        str(n): {"status": "oom", "reason": "…", "baselines": {"unigram": 0.3}}
        if score is None
        else {
            **{"status": "ok", "score": score + noise.uniform(-0.004, 0.004), "loss": 1.0, "size": 8000},
            "baselines": {"unigram": 0.3, "bigram": 0.35},
        }
        for n, score in reached.items()
        if n != 1024
    }
    return record


pytestmark = pytest.mark.usefixtures("blank_charts")

REACHED: dict[str, dict[int, float | None]] = {
    "full": {512: 0.9, 1024: 0.9, 4096: 0.6, 16384: 0.4},
    "linear": {512: 0.7, 1024: 0.7, 4096: 0.7, 16384: 0.7},
    "naive": {512: 0.9, 1024: 0.9, 4096: 0.6, 16384: None},
    "none": {512: 0.31, 1024: 0.31, 4096: 0.31, 16384: 0.31},
}


def records(seeds: int = 3) -> list[Record]:
    return [make_tested(variant, seed, reached) for variant, reached in REACHED.items() for seed in range(seeds)]


def test_a_head_that_restores_a_text_reaches_the_longest_too() -> None:
    import torch

    from compare.runs.data import make_task
    from compare.runs.model import Model

    (spec,) = specs("--variants", "full", "--tasks", "mad_compress", "--seq-len", "32", "--test-len", "64")
    targets = torch.zeros(2, 64, dtype=torch.int64)
    predicted, asked = Model(spec, make_task(spec))(torch.zeros(2, 64, dtype=torch.int64), targets, None)
    assert len(predicted) == len(asked) == targets.numel()


def test_lengths_reach_the_run_its_encoder_and_its_command() -> None:
    from compare.spec import reproduce

    (spec,) = specs("--variants", "full", "--tasks", "needle", "--seq-len", "64", "--test-len", "256,32")
    assert (spec.test_lens, spec.seq_len, spec.max_len) == ((32, 256), 64, 256)
    assert RunSpec.from_json(spec.to_json()) == spec
    assert "--test-len 32,256" in reproduce(spec)
    (again,) = plan_runs(run_parser().parse_args(reproduce(spec).split()[3:]), "cpu", 1).specs
    assert again.run_id == spec.run_id


NEEDLE = ["--tasks", "needle", "--seq-len", "64"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--variants", "full,linformer"],
            r"linformer cannot be tested beyond its training length 64: .*\(projection\)",
        ),
        (["--variants", "synthesizer"], "synthesizer cannot be tested beyond"),
        (["--variants", "aft", "--set", "aft.form=full"], r"aft form=full cannot .*\(rows, columns\)"),
        (["--sweep", "linformer.rank=8,16", "--variants", "full"], "linformer rank=8 cannot be tested beyond"),
        (["--variants", "full", "--positions", "learned"], r"full cannot be tested beyond .*\(learned positions\)"),
        (["--variants", "full", "--test-len", "16"], "--test-len 16: needle: expected 32 <= seq_len"),
        (["--variants", "full", "--tasks", "mqar", "--test-len", "4k"], "mqar has vocab_size .* at this length and"),
        (
            ["--variants", "full", "--steps", "0"],
            "--test-len cannot be combined with --steps 0: it tests trained models",
        ),
    ],
)
def test_what_cannot_be_tested_is_said_in_one_line_before_anything_runs(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        specs(*NEEDLE, "--test-len", "256", *words)
    assert "\n" not in str(error.value)


def test_what_cannot_be_tested_beyond_can_be_tested_below_and_is_left_out_of_all() -> None:
    below = specs(*NEEDLE, "--variants", "linformer", "--test-len", "32")
    assert [spec.max_len for spec in below] == [64]
    tested = {spec.variant for spec in specs(*NEEDLE, "--variants", "all", "--test-len", "256")}
    assert {"linformer", "synthesizer"}.isdisjoint(tested)
    assert {"full", "hyena", "cosformer", "dilated", "gau", "routing", "reformer", "linear"} <= tested


def test_a_trained_model_is_scored_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    from dataclasses import replace

    from compare.runs.child import Events
    from compare.runs.execute import work

    monkeypatch.setattr("compare.schedule.TEST_TOKENS", 4096)
    spec = replace(SPEC, variant="full", task="adding", seq_len=16, test_lens=(8, 16, 32), steps=3)
    record: Record = {"machine": {}}
    work(spec, None, record, Events(io.StringIO()), None, None, lambda: 0.0)
    found = record["test_lens"]
    assert list(found) == ["8", "16", "32"]
    assert all(each["status"] == "ok" for each in found.values())
    assert {n: each["size"] for n, each in found.items()} == {"8": 512, "16": 256, "32": 128}
    assert found["8"]["loss"] != found["32"]["loss"]
    assert record["test_size"] == 3000
    assert found["32"]["baselines"].keys() == record["baselines"].keys()


def test_a_report_shows_each_length_and_what_stays(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", records())
    assert write_report(folder).warnings == []
    assert (folder / "charts" / "test_length_bytes_1024.png").is_file()
    (group,) = group_records([Source(read_records(folder / "records.jsonl")[0], ENVIRONMENT)])
    header, body = table_by_length(group)
    assert header == ["variant", "512, %", "1,024 (trained), %", "4,096, %", "16,384, %"]
    cells = {row[0]: row[1:] for row in body}
    assert cells["full"][1] == "90.0 ± 0.0 (n=3)"
    assert cells["full"][3].startswith("40.")
    assert cells["naive"][3] == "oom"
    assert cells["best trivial predictor"][3] == "35.0"
    (said,) = carried_over(group)
    assert said.startswith("Trained at 1,024 tokens and tested at 16,384, 16 times as long: lose: full 90.0")
    assert "stay within noise: linear 70.0" in said
    assert "naive" not in said
    page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    assert said in text
    assert "Score by test length: bytes, length 1,024" in page
    assert "16,384" in page


def test_one_seed_gets_numbers_and_no_verdict() -> None:
    (group,) = group_records([Source(records(seeds=1), ENVIRONMENT)])
    (said,) = carried_over(group)
    assert said.endswith("(1 seed: no verdict).")
    (plain,) = group_records([Source([make_record("full")], ENVIRONMENT)])
    assert carried_over(plain) == []
    assert part(plain) == Section()


def test_damaged_scores_at_a_length_are_a_damaged_line(tmp_path: Path) -> None:
    good, bad = records(seeds=1)[:2]
    bad["test_lens"]["4096"]["score"] = "much"
    folder = write_folder(tmp_path / "run", [good, bad])
    (warning,) = write_report(folder).warnings
    assert "test_lens" in warning
    with (folder / "table.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["full"]


def test_records_of_earlier_versions_are_read_under_present_names(tmp_path: Path) -> None:
    old = [make_record(variant) for variant in ("full", "none")]
    for record in old:
        record["spec"] |= {"length_warmup": True, "warmup_steps": 50}
    folder = write_folder(tmp_path / "run", json.loads(json.dumps(old)))
    assert write_report(folder).warnings == []
    (group,) = group_records([Source(old, ENVIRONMENT)])
    assert json.loads(group.cost_conditions).keys().isdisjoint({"length_warmup", "warmup_steps", "warmup"})
    assert '"length_schedule":"from-16th"' in (folder / "report.html").read_text()


def test_where_less_is_better_more_is_a_loss() -> None:
    bits = {"unit": "bits", "lower_is_better": True, "bounds": [0.0, None]}
    told = [record | {"metric": "bits per byte", "metric_scale": bits} for record in records()]
    for record in told:
        for found in (record, *record["test_lens"].values()):
            found["baselines"] = {"unigram": 4.5, "bigram": 3.5}
            if "score" in found:
                found["score"] = 3 - 2 * found["score"]
        record["test_score"] = 3 - 2 * record["test_score"]
    (group,) = group_records([Source(told, ENVIRONMENT)])
    (said,) = carried_over(group)
    assert "lose: full 1.200 bits → 2.19" in said
    table = table_by_length(group)
    assert table[0][-1] == "16,384, bits"
    assert table[1][-1] == ["best trivial predictor", *["3.500"] * 4]
