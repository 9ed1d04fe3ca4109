"""What every causal backend's step form holds: it equals the parallel form, and says what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Case, cases, heads
from zoo import Encoder, MultiHeadAttention, register
from zoo.contract import Attention, Backend, Dims, Mixer, Traits
from zoo.registry import _entries, build
from zoo.state import State

LENGTHS = (1, 7, 64, 257)
MAX_LEN = 260
CAUSAL = [case for case in cases() if case.causal]
ONCE = list({case.name: case for case in reversed(CAUSAL)}.values())  # one case of each backend


def walk(step: Callable[..., tuple[Tensor, State]], *inputs: Tensor, dim: int = 1) -> tuple[Tensor, list[State]]:
    """Outputs of all positions, which lie along ``dim``, one after another; and the state after each."""
    state, outputs, states = None, [], []
    for position in zip(*(x.unbind(dim) for x in inputs), strict=True):
        y, state = step(*position, state)
        outputs.append(y)
        states.append(state)
    return torch.stack(outputs, dim), states


@pytest.mark.parametrize("walker", CAUSAL, ids=str)
def test_step_by_step_equals_the_parallel_form_and_keeps_what_cache_size_says(walker: Case) -> None:
    backend = walker.backend(max_len=MAX_LEN).double()
    inputs = [x.detach() for x in heads(backend, LENGTHS[-1])]
    y, states = walk(backend.step, *inputs, dim=-2 % inputs[0].dim())
    for length in LENGTHS:
        whole = backend(*(x[..., :length, :] for x in inputs))
        torch.testing.assert_close(y[..., :length, :], whole, atol=1e-9, rtol=1e-9)
    sizes = [state.size for state in states]
    assert sizes == [backend.cache_size(length) for length in range(1, LENGTHS[-1] + 1)]
    assert all(sizes) or walker.name == "none"


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_step_by_step_equals_the_parallel_form_in_float32(walker: Case) -> None:
    backend = walker.backend(max_len=MAX_LEN)
    inputs = [x.detach() for x in heads(backend, 65, dtype=torch.float32)]
    y, _ = walk(backend.step, *inputs, dim=-2 % inputs[0].dim())
    torch.testing.assert_close(y, backend(*inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_step_by_step_equals_the_parallel_form_with_rotary_positions(walker: Case) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(
        walker.config(), d_model=16, n_heads=2, max_len=MAX_LEN, causal=True, rotary=True
    ).double()
    x = torch.randn(2, 64, 16, dtype=torch.float64)
    y, states = walk(layer.step, x)
    for length in LENGTHS[:3]:
        torch.testing.assert_close(y[:, :length], layer(x[:, :length]), atol=1e-9, rtol=1e-9)
        assert states[length - 1].size == layer.cache_size(length)


@pytest.mark.parametrize("walker", CAUSAL, ids=str)
def test_the_causal_form_does_not_depend_on_how_much_follows(walker: Case) -> None:
    layer = walker.sublayer().double()
    x = torch.randn(2, 96, 16, dtype=torch.float64)
    whole = layer(x)
    for length in (1, 33, 50):
        torch.testing.assert_close(layer(x[:, :length]), whole[:, :length], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_steps_in_bfloat16_stay_close(walker: Case) -> None:
    backend = walker.backend().to(torch.bfloat16)
    inputs = [x.detach() for x in heads(backend, 65, dtype=torch.bfloat16)]
    y, _ = walk(backend.step, *inputs, dim=-2 % inputs[0].dim())
    want = backend.float()(*(x.float() for x in inputs))
    assert y.dtype == torch.bfloat16
    assert (y.float() - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_steps_under_autocast_stay_finite_with_large_activations(walker: Case) -> None:
    layer = walker.sublayer()
    with torch.autocast("cpu", dtype=torch.float16):
        y, _ = walk(layer.step, 100 * torch.randn(2, 33, 16))
    assert y.isfinite().all()


@pytest.mark.parametrize("walker", ONCE, ids=str)
def test_autocast_does_not_reach_into_the_steps_of_an_attention(walker: Case) -> None:
    backend = walker.backend()
    if not isinstance(backend, Attention):
        pytest.skip("a mixer, whose linear maps run under autocast")
    inputs = [x.detach() for x in heads(backend, 9, dtype=torch.float32)]
    y, _ = walk(backend.step, *inputs, dim=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(walk(backend.step, *inputs, dim=2)[0], y)


KINDS_OF_ENCODER = [("sinusoidal", "pre"), ("learned", "post"), ("rotary", "pre"), ("none", "post")]


@pytest.mark.parametrize(
    ("walker", "kind"), list(zip(ONCE, cycle(KINDS_OF_ENCODER), strict=False)), ids=[case.name for case in ONCE]
)
def test_steps_of_an_encoder_equal_its_forward(walker: Case, kind: tuple[Any, Any]) -> None:
    positions, norm = kind
    torch.manual_seed(0)
    encoder = Encoder(
        walker.config(), d_model=16, n_heads=2, n_layers=2, max_len=40, norm=norm, positions=positions, conv_width=3,
        vocab_size=9, causal=True,
    )  # fmt: skip
    encoder.double().eval()
    tokens = torch.randint(9, (2, 40))
    y, states = walk(encoder.step, tokens)
    torch.testing.assert_close(y, encoder(tokens), atol=1e-9, rtol=1e-9)
    kept = sum(layer.attention.cache_size(40) for layer in encoder.layers)
    assert states[-1].size == 2 * 16 + kept  # the convolution looks two positions back


@pytest.mark.parametrize("features", [None, 3])
def test_steps_of_an_encoder_take_what_its_forward_takes(features: int | None) -> None:
    encoder = Encoder(d_model=16, n_heads=2, n_layers=1, max_len=8, n_features=features, causal=True).eval()
    x = torch.randn(2, 8, features or 16)
    torch.testing.assert_close(walk(encoder.step, x)[0], encoder(x), atol=1e-5, rtol=1e-5)


# A backend without a step form


@dataclass(frozen=True, kw_only=True)
class ForgetfulConfig:
    """No options."""


class Forgetful(Attention):
    """Values as they are, and no step form."""

    traits = Traits(family="test", source="none", year=None, time="O(N)", memory="O(N)", causal=True)

    def __init__(self, dims: Dims, config: ForgetfulConfig) -> None:
        super().__init__(dims)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return v


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.registry._entries", dict(_entries))
    register("forgetful", config=ForgetfulConfig)(Forgetful)


def assert_steps(backend: Backend) -> None:
    """AssertionError for a causal backend that lacks a part of its step form."""
    cls, kind = type(backend), Attention if isinstance(backend, Attention) else Mixer
    own = [part for part in ("begin", "advance", "cache_size") if getattr(cls, part) is not getattr(kind, part)]
    assert own == ["begin", "advance", "cache_size"], (
        f"{backend.name} is causal and of its step form defines only {own}"
    )
    assert backend.cache_size(1) is not None


@pytest.mark.parametrize("variant", [case.name for case in ONCE])
def test_every_causal_backend_has_a_step_form(variant: str) -> None:
    assert_steps(build(variant, Dims(d_model=16, n_heads=2, max_len=64, causal=True)))


@pytest.mark.usefixtures("forgetful")
def test_a_causal_backend_without_a_step_form_is_found_and_says_so() -> None:
    layer = MultiHeadAttention("forgetful", d_model=16, n_heads=2, causal=True)
    assert layer.cache_size(1) is None
    with pytest.raises(ValueError, match=r"forgetful has no step form: it does not define begin and advance$"):
        layer.step(torch.randn(2, 16))
    with pytest.raises(AssertionError, match="forgetful is causal and of its step form defines only"):
        assert_steps(layer.mixer.attention)


# What a user can get wrong

SMALL = {"d_model": 16, "n_heads": 2, "max_len": 4}


def make(kind: str, **options: Any) -> tuple[nn.Module, Callable[..., tuple[Tensor, ...]]]:
    """A causal module with a step form, and what makes an input for a step: ``sample(batch=…, dtype=…, width=…)``."""
    options = {"attn": "longformer" if kind == "mixer" else "full", "causal": True} | SMALL | options
    attn = options.pop("attn")
    if kind == "encoder":
        module: nn.Module = Encoder(attn, n_layers=1, **options).eval()
    elif kind == "sublayer":
        module = MultiHeadAttention(attn, **options)
    else:
        module = build(attn, Dims(**options))

    def sample(batch: int = 2, width: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        if kind == "attention":
            return torch.randn(3, batch, 2, width // 2, dtype=dtype).unbind()
        return (torch.randn(batch, width, dtype=dtype),)

    return module, sample


def refused(module: nn.Module, *inputs: Any) -> str:
    """The one line with which a step is refused."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        module.step(*inputs)
    return str(caught.value)


KINDS = pytest.mark.parametrize("kind", ["attention", "mixer", "sublayer", "encoder"])


@KINDS
def test_a_step_needs_a_causal_form(kind: str) -> None:
    both, sample = make(kind, causal=False)
    assert "in both directions: build with causal=True" in refused(both, *sample())
    never, sample = make(kind, attn="luna" if kind == "mixer" else "linformer", causal=False)
    said = "in both directions" if kind == "encoder" else f"{'luna' if kind == 'mixer' else 'linformer'} has no causal"
    assert said in refused(never, *sample())


@KINDS
def test_a_state_belongs_to_one_module_one_batch_and_one_dtype(kind: str) -> None:
    module, sample = make(kind)
    _, state = module.step(*sample())
    assert "got one of another model or layer" in refused(make(kind)[0], *sample(), state)
    assert "expected 2 samples of torch.float32" in refused(module, *sample(batch=3), state)
    assert "got 3 of torch.float32" in refused(module, *sample(batch=3), state)
    module.double()
    assert "got 2 of torch.float64" in refused(module, *sample(dtype=torch.float64), state)
    module.float()
    _, after = module.step(*sample(), state)  # what was refused consumed nothing
    assert "an earlier step consumed the state after 1 positions" in refused(module, *sample(), state)
    assert module.step(*sample(), after)[1].length == 3


@KINDS
def test_steps_end_at_max_len(kind: str) -> None:
    module, sample = make(kind)
    state = None
    for _ in range(4):
        _, state = module.step(*sample(), state)
    said = "expected at most 4 positions (max_len), got one more: build with a larger max_len"
    assert refused(module, *sample(), state) == said


@KINDS
def test_a_step_takes_one_position(kind: str) -> None:
    module, sample = make(kind)
    _, state = module.step(*sample())
    for x in (sample(width=8), tuple(x[:, None] for x in sample())):
        assert "expected" in refused(module, *x, state)
        assert "shape" in refused(module, *x, state)


def test_an_attention_takes_queries_keys_and_values_of_one_shape() -> None:
    module, sample = make("attention")
    q, k, v = sample()
    assert refused(module, q, k[:, :1], v) == (
        "expected q, k and v of one shape (B, H, D), got (2, 2, 8), (2, 1, 8), (2, 2, 8)"
    )


@pytest.mark.parametrize("kind", ["sublayer", "encoder"])
def test_a_state_is_what_a_step_returned(kind: str) -> None:
    module, sample = make(kind)
    assert "expected the state that the last step returned, or None, got Tensor" in refused(
        module, *sample(), *sample()
    )


def test_an_encoder_of_tokens_takes_one_id_a_sample() -> None:
    encoder = Encoder(n_layers=1, vocab_size=5, causal=True, **SMALL)
    for x in (torch.zeros(2, 1, dtype=torch.long), torch.zeros(2)):
        assert "expected token ids of shape (B)" in refused(encoder, x)
