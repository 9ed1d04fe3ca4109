"""An empty batch gives an empty result, in every form, and gradients of 0."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import Case, heads
from zoo import Encoder, MultiHeadAttention, available, describe
from zoo.heads import ClassificationHead, PairHead, RestoreHead, TokenHead

FORMS = [(name, causal) for name in available() for causal in (False, True)[: 1 + describe(name).traits.causal]]
EVERY_FORM = pytest.mark.parametrize(
    ("attn", "causal"), FORMS, ids=[name + "-causal" * causal for name, causal in FORMS]
)
SMALL: dict[str, Any] = {"d_model": 16, "n_heads": 2, "max_len": 96}


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """What runs for ever fails."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("still running after 30 s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def assert_empty(module: nn.Module, inputs: torch.Tensor, shape: tuple[int, ...], **options: Any) -> None:
    y = module(inputs, **options)
    assert y.shape == shape
    y.float().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad == 0).all(), key
    assert all(buffer.isfinite().all() for buffer in module.buffers())
    if inputs.requires_grad:
        assert inputs.grad is not None
        assert inputs.grad.shape == inputs.shape


@pytest.mark.parametrize(("training", "padded"), [(False, False), (True, True)])
def test_of_a_sublayer(case: Case, training: bool, padded: bool) -> None:
    mask = torch.zeros(0, 90, dtype=torch.bool) if padded else None
    x = torch.randn(0, 90, 16, requires_grad=True)
    assert_empty(case.sublayer().train(training), x, (0, 90, 16), key_padding_mask=mask)


def test_of_a_backend(case: Case) -> None:
    backend = case.backend()
    inputs = heads(backend, 90, batch=0, dtype=torch.float32)
    assert backend(*inputs).shape == inputs[-1].shape


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "learned"},
        {"positions": "rotary", "checkpointing": True},
        {"positions": "sinusoidal", "reversible": True},
    ],
    ids=["plain", "kept", "two"],
)
@EVERY_FORM
def test_of_an_encoder(attn: str, causal: bool, options: dict[str, Any]) -> None:
    tokens, mask = torch.zeros(0, 70, dtype=torch.long), torch.zeros(0, 70, dtype=torch.bool)
    encoder = Encoder(attn, n_layers=1, conv_width=3, vocab_size=9, causal=causal, **(SMALL | options))
    assert_empty(encoder, tokens, (0, 70, 16), key_padding_mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_empty(encoder, tokens, (0, 70, 16))


def test_of_steps(causal_case: Case) -> None:
    layer = causal_case.sublayer()
    if layer.cache_size(1) is None:
        pytest.skip("no step form")
    state = None
    for length in (1, 2, 3):
        y, state = layer.step(torch.randn(0, 16), state)
        assert y.shape == (0, 16)
        assert (state.length, state.size, state.nbytes) == (length, layer.cache_size(length), 0)


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("padded", [False, True])
def test_of_heads(pool: Any, padded: bool) -> None:
    mask = {"key_padding_mask": torch.zeros(0, 7, dtype=torch.bool)} if padded else {}
    assert_empty(ClassificationHead(16, 3, pool=pool), torch.randn(0, 7, 16), (0, 3), **mask)
    assert_empty(PairHead(16, 3), torch.randn(0, 7, 16), (0, 3), **mask)
    assert_empty(TokenHead(16, 3), torch.randn(0, 7, 16), (0, 7, 3))
    assert_empty(RestoreHead(16, 3), torch.randn(0, 7, 16), (0, 7, 3))


@EVERY_FORM
def test_no_positions_are_refused_in_one_line(attn: str, causal: bool) -> None:
    encoder = Encoder(attn, n_layers=1, vocab_size=9, causal=causal, **SMALL)
    layer = MultiHeadAttention(attn, causal=causal, **SMALL)
    for batch in (0, 2):
        mask = torch.zeros(batch, 0, dtype=torch.bool)
        for module, x in ((encoder, torch.zeros(batch, 0, dtype=torch.long)), (layer, torch.zeros(batch, 0, 16))):
            for options in ({}, {"key_padding_mask": mask}):
                with pytest.raises(ValueError, match=r"^expected 1 to 96 positions \(max_len\), got 0$"):
                    module(x, **options)
