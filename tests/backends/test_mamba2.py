"""Mamba-2: agreement with transformers, gates at their ends, both directions, steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.mamba2 import pair
from compare.runs.measure import count_flops
from tests.oracles.mamba2 import oracle
from zoo.attention.mamba2 import Mamba2, Mamba2Config
from zoo.contract import Dims
from zoo.cores.scan import CHUNK
from zoo.registry import build


def mamba2(
    config: Mamba2Config | None = None, *, causal: bool = True, d_model: int = 16, n_heads: int = 2, max_len: int = 300
) -> Mamba2:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=n_heads, max_len=max_len, causal=causal)
    backend = build(config or Mamba2Config(), dims)
    assert isinstance(backend, Mamba2)
    return backend


def gradients(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a random sum of the outputs; the output itself is ``y``."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert leaf.grad is not None
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": leaf.grad} | found


# Agreement with a public implementation


@pytest.mark.parametrize(("length", "d_model", "n_heads"), [(300, 64, 4), (1, 32, 2), (513, 32, 1)])
def test_output_and_gradients_agree_with_transformers(length: int, d_model: int, n_heads: int) -> None:
    torch.manual_seed(0)
    (both,) = pair(d_model=d_model, n_heads=n_heads, length=length)
    x = torch.randn(2, length, d_model)
    ours, theirs = gradients(both.ours.mixer, x), gradients(both.theirs, x)
    ours["taps"] = ours["taps"].T[:, None]
    names = {"y": "y", "x": "x", "project.weight": "in_proj.weight", "taps": "conv1d.weight", "log_a": "A_log"}
    names |= {"taps_bias": "conv1d.bias", "step_bias": "dt_bias", "skip": "D", "scale": "norm.weight"}
    names |= {"out.weight": "out_proj.weight"}
    assert set(theirs) == set(names.values())
    assert set(ours) - set(names) == {"out.bias"}
    for mine, other in names.items():
        tolerance = 1e-5 if mine in ("y", "x") else 1e-4  # sums over all positions, in float32
        assert (ours[mine] - theirs[other]).norm() <= tolerance * theirs[other].norm(), mine


# Chunks


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_layers_of_several_chunks_match_the_recurrence(length: int, causal: bool) -> None:
    module = mamba2(Mamba2Config(state=7), causal=causal).double()
    x = torch.randn(2, length, 16, dtype=torch.float64)
    mask = torch.rand(2, length) < 0.3
    mask[1, :CHUNK] = True  # a chunk of padding alone
    for hidden in (None, mask):
        real = 1 if hidden is None else ~hidden[..., None]
        ours, literal = module(x, key_padding_mask=hidden), oracle(module, x, hidden)
        torch.testing.assert_close(ours * real, literal * real, atol=1e-9, rtol=1e-9)


# Gates at their ends


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_saturated_steps_stay_finite(bias: float, causal: bool) -> None:
    """A step of 0 neither fades nor adds, so D alone is left; a large one forgets all at once."""
    module = mamba2(Mamba2Config(conv_width=1), causal=causal)
    x = torch.randn(2, 2 * CHUNK, 16)
    with torch.no_grad():
        module.step_bias.fill_(bias)
    found = gradients(module, x)
    assert all(value.isfinite().all() for value in found.values())
    alone = module(x.flatten(0, 1)[:, None]).view_as(x)  # each position as an input of its own
    torch.testing.assert_close(found["y"], alone, atol=1e-4, rtol=1e-4)


def test_one_large_step_forgets_exactly_and_one_of_zero_passes_everything() -> None:
    module = mamba2(Mamba2Config(conv_width=1))
    with torch.no_grad():
        module.project.weight[:, 0] = 0
        module.project.weight[-2:, 0] = 1  # the first feature makes the step and nothing else
    x = torch.randn(1, 2 * CHUNK, 16)
    forgets, passes = CHUNK + 5, CHUNK - 7
    x[:, forgets, 0], x[:, passes, 0] = 1e6, -1e6
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y[:, forgets:].square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[:, :forgets] == 0).all()
    assert (leaf.grad[:, forgets:, 1:].abs().amax(-1) > 0).all()
    changed = x.clone()
    changed[:, passes, 1:] += 1
    difference = (module(changed) - y).abs().amax(-1)[0].nonzero()[:, 0]
    assert difference.tolist() == [passes]
    cut = torch.arange(2 * CHUNK) != passes
    torch.testing.assert_close(module(x[:, cut]), y[:, cut], atol=1e-4, rtol=1e-4)


# Directions


def test_the_scan_back_reads_later_positions_only() -> None:
    """Without the forward scan and D nothing is left at the last position, nor of a change before."""
    module = mamba2(Mamba2Config(conv_width=1), causal=False).double()
    with torch.no_grad():
        module.skip.zero_()
        module.taps[:, 16 + 64 : 16 + 2 * 64] = 0  # C of the forward scan
        module.taps_bias[16 + 64 : 16 + 2 * 64] = 0
        module.out.bias.fill_(3)
    x = torch.randn(1, 2 * CHUNK, 16, dtype=torch.float64)
    before = module(x)
    assert (before[:, -1] - 3).abs().max() < 1e-9
    assert (before[:, :-1] - 3).abs().amax(-1).min() > 1e-3
    x[:, 40] += 1
    changed = (module(x) - before).abs().amax(-1)[0]
    assert (changed[41:] < 1e-9).all()
    assert (changed[:40] > 0).all()


def test_without_the_scan_back_both_forms_are_one() -> None:
    module, causal = (mamba2(Mamba2Config(conv_width=1), causal=causal).double() for causal in (False, True))
    with torch.no_grad():
        module.taps[:, -64:] = 0  # C of the scan back
        module.taps_bias[-64:] = 0
        z, xbc, step = module.project.weight.split(module.sizes)
        causal.project.weight.copy_(torch.cat([z, xbc[: 16 + 2 * 64], step[:2]]))
        causal.taps.copy_(module.taps[:, : 16 + 2 * 64])
        causal.taps_bias.copy_(module.taps_bias[: 16 + 2 * 64])
        for name in ("log_a", "step_bias", "skip", "scale", "out.weight"):
            causal.get_parameter(name).copy_(module.get_parameter(name))
    x = torch.randn(1, 2 * CHUNK, 16, dtype=torch.float64)
    torch.testing.assert_close(module(x), causal(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("width", "causal", "reach"), [(4, True, (3, 0)), (4, False, (1, 2)), (5, False, (2, 2))])
def test_the_convolution_is_centred_in_both_directions(width: int, causal: bool, reach: tuple[int, int]) -> None:
    module = mamba2(Mamba2Config(conv_width=width), causal=causal).double()
    with torch.no_grad():
        module.step_bias.fill_(-1e4)  # nothing but the convolution
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    before = module(x)
    x[:, 10] += 1
    changed = (module(x) - before).abs().amax(-1)[0].nonzero()[:, 0]
    assert changed.tolist() == list(range(10 - reach[1], 10 + reach[0] + 1))


# Steps


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_the_parallel_form(dtype: torch.dtype, width: int) -> None:
    module = mamba2(Mamba2Config(conv_width=width, state=9)).to(dtype)
    x = torch.randn(2, CHUNK + 9, 16, dtype=dtype)
    state, rows = None, []
    for row in x.unbind(1):
        y, state = module.step(row, state)
        rows.append(y)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.stack(rows, 1), module(x), atol=tolerance, rtol=tolerance)
    assert state is not None
    assert state.size == module.cache_size(len(rows)) == 9 * 16 + (width - 1) * (16 + 2 * 9)
    assert state.tensors[1].dtype == torch.float32


# Range and cost


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_sums_of_large_activations_stay_finite(dtype: torch.dtype, causal: bool) -> None:
    module = mamba2(causal=causal, max_len=16_384).to(dtype)
    x = (100 * torch.randn(1, 16_384, 16)).to(dtype).requires_grad_()
    y = module(x)
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_first_steps_and_decays_are_those_of_the_source() -> None:
    module = mamba2(n_heads=512, d_model=512)
    steps, decays = F.softplus(module.step_bias), module.log_a.exp()
    assert steps.min() > 0.000999
    assert steps.max() < 0.1001
    assert steps.log().mean().exp().item() == pytest.approx(0.01, rel=0.2)
    assert 1 <= decays.min() < 1.5
    assert 15.5 < decays.max() <= 16


@pytest.mark.parametrize("causal", [False, True])
def test_cost_is_linear_in_length_and_in_the_state(causal: bool) -> None:
    def flops(length: int, state: int) -> int:
        module = mamba2(Mamba2Config(state=state), causal=causal, max_len=length)
        x = torch.randn(1, length, 16, requires_grad=True)
        return count_flops(lambda: module(x).sum().backward())

    assert flops(8 * CHUNK, 16) == pytest.approx(2 * flops(4 * CHUNK, 16), rel=0.01)
    few, more, most = (flops(4 * CHUNK, state) for state in (16, 32, 48))
    assert most - more == more - few > 0


def test_parameters_are_near_those_of_full() -> None:
    for causal in (False, True):
        module = mamba2(causal=causal, d_model=256, n_heads=4)
        assert 3.5 < sum(p.numel() for p in module.parameters()) / 256**2 < 4.2


@pytest.mark.parametrize("value", [0, -1, 2.5])
@pytest.mark.parametrize("option", ["state", "expand", "conv_width"])
def test_bad_options_are_said(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"mamba2\.{option} must be an integer of at least 1, got {value}"):
        Mamba2Config(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_the_convolution_has_no_more_taps_than_there_are_positions_to_read(causal: bool) -> None:
    module = mamba2(Mamba2Config(conv_width=10**6), causal=causal, max_len=5)
    module(torch.randn(1, 5, 16)).sum().backward()
    assert len(module.taps) == (5 if causal else 9)
    assert module.taps.grad.ne(0).any(-1).all()


@pytest.mark.parametrize("causal", [False, True])
def test_it_starts_by_reading_some_of_all_values(causal: bool) -> None:
    """Weights of either sign say nothing of which values occur, and training starts at a saddle."""
    torch.manual_seed(0)
    backend = build("mamba2", Dims(d_model=64, n_heads=2, max_len=256, causal=causal))
    assert isinstance(backend, Mamba2)
    mixed = backend.project(torch.randn(1, 200, 64)).split(backend.sizes, dim=-1)[1]
    padded, step = F.pad(mixed, (0, 0, *backend.reach)), torch.zeros(1, 200, 2 * backend.directions)
    for c, b, _, _ in backend._sequences(padded, step):
        cosines = F.normalize(c, dim=-1) @ F.normalize(b, dim=-1).mT
        assert cosines.mean() > 0.2  # 0.02 with the authors' taps, drawn around 0
