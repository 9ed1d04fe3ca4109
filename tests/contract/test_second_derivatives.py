"""Second derivatives: each is what finite differences say, or one error; never 0 or anything else in silence."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Case
from zoo import Encoder

ERROR = re.compile(
    r"the gradients of zoo\.\w+(\.\w+)? cannot be differentiated again \(second derivatives, gradient penalties\): "
    "use attn='full' or attn='naive', without reversible=True"
)
RIGHT = {"full", "xformers", "naive", "linformer", "nystromformer", "fnet", "mean", "none", "luna", "synthesizer"}


def penalty_of(module: nn.Module, x: Tensor, weight: Tensor, mask: Tensor | None, *, again: bool) -> Tensor:
    """The squared gradient of the input."""
    out = (module(x, key_padding_mask=mask) * weight).sum()
    return torch.autograd.grad(out, x, create_graph=again)[0].square().sum()


def slope(value: Callable[[], Tensor], tensors: list[Tensor], ways: list[Tensor]) -> float:
    """The derivative of ``value`` as the tensors move along ``ways``, by differences."""
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for x, way in zip(tensors, ways, strict=True):
                x.add_(way, alpha=step)
        ends.append(value().item())
    with torch.no_grad():
        for x, way in zip(tensors, ways, strict=True):
            x.add_(way, alpha=1e-5)
    return (ends[0] - ends[1]) / 2e-5


def by_grad(penalty: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of what is asked for."""
    return list(torch.autograd.grad(penalty, leaves, materialize_grads=True))


def by_backward(penalty: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of all."""
    penalty.backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "input"])
def test_a_gradient_penalty_is_right_or_an_error(case: Case, frozen: bool) -> None:
    """Where the weights are frozen, what comes into the attention's backward depends on nothing. Padded there."""
    module = case.sublayer(d_model=8, max_len=12).double()
    x, weight = torch.randn(2, 1, 11, 8, dtype=torch.float64)
    mask = (torch.arange(11) > 7)[None] if frozen else None
    x.requires_grad_()
    module.requires_grad_(not frozen)
    leaves = [x] if frozen else [x, *module.parameters()]
    ways = [torch.randn_like(leaf) for leaf in leaves]
    want = slope(lambda: penalty_of(module, x, weight, mask, again=False), leaves, ways)
    for find in (by_grad, by_backward):
        penalty = penalty_of(module, x, weight, mask, again=True)
        if not penalty.requires_grad:  # a linear function of the input alone
            assert want == pytest.approx(0, abs=1e-6)
            continue
        try:
            found = find(penalty, leaves)
        except RuntimeError as error:
            message = str(error)
        else:
            got = sum((grad * way).sum().item() for grad, way in zip(found, ways, strict=True))
            assert got == pytest.approx(want, rel=1e-4, abs=1e-5)
            continue
        assert case.name not in RIGHT
        assert ERROR.fullmatch(message)


@pytest.mark.parametrize("attention", ["full", "naive", "linear"])
@pytest.mark.parametrize("how", ["plain", "checkpointing", "reversible"])
def test_those_of_an_encoder_too(attention: str, how: str) -> None:
    torch.manual_seed(0)
    options = {} if how == "plain" else {how: True}
    encoder = Encoder(attention, d_model=8, n_heads=2, n_layers=2, max_len=12, dropout=0.0, **options).double()
    x, way = torch.randn(2, 2, 7, 8, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return encoder(x).sin().sum()

    def product() -> Tensor:
        return torch.autograd.functional.hvp(loss, x, way)[1]

    if attention == "linear" or how == "reversible":
        with pytest.raises(RuntimeError, match=ERROR):
            product()
        return
    ends = [torch.autograd.functional.jacobian(loss, x + step * way) for step in (1e-5, -1e-5)]
    torch.testing.assert_close(product(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-5)
