"""What every causal backend's prefill holds: it is forward and the state after it, also of samples with padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Case, heads
from tests.contract.test_steps import CAUSAL, KINDS, LENGTHS, MAX_LEN, ONCE, make, walk
from zoo import Encoder, MultiHeadAttention, describe, register
from zoo.contract import Attention, Backend, Dims, Mixer, Tensors, Traits
from zoo.registry import _entries, build
from zoo.state import State

OWN = [case for case in ONCE if describe(case.name).own]
POSITIONS = ("sinusoidal", "learned", "rotary", "none")
MASKS = {
    "left": [[1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]],
    "right": [[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1], [0] * 9],
    "both, between and all": [[1, 0, 0, 1, 0, 1, 1, 0, 0], [1] * 9, [0] * 9, [0, 0, 0, 0, 0, 1, 1, 1, 1], [1] * 9],
}
PADDED = list(zip(ONCE, cycle(MASKS.values()), cycle(POSITIONS[:3] + POSITIONS[:1]), strict=False))


def go_on(step: Callable[..., tuple[Tensor, State]], state: State, *inputs: Tensor, dim: int = 1) -> Tensor:
    """The outputs of the steps that follow ``state``; positions lie along ``dim``."""
    outputs = []
    for position in zip(*(x.unbind(dim) for x in inputs), strict=True):
        y, state = step(*position, state)
        outputs.append(y)
    return torch.stack(outputs, dim)


def encoder_of(case: Case, *, positions: Any = "sinusoidal", **options: Any) -> Encoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_len": 40, "vocab_size": 9}
    made = Encoder(case.config(), causal=True, positions=positions, **sizes | {"conv_width": 3} | options)
    return made.double().eval()


@pytest.mark.parametrize("walker", CAUSAL, ids=str)
def test_prefill_is_forward_and_the_state_after_it(walker: Case) -> None:
    backend = walker.backend(max_len=MAX_LEN).double()
    inputs = [x.detach() for x in heads(backend, MAX_LEN)]
    whole, dim = backend(*inputs), -2 % inputs[0].dim()
    for length in LENGTHS:
        y, state = backend.prefill(*(x[..., :length, :] for x in inputs))
        torch.testing.assert_close(y, whole[..., :length, :], atol=1e-9, rtol=1e-9)
        assert (state.length, state.size) == (length, backend.cache_size(length))
        assert all(len(x) == state.batch for x in state.tensors)
        after = slice(length, length + 3)
        y = go_on(backend.step, state, *(x[..., after, :] for x in inputs), dim=dim)
        torch.testing.assert_close(y, whole[..., after, :], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_prefill_and_steps_agree_in_float32_with_rotary_positions(walker: Case) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(walker.config(), d_model=16, n_heads=2, max_len=MAX_LEN, causal=True, rotary=True)
    x = torch.randn(2, MAX_LEN, 16)
    whole = layer(x)
    y, state = layer.prefill(x[:, :257])
    torch.testing.assert_close(y, whole[:, :257], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(go_on(layer.step, state, x[:, 257:]), whole[:, 257:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("walker", OWN, ids=str)
def test_prefill_is_parallel(walker: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = walker.backend(d_model=64, max_len=512)
    for cls in type(backend).__mro__:
        if "advance" in vars(cls) and cls not in (Attention, Mixer):
            monkeypatch.delattr(cls, "advance")
    inputs = [x.detach() for x in heads(backend, 512, d_model=64, dtype=torch.float32)]
    counts = []
    for run in (backend, backend.prefill):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(*inputs)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 1.3 * counts[0]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_prefill_and_steps_agree_in_bfloat16(walker: Case, autocast: bool) -> None:
    layer, x = walker.sublayer(), torch.randn(2, 9, 16)
    if not autocast:
        layer, x = layer.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        want, _ = walk(layer.step, x)
        y, state = layer.prefill(x[:, :8])
        y = torch.cat([y, go_on(layer.step, state, x[:, 8:])], dim=1)
    assert y.dtype == want.dtype
    assert (y - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_prefill_of_an_encoder_is_its_forward_and_calls_every_module(walker: Case) -> None:
    encoder = encoder_of(walker)
    tokens, called = torch.randint(9, (2, 20)), []
    for name, module in encoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    whole = encoder(tokens)
    before, called[:] = list(called), []
    y, state = encoder.prefill(tokens[:, :17])
    assert sorted(called) == sorted(before)
    torch.testing.assert_close(y, whole[:, :17], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(go_on(encoder.step, state, tokens[:, 17:]), whole[:, 17:], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"reversible": True},
        {"norm": "post", "conv_width": None},
        {"n_layers": 0},
        {"vocab_size": None, "n_features": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("positions", POSITIONS)
def test_prefill_knows_the_options_of_an_encoder(positions: str, options: dict[str, Any]) -> None:
    encoder = encoder_of(Case("linear", causal=True), positions=positions, **options)
    features = options.get("n_features")
    x = torch.randn(2, 9, features, dtype=torch.float64) if features else torch.randint(9, (2, 9))
    whole = encoder(x)
    y, state = encoder.prefill(x[:, :6])
    torch.testing.assert_close(y, whole[:, :6], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(go_on(encoder.step, state, x[:, 6:]), whole[:, 6:], atol=1e-9, rtol=1e-9)


def assert_alone(module: nn.Module, inputs: Tensors, mask: list[list[int]], after: Tensors, dim: int = 1) -> None:
    """``prefill`` of samples with padding gives what each gives alone without, and so do the steps ``after`` it."""
    padding = torch.tensor(mask, dtype=torch.bool)
    y, state = module.prefill(*inputs, key_padding_mask=padding)
    assert state.lengths.tolist() == [row.count(0) for row in mask]
    further = go_on(module.step, state, *after, dim=dim)
    for sample, hidden in enumerate(padding):
        real = (~hidden).nonzero()[:, 0]
        one = slice(sample, sample + 1)
        alone = [torch.cat([x[one].index_select(dim, real), z[one]], dim) for x, z in zip(inputs, after, strict=True)]
        whole = module(*alone)
        got = torch.cat([y[one].index_select(dim, real), further[one]], dim)
        torch.testing.assert_close(got, whole, atol=1e-9, rtol=1e-9)
    assert not y.movedim(dim, 1)[padding].any()


@pytest.mark.parametrize(("walker", "mask", "positions"), PADDED, ids=[case.name for case in ONCE])
def test_padding_takes_no_place_in_a_prefill(walker: Case, mask: list[list[int]], positions: str) -> None:
    encoder, B = encoder_of(walker, positions=positions), len(mask)
    assert_alone(encoder, (torch.randint(9, (B, 9)),), mask, (torch.randint(9, (B, 3)),))


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
@KINDS
def test_padding_takes_no_place_in_a_prefill_of_any_module(kind: str, mask: list[list[int]]) -> None:
    module, sample = make(kind, max_len=12, positions="rotary") if kind == "encoder" else make(kind, max_len=12)
    B, dim = len(mask), 2 if kind == "attention" else 1
    inputs, after = (
        tuple(torch.stack(x, dim) for x in zip(*(sample(B, dtype=torch.float64) for _ in range(count)), strict=True))
        for count in (9, 3)
    )
    assert_alone(module.double(), inputs, mask, after, dim)


def test_samples_without_any_position_begin_with_the_first() -> None:
    encoder = encoder_of(Case("full", causal=True))
    tokens = torch.randint(9, (2, 5))
    y, state = encoder.prefill(tokens, key_padding_mask=torch.ones(2, 5, dtype=torch.bool))
    assert y.shape == (2, 5, 16)
    assert (y == 0).all()
    torch.testing.assert_close(go_on(encoder.step, state, tokens), encoder(tokens), atol=1e-9, rtol=1e-9)


# A backend with steps alone


@dataclass(frozen=True, kw_only=True)
class SumConfig:
    """No options."""


class SumOfValues(Attention):
    """The sum of the values so far."""

    traits = Traits(family="test", source="none", year=None, time="O(N)", memory="O(N)", causal=True)

    def __init__(self, dims: Dims, config: SumConfig) -> None:
        super().__init__(dims)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return v.cumsum(2)

    def begin(self, x: Tensor) -> Tensors:
        return (torch.zeros_like(x),)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        total = tensors[0] + v[:, :, 0]
        return total[:, :, None], (total,)


@pytest.fixture
def sum_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.registry._entries", dict(_entries))
    register("sum_of_values", config=SumConfig)(SumOfValues)


@pytest.mark.usefixtures("sum_of_values")
def test_a_backend_of_steps_alone_is_walked() -> None:
    layer = MultiHeadAttention("sum_of_values", d_model=16, n_heads=2, causal=True).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    y, state = layer.prefill(x[:, :7])
    got = torch.cat([y, go_on(layer.step, state, x[:, 7:])], dim=1)
    torch.testing.assert_close(got, layer(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("variant", [case.name for case in OWN])
def test_every_causal_backend_of_the_zoo_absorbs_a_prompt_at_once(variant: str) -> None:
    backend = build(variant, Dims(d_model=16, n_heads=2, max_len=64, causal=True))
    kind: type[Backend] = Attention if isinstance(backend, Attention) else Mixer
    assert type(backend).absorb is not kind.absorb  # type: ignore[attr-defined]


# What a user can get wrong


def refused(call: Callable[..., Any], *inputs: Any, **options: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        call(*inputs, **options)
    return str(caught.value)


@KINDS
def test_prefill_says_what_it_takes(kind: str) -> None:
    module, sample = make(kind)
    dim = 2 if kind == "attention" else 1
    prompt = [torch.stack([x] * 3, dim) for x in sample()]
    y, state = module.prefill(*prompt)
    assert y.shape == prompt[0].shape
    assert module.step(*sample(), state)[1].length == 4
    assert "in both directions: build with causal=True" in refused(make(kind, causal=False)[0].prefill, *prompt)
    assert "expected 1 to 4 positions (max_len), got 6" in refused(
        module.prefill, *(torch.cat([x, x], dim) for x in prompt)
    )
    assert "expected 1 to 4 positions (max_len), got 0" in refused(
        module.prefill, *(x.narrow(dim, 0, 0) for x in prompt)
    )
    assert "shape" in refused(module.prefill, *sample())
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 3)):
        said = refused(module.prefill, *prompt, key_padding_mask=mask)
        assert (
            f"expected key_padding_mask of shape (2, 3) of torch.bool (True = padding), got shape {tuple(mask.shape)}"
            in said
        )


@pytest.mark.usefixtures("sum_of_values")
def test_steps_of_many_lengths_end_when_the_longest_has_max_len_positions() -> None:
    layer = MultiHeadAttention("sum_of_values", d_model=16, n_heads=2, max_len=4, causal=True)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    _, state = layer.prefill(torch.randn(2, 3, 16), key_padding_mask=mask)
    assert "expected 2 samples" in refused(layer.step, torch.randn(3, 16), state)
    _, after = layer.step(torch.randn(2, 16), state)
    assert "an earlier step consumed the state" in refused(layer.step, torch.randn(2, 16), state)
    assert "expected at most 4 positions (max_len), got one more" in refused(layer.step, torch.randn(2, 16), after)
    assert layer.step(torch.randn(1, 16), after.select(torch.tensor([0])))[1].length == 4  # nothing consumed it
