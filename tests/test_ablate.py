"""`ablate`: a baseline and tips on the same seeds, their runs, and what the report says of them."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compare.__main__ import main
from compare.display import choose_display
from compare.errors import UsageError
from compare.listing import written
from compare.report import of_tip, write_report
from compare.report.facts.ablation import ablations, split_tips
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.overview import Overview
from compare.report.sections.ablation import sections, sentences, status, times
from compare.report.sections.flags import flag_notes
from compare.runs.options import RunOptions
from compare.runs.outcome import new_record
from compare.runs.sequence import run_all
from compare.spec import RunSpec
from compare.tips import BASELINE, TEACHER, TIPS, apply, read_tips, with_tips
from tests.here import compare_here
from tests.make_records import ENVIRONMENT, make_decoded, make_record, write_folder
from tests.test_train import SPEC

Record = dict[str, Any]


def tipped(variant: str, tip: str, seed: int, *, score: float, memory: float, speed: float) -> Record:
    record = make_record(variant, seed=seed)
    record |= {"tip": tip, "run_id": f"{variant}-{tip}-{seed}", "test_score": score}
    record |= {"baseline_id": f"{variant}-{BASELINE}-{seed}"}
    record |= {"train_memory_bytes": int(memory), "tokens_per_second": speed}
    if tip != BASELINE:
        record["spec"] = record["spec"] | {"checkpointing": True}
    return record


def made_up() -> list[Record]:
    """checkpoint: half the memory, 0.8 times the speed, the same score; amp: 5 points better."""
    records = []
    for variant in ("full", "linear"):
        for seed in range(3):
            noise = 0.001 * seed
            records.append(tipped(variant, BASELINE, seed, score=0.5 + noise, memory=8e8, speed=1000 + seed))
            records.append(tipped(variant, "checkpoint", seed, score=0.5 + noise, memory=4e8, speed=800 + 0.8 * seed))
            records.append(tipped(variant, "amp", seed, score=0.6 + noise, memory=8e8, speed=1000 + seed))
    for seed in range(3):
        failed = make_record("linear", seed=seed, status="unsupported")
        failed |= {"tip": "qk-norm", "run_id": f"q{seed}", "reason": "no place"}
        records.append(failed | {"baseline_id": f"linear-{BASELINE}-{seed}"})
    return records


def ablation_of(records: list[Record]) -> Any:
    plain, tipped = split_tips([Source(records, ENVIRONMENT)])
    groups = group_records(plain)
    (found,) = ablations(groups, tipped)
    return found


def test_a_tip_is_compared_with_the_baseline_of_the_same_seed() -> None:
    ablation = ablation_of(made_up())
    assert list(ablation.effects) == ["full", "linear"]
    by_tip = {effect.tip: effect for effect in ablation.effects["linear"]}
    saved = by_tip["checkpoint"]
    assert math.exp(saved.memory.mean) == pytest.approx(0.5)
    assert math.exp(saved.speed.mean) == pytest.approx(0.8)
    assert saved.speed.half == pytest.approx(0, abs=1e-9), "seeds differ, their ratios do not"
    assert saved.score.mean == pytest.approx(0)
    assert not saved.score.beyond
    assert by_tip["amp"].score.mean == pytest.approx(0.1)
    assert by_tip["qk-norm"].row.status == "3 unsupported"
    assert status(by_tip["qk-norm"].row) == "3 unsupported; no place"
    assert by_tip["qk-norm"].memory is None


def test_the_report_says_what_each_tip_buys_and_keeps_the_baseline_apart(tmp_path: Path) -> None:
    write_folder(tmp_path, made_up())
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "least memory of training: checkpoint (0.50\N{NO-BREAK SPACE}× (0.50 to 0.50))" in text
    assert "unsupported: qk-norm" in text
    assert text.count("checkpoint (0.50") >= 1
    names = {line.split(",")[2] for line in (tmp_path / "table.csv").read_text().splitlines()[1:]}
    assert {"", "amp", "checkpoint", "qk-norm"} <= names
    charts = (tmp_path / "charts.txt").read_text()
    assert "tips_" in charts
    assert "amp" not in charts, "no chart of the runs with one tip alone"


def test_runs_on_another_machine_are_no_pairs() -> None:
    elsewhere = [record | {"machine": ENVIRONMENT | {"cpu": "another"}} for record in made_up()]
    moved = [record for record in elsewhere if record["tip"] == "amp"]
    stayed = [record for record in made_up() if record["tip"] != "amp"]
    ablation = ablation_of(stayed + moved)
    assert {e.tip for own in ablation.effects.values() for e in own} == {"checkpoint", "qk-norm"}


def test_what_is_learned_elsewhere_has_its_curve_beside_the_baseline(tmp_path: Path) -> None:
    more = [
        tipped("linear", tip, seed, score=0.6, memory=8e8, speed=1000) | {"baseline_id": f"linear-{BASELINE}-{seed}"}
        for tip in ("pretrain", "convert+amp")
        for seed in range(3)
    ]
    write_folder(tmp_path, made_up() + more)
    write_report(tmp_path)
    names = [line for line in (tmp_path / "charts.txt").read_text().splitlines() if line.startswith("curves_steps_")]
    assert [name for name in names if "_tips_" in name and name.endswith(".png")] == [
        next(name for name in names if name.endswith("_tips_linear.png"))
    ], "full has no such tips"
    page = (tmp_path / "report.md").read_text()
    alt = next(line for line in page.splitlines() if line.startswith("!") and "tips_linear" in line)
    assert "linear, pretrained or taught" in alt
    assert "3 variants" in alt


def test_a_page_shows_the_table_of_a_tip(tmp_path: Path) -> None:
    write_folder(tmp_path / "results" / "mine", made_up())
    page = tmp_path / "tips.md"
    page.write_text("<!-- results/mine tip:amp -->\nold\n<!-- /results/mine tip:amp -->\n")
    text = written(page)
    assert text.splitlines()[1:3] == [
        "| variant | task | memory | speed | score | status |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    assert "| `linear` | bytes, 1,024 |" in text
    assert "+10.0 ± 0.0 points | ok |" in text or "+10.0 ± " in text
    with pytest.raises(ValueError, match="has no runs with the tip 'amq'"):
        of_tip(tmp_path / "results" / "mine", "amq")


def test_a_cache_is_compared_with_recomputing_in_the_same_run() -> None:
    records = [r for r in made_up() if r["tip"] == BASELINE]
    for seed in range(3):
        record = make_decoded("linear", seq_len=1024, seed=seed) | {"tip": "cache", "run_id": f"cache-{seed}"}
        record |= {"baseline_id": f"linear-{BASELINE}-{seed}"}
        step = record["token_seconds"]
        records.append(record | {"recompute_seconds": 20 * step, "recompute_bytes": 4 * record["cache_bytes"]})
    (effect,) = ablation_of(records).effects["linear"]
    assert math.exp(effect.speed.mean) == pytest.approx(20)
    assert math.exp(effect.memory.mean) == pytest.approx(0.25)
    assert effect.score is None


def test_without_a_baseline_nothing_is_said() -> None:
    plain, tipped = split_tips([Source([r for r in made_up() if r["tip"] != BASELINE], ENVIRONMENT)])
    groups = group_records(plain)
    assert sections(Overview(groups, ablations(groups, tipped))) == []


@pytest.mark.parametrize("tip", TIPS)
def test_every_tip_changes_the_run_and_keeps_its_samples(tip: str) -> None:
    changed = apply(tip, SPEC, "teacher")
    samples = {"small-batch": 1, "large-batch": 4 * SPEC.batch_size, "cache": 1}.get(tip, SPEC.batch_size)
    assert changed.batch_size * changed.accumulate == samples
    assert (changed.variant, changed.task, changed.seq_len, changed.seed) == (
        *(SPEC.variant, SPEC.task, SPEC.seq_len, SPEC.seed),
    )
    assert changed.steps == (0 if tip == "cache" else SPEC.steps)
    assert changed != SPEC or tip in ("cosine-lr", "full-length"), "SPEC has it"
    assert RunSpec.from_json(changed.to_json()) == changed


def test_tips_combine_and_equal_ones_run_once() -> None:
    both = apply("amp+checkpoint", SPEC, "")
    assert (both.dtype, both.checkpointing) == ("bfloat16", True)
    tipped = with_tips([SPEC], ["amp", "cosine-lr", "amp+cosine-lr"])
    amp = apply("amp", SPEC, "")
    assert tipped.rows == [(SPEC, BASELINE, SPEC.run_id), (amp, "amp", SPEC.run_id)]
    assert tipped.idle == ["cosine-lr on mqar equals baseline", "amp+cosine-lr on mqar equals amp"]


@pytest.mark.parametrize(
    ("tip", "lost"),
    [
        ("amp+amp", "amp"),
        ("amp+amp-fp16", "amp"),
        ("no-weight-decay+weight-decay", "weight-decay"),
        ("lora+adapter", "lora"),
        ("pretrain+prompt", "pretrain"),
    ],
)
def test_a_part_that_another_undoes_is_refused(tip: str, lost: str) -> None:
    with pytest.raises(UsageError, match=rf"^--tips {re.escape(tip)}: {lost} changes nothing beside the others"):
        with_tips([SPEC], [tip])


def test_a_control_gets_no_tips_beside_other_variants() -> None:
    control = replace(SPEC, variant="none")
    beside = with_tips([SPEC, control], ["amp", "distil"]).rows
    assert [(spec.variant, tip) for spec, tip, _ in beside if spec.variant == "none"] == [("none", BASELINE)]
    assert [tip for _, tip, _ in with_tips([control], ["amp"]).rows] == [BASELINE, "amp"]


def test_a_teacher_is_the_run_of_full_and_comes_first() -> None:
    full, linear = SPEC, replace(SPEC, variant="linear", lr=0.5)
    tipped = with_tips([linear, full], ["amp+distil", "convert"])
    assert [(spec.variant, tip) for spec, tip, _ in tipped.rows][:2] == [("full", BASELINE), ("linear", BASELINE)]
    taught = {tip: spec for spec, tip, base in tipped.rows if base == linear.run_id}
    assert taught["amp+distil"].teacher == full.run_id, "full without amp, at its own rate"
    assert taught["convert"].start == full.run_id
    alone = with_tips([linear], ["distil"])
    assert [tip for _, tip, _ in alone.rows] == [TEACHER, BASELINE, "distil"]
    assert alone.rows[0][0] == replace(linear, variant="full")


def test_tips_on_a_control_are_tested_together_too() -> None:
    records = [
        r | {"variant": "none", "label": "none", "family": "control"} for r in made_up() if "full" in r["run_id"]
    ]
    effects = ablation_of(records).effects["none (control)"]
    assert not any(e.row.family == "control" for e in effects)


def test_only_what_is_beyond_noise_is_called_fastest() -> None:
    records = made_up()
    for record in records:
        if record["tip"] == "amp":
            record["tokens_per_second"] *= 1 + 0.2 * (int(record["seed"]) - 0.9)
    said = sentences(ablation_of(records))
    assert not any("fastest" in line for line in said), said


def test_micro_batches_of_one_step_are_one_group() -> None:
    records = [make_record(name, seed=seed) for name in ("full", "linear") for seed in range(3)]
    for record in records[3:]:
        record["spec"] |= {"batch_size": 1, "accumulate": 2}
    (group,) = group_records([Source(records, ENVIRONMENT)])
    assert group.against_full
    flags = flag_notes(group.rows, group)
    assert any("linear (2 micro-batches a step)" in note for note in flags), flags


def test_names_are_read_and_wrong_ones_refused() -> None:
    assert read_tips("all") == list(TIPS)
    assert read_tips("amp, amp+checkpoint,amp") == ["amp", "amp+checkpoint"]
    with pytest.raises(ValueError, match=r"got 'chekpoint' \(did you mean 'checkpoint'\?\)"):
        read_tips("amp+chekpoint")


def test_ratios_are_shown_with_their_interval() -> None:
    effect = ablation_of(made_up()).effects["full"]
    assert times(effect[0].memory) in (
        "0.50\N{NO-BREAK SPACE}× (0.50 to 0.50)",
        "1.00\N{NO-BREAK SPACE}× (1.00 to 1.00)",
    )
    assert times(None) == "–" or times(None)


def test_the_command_runs_baseline_and_tips(tmp_path: Path) -> None:
    small = "--tasks mqar --seq-len 64 --steps 2 --batch-size 4 --no-control --d-model 16 --n-heads 2 --n-layers 1"
    words = f"ablate --variants full,hyena --tips checkpoint,qk-norm,attention-dropout,accumulate {small}".split()
    done = compare_here(*words, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [(r["variant"], r["tip"], r["status"]) for r in records] == [
        *(("full", tip, "ok") for tip in (BASELINE, "checkpoint", "qk-norm", "attention-dropout", "accumulate")),
        ("hyena", BASELINE, "ok"),
        ("hyena", "checkpoint", "ok"),
        ("hyena", "qk-norm", "unsupported"),
        ("hyena", "attention-dropout", "unsupported"),
        ("hyena", "accumulate", "ok"),
    ]
    assert records[7]["reason"] == "qk_norm: hyena has no queries and keys of the shell"
    assert "full · mqar · N 64 · seed 0 · checkpointing True: started" in done.stdout
    assert "What each tip buys" in (tmp_path / "out" / "report.md").read_text()
    again = compare_here(*words, "--out", str(tmp_path / "out"), "--resume")
    assert "10 of 10 runs are already in" in again.stdout
    assert "--qk-norm" in records[2]["command"]


def test_a_teacher_that_was_not_kept_is_trained_again(tmp_path: Path) -> None:
    small = [
        "--tasks",
        "digits",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--no-control",
        "--d-model",
        "16",
        "--n-heads",
        "2",
        "--n-layers",
        "1",
    ]
    words = ["ablate", "--variants", "linear", *small, "--out", str(tmp_path / "out"), "--tips"]
    assert compare_here(*words, "checkpoint").returncode == 0
    done = compare_here(*words, "distil,convert", "--resume")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {r["tip"]: r["status"] for r in records} == dict.fromkeys(
        (BASELINE, "checkpoint", TEACHER, "distil", "convert"), "ok"
    )
    names = [path.name for path in (tmp_path / "out" / "models").iterdir()]
    assert [name.partition("_")[0] for name in names] == ["full"], "only what others need is kept"
    assert "teacher" not in (tmp_path / "out" / "table.csv").read_text()


def test_a_teacher_whose_model_is_gone_is_trained_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = "--steps 2 --batch-size 4 --no-control --d-model 16 --n-heads 2 --n-layers 1"
    words = f"ablate --variants linear --tasks digits {sizes} --out {out} --tips".split()
    assert compare_here(*words, "distil").returncode == 0
    shutil.rmtree(out / "models")
    done = compare_here(*words, "distil,convert", "--resume")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [r["tip"] for r in records] == [TEACHER, BASELINE, "distil", TEACHER, "convert"]
    assert {r["status"] for r in records} == {"ok"}
    assert "4 of 4 runs are already in" in compare_here(*words, "distil,convert", "--resume").stdout


def test_a_failed_teacher_is_told_by_its_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = replace(SPEC, qk_norm=True), replace(SPEC, variant="linear")
    student = replace(student, teacher=teacher.run_id)

    for ended, wanted in (("oom", "unsupported"), ("timeout", "error")):
        failed = new_record(teacher, ended, "no memory")
        monkeypatch.setattr("compare.engines.local.run_one", lambda *_, failed=failed: failed)
        options = RunOptions(out=str(tmp_path), keep=(teacher.run_id,))
        display = choose_display(quiet=True, as_json=False)
        records = run_all([teacher, student], tmp_path / f"{ended}.jsonl", display, {}, options)
        assert [r["status"] for r in records] == [ended, wanted]
        assert records[1]["reason"] == f"it needs the model of full, whose run ended with status {ended}"


def test_a_teacher_keeps_its_weights_and_floats() -> None:
    student = replace(SPEC, variant="linear", quantize="int8-weights")
    (teacher, _, _), *_ = with_tips([student], ["distil"]).rows
    assert (teacher.variant, teacher.quantize, teacher.tune) == ("full", None, None)


def test_a_quarter_of_a_batch() -> None:
    for size, parts, wanted in ((8, 1, (2, 1)), (2, 8, (2, 2)), (1, 8, (1, 2)), (3, 4, (3, 1)), (1, 1, (1, 1))):
        small = apply("small-batch", replace(SPEC, batch_size=size, accumulate=parts), "")
        assert (small.batch_size, small.accumulate) == wanted


def test_tips_without_a_drawing_have_their_table(tmp_path: Path) -> None:
    records = [r for r in made_up() if r["tip"] == BASELINE]
    record = make_decoded("linear", seq_len=1024, seed=0) | {"tip": "cache", "run_id": "cache-0"}
    write_folder(tmp_path, [*records, record | {"baseline_id": f"linear-{BASELINE}-0"}])
    write_report(tmp_path)
    assert "| cache |" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="no other tip can join it"):
        read_tips("cache+compile")


def test_a_wrong_tip_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ablate", "--tips", "chekpoint"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
