"""Hyena: its filters, its limit without them, the cache of its step form.

No package of the peers has it, so the oracle, dense Toeplitz matrices, stands alone.
"""

from __future__ import annotations

import pytest
import torch

from zoo import MultiHeadAttention
from zoo.attention.hyena import BLOCK, Hyena, HyenaConfig
from zoo.contract import Dims
from zoo.cores.convolution import convolve
from zoo.registry import build
from zoo.state import State


def hyena(*, d_model: int = 8, causal: bool = False, max_len: int = 512, **options: object) -> Hyena:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal)
    backend = build(HyenaConfig(**options), dims)  # type: ignore[arg-type]
    assert isinstance(backend, Hyena)
    return backend


@pytest.mark.parametrize("order", [2, 3, 4])
def test_without_long_filters_it_multiplies_what_the_short_convolution_gives(order: int) -> None:
    module = hyena(order=order).double()
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    with torch.no_grad():
        module.write.weight.zero_()
        module.skip.fill_(1)
        module.taps.copy_(torch.tensor([0.0, 1.0, 0.0])[:, None])
    product = module.project(x).unflatten(-1, (order + 1, 8)).prod(-2)
    torch.testing.assert_close(module(x), module.out(product))


def test_filters_do_not_depend_on_the_length() -> None:
    module = hyena(order=3).double()
    short, long = (module._filters(length, two_sided=True) for length in (10, 300))
    torch.testing.assert_close(long[..., 290:309], short)
    torch.testing.assert_close(module._filters(300, two_sided=False), long[..., 299:])


def test_the_past_and_the_future_have_filters_of_their_own() -> None:
    (filters,) = hyena()._filters(512, two_sided=True)
    past, future = filters[:, 512:], filters[:, :511].flip(1)
    assert (past - future).norm() > 0.5 * past.norm()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("max_len", [64, 8192])
def test_filters_begin_with_an_energy_of_about_one(causal: bool, max_len: int) -> None:
    (filters,) = hyena(d_model=64, causal=causal, max_len=max_len)._filters(max_len, two_sided=not causal)
    assert 0.5 < filters.square().sum(1).mean() < 2


def test_filters_fall_with_the_distance_faster_in_later_channels() -> None:
    (filters,) = hyena(d_model=64, causal=True)._filters(512, two_sided=False)
    near, far = (filters[:, part].square().mean(1) for part in (slice(0, 128), slice(384, 512)))
    ratio = far / near
    assert ratio[:8].mean() < 0.2
    assert ratio[-8:].mean() < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_steps_over_the_blocks_of_the_cache_equal_forward(order: int) -> None:
    module = hyena(order=order, causal=True)
    x = torch.randn(2, 2 * BLOCK + 3, 8)
    state: State | None = None
    steps = []
    for t, row in enumerate(x.unbind(1)):
        y, state = module.step(row, state)
        steps.append(y)
        assert state.size == module.cache_size(t + 1)
    torch.testing.assert_close(torch.stack(steps, dim=1), module(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_the_state_is_what_the_long_convolutions_read(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("zoo.attention.hyena.convolve", lambda x, h: read.append(x[0].numel()) or convolve(x, h))
    module = hyena(order=order)
    module(torch.randn(3, 50, 8))
    assert sum(read) == module.state_size(50)


def test_the_cache_grows_by_blocks() -> None:
    module = hyena(causal=True)
    sizes = [module.cache_size(length) for length in (1, BLOCK, BLOCK + 1)]
    assert sizes[0] == sizes[1] == sizes[2] - 8 * BLOCK
    assert module.begin(torch.zeros(3, 8))[1].numel() == 0
    assert sum(x.numel() for x in module.begin(torch.zeros(3, 8))) == 3 * module.cache_size(0)


@pytest.mark.parametrize("causal", [False, True])
def test_large_activations_under_autocast_are_finite_at_length(causal: bool) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention("hyena", d_model=8, n_heads=2, max_len=16384, causal=causal)
    x = (100 * torch.randn(1, 16384, 8)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_gates_and_filters_at_their_extremes_are_finite(value: float) -> None:
    module = hyena()
    with torch.no_grad():
        module.project.bias[:8] = value
        module.frequency.fill_(value)
    y = module(torch.randn(2, 100, 8))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


def test_a_layer_has_about_as_many_parameters_as_full() -> None:
    ours, full = (
        sum(p.numel() for p in MultiHeadAttention(name, d_model=256, n_heads=4).parameters())
        for name in ("hyena", "full")
    )
    assert full < ours < 1.12 * full


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "hyena.order must be an integer of at least 2, got 1"),
        ({"order": 2.5}, "hyena.order must be an integer of at least 2, got 2.5"),
        ({"filter_width": 0}, "hyena.filter_width must be an integer of at least 1, got 0"),
        ({"frequency": 0.0}, "hyena.frequency must be above 0 and finite, got 0.0"),
        ({"frequency": float("inf")}, "hyena.frequency must be above 0 and finite, got inf"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyenaConfig(**options)  # type: ignore[arg-type]
