"""S4D: its kernel and its recurrence, both directions, size of what it makes.

No package of the peers has it, so the oracle, which walks the recurrence, stands alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compare.runs.measure import saved_bytes
from zoo import MultiHeadAttention
from zoo.attention.s4d import S4D, S4DConfig, discretise, kernels
from zoo.contract import Dims
from zoo.registry import build


def s4d(*, state: int = 64, d_model: int = 8, causal: bool = False, max_len: int = 2048) -> S4D:
    torch.manual_seed(0)
    backend = build(S4DConfig(state=state), Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal))
    assert isinstance(backend, S4D)
    return backend


def kernel_of(module: S4D, length: int) -> Tensor:
    return kernels(length, *module._parameters_of_kernel())


@pytest.mark.parametrize("length", [1, 2, 3, 10, 100, 101, 1000])
def test_the_kernel_is_the_sum_of_powers(length: int) -> None:
    module = s4d(causal=True).double()
    powers, weights = discretise(*module._parameters_of_kernel())
    every = torch.exp(powers[..., None] * torch.arange(length))  # (C, n, N)
    want = 2 * (weights[0, ..., None] * every).sum(1).real
    torch.testing.assert_close(kernel_of(module, length), want)


def test_the_kernel_is_what_an_impulse_leaves() -> None:
    module = s4d(causal=True, d_model=4).double()
    tensors = module.begin(torch.zeros(1, 4, dtype=torch.float64))
    powers, weights = discretise(*module._parameters_of_kernel())
    seen = []
    for t in range(50):
        _, tensors = module.advance(torch.full((1, 1, 4), float(t == 0), dtype=torch.float64), tensors, t)
        seen.append(2 * (torch.view_as_complex(tensors[0])[0] * weights[0]).sum(-1).real)
    torch.testing.assert_close(torch.stack(seen, dim=1), kernel_of(module, 50))


def test_float32_holds_the_kernel_at_length() -> None:
    module = s4d(causal=True)
    low = kernel_of(module, 16384).double()
    exact = kernel_of(module.double(), 16384)
    assert (low - exact).abs().max() < 1e-4 * exact.abs().max()


def test_the_future_has_a_kernel_of_its_own_and_the_own_position_counts_once() -> None:
    """Turning the input round and the two C's about turns the output round, but for the position itself."""
    module = s4d().double()
    x = torch.randn(1, 40, 8, dtype=torch.float64)
    past, future = (kernel_of(module, 40)[:, part] for part in (slice(39, None), slice(0, 39)))
    with torch.no_grad():
        module.readout.copy_(module.readout.flip(0))
    swapped = kernel_of(module, 40)
    torch.testing.assert_close(swapped[:, :39].flip(1), past[:, :39])  # lag −1 has the first power, as lag 0 had
    torch.testing.assert_close(swapped[:, 39:78], future.flip(1))
    with torch.no_grad():
        module.readout[0].zero_()
        module.skip.zero_()
    alone = x.clone()
    alone[:, :-1] = 0
    torch.testing.assert_close(module(alone)[:, -1], module(torch.zeros_like(x))[:, -1])  # lag 0 is the past's


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_holds_the_state_of_every_position() -> None:
    module, x = s4d(max_len=4096), torch.randn(1, 4096, 8, requires_grad=True)
    with Largest() as watch:
        module(x).sum().backward()
    assert watch.elements <= 4 * x.numel()  # the state of one direction has 32 complex numbers for each


def test_kernels_are_made_again_not_kept() -> None:
    x = torch.randn(1, 2048, 8, requires_grad=True)
    small, large = (s4d(state=state) for state in (2, 128))
    assert saved_bytes(lambda: small(x), small) == saved_bytes(lambda: large(x), large)


@pytest.mark.parametrize("causal", [False, True])
def test_large_activations_under_autocast_are_finite_at_length(causal: bool) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(S4DConfig(), d_model=8, n_heads=2, max_len=16384, causal=causal)
    x = (100 * torch.randn(1, 16384, 8)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("real", [-1e3, -50.0, 50.0, 1e3])
@pytest.mark.parametrize("step", [-1e3, 1e3])
def test_extreme_decays_and_steps_are_finite(real: float, step: float) -> None:
    module = s4d()
    with torch.no_grad():
        module.log_real.fill_(real)
        module.log_step.fill_(step)
        module.gate.bias.fill_(math.copysign(1e4, real))
    y = module(torch.randn(2, 500, 8))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


def test_the_state_counts_two_numbers_for_each_complex_one() -> None:
    assert s4d(causal=True).cache_size(100) == s4d(causal=True).state_size(5) == 64 * 8
    assert s4d().state_size(5) == 2 * 64 * 8


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (0, "s4d.state must be an integer of at least 2, got 0"),
        (2.0, "s4d.state must be an integer of at least 2, got 2.0"),
        (7, "s4d.state must be even, got 7"),
    ],
)
def test_bad_options_are_said(state: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S4DConfig(state=state)  # type: ignore[arg-type]
