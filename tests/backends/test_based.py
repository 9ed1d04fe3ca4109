"""Based: the limits of the window, blocks and logits of any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compare.runs.measure import saved_bytes
from tests.oracles.based import oracle
from zoo.attention.based import Based, BasedConfig, features, pairs
from zoo.contract import Dims
from zoo.cores import scan as module_of_scan
from zoo.registry import build


def based(
    *,
    features: int = 4,
    window: int = 5,
    causal: bool = False,
    d_model: int = 16,
    max_len: int = 512,
    rotary: bool = False,
    short: int = 0,
) -> Based:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal, rotary=rotary)
    backend = build(BasedConfig(features=features, window=window, short=short), dims)
    assert isinstance(backend, Based)
    return backend


def heads(backend: Based, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys as wide as ``features``, and values."""
    width = 2 * backend.d
    pieces = backend.qkv(x).split([width, width, x.shape[-1]], dim=-1)
    q, k, v = (rearrange(piece, "b n (h d) -> b h n d", h=2) for piece in pieces)
    return q, k, v


def finished(backend: Based, mixed: Tensor) -> Tensor:
    return backend.out(rearrange(mixed, "b h n d -> b n (h d)"))


def test_features_multiply_to_the_taylor_series() -> None:
    q, k = torch.randn(2, 7, 5, dtype=torch.float64)
    of_query, of_key, other = pairs(5).double()
    product = features(q, of_query, other) @ features(k, of_key, other).T
    x = q @ k.T
    torch.testing.assert_close(product, 1 + x + x**2 / 2)
    assert features(q, of_query, other).shape == (7, 1 + 5 + 15)


@pytest.mark.parametrize(("causal", "short"), [(False, 0), (False, 512), (True, 0)])
@pytest.mark.parametrize("window", [300, 1000])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_window_over_all_keys_is_softmax_attention(causal: bool, short: int, window: int, scale: float) -> None:
    """At any size of the logits, negative ones too: in float32 many of these are below -88."""
    backend = based(window=window, causal=causal, short=short)
    x = scale * torch.randn(2, 300, 16)
    exact = F.scaled_dot_product_attention(*(y.double() for y in heads(backend, x)), is_causal=causal)
    want = finished(backend, exact.float())
    assert (backend(x) - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_the_error_against_softmax_attention_falls_with_the_window(causal: bool) -> None:
    x = torch.randn(2, 256, 16, dtype=torch.float64)
    errors = []
    for window in (0, 16, 64, 200, 256):
        backend = based(window=window, causal=causal).double()
        exact = F.scaled_dot_product_attention(*heads(backend, x), is_causal=causal)
        errors.append((backend(x) - finished(backend, exact)).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.3 * errors[2] > 0.1
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 2, 7, 40, 63])
def test_chunks_of_any_size_give_the_oracle(causal: bool, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows longer and shorter than a chunk, gradients and padding anywhere included."""
    backend = based(window=window, causal=causal).double()
    x = torch.randn(2, 61, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 61) < 0.3
    weight = torch.randn(2, 61, 16, dtype=torch.float64).masked_fill(mask[..., None], 0)
    leaves = [x, *backend.parameters()]
    literal = oracle(backend, x, key_padding_mask=mask)
    want = [literal * (weight != 0), *torch.autograd.grad((literal * weight).sum(), leaves)]
    for size in (1, 4, 16, 60):
        monkeypatch.setattr(module_of_scan, "CHUNK", size)
        y = backend(x, key_padding_mask=mask)
        ours = [y * (weight != 0), *torch.autograd.grad((y * weight).sum(), leaves)]
        for one, other in zip(ours, want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("window", [0, 5, 40])
def test_the_state_alone_is_that_of_a_chunk(window: int) -> None:
    backend = based(window=window).double()
    state = tuple(torch.randn_like(x) for x in backend.begin(torch.zeros(2, 16, dtype=torch.float64)))
    q, k, v = heads(backend, torch.randn(2, 30, 16, dtype=torch.float64))
    hidden = torch.rand(2, 1, 30, 1) < 0.3
    after = backend._chunk(0, state, q, k, v, hidden)[1]
    assert all(torch.equal(*pair) for pair in zip(backend._next_state(0, state, q, k, v, hidden), after, strict=True))


@pytest.mark.parametrize("window", [0, 5, 1000])
def test_steps_follow_the_forward(window: int) -> None:
    backend = based(window=window, causal=True)
    x = torch.randn(2, 300, 16)
    state, outputs = None, []
    for position in range(300):
        y, state = backend.step(x[:, position], state)
        outputs.append(y)
        assert state.size == backend.cache_size(position + 1)
    torch.testing.assert_close(torch.stack(outputs, dim=1), backend(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_logits_of_any_size_give_mixtures_of_values_and_finite_gradients(causal: bool, scale: float) -> None:
    """Exponents up to ten thousands, and Taylor weights up to their squares. A mixture lies between the extremes."""
    backend = based(causal=causal)
    with torch.no_grad():
        backend.out.weight.copy_(torch.eye(16))
    x = (scale * torch.randn(2, 300, 16)).requires_grad_()
    y = backend(x)
    y.sum().backward()
    v = rearrange(heads(backend, x)[2], "b h n d -> b n (h d)").detach()
    slack = 1e-4 * v.abs().max()
    assert (y >= v.amin(1, keepdim=True) - slack).all()
    assert (y <= v.amax(1, keepdim=True) + slack).all()
    assert x.grad is not None
    assert all(g is not None and g.isfinite().all() for g in [x.grad, *(p.grad for p in backend.parameters())])
    want = oracle(backend.double(), x.double() / scale)  # at a size at which the oracle does not overflow
    torch.testing.assert_close(backend(x.double() / scale), want, atol=1e-9, rtol=1e-7)


def test_large_logits_in_float32_stay_close_to_float64() -> None:
    for causal in (False, True):
        backend = based(causal=causal, window=8)
        x = 4 * torch.randn(2, 300, 16)
        single, double = backend(x), oracle(backend.double(), x.double())
        assert (single - double).norm() < 1e-4 * double.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_long_inputs_of_large_size_are_finite_in_low_precision(dtype: torch.dtype, causal: bool) -> None:
    backend = based(causal=causal, max_len=4096).to(dtype)
    x = (100 * torch.randn(1, 4096, 16, dtype=dtype)).requires_grad_()
    y = backend(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rotary_turns_queries_and_keys() -> None:
    """Shifted by any number of places they give the same: only distances count."""
    backend = based(rotary=True).double()
    x = torch.randn(1, 40, 16, dtype=torch.float64)
    shifted = torch.cat([torch.zeros(1, 9, 16, dtype=torch.float64), x], dim=1)
    mask = torch.arange(49)[None] < 9
    torch.testing.assert_close(backend(shifted, key_padding_mask=mask)[:, 9:], backend(x), atol=1e-5, rtol=1e-5)
    turned = backend(x)
    backend.rotary = None
    assert (backend(x) - turned).abs().max() > 0.01


def test_rotary_needs_an_even_width() -> None:
    with pytest.raises(ValueError, match="d_head must be even, got 3"):
        based(features=3, rotary=True)


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_kept_is_linear_and_small(causal: bool) -> None:
    def saved(length: int) -> int:
        backend = based(features=16, window=64, causal=causal, d_model=128, max_len=length)
        x = torch.randn(1, length, 128, requires_grad=True)
        return saved_bytes(lambda: backend(x), backend)

    assert saved(8192) / saved(4096) < 2.01
    assert saved(8192) < 10 * 8192 * 128 * 4


def test_the_state_is_what_the_scan_hands_on() -> None:
    backend = based(features=16, window=64, causal=True, d_model=128)
    tensors = backend.begin(torch.zeros(3, 128))
    assert tensors[0].shape == (3, 2, 153, 65)
    assert backend.state_size(512) == 2 * (153 * 65 + 64 * (16 + 64))
    assert based(features=16, window=64, d_model=128).state_size(512) == 2 * (153 * 65 + 127 * (16 + 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, r"based\.features must be an integer of at least 1, got 0"),
        ({"features": 2.0}, r"based\.features must be an integer of at least 1, got 2\.0"),
        ({"window": -1}, r"based\.window must be an integer of at least 0, got -1"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BasedConfig(**options)  # type: ignore[arg-type]
