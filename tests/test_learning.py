"""Ways to learn besides the task's own loss: self-supervised pretraining, a kept model to begin with, a teacher, a few
trained weights, early stopping; and int8 weights afterwards."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.__main__ import main
from compare.runs.data import make_task
from compare.runs.keep import keep
from compare.runs.kept import load, start_from
from compare.runs.model import PATCHES_HIDDEN, PROMPTS, TOKENS_HIDDEN, Model, hide, per_position
from compare.runs.outcome import new_record
from compare.runs.progress import part_of
from compare.runs.quantise import quantised, weights_bytes
from compare.runs.step_cost import measure_costs
from compare.runs.teacher import TEMPERATURE, WEIGHT, Teacher
from compare.runs.train import Trainer
from compare.runs.tune import tune, tuned_tensors
from compare.spec import RunSpec
from tests.here import few_samples, run_here
from tests.learning import small_spec
from zoo import Encoder
from zoo.contract import UnsupportedError

Record = dict[str, Any]
METHODS = ("lora", "adapter", "prompt", "prefix")


def small(task: str = "mqar", seq_len: int = 64, **fields: Any) -> RunSpec:
    base = small_spec(task, seq_len, steps=4, batch_size=4)
    return replace(base, **({"d_model": 16, "n_heads": 2, "n_layers": 2} | fields))


def trainer_of(spec: RunSpec, out: Path | None = None) -> Trainer:
    with few_samples():
        task = make_task(spec)
        task.prepare()
    return Trainer(spec, task, None if out is None else str(out))


def batch_of(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor | None]:
    spec = trainer.spec
    return trainer.to_device(next(trainer.task.train_batches(spec.batch_size, spec.seq_len, 0)))


def kept_in(out: Path, spec: RunSpec) -> Record:
    """The record of an untrained model that is kept."""
    trainer = trainer_of(spec)
    record = new_record(spec, "ok", "") | {"test_score": 0.5, "val_score": 0.5, "baselines": {}, "data": {}}
    keep(trainer, record, out)
    return record


# Self-supervised pretraining


def test_the_parts_of_a_training() -> None:
    spec = small(pretrain=0.25)
    assert [part_of(spec, done) for done in (0.0, 0.125, 0.25, 0.625, 1.0)] == [
        *((True, 0.0), (True, 0.5), (False, 0.0), (False, 0.5), (False, 1.0)),
    ]
    assert part_of(small(), 0.3) == (False, 0.3)


def test_hidden_positions_are_real_and_at_least_one() -> None:
    torch.manual_seed(0)
    real = torch.arange(200) < torch.tensor([200, 50, 1])[:, None].repeat_interleave(200, 0)
    hidden = hide(real, TOKENS_HIDDEN)
    assert not (hidden & ~real).any()
    assert hidden.any(1).all()
    assert hidden[:200].float().mean().item() == pytest.approx(TOKENS_HIDDEN, abs=0.01)


@pytest.mark.parametrize(("task", "seq_len"), [("mqar", 64), ("digits", 64), ("listops", 64), ("matching", 128)])
@pytest.mark.parametrize("causal", [False, True])
def test_hidden_inputs_cannot_be_seen(task: str, seq_len: int, causal: bool) -> None:
    """The prediction at a hidden position does not depend on what stood there (causal: on what comes next)."""
    trainer = trainer_of(small(task, seq_len, pretrain=0.5, causal=causal))
    inputs, targets, padding = batch_of(trainer)
    model = trainer.trained.eval()
    torch.manual_seed(1)
    predicted, asked = model(inputs, targets, padding, restore=True)
    assert (
        predicted.shape[: asked.dim()] == asked.shape
        if asked.is_floating_point()
        else predicted.shape[:1] == asked.shape
    )
    changed = inputs.clone()
    flat = changed.flatten(0, 1) if inputs.dim() == 3 and inputs.dtype == torch.int64 else changed
    spare = padding.flatten(0, 1) if padding is not None and padding.dim() == 3 else padding
    if causal:
        last = flat.shape[1] - 1
        flat[:, last] = 1 if flat.dtype == torch.int64 else 5.0
    else:
        torch.manual_seed(1)
        real = torch.ones(flat.shape[:2], dtype=torch.bool) if spare is None else ~spare
        hidden = hide(real, TOKENS_HIDDEN if flat.dtype == torch.int64 else PATCHES_HIDDEN)
        flat[hidden] = 1 if flat.dtype == torch.int64 else 5.0
    torch.manual_seed(1)
    again, other = model(changed, targets, padding, restore=True)
    torch.testing.assert_close(again, predicted)
    assert not torch.equal(other, asked), "the answers did change"


def test_pretraining_learns_and_is_followed_by_the_task() -> None:
    spec = replace(small("digits", 64, pretrain=0.5, d_model=32), steps=250, batch_size=32, lr=3e-3)
    trainer = trainer_of(spec)
    result = trainer.train(lambda *_: None)
    first = [point for point in result["curve"] if "restoring_loss" in point]
    rest = [point for point in result["curve"] if "restoring_loss" not in point]
    assert not any("train_loss" in p for p in first)
    assert len(first) == pytest.approx(len(rest), abs=2)
    assert first[-1]["restoring_loss"] < 0.9 * first[0]["restoring_loss"]
    assert rest[-1]["train_loss"] < 0.9 * rest[0]["train_loss"]
    assert not any("val_loss" in p for p in first)
    assert result["train_steps"] == 250


@pytest.mark.parametrize("method", [None, "adapter"])
def test_the_compute_of_both_parts_counts(method: str | None) -> None:
    spec = small("digits", 64, pretrain=0.5, tune=method)
    counted = measure_costs(trainer_of(spec), {})
    restoring, task = (counted[part][spec.seq_len] for part in (True, False))
    if method is None:
        assert restoring == pytest.approx(task, rel=0.1)
        assert restoring != task, "another head, at the hidden positions"
    else:
        assert task < 0.8 * restoring, "no gradients of fixed weights"
    record = run_here(spec, lambda _: None)
    tokens = spec.batch_size * spec.seq_len
    assert record["flops"] == pytest.approx(task * tokens)
    assert record["train_flops"] == pytest.approx(2 * tokens * (restoring + task))


def test_a_pretrained_run_is_whole_and_repeats() -> None:
    spec = small("digits", 64, pretrain=0.5, variant="linear")
    one, two = (run_here(spec, lambda _: None) for _ in range(2))
    assert one["status"] == "ok", one["reason"]
    assert one["test_loss"] == two["test_loss"]
    plain = run_here(replace(spec, pretrain=0.0), lambda _: None)
    assert one["params"] == plain["params"] + spec.d_model, (
        "an id for hidden tokens; the head that restores is left out"
    )


# A model to begin with


def test_the_same_attention_starts_as_the_kept_model(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(variant="linear", seed=3))
    source = load(tmp_path / record["model"]).model
    trainer = trainer_of(small(variant="linear", start=record["run_id"]), tmp_path)
    torch.testing.assert_close(dict(trainer.trained.named_parameters()), dict(source.named_parameters()))


def test_a_pretrained_model_is_fine_tuned_later(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3, pretrain=0.5))
    source = load(tmp_path / record["model"]).model
    trainer = trainer_of(small(start=record["run_id"]), tmp_path)
    rows = trainer.trained.encoder.embedding.weight
    torch.testing.assert_close(rows, source.encoder.embedding.weight[:-1], msg="all but the hidden token's")
    back = kept_in(tmp_path, small(seed=4))
    again = trainer_of(small(start=back["run_id"], pretrain=0.5), tmp_path)
    assert len(again.trained.encoder.embedding.weight) == len(rows) + 1


def test_a_tuned_model_is_no_start(tmp_path: Path) -> None:
    trainer = trainer_of(small("digits", 64, tune="adapter", pretrain=0.5))
    trainer.begin_tuning()
    record = new_record(trainer.spec, "ok", "") | {"test_score": 0.5, "val_score": 0.5, "baselines": {}, "data": {}}
    keep(trainer, record, tmp_path)
    run = run_here(small("digits", 64, start=str(tmp_path / record["model"])), lambda _: None)
    assert "got one tuned by adapter" in run["reason"]


def test_a_folder_imports_no_module_that_it_names(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    file = tmp_path / record["model"] / "record.json"
    stored = json.loads(file.read_text())
    stored["spec"]["variant"] = "this:Zen"
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="its attention is this:Zen: import this first"):
        load(tmp_path / record["model"])


def test_a_killed_run_goes_on_from_pretraining_to_tuning() -> None:
    spec = small("digits", 64, tune="adapter", pretrain=0.5, steps=8)
    states: list[Any] = []
    first = trainer_of(spec)
    first.train(lambda *_: None, on_step=lambda _: states.append(copy.deepcopy(first.state())))
    assert states[3]["restoring"]
    assert not states[3]["tuned"], "the last self-supervised step"
    for at in (1, 3, 5):
        second = trainer_of(spec)
        second.restore(states[at])
        second.train(lambda *_: None)
        assert second.tuned
        torch.testing.assert_close(second.trained.state_dict(), first.trained.state_dict(), rtol=0, atol=0)


def test_padding_does_not_count_between_hidden_states(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small("listops", 64, seed=3))
    trainer = trainer_of(small("listops", 64, teacher=record["run_id"], distill="hidden"), tmp_path)
    inputs, targets, padding = batch_of(trainer)
    if padding is None:
        padding = torch.zeros(inputs.shape, dtype=torch.bool)
    losses = []
    for filler in (0, 5):
        ids = inputs.masked_fill(padding, filler)
        losses.append(trainer.loss((ids, targets, padding), trainer.training_tally()).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_attention_takes_what_both_have(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    spec = small(variant="linformer")
    model = Model(spec, trainer_of(spec).task)
    left = start_from(model, spec, tmp_path / record["model"])
    assert left
    assert all(".attention.mixer.attention." in name for name in left)
    source = dict(load(tmp_path / record["model"]).model.named_parameters())
    copied = {name: p for name, p in model.named_parameters() if name not in left}
    assert copied
    assert all(torch.equal(p, source[name]) for name, p in copied.items())


def test_what_both_attentions_share_must_fit(tmp_path: Path) -> None:
    folder = str(tmp_path / kept_in(tmp_path, small(seed=3))["model"])
    for changed, name in (
        ({"n_layers": 3}, "layers.2"),
        ({"norm_type": "rms"}, "norm1.bias"),
        ({"conv_width": 5}, "conv"),
    ):
        run = run_here(small(variant="linear", start=folder, **changed), lambda _: None)
        assert run["status"] == "error"
        assert "does not fit" in run["reason"]
        assert name in run["reason"]


def test_weights_that_start_lacks_are_not_fixed_at_random(tmp_path: Path) -> None:
    folder = str(tmp_path / kept_in(tmp_path, small(seed=3))["model"])
    run = run_here(small(variant="linformer", start=folder, tune="adapter"), lambda _: None)
    assert run["status"] == "unsupported"
    assert "the model of --start lacks encoder.layers.0.attention.mixer.attention" in run["reason"]
    assert run_here(small(variant="linear", start=folder, tune="adapter"), lambda _: None)["status"] == "ok"


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize(
    ("changed", "what"), [({"variant": "linformer"}, "projection"), ({"positions": "learned"}, "learned")]
)
def test_prompts_move_what_is_learned_for_each_position(method: str, changed: dict[str, Any], what: str) -> None:
    run = run_here(small("digits", 64, tune=method, pretrain=0.5, **changed), lambda _: None)
    assert run["status"] == "unsupported"
    assert what in run["reason"]


def test_int8_that_cannot_be_had_is_told_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")

    def refuse(*_: Any) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr("compare.runs.execute.quantised", refuse)
    run = run_here(small(quantize="int8-weights"), lambda _: None)
    assert (run["status"], run["reason"]) == ("unsupported", "--quantize int8-weights: no kernel for this")
    assert "train_steps" not in run
    both = run_here(small(quantize="int8-weights", compile=True), lambda _: None)
    assert both["status"] == "unsupported"


def test_a_teacher_counts_in_the_memory_and_leaves_no_activations(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    alone = trainer_of(small(variant="linear"))
    taught = trainer_of(small(variant="linear", teacher=record["run_id"], distill="hidden"), tmp_path)
    assert taught.held_bytes() - alone.held_bytes() == weights_bytes(taught.teacher.model)
    taught.loss(batch_of(taught), taught.training_tally())
    assert taught.teacher.seen == {}


def test_models_that_no_run_can_use_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(tmp_path / kept_in(tmp_path, small(seed=3))["model"]), str(tmp_path / "out")
    for words, wanted in (
        (["--teacher", folder], "--teacher: expected a model of listops with 10 classes"),
        (["--teacher", "nowhere"], "--teacher: expected a folder that --save wrote, got nowhere"),
        (["--start", str(tmp_path)], "--start: expected a folder that --save wrote"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--variants", "full", "--tasks", "mqar,listops", "--seq-len", "64", "--out", out, *words])
        assert stopped.value.code == 2
        assert wanted in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--variants", "full", "--tasks", "digits", "--out", out, "--start", folder])
    assert "--start: expected a model with the inputs of digits (vocab_size " in capsys.readouterr().err


def test_another_task_keeps_the_encoder_and_begins_with_a_new_head(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    spec = small()
    model = Model(spec, trainer_of(spec).task)
    model.head = type(model.head)(16, 5)
    assert start_from(model, spec, tmp_path / record["model"]) == ["head.out.weight", "head.out.bias"]


def test_other_inputs_are_named(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    run = run_here(small("listops", 64, variant="linear", start=str(tmp_path / record["model"])), lambda _: None)
    assert run["status"] == "error"
    assert "expected the embedding embedding.weight" in run["reason"]
    assert "it was trained on other inputs" in run["reason"]
    missing = run_here(small(start="nowhere"), lambda _: None)
    assert missing["reason"] == "ValueError: expected a folder that --save wrote, got nowhere"


# A teacher


def test_the_loss_is_that_of_hinton(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    trainer = trainer_of(small(variant="linear", teacher=record["run_id"]), tmp_path)
    batch = batch_of(trainer)
    found = trainer.loss(batch, trainer.training_tally())
    with torch.no_grad():
        mine, targets = trainer.trained(*batch)
        theirs, _ = load(tmp_path / record["model"]).model(*batch)
    p, q = ((x / TEMPERATURE).double().softmax(-1) for x in (theirs, mine))
    softly = TEMPERATURE**2 * (p * (p.log() - q.log())).sum(-1).mean()
    wanted = (1 - WEIGHT) * F.cross_entropy(mine, targets).double() + WEIGHT * softly
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_student_that_is_its_teacher_has_only_the_loss_of_the_task(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small())
    spec = small(teacher=record["run_id"], start=record["run_id"], distill="hidden")
    trainer = trainer_of(spec, tmp_path)
    batch = batch_of(trainer)
    tally = trainer.training_tally()
    assert trainer.loss(batch, tally).item() == pytest.approx((1 - WEIGHT) * tally.read()[0], rel=1e-4)


def test_hidden_states_and_attention_add_to_the_loss(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    losses = {}
    for what in ("answers", "hidden", "attention"):
        trainer = trainer_of(small(variant="hedgehog", teacher=record["run_id"], distill=what), tmp_path)
        losses[what] = trainer.loss(batch_of(trainer), trainer.training_tally())
        losses[what].backward()
    assert losses["hidden"] > losses["answers"] + 0.1
    assert losses["attention"] > losses["answers"] + 0.1
    maps = [p for name, p in trainer.trained.named_parameters() if name.endswith("query_map")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in maps)


def test_the_feature_maps_learn_alone_before_the_task(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    name = record["run_id"]
    spec = small(variant="hedgehog", teacher=name, start=name, distill="attention", pretrain=0.5, steps=20, lr=1e-2)
    trainer = trainer_of(spec, tmp_path)
    before = {name: p.clone() for name, p in trainer.trained.named_parameters()}
    trainer.restoring = True
    batch = batch_of(trainer)
    losses = []
    for _ in range(30):
        losses.append(float(trainer.loss(batch, trainer.training_tally())))
        trainer.step(batch, trainer.training_tally())
    changed = {name for name, p in trainer.trained.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.endswith(("query_map", "key_map"))}
    assert losses[-1] < losses[0]
    trainer = trainer_of(spec, tmp_path)
    result = trainer.train(lambda *_: None)
    assert "train_loss" not in result["curve"][0]
    assert result["curve"][-1]["train_loss"] is not None


def test_a_teacher_that_cannot_teach_is_one_line(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    folder = str(tmp_path / record["model"])
    wrong = run_here(small("listops", 64, teacher=folder), lambda _: None)
    assert wrong["reason"].startswith("ValueError: --teacher: expected a model of listops with 10 classes"), wrong
    unable = run_here(small(variant="linear", teacher=folder, distill="attention"), lambda _: None)
    assert unable["status"] == "unsupported"
    deeper = run_here(small(n_layers=3, teacher=folder, distill="hidden"), lambda _: None)
    assert "expected a teacher with 3 layers of width 16, got 2 of 16" in deeper["reason"]


def test_the_teacher_stays_as_it_is(tmp_path: Path) -> None:
    record = kept_in(tmp_path, small(seed=3))
    trainer = trainer_of(small(variant="linear", teacher=record["run_id"]), tmp_path)
    assert isinstance(trainer.teacher, Teacher)
    before = {name: x.clone() for name, x in trainer.teacher.model.state_dict().items()}
    trainer.train(lambda *_: None)
    torch.testing.assert_close(trainer.teacher.model.state_dict(), before, rtol=0, atol=0)
    assert not trainer.teacher.model.training


# A few trained weights


@pytest.mark.parametrize("method", METHODS)
def test_tuning_begins_as_the_fixed_encoder_and_trains_little(method: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    record = kept_in(tmp_path, small(seed=3))
    trainer = trainer_of(small(tune=method, start=record["run_id"], steps=3), tmp_path)
    source = load(tmp_path / record["model"]).model
    batch = batch_of(trainer)
    if method in ("lora", "adapter"):
        torch.testing.assert_close(trainer.trained.eval()(*batch)[0], source(*batch)[0])
    fixed = {name: p.clone() for name, p in trainer.trained.encoder.named_parameters() if not p.requires_grad}
    added = {name: p.clone() for name, p in tuned_tensors(trainer.trained.encoder).items()}
    assert len(fixed) == len(dict(source.encoder.named_parameters()))
    assert sum(map(Tensor.numel, added.values())) < 0.5 * sum(map(Tensor.numel, fixed.values()))
    trainer.train(lambda *_: None)
    now = dict(trainer.trained.encoder.named_parameters())
    assert all(torch.equal(now[name], x) for name, x in fixed.items())
    assert not all(torch.equal(now[name], x) for name, x in added.items())
    assert not torch.equal(trainer.trained.head.state_dict()["out.weight"], source.head.state_dict()["out.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_model_is_kept_and_loaded(method: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    trainer = trainer_of(small("digits", 64, tune=method, pretrain=0.5))
    trainer.train(lambda *_: None)
    record = new_record(trainer.spec, "ok", "") | {"test_score": 0.5, "val_score": 0.5, "baselines": {}, "data": {}}
    keep(trainer, record, tmp_path)
    batch = batch_of(trainer)
    again = load(tmp_path / record["model"]).model
    torch.testing.assert_close(again(*batch)[0], trainer.trained.eval()(*batch)[0], rtol=0, atol=0)


@pytest.mark.parametrize("method", ["lora", "prefix"])  # inside the shell, and around it; the others for full above
def test_every_attention_can_be_tuned(method: str, name: str) -> None:
    pytest.importorskip("peft")
    trainer = trainer_of(small("mqar", 64, variant=name, tune=method, pretrain=0.5))
    if method == "prefix" and per_position(lambda n: Encoder(name, max_len=n), 64, 80):
        pytest.skip("it learns for each position: see the test above")
    trainer.begin_tuning()
    inputs, targets, _ = batch_of(trainer)
    padding = torch.arange(64) >= torch.tensor([64, 40, 64, 20])[:, None]
    targets = targets.masked_fill(padding, -100)
    predicted, asked = trainer.trained(inputs, targets, padding)
    F.cross_entropy(predicted, asked).backward()
    added = [p for p in trainer.trained.encoder.parameters() if p.requires_grad]
    assert added
    assert all(p.grad is not None and p.grad.isfinite().all() for p in added)
    if name != "none" or method in ("lora", "adapter"):  # the control reads no other position, so no prompt
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in added)


def test_prompts_stand_before_the_input_and_are_cut_from_the_result() -> None:
    trainer = trainer_of(small("mqar", 64, causal=True, tune="prompt", pretrain=0.5))
    encoder = trainer.trained.encoder
    trainer.begin_tuning()
    seen: list[tuple[int, ...]] = []
    encoder.layers[0].register_forward_pre_hook(lambda _layer, inputs: seen.append(tuple(inputs[0].shape)))
    ids = torch.randint(1, 9, (2, 20))
    assert encoder(ids).shape == (2, 20, 16)
    assert seen == [(2, 20 + PROMPTS, 16)]
    before = encoder(ids)
    with torch.no_grad():
        encoder.embedding.prompt.add_(1.0)
    assert not torch.allclose(encoder(ids)[:, 0], before[:, 0], atol=1e-3), "the first position sees the prompts"


def test_a_prefix_has_no_place_in_reversible_layers() -> None:
    with pytest.raises(UnsupportedError, match="reversible layers recompute"):
        tune(trainer_of(small(reversible=True)).trained, "prefix")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tune", "lora"], "--tune lora needs --start DIR or --pretrain SHARE"),
        (["--distill", "hidden"], "--distill hidden needs --teacher DIR"),
    ],
)
def test_flags_that_need_another_are_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


# Early stopping, accumulation


def test_training_stops_early_with_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compare.runs.train.VALIDATION_SHARE", math.inf)
    trainer = trainer_of(small(early_stopping=2, steps=40))
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    states: list[dict[str, Tensor]] = []
    evaluate = trainer.evaluate

    def scripted(*inputs: Any) -> Any:
        states.append({name: x.clone() for name, x in trainer.trained.state_dict().items()})
        return evaluate(*inputs)._replace(score=next(scores))

    monkeypatch.setattr(trainer, "evaluate", scripted)
    result = trainer.train(lambda *_: None)
    assert len(states) == 4, "two validations in a row without a better score"
    assert result["train_steps"] < 40
    assert result["val_score"] == 0.5
    torch.testing.assert_close(trainer.trained.state_dict(), states[1], rtol=0, atol=0)


def test_accumulated_gradients_are_those_of_the_large_batch() -> None:
    def gradients(accumulate: int) -> dict[str, Tensor]:
        trainer = trainer_of(small(accumulate=accumulate, batch_size=8 // accumulate, clip_norm=0.0))
        inputs, targets, _ = trainer.to_device(next(trainer.task.train_batches(8, 64, 0)))
        seen: dict[str, Tensor] = {}
        step = trainer.optimizer.step

        def note() -> None:
            seen.update({n: p.grad.clone() for n, p in trainer.trained.named_parameters() if p.grad is not None})
            step()

        trainer.optimizer.step = note
        for x, y in zip(inputs.chunk(accumulate), targets.chunk(accumulate), strict=True):
            trainer.step((x, y, None), trainer.training_tally())
        return seen

    whole, parts = gradients(1), gradients(4)
    assert whole.keys() == parts.keys()
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-5, atol=1e-5 * grad.abs().max().item(), msg=name)


# int8


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weights"])
def test_int8_weights_are_small_and_nearly_the_same_function(scheme: str) -> None:
    pytest.importorskip("torchao")
    trainer = trainer_of(small(d_model=64, n_layers=2))
    model, batch = trainer.trained.eval(), batch_of(trainer)
    less = quantised(model, scheme)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    saved = weights_bytes(model) - weights_bytes(less)
    assert 2.8 * linear < saved <= 3 * linear, "4 bytes become 1, and a scale for each row"
    with torch.no_grad():
        wanted, got = model(*batch)[0], less(*batch)[0]
    assert F.mse_loss(got, wanted).sqrt() < 0.05 * wanted.std()
    assert not torch.equal(got, wanted)


def test_a_run_with_int8_measures_and_keeps_it(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from compare.runs.options import RunOptions

    plain, less = (
        run_here(small(quantize=scheme), lambda _: None, RunOptions(out=str(tmp_path), save=True))
        for scheme in (None, "int8-weights")
    )
    assert less["status"] == "ok", less["reason"]
    assert less["weights_bytes"] < plain["weights_bytes"]
    assert less["val_loss"] == plain["val_loss"], "trained in the same way"
    assert less["test_loss"] != plain["test_loss"]
    assert math.isfinite(less["forward_seconds"])
    folder, other = tmp_path / less["model"], tmp_path / plain["model"]
    size = (folder / "int8.safetensors").stat().st_size
    assert size < 0.7 * sum(file.stat().st_size for file in other.glob("*.safetensors"))
    assert "int8" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="floating-point numbers, got one of int8-weights"):
        trainer_of(small(start=str(folder)))
    stored = json.loads((folder / "record.json").read_text())
    assert stored["test_loss"] == less["test_loss"]
    with few_samples():
        task = make_task(load(folder).spec)
        task.prepare()
        from compare.runs.score import evaluate

        again = evaluate(load(folder).model, task, "test", 4, torch.device("cpu"), lambda: None)
    assert again.loss == less["test_loss"]
    (folder / "int8.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no int8\.safetensors"):
        load(folder)


# The largest batch that fits


def test_the_largest_micro_batch_that_fits_is_taken_and_the_rest_accumulates() -> None:
    from compare.runs.fit_batch import fit_batches

    tried: list[tuple[str, int]] = []
    parts: list[int] = []
    limits = {"full": 3, "linear": 100, "naive": 0}

    def run(spec: RunSpec) -> Record:
        tried.append((spec.variant, spec.batch_size))
        assert spec.probe == spec.seq_len
        parts.append(spec.batch_size * spec.accumulate)
        return {"status": "ok" if spec.batch_size <= limits[spec.variant] else "oom"}

    said: list[str] = []
    specs = [small(variant=name, batch_size=12, seed=seed) for name in limits for seed in (0, 1)]
    fitted = fit_batches(specs, [], run, said.append)
    assert [(s.variant, s.seed, s.batch_size, s.accumulate) for s in fitted] == [
        *(("full", 0, 3, 4), ("full", 1, 3, 4)),
        *(("linear", 0, 12, 1), ("linear", 1, 12, 1)),
        *(("naive", 0, 1, 12), ("naive", 1, 1, 12)),
    ]
    assert tried[:4] == [("full", 12), ("full", 6), ("full", 4), ("full", 3)], "once for all seeds"
    assert set(parts) == {12}, "probes accumulate as the runs do"
    assert said[0] == "micro-batch of full · mqar · N 64: 3, 4 accumulated"
    limits["full"] = 12
    found = [replace(fitted[0], lr=0.5, seed=9)]
    again = fit_batches(specs[:2], found, run, said.append)
    assert again == fitted[:2], "a comparison goes on with its micro-batches, however much memory is free today"


@pytest.mark.long
def test_a_batch_that_does_not_fit_becomes_smaller(tmp_path: Path) -> None:
    """naive at 2,048 tokens in 1.5 GB: the weights of 8 samples take 1 GiB in float32, and softmax as much again."""
    from compare.runs.fit_batch import fit_batches
    from compare.runs.options import RunOptions
    from compare.runs.supervisor import run_one

    spec = small("mqar", 2048, variant="naive", batch_size=8, memory_limit=3 * 2**29)
    with few_samples():
        make_task(spec).prepare()
        (fitted,) = fit_batches([spec], [], lambda s: run_one(s, lambda _: None, RunOptions(), print), print)
    assert fitted.batch_size < 8
    assert fitted.batch_size * fitted.accumulate == 8
