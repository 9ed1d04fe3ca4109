"""What a run says of torch.compile: its graph breaks, its time apart from training, and a missing compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from compare.runs.compiled import check_compiler, compile_seconds, graph_breaks
from compare.runs.data import make_task
from compare.runs.train import Trainer
from tests.learning import small_spec


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Counters at 0, and a new state of accelerate, which keeps the compiler of the first trainer."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_graph_breaks_are_counted() -> None:
    def broken(x: Tensor) -> Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    assert graph_breaks() == 0
    assert torch.equal(torch.compile(broken, backend="eager")(torch.ones(2)), torch.full((2,), 4.0))
    assert graph_breaks() == 1


def test_a_compiled_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(small_spec("mqar", 32, steps=1, batch_size=4), d_model=16, n_heads=2, n_layers=1, compile=True)
    real, used = torch.compile, list[str]()

    def without_code(model: nn.Module, **options: Any) -> Callable[..., Any]:
        used.append(options["backend"])
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", without_code)
    trainer = Trainer(spec, make_task(spec))
    batch = trainer.to_device(next(trainer.task.train_batches(4, 32, 0)))
    before = compile_seconds()
    loss = trainer.loss(batch, trainer.training_tally())
    assert used == ["inductor"]
    assert compile_seconds() > before
    assert graph_breaks() > 0, "the head picks the positions that are asked, whose number depends on data"
    predicted, targets = trainer.trained(*batch)
    torch.testing.assert_close(loss, trainer.training_tally().add(predicted, targets))


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(NotImplementedError, match=r"needs a C\+\+ compiler on a CPU: install g\+\+ or clang"):
        check_compiler("cpu")
    check_compiler("cuda")
