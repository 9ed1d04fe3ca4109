"""RetNet: its three forms, both directions, rates and rotation, steps, what padding does.

No package that has it installs beside ours: torchscale, the authors', pins fairscale and timm of 2022, and
flash-linear-attention needs Triton. So the paper's equations stand alone, its normalisations among them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compare.runs.measure import count_flops
from tests.oracles.retnet import normal, oracle, parallel, rate
from zoo.attention.retnet import RetNet, RetNetConfig
from zoo.contract import Dims
from zoo.cores.recurrences import decayed
from zoo.cores.scan import CHUNK, scan
from zoo.embeddings import angles, turned
from zoo.registry import build

LENGTHS = [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3]


def retnet(
    *,
    causal: bool = True,
    d_model: int = 16,
    n_heads: int = 2,
    max_len: int = 300,
    expand: int = 1,
    rotary: bool = False,
) -> RetNet:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=n_heads, max_len=max_len, causal=causal, rotary=rotary)
    backend = build(RetNetConfig(expand=expand), dims)
    assert isinstance(backend, RetNet)
    return backend


def projected(module: RetNet, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return module._project(x, torch.arange(x.shape[1]))


# Forms


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_parallel_form(length: int) -> None:
    """Equation 5 with rates from fast to slow: outputs and gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, d, dtype=torch.float64, requires_grad=True) for d in (8, 8, 5))
    rates = [0.5, rate(0), rate(10)]
    logs = torch.tensor(rates, dtype=torch.float64).log()[None, :, None].expand(2, 3, length)
    chunked = scan(decayed, (q, k, v, logs), (torch.zeros(2, 3, 8, 5, dtype=torch.float64),))
    dense = [torch.stack([parallel(q[b, h], k[b, h], v[b, h], rates[h]) for h in range(3)]) for b in range(2)]
    weight = torch.randn_like(chunked)
    results = [[out, *torch.autograd.grad((out * weight).sum(), (q, k, v))] for out in (chunked, torch.stack(dense))]
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_layers_of_several_chunks_match_the_recurrence(length: int, causal: bool) -> None:
    module = retnet(causal=causal).double()
    x = torch.randn(2, length, 16, dtype=torch.float64)
    mask = torch.rand(2, length) < 0.3
    for hidden in (None, mask):
        real = 1 if hidden is None else ~hidden[..., None]
        ours, literal = module(x, key_padding_mask=hidden), oracle(module, x, hidden)
        torch.testing.assert_close(ours * real, literal * real, atol=1e-9, rtol=1e-9)


def test_the_normalisations_of_the_paper_change_nothing() -> None:
    """They divide rows by numbers, which GroupNorm undoes, but for its epsilon."""
    module = retnet().double()
    x = torch.randn(1, 200, 16, dtype=torch.float64)
    q, k, v, gate = projected(module, x)
    heads = [parallel(q[0, h] * 8**0.5, k[0, h], v[0, h], rate(h), normalised=True) for h in range(2)]
    assert (heads[0] - parallel(q[0, 0], k[0, 0], v[0, 0], rate(0))).abs().max() > 1
    mixed = torch.nn.functional.silu(gate[0]) * torch.cat([normal(1e3 * y) for y in heads], dim=-1)
    torch.testing.assert_close(module(x)[0], module.out(mixed), atol=1e-3, rtol=1e-3)


def test_both_directions_fade_alike_and_count_the_position_itself_once() -> None:
    module = retnet(causal=False).double()
    x = torch.randn(1, 2 * CHUNK + 3, 16, dtype=torch.float64)
    q, k, v, gate = projected(module, x)
    n = torch.arange(x.shape[1])
    heads = [(q[0, h] @ k[0, h].T * rate(h) ** (n[:, None] - n).abs().double()) @ v[0, h] for h in range(2)]
    mixed = torch.nn.functional.silu(gate[0]) * torch.cat([normal(y) for y in heads], dim=-1)
    torch.testing.assert_close(module(x)[0], module.out(mixed), atol=1e-8, rtol=1e-8)


# Rates and rotation


def test_rates_are_those_of_equation_8() -> None:
    kept = 1 - retnet(n_heads=8)._log_decay(torch.zeros(1, dtype=torch.float64)).exp()[0, :, 0]
    torch.testing.assert_close(kept, torch.tensor([1 / 2**i for i in range(5, 13)], dtype=torch.float64))


def test_products_of_turned_queries_and_keys_depend_on_distance_alone() -> None:
    angle = angles(300, 8).double()
    q, k = torch.randn(2, 10, 8, dtype=torch.float64)
    products = []
    for first in (0, 200):
        there = angle[first : first + 10]
        q_, k_ = (turned(x[None, None], there.cos(), there.sin())[0, 0] for x in (q, k))
        products.append(q_ @ k_.T)
    torch.testing.assert_close(*products, atol=1e-4, rtol=1e-4)  # angles are float32
    assert (products[0] - q @ k.T).abs().max() > 1
    torch.testing.assert_close(products[0].diagonal(), (q * k).sum(-1))


@pytest.mark.parametrize("rotary", [False, True])
def test_it_turns_by_position_whatever_the_encoder_does(rotary: bool) -> None:
    module = retnet(rotary=rotary)
    assert module.table.table.shape == (2, 300, 4)
    x = torch.randn(1, 50, 16)
    before = module(x)
    module.table.table.copy_(torch.tensor([1.0, 0.0])[:, None, None])
    assert (before - module(x)).abs().max() > 0.1


def test_an_odd_last_feature_is_not_turned() -> None:
    module = retnet(d_model=10)
    q = projected(module, x := torch.randn(1, 7, 10))[0]
    torch.testing.assert_close(q[0, :, :, 4], module.qkvg(x)[0, :, :10].view(7, 2, 5)[..., 4].T)


# Padding


@pytest.mark.parametrize("causal", [False, True])
def test_padding_anywhere_is_as_if_it_were_cut_out(causal: bool) -> None:
    module = retnet(causal=causal).double()
    x = torch.randn(1, 2 * CHUNK + 3, 16, dtype=torch.float64)
    mask = torch.rand(1, x.shape[1]) < 0.5
    mask[0, 20:180] = True  # one chunk is padding alone
    cut = module(x[~mask][None])
    torch.testing.assert_close(module(x, key_padding_mask=mask)[~mask], cut[0], atol=1e-9, rtol=1e-9)


# Steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expand", [1, 2])
def test_steps_equal_the_parallel_form(expand: int, dtype: torch.dtype) -> None:
    module = retnet(expand=expand).to(dtype)
    x = torch.randn(2, CHUNK + 9, 16, dtype=dtype)
    state, rows = None, []
    for row in x.unbind(1):
        y, state = module.step(row, state)
        rows.append(y)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.stack(rows, 1), module(x), atol=tolerance, rtol=tolerance)
    assert state is not None
    assert state.size == module.cache_size(len(rows)) == expand * 16 * 8
    assert state.tensors[0].dtype == torch.float32


# Range and cost


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_sums_of_large_activations_stay_finite(dtype: torch.dtype, causal: bool) -> None:
    module = retnet(causal=causal, max_len=16_384).to(dtype)
    x = (100 * torch.ones(1, 16_384, 16, dtype=dtype)).requires_grad_()  # all keys agree: the largest sums there are
    y = module(x)
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_wider_values_are_a_larger_state() -> None:
    assert retnet(expand=2).state_size(100) == 2 * retnet().state_size(100) == 2 * 16 * 8
    assert retnet(causal=False).state_size(100) == 2 * retnet().state_size(100)


@pytest.mark.parametrize("causal", [False, True])
def test_cost_is_linear(causal: bool) -> None:
    def flops(length: int) -> int:
        module = retnet(causal=causal, max_len=length)
        x = torch.randn(1, length, 16, requires_grad=True)
        return count_flops(lambda: module(x).sum().backward())

    assert flops(8 * CHUNK) == pytest.approx(2 * flops(4 * CHUNK), rel=0.01)


@pytest.mark.parametrize("expand", [0, -1, 1.5])
def test_bad_options_are_said(expand: object) -> None:
    with pytest.raises(ValueError, match=rf"retnet\.expand must be an integer of at least 1, got {expand}"):
        RetNetConfig(expand=expand)  # type: ignore[arg-type]
