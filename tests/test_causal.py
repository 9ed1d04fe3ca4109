"""Training of causal encoders: what --causal asks for, what it refuses, and that nothing of the future is seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tasks
from compare.__main__ import main
from compare.arguments import cost_parser, run_parser
from compare.choice import left_out, remarks
from compare.plan import plan_runs
from compare.runs.train import Trainer
from compare.spec import RunSpec, reproduce
from tests.test_train import SPEC
from zoo import available, describe

ABLE = {name for name in available() if describe(name).traits.causal}
READ = {"adding", "duplicate", "mqar", "needle", "next_byte", "selective_copy"}


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(run_parser().parse_args(["--seq-len", "64", *words]), "cpu", 2).specs


def told(*words: str) -> str:
    return "; ".join(remarks(run_parser().parse_args(list(words))))


def test_all_is_what_has_a_causal_form_and_the_rest_is_told() -> None:
    words = ["--causal", "--variants", "all", "--tasks", "quick,mqar"]
    found = specs(*words)
    assert {spec.variant for spec in found} == ABLE
    assert {spec.task for spec in found} == {"mqar", "selective_copy", "next_byte"}
    assert all(spec.causal and not spec.decode for spec in found)
    assert set(left_out(run_parser().parse_args(words))) == set(available()) - ABLE
    assert "skipped (no causal form): fnet, linformer" in told(*words)
    assert "skipped tasks (no causal form): digits" in told(*words)
    assert "bytes becomes next_byte" in told(*words)
    assert not any(spec.causal for spec in specs("--variants", "full", "--tasks", "mqar"))


def test_every_task_with_a_causal_reading_is_trained_on_it() -> None:
    found = {spec.task for spec in specs("--causal", "--variants", "full", "--tasks", "all")}
    assert {name for name in tasks.available() if tasks.get(name).causal} == found
    assert found >= READ


def test_variants_that_nobody_typed_are_left_out_and_not_refused() -> None:
    assert {spec.variant for spec in specs("--causal", "--tasks", "mqar")} == {"full", "linear", "none"}
    assert told("--causal", "--tasks", "mqar") == "skipped (no causal form): linformer"


def test_a_task_for_causal_encoders_needs_no_flag() -> None:
    found = specs("--tasks", "mqar,next_byte")
    by_task = {name: {spec.variant for spec in found if spec.task == name} for name in ("mqar", "next_byte")}
    assert by_task == {"mqar": {"full", "linformer", "linear", "none"}, "next_byte": {"full", "linear", "none"}}
    assert {spec.task for spec in found if spec.causal} == {"next_byte"}
    assert "skipped on next_byte (no causal form): linformer" in told("--tasks", "all")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--causal --variants full,linformer",
            "--causal: linformer has no causal form; variants that have one: aft",
        ),
        ("--causal --sweep linformer.rank=4,8", "--causal: linformer has no causal form"),
        ("--tasks mqar,next_byte --variants fnet", "next_byte: fnet has no causal form"),
        (
            "--causal --tasks digits",
            "--causal: digits has no causal form; tasks that have one: adding, bytes, duplicate",
        ),
        ("--causal --tasks lra", "--causal: lra has no causal form"),
    ],
)
def test_what_has_no_causal_form_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_decoding_is_causal_without_being_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cost", "--decode", "--causal"])
    assert (
        "--causal cannot be combined with --decode: decoding always runs the causal encoder" in capsys.readouterr().err
    )
    options = cost_parser().parse_args(["--decode", "--tasks", "next_byte", "--seq-len", "64", "--variants", "full"])
    assert {(spec.decode, spec.causal) for spec in plan_runs(options, "cpu", 1).specs} == {(True, False)}


def test_the_command_repeats_the_run() -> None:
    for spec in specs("--causal", "--variants", "linear", "--tasks", "mqar,bytes", "--steps", "3"):
        words = reproduce(spec).split()[3:]
        (again,) = plan_runs(run_parser().parse_args(words), "cpu", 2).specs
        assert again == spec
        assert "--causal" in words
    assert "--causal" not in reproduce(SPEC)


def test_other_runs_keep_their_names() -> None:
    assert replace(SPEC, causal=False).run_id == SPEC.run_id != replace(SPEC, causal=True).run_id


@pytest.mark.parametrize("variant", ["full", "gated_deltanet"])
def test_a_trained_model_answers_without_what_comes_later(variant: str) -> None:
    spec = replace(SPEC, task="mqar", seq_len=64, variant=variant, causal=True, conv_width=3, steps=3, d_model=16)
    task = tasks.get("mqar")(64)
    trainer, rng = Trainer(spec, task), np.random.default_rng(0)
    for _ in range(3):
        trainer.step(trainer.to_device(task.to_batch(*task.draw(rng, 4, 64))), trainer.progress.tally)
    batch = task.to_batch(*task.draw(rng, 8, 64))
    cut = 1 + int(np.nonzero(batch.targets[0] != tasks.IGNORE)[0][0])
    edited = batch.inputs.copy()
    edited[:, cut:] = rng.integers(1, task.vocab_size, edited[:, cut:].shape)
    model = trainer.model.eval()
    with torch.no_grad():
        was, now = (model.encoder(torch.from_numpy(inputs)) for inputs in (batch.inputs, edited))
    torch.testing.assert_close(was[:, :cut], now[:, :cut], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(was[:, cut:], now[:, cut:], atol=1e-3)
    assert model.encoder.causal


def test_bits_per_byte_are_the_loss_to_the_base_two() -> None:
    task = tasks.get("next_byte")(64)
    spec = replace(SPEC, task="next_byte", seq_len=64, causal=True, d_model=16, batch_size=64)
    trainer = Trainer(spec, task)
    batch = next(task.train_batches(4, 64, 0))
    loss = trainer.progress.tally.add(*trainer.forward(trainer.to_device(batch)))
    mean, score = trainer.progress.tally.read()
    assert mean == pytest.approx(loss.item(), rel=1e-5)
    assert score == pytest.approx(mean / np.log(2))
    assert score == pytest.approx(np.log2(257), abs=1)
