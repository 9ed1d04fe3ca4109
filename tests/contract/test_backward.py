"""Backward is that of the forward before it: whatever is drawn in between, and however often it runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from zoo import Encoder, describe

HOW = {"plain": {}, "checkpointing": {"checkpointing": True}, "reversible": {"reversible": True}}
BLOCKS = {"block_size": 8, "window": 1, "n_global": 0, "n_random": 2}
OPTIONS = {"bigbird": BLOCKS, "block_sparse": BLOCKS}  # so that a draw matters at the length below
SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 8, "max_len": 256}


def made(name: str, causal: bool, how: str) -> Encoder:
    if causal and not describe(name).traits.causal:
        pytest.skip("no causal form")
    torch.manual_seed(0)
    attn = describe(name).config(**OPTIONS.get(name, {}))
    return Encoder(attn, causal=causal, **SMALL, **HOW[how]).double()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("causal", [False, True])
def test_a_redraw_before_backward_changes_no_gradient(name: str, causal: bool, how: str) -> None:
    if not describe(name).traits.stochastic:
        pytest.skip("no random parts")
    encoder = made(name, causal, how)
    twin, x = copy.deepcopy(encoder), torch.randn(2, 150, 8, dtype=torch.float64)
    results = []
    for model in (encoder, twin):
        torch.manual_seed(1)
        loss = model(x).sin().sum()
        if model is encoder:
            model.redraw()
        drawn = [buffer.clone() for buffer in model.buffers()]
        loss.backward()
        for buffer, before in zip(model.buffers(), drawn, strict=True):
            assert torch.equal(buffer, before)
        results.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_redraw_keeps_dtype_and_place_in_the_state_dict(name: str) -> None:
    encoder = made(name, False, "plain").to(torch.bfloat16)
    before = {key: (value.dtype, value.shape, value.device) for key, value in encoder.state_dict().items()}
    encoder.redraw()
    assert {key: (value.dtype, value.shape, value.device) for key, value in encoder.state_dict().items()} == before


@pytest.mark.parametrize("how", ["checkpointing", "reversible"])
def test_backward_can_run_twice_over_parts_of_the_output(name: str, how: str) -> None:
    """As where several tasks share the encoder."""
    encoder = made(name, False, how)
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    parameters = list(encoder.parameters())

    def forward() -> Tensor:
        torch.manual_seed(1)
        return encoder(x)

    buffers = copy.deepcopy(list(encoder.buffers()))
    y = forward()
    first = torch.autograd.grad(y[:, 0].sin().sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(y[:, 1:].sin().sum(), parameters)
    with torch.no_grad():
        for buffer, before in zip(encoder.buffers(), buffers, strict=True):
            buffer.copy_(before)
    both = torch.autograd.grad(forward().sin().sum(), parameters)
    for one, other, whole in zip(first, second, both, strict=True):
        torch.testing.assert_close(one + other, whole)
