"""What the trainer makes of every kind of task: heads, losses, scores, slices, batches at full length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.runs.data import at_full_length, count_tokens, make_task
from compare.runs.model import Model, decay_groups
from compare.runs.outcome import DivergedError
from compare.runs.score import Evaluation, Tally
from compare.runs.train import Trainer
from compare.spec import RunSpec
from tasks import IGNORE, Batch
from tasks.base import ACCURACY, EXPLAINED_VARIANCE
from tests.learning import small_spec
from zoo import Encoder, MultiHeadAttention
from zoo.heads import PairHead, RestoreHead

SPEC = RunSpec(
    variant="full",
    task="mqar",
    seq_len=12,
    seed=0,
    budget=None,
    steps=2,
    batch_size=4,
    d_model=16,
    n_heads=2,
    n_layers=1,
    conv_width=3,
    embedding_std=1.0,
    positions="rotary",
    lr=1e-3,
    device="cpu",
    dtype="float32",
    threads=1,
)


def fake(kind: str, **attributes: Any) -> Any:
    """As much of a task as a model looks at."""
    metric = EXPLAINED_VARIANCE if kind == "value" else ACCURACY
    defaults = {"vocab_size": 9, "n_features": None, "n_classes": 5, "slice_names": (), "metric": metric}
    return SimpleNamespace(**(defaults | {"kind": kind} | attributes))


def ids(*shape: int) -> Tensor:
    return torch.randint(1, 9, shape)


def test_each_kind_gets_predictions_of_its_shape() -> None:
    classes = torch.tensor([0, 4, 1])
    for kind, inputs, targets, shape, attributes in (
        ("sequence", ids(3, 12), classes, (3, 5), {}),
        ("pair", ids(3, 2, 12), classes, (3, 5), {}),
        ("value", torch.randn(3, 12, 2), torch.randn(3), (3, 1), {"vocab_size": None, "n_features": 2, "n_classes": 1}),
        ("token", ids(3, 12), torch.full((3, 12), IGNORE).index_fill(1, torch.tensor([4, 7]), 2), (6, 5), {}),
        ("restore", ids(3, 12), torch.full((3, 12), IGNORE).index_fill(1, torch.tensor([4, 7]), 2), (6, 5), {}),
    ):
        model = Model(SPEC, fake(kind, **attributes))
        predicted, asked = model(inputs, targets, None)
        assert predicted.shape == shape, kind
        assert asked.shape == shape[:1], kind


@pytest.mark.parametrize("switch", ["checkpointing", "reversible"])
def test_switches_reach_the_encoder(switch: str) -> None:
    for value in (True, False):
        encoder = Model(replace(SPEC, **{switch: value}), fake("sequence")).encoder
        assert encoder.reversible is (value and switch == "reversible")
        assert (encoder.layers[0].checkpointing == "layer") is (value and switch == "checkpointing")


def test_the_two_of_a_pair_are_encoded_apart_and_their_padding_is_not_seen() -> None:
    torch.manual_seed(0)
    model = Model(SPEC, fake("pair")).eval()
    pairs, targets = ids(2, 2, 12), torch.tensor([0, 1])
    predicted, _ = model(pairs, targets, None)
    swapped, _ = model(pairs.flip(0), targets, None)
    torch.testing.assert_close(swapped, predicted.flip(0))
    assert not torch.allclose(model(pairs.flip(1), targets, None)[0], predicted)

    padding = torch.zeros(2, 2, 12, dtype=torch.bool)
    padding[0, 1, 5:] = padding[1, 0, 7:] = True
    masked, _ = model(pairs, targets, padding)
    other, _ = model(torch.where(padding, ids(2, 2, 12), pairs), targets, padding)
    torch.testing.assert_close(masked, other)
    encoded = model.encoder(pairs[0, 1:, :5])
    torch.testing.assert_close(model.encoder(pairs[0, 1:], key_padding_mask=padding[0, 1:])[:, :5], encoded)


def test_pair_head_reads_neighbours_as_pairs() -> None:
    head = PairHead(4, 3)
    x = torch.randn(6, 7, 4)
    first, second = x[::2].mean(1), x[1::2].mean(1)
    joined = torch.cat([first, second, first * second, first - second], dim=-1)
    torch.testing.assert_close(head(x), head.out(head.hidden(joined).relu()))


def test_a_restored_sequence_is_read_from_the_last_position_alone() -> None:
    torch.manual_seed(0)
    head = RestoreHead(8, 3)
    x = torch.randn(2, 6, 8)
    elsewhere = torch.cat([torch.randn(2, 5, 8), x[:, -1:]], dim=1)
    assert torch.equal(head(x), head(elsewhere))
    for position in range(6):
        waves = [(math.sin, math.cos)[i % 2](position / 10_000 ** (i // 2 * 2 / 8)) for i in range(8)]
        h = x[:, -1] + torch.tensor(waves)
        for norm, linear in ((0, 1), (3, 4), (6, 7)):
            h = head.decoder[linear](head.decoder[norm](h))
            h = F.gelu(h) if linear < 7 else h
        torch.testing.assert_close(head(x)[:, position], h)


def test_features_enter_through_a_linear_map_of_the_size_of_embeddings() -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        d_model=64, n_heads=2, n_layers=0, n_features=48, embedding_std=0.5, positions="none", norm="post"
    )
    x = torch.randn(4, 100, 48)
    torch.testing.assert_close(encoder.eval()(x), encoder.features(x))
    assert encoder(x).std().item() == pytest.approx(0.5, rel=0.1)
    for wrong in (torch.randn(4, 100, 47), torch.randn(4, 48), torch.ones(4, 100, 48, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"expected floats of shape \(B, N, 48\), got shape"):
            encoder(wrong)
    with pytest.raises(ValueError, match="expected vocab_size or n_features, got both: 9 and 48"):
        Encoder(vocab_size=9, n_features=48)
    with pytest.raises(ValueError, match="n_features must be an integer of at least 1, got 0"):
        Encoder(n_features=0)


def test_accuracy_and_loss_are_those_of_all_predictions() -> None:
    tally = Tally(ACCURACY)
    logits, targets = torch.randn(10, 4), torch.randint(4, (10,))
    for part in (slice(0, 7), slice(7, 10)):
        tally.add(logits[part], targets[part])
    loss, score = tally.read()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert score == pytest.approx((logits.argmax(-1) == targets).double().mean().item())
    assert tally.count == 10


def test_explained_variance_is_that_of_all_predictions() -> None:
    tally = Tally(EXPLAINED_VARIANCE)
    predicted, targets = torch.randn(10, 1), 1000 + torch.randn(10)
    for part in (slice(0, 7), slice(7, 10)):
        tally.add(predicted[part] + 1000, targets[part])
    loss, score = tally.read()
    error = (predicted[:, 0] + 1000 - targets).double().square().mean().item()
    assert loss == pytest.approx(error, rel=1e-3)
    assert score == pytest.approx(1 - error / targets.double().var(unbiased=False).item(), rel=1e-3)
    exact = Tally(EXPLAINED_VARIANCE)
    exact.add(targets[:, None], targets)
    assert exact.read() == (0, 1)


def test_features_are_drawn_again_between_steps_and_not_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_spec("mqar", 32, steps=6, batch_size=2)
    spec = replace(spec, variant="performer", options=(("features", 8), ("redraw_interval", 2)), n_layers=1)
    trainer = Trainer(spec, make_task(spec))
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: object) -> None:
        seen.append(trainer.encoder.layers[0].attention.mixer.attention.projection)

    trainer.model.register_forward_pre_hook(remember)
    monkeypatch.setattr(trainer, "evaluate", lambda split: Evaluation(0.0, 0.0, 1, {}))
    trainer.train(lambda done, loss: None)
    assert [torch.equal(a, b) for a, b in pairwise(seen)] == [True, False, True, False, True]
    assert torch.equal(trainer.encoder.layers[0].attention.mixer.attention.projection, seen[-1])


def test_a_loss_that_is_not_finite_is_divergence() -> None:
    tally = Tally(EXPLAINED_VARIANCE)
    tally.add(torch.full((2, 1), float("nan")), torch.zeros(2))
    with pytest.raises(DivergedError, match="nan"):
        tally.read()


def test_slices_are_scored_apart() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(1, 9, (40, 12))
    targets = np.full((40, 12), IGNORE)
    targets[:, 3] = rng.integers(5, size=40)
    slices = np.zeros((40, 12), np.int64)
    slices[25:, 3] = 2

    class Sliced(SimpleNamespace):
        def eval_batches(self, split: str, batch_size: int, most: int | None) -> Iterator[Batch]:
            for start in range(0, 40, batch_size):
                rows = slice(start, start + batch_size)
                yield Batch(inputs[rows], targets[rows], None, slices[rows])

    task: Any = Sliced(**vars(fake("token", slice_names=("near", "never", "far"))))
    trainer = Trainer(replace(SPEC, batch_size=7), task)
    found = trainer.evaluate("test")
    with torch.no_grad():
        logits = trainer.model.eval()(torch.from_numpy(inputs), torch.from_numpy(targets), None)[0]
    right = logits.argmax(-1).numpy() == targets[:, 3]
    assert found.size == 40
    assert found.score == pytest.approx(right.mean())
    assert found.slices == pytest.approx({"near": right[:25].mean(), "far": right[25:].mean()})


def test_a_batch_at_full_length_keeps_its_samples_and_pads_the_rest() -> None:
    rng = np.random.default_rng(0)
    for shape in ((3, 5), (3, 2, 5)):
        batch = Batch(rng.integers(1, 9, shape), np.array([0, 1, 2]))
        longer = at_full_length(batch, 8)
        assert longer.inputs.shape == longer.padding.shape == (*shape[:-1], 8)
        assert np.array_equal(longer.inputs[..., :5], batch.inputs)
        assert longer.padding[..., 5:].all()
        assert not longer.padding[..., :5].any()
        assert np.array_equal(longer.targets, batch.targets)
    token = Batch(rng.integers(1, 9, (3, 5)), rng.integers(5, size=(3, 5)), np.arange(5) >= np.full((3, 1), 4))
    longer = at_full_length(token, 8)
    assert (longer.targets[:, 5:] == IGNORE).all()
    assert longer.padding[:, 4:].all()
    assert not longer.padding[:, :4].any()
    for whole in (
        Batch(rng.random((3, 5, 2), np.float32), np.zeros(3)),
        Batch(rng.integers(9, size=(3, 8)), np.zeros(3)),
    ):
        assert at_full_length(whole, 8) is whole


def test_tokens_are_positions_whatever_the_inputs() -> None:
    targets = np.zeros(3)
    assert count_tokens(Batch(np.zeros((3, 5), np.int64), targets)) == 15
    assert count_tokens(Batch(np.zeros((3, 2, 5), np.int64), targets)) == 30
    assert count_tokens(Batch(np.zeros((3, 5, 7), np.float32), targets)) == 15


def test_weight_decay_spares_vectors_and_what_a_backend_names() -> None:
    """S4's authors train A and Δ without decay, which would pull poles to 0; Hyena's the network of the filters."""
    for name, spared in (("s4d", {"log_real", "imaginary"}), ("hyena", {"hidden", "write"}), ("full", set())):
        layer = MultiHeadAttention(name, d_model=16, n_heads=2)
        decayed, others = decay_groups(layer, 0.1)
        names = {p: name.removeprefix("mixer.").split(".")[0] for name, p in layer.named_parameters()}
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        assert len(decayed["params"]) + len(others["params"]) == len(names)
        assert {names[p] for p in others["params"] if p.dim() >= 2} == spared
        assert not spared & {names[p] for p in decayed["params"]}
        assert all(p.dim() >= 2 for p in decayed["params"])
