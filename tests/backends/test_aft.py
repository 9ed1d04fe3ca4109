"""AFT: its three forms and where they meet, keys of any size, the state.

The oracle stands alone: the public implementations leave out padding and normalise in float32 over all positions.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compare.runs.measure import count_flops, saved_bytes
from tests.oracles.aft import oracle
from zoo import MultiHeadAttention
from zoo.attention import aft
from zoo.attention.aft import AFT, AFTConfig
from zoo.contract import Dims
from zoo.registry import build

FORMS = ("local", "full", "simple")


def make(form: str = "local", *, causal: bool = False, d_model: int = 8, max_len: int = 64, **options: object) -> AFT:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal)
    backend = build(AFTConfig(form=form, **options), dims)  # type: ignore[arg-type]
    assert isinstance(backend, AFT)
    return backend


def alike(source: AFT, target: AFT) -> None:
    target.qkv.load_state_dict(source.qkv.state_dict())
    target.out.load_state_dict(source.out.state_dict())


# Where the forms meet


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["local", "full"])
def test_without_a_bias_it_is_the_simple_form(form: str, causal: bool) -> None:
    simple, other = (make(f, causal=causal, window=5).double() for f in ("simple", form))
    alike(simple, other)
    with torch.no_grad():
        for name in ("bias", "rows"):
            if hasattr(other, name):
                getattr(other, name).zero_()
    x = torch.randn(2, 50, 8, dtype=torch.float64)
    torch.testing.assert_close(other(x), simple(x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [3, 100])
def test_local_is_full_with_a_banded_bias(window: int, causal: bool) -> None:
    local, full = (make(form, causal=causal, window=window, rank=64).double() for form in ("local", "full"))
    alike(local, full)
    place = torch.arange(64)
    lag = place[:, None] - place
    with torch.no_grad():
        local.bias.normal_(std=2)
        index = lag if causal else lag + local.window - 1
        banded = local.bias[index.clamp(0, len(local.bias) - 1)] * (lag.abs() < window)
        full.rows.copy_(banded)
        full.columns.copy_(torch.eye(64))
    x = torch.randn(2, 64, 8, dtype=torch.float64)
    torch.testing.assert_close(local(x), full(x))


def test_one_channel_of_simple_is_softmax_attention_with_equal_queries() -> None:
    module = make("simple", d_model=2).double()
    q, k, v = torch.randn(3, 1, 30, 2, dtype=torch.float64)
    want = torch.stack([(k[0, :, c].softmax(0) * v[0, :, c]).sum() for c in range(2)])
    torch.testing.assert_close(module._mix(k, v), want.expand(1, 30, 2))


# Keys of any size


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_keys_far_apart_weigh_as_they_should(form: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, beside the oracle in float64: keys rise by 48 within a chunk, all in all by 150."""
    monkeypatch.setattr(aft, "CHUNK", 32)
    module = make(form, causal=causal, d_model=4, window=7, max_len=100)
    with torch.no_grad():  # keys are the inputs, queries and values moderate
        module.qkv.weight[4:8] = torch.eye(4)
        module.qkv.weight[:4] *= 0.01
        module.qkv.weight[8:] *= 0.01
    x = torch.randn(1, 100, 4) + torch.linspace(-75, 75, 100)[:, None] * torch.tensor([1.0, -1.0, 0.1, 0.0])
    exact = oracle(module.double(), x.double())
    torch.testing.assert_close(module.float()(x).double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("large", [300.0, -300.0])
def test_a_key_far_above_all_others_rules_what_comes_after_and_nothing_before(form: str, large: float) -> None:
    module = make(form, causal=True, d_model=4, window=7, max_len=400)
    k, v = torch.randn(2, 1, 400, 4)
    usual = module._mix(k, v)
    k[:, 150] = large
    ours = module._mix(k, v)
    torch.testing.assert_close(ours[:, :150], usual[:, :150])
    assert ours.isfinite().all()
    if large > 0:
        torch.testing.assert_close(ours[:, 150:], v[:, 150:151].expand(1, 250, 4))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_gates_and_biases_at_their_extremes_are_finite(form: str, causal: bool, value: float) -> None:
    module = make(form, causal=causal, max_len=200)
    with torch.no_grad():
        module.qkv.bias[:8] = value
        for name in ("bias", "rows"):
            if hasattr(module, name):
                getattr(module, name).fill_(value)
    y = module(torch.randn(2, 200, 8))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["local", "simple"])
def test_large_activations_under_autocast_are_finite_at_length(form: str, causal: bool) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(AFTConfig(form=form), d_model=8, n_heads=2, max_len=16384, causal=causal)
    x = (100 * torch.randn(1, 16384, 8)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# Chunks, memory, state


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_any_size_give_the_same(form: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(form, causal=causal, window=9).double()
    if form == "local":
        torch.nn.init.normal_(module.bias)
    x = torch.randn(2, 50, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 50) < 0.3
    weight = torch.randn(2, 50, 8, dtype=torch.float64)
    results = []
    for chunk, block, budget in ((128, 64, 2**22), (7, 8, 300), (1, 1, 1)):
        monkeypatch.setattr(aft, "CHUNK", chunk)
        monkeypatch.setattr(aft, "BLOCK", block)
        monkeypatch.setattr(aft, "BUDGET", budget)
        y = module(x, key_padding_mask=mask) * ~mask[..., None]
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])])
    for other in results[1:]:
        for ours, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_saved_bytes_are_linear_for_each_form(form: str, causal: bool) -> None:
    def saved(length: int) -> int:
        module = make(form, causal=causal, max_len=length)
        x = torch.randn(1, length, 8, requires_grad=True)
        return saved_bytes(lambda: module(x), module)

    assert saved(2048) / saved(1024) < 2.2


@pytest.mark.parametrize("causal", [False, True])
def test_cost_of_local_is_linear_and_of_full_quadratic(causal: bool) -> None:
    def flops(form: str, length: int) -> int:
        module, x = make(form, causal=causal, max_len=2048), torch.randn(1, length, 8)
        return count_flops(lambda: module(x))

    assert 1.9 < flops("local", 2048) / flops("local", 1024) < 2.1
    assert flops("full", 2048) / flops("full", 1024) > 3.5


@pytest.mark.parametrize("form", FORMS)
def test_steps_equal_forward(form: str) -> None:
    module = make(form, causal=True, max_len=150)
    if form == "local":
        torch.nn.init.normal_(module.bias)
    x, state, steps = torch.randn(2, 150, 8), None, []
    for t, row in enumerate(x.unbind(1)):
        y, state = module.step(row, state)
        steps.append(y)
        assert state.size == module.cache_size(t + 1)
    torch.testing.assert_close(torch.stack(steps, dim=1), module(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_the_state_is_the_window_and_the_sums_of_the_rest(causal: bool) -> None:
    local, full, simple = (make(form, causal=causal, window=9) for form in FORMS)
    reach = 9 if causal else 17
    assert local.state_size(5) == 2 * 8 * 5
    assert local.state_size(60) == 2 * 8 * (reach + 1)
    assert full.state_size(60) == 2 * 8 * 60
    assert simple.state_size(60) == 2 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "conv"}, "aft.form must be one of local, full, simple; got 'conv'"),
        ({"window": 0}, "aft.window must be an integer of at least 1, got 0"),
        ({"rank": 0}, "aft.rank must be an integer of at least 1, got 0"),
        ({"window": 1.5}, "aft.window must be an integer of at least 1, got 1.5"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AFTConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_beyond_the_length_is_merely_unusual(causal: bool) -> None:
    module = make(window=500, causal=causal)
    assert len(module.bias) == (64 if causal else 127)  # what 64 positions can tell apart
    out: Tensor = module(torch.randn(2, 7, 8))
    assert out.isfinite().all()
    assert out.std() > 0
