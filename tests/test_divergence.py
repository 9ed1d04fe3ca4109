"""What is said where numbers stop being finite, and that training stops there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compare.runs.data import make_task
from compare.runs.divergence import first_not_finite
from compare.runs.outcome import DivergedError
from compare.runs.train import Trainer
from tests.learning import small_spec


class Reciprocal(nn.Module):
    """Not finite at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


class Root(nn.Module):
    """Finite at 0, but its derivative is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def said_of(model: nn.Module, x: Tensor) -> str:
    return first_not_finite(model, lambda: model(x).sum(), Tensor.backward)


def test_the_module_whose_forward_fails_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), Reciprocal()), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert said_of(model, torch.ones(5, 3)) == (
        "forward: the output of 1.1 (Reciprocal) has 5 of 20 numbers that are not finite (float32 holds at most "
        "3.4e+38); its inputs are finite, at most 3"
    )


def test_the_module_whose_backward_fails_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Root(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        model[2].weight.fill_(1.0)
    said = said_of(model, torch.ones(5, 3))
    assert said.startswith("backward: the gradient at the input of 1 (Root) has 5 of 20 numbers"), said
    assert said.endswith("that at its output is finite")
    assert all(p.grad is None for p in model.parameters())


def test_overflow_of_a_narrow_type_is_named_with_its_limit() -> None:
    model = nn.Linear(2, 2, bias=False).to(torch.float16)
    nn.init.constant_(model.weight, 60_000)
    said = said_of(model, torch.full((1, 2), 4.0, dtype=torch.float16))
    assert said.endswith(
        "has 2 of 2 numbers that are not finite (float16 holds at most 6.55e+04); its inputs are finite, at most 4"
    )


def test_a_finite_step_says_nothing_and_a_broken_weight_is_named() -> None:
    model = nn.Linear(2, 2)
    assert said_of(model, torch.ones(1, 2)) == ""
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    assert said_of(model, torch.ones(1, 2)) == "the weight weight was not finite before the step"


def test_training_stops_at_the_step_with_the_weights_before_it() -> None:
    spec = replace(small_spec("mqar", 64, steps=2), clip_norm=0.0)
    trainer = Trainer(spec, make_task(spec))
    feed = trainer.encoder.layers[0].feed_forward
    with torch.no_grad():
        feed.out.weight.fill_(3e38)
    before = feed.hidden.weight.clone()
    batch = trainer.to_device(next(trainer.task.train_batches(spec.batch_size, spec.seq_len, 0)))
    with pytest.raises(DivergedError, match=r"forward: the output of encoder\.layers\.0\.feed_forward\.out \(Linear\)"):
        trainer.step(batch, trainer.training_tally())
    torch.testing.assert_close(feed.hidden.weight, before, rtol=0, atol=0)


def test_an_evaluation_that_is_not_finite_names_the_split_and_the_module() -> None:
    spec = small_spec("mqar", 64, steps=2)
    trainer = Trainer(spec, make_task(spec))
    with torch.no_grad():
        trainer.encoder.layers[1].feed_forward.out.weight.fill_(torch.nan)
    said = (
        r"validation after step 0: loss is nan; forward: the output of encoder\.layers\.1\.feed_forward\.out \(Linear\)"
    )
    with pytest.raises(DivergedError, match=said):
        trainer.evaluate("validation")
