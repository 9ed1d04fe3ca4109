"""Parameters that are lent for one call: gradients go to what forward ran with, whatever stands there in backward."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.conftest import Case
from tests.contract.test_calls import MEMORY, ONCE, make, tokens
from zoo import Encoder

FORMS = [(case, form) for case in ONCE.values() for form in ("plain", *MEMORY)]
IN_EACH_FORM = pytest.mark.parametrize(("one", "form"), FORMS, ids=str)
WEIGHTS = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    loss = (encoder(tokens()) * WEIGHTS).sum()
    found = torch.autograd.grad(loss, list(encoder.parameters()))
    return dict(zip(dict(encoder.named_parameters()), found, strict=True))


@IN_EACH_FORM
def test_a_functional_call_is_a_call_of_the_model_whose_parameters_it_lends(one: Case, form: str) -> None:
    encoder = make(one, form).double().train()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    lent = {name: x.detach().requires_grad_() for name, x in other.named_parameters()}
    (functional_call(encoder, lent, (tokens(),)) * WEIGHTS).sum().backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    for name, want in gradients(other).items():
        torch.testing.assert_close(lent[name].grad, want, atol=1e-9, rtol=1e-7)


def copies(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
    """What ``nn.DataParallel`` sends to devices."""
    return [[x.clone() if detach else x * 1 for x in tensors] for _ in devices]


@IN_EACH_FORM
def test_replicas_train_every_layer(one: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    encoder = make(one, form).double().train()
    want = gradients(copy.deepcopy(encoder))
    replicas: Any = nn.parallel.replicate(encoder, [0, 1])
    parts = [(replica(ids) * WEIGHTS).sum() for replica, ids in zip(replicas, tokens().split(1), strict=True)]
    sum(parts).backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], atol=1e-9, rtol=1e-7)
