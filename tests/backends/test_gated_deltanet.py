"""Gated DeltaNet: gates at their ends, directions, chunks, agreement with transformers."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.gated_deltanet import pair
from benchmarks.recall_steps import KEYS, VOCAB, noisy
from compare.runs.measure import count_flops, saved_bytes
from tasks import IGNORE
from tests.oracles.gated_deltanet import oracle
from zoo.attention.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from zoo.contract import Dims
from zoo.cores.recurrences import decayed, delta
from zoo.cores.scan import CHUNK, scan
from zoo.registry import build


def layer(*, d_model: int = 16, n_heads: int = 2, causal: bool = False, conv_width: int = 4) -> GatedDeltaNet:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=n_heads, max_len=16_384, causal=causal)
    backend = build(GatedDeltaNetConfig(conv_width=conv_width), dims)
    assert isinstance(backend, GatedDeltaNet)
    return backend


def with_gates(strength: float, rate: float, *, causal: bool) -> tuple[GatedDeltaNet, Tensor]:
    """A layer with b and a of all positions fixed, and an input for it."""
    backend, x = layer(causal=causal), torch.randn(2, 150, 16)
    x[..., 0] = 1
    with torch.no_grad():
        backend.rates.weight.zero_()
        backend.rates.weight[:, 0] = torch.tensor([strength, strength, rate, rate])
    return backend, x


# Agreement with transformers


@pytest.fixture(params=["qwen3_next", "olmo_hybrid"])
def transformers(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(f"transformers.models.{request.param}.modeling_{request.param}")


@pytest.mark.parametrize("rule", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_the_rule_agrees_with_transformers(rule: str, transformers: ModuleType) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 150, 2, 8)  # batch, positions, heads, width, as theirs
    beta, log_decay = torch.rand(2, 150, 2), -torch.rand(2, 150, 2)
    k = k / k.norm(dim=-1, keepdim=True)
    leaves = [x.requires_grad_() for x in (q, k, v, beta, log_decay)]
    theirs, _ = getattr(transformers, rule)(q, k, v, g=log_decay, beta=beta)
    ours = scan(delta, tuple(x.transpose(1, 2) for x in leaves), (torch.zeros(2, 2, 8, 8),))
    ours = ours.transpose(1, 2) / 8**0.5
    weight = torch.randn_like(ours)
    results = [[y, *torch.autograd.grad((y * weight).sum(), leaves)] for y in (ours, theirs)]
    for mine, other in zip(*results, strict=True):
        assert (mine - other).norm() < 1e-5 * other.norm()


def test_a_training_goes_step_for_step_as_with_the_layer_of_transformers() -> None:
    """One batch of noisy recall from the same weights: what our layer learns, the public one learns too."""
    inputs, targets = noisy(np.random.default_rng(0), 16, seq_len=64, pairs=4)
    losses = []
    for side in ("ours", "theirs"):
        torch.manual_seed(0)
        (both,) = pair(d_model=64, n_heads=2, length=64)
        both.ours.mixer.out.bias.requires_grad_(False)  # they have neither
        both.ours.mixer.strength.requires_grad_(False)
        model = nn.Sequential(nn.Embedding(VOCAB, 64), getattr(both, side), nn.Linear(64, KEYS))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    ours, theirs = losses[:20], losses[20:]
    assert ours[-1] < ours[0] - 0.5
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_the_layer_agrees_with_transformers() -> None:
    """Output, and gradients of the input and of all weights."""
    torch.manual_seed(0)
    (both,) = pair(d_model=32, n_heads=4, length=200)
    x, grad = torch.randn(2, 2, 200, 32)
    mask = torch.zeros(2, 200, dtype=torch.bool)
    mask[1, 150:] = True
    results = []
    for module in (both.ours, both.theirs):
        leaf = x.clone().requires_grad_()
        y = module(leaf, key_padding_mask=mask).masked_fill(mask[..., None], 0)
        y.backward(grad)
        results.append([y.detach(), leaf.grad])
    ours, theirs = both.ours.mixer, both.theirs.layer
    results[0] += [p.grad for p in (ours.out.weight, ours.norm, ours.log_rate, ours.offset)]
    results[1] += [p.grad for p in (theirs.out_proj.weight, theirs.norm.weight, theirs.A_log, theirs.dt_bias)]
    taps = theirs.conv1d.weight.grad.view(3, 4, 8, 4).permute(3, 1, 0, 2).flatten(2)
    results[0].append(ours.conv.grad[:, :, 0])
    results[1].append(taps)
    for mine, other in zip(*results, strict=True):
        assert (mine - other).norm() < 1e-4 * other.norm()


# Gates


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("strength", [-200.0, 200.0])
@pytest.mark.parametrize("rate", [-200.0, 1e5])
def test_gates_at_their_ends_are_finite(strength: float, rate: float, causal: bool) -> None:
    backend, x = with_gates(strength, rate, causal=causal)
    beta, log_decay, _ = backend._sequences(x)
    assert (beta == (strength > 0)).all()
    assert (log_decay.exp() == (rate < 0)).all()
    x.requires_grad_()
    y = backend(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    for grad in (x.grad, *(p.grad for p in backend.parameters())):
        assert grad is not None
        assert grad.isfinite().all()
    if strength < 0:
        torch.testing.assert_close(y, backend.out.bias.expand_as(y))  # nothing was ever written


@pytest.mark.parametrize("causal", [False, True])
def test_a_memory_that_forgets_all_leaves_each_position_the_reach_of_the_convolution(causal: bool) -> None:
    backend, x = with_gates(0.0, 1e5, causal=causal)
    changed = x.clone()
    changed[:, 70, 1:] = torch.randn(2, 15)
    moved = (backend(changed) - backend(x)).abs().amax((0, 2)).nonzero()[:, 0].tolist()
    assert moved == list(range(70 if causal else 67, 74))


def test_without_decay_it_is_deltanet() -> None:
    """arXiv:2406.06484, section 2: S_t = S_{t-1} - β_t (S_{t-1} k_t - v_t) k_tᵀ."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 150, 8, dtype=torch.float64)
    k, beta = k / k.norm(dim=-1, keepdim=True), torch.rand(1, 1, 150, dtype=torch.float64)
    out = scan(delta, (q, k, v, beta, 0 * beta), (torch.zeros(1, 1, 8, 8, dtype=torch.float64),))
    S = torch.zeros(8, 8, dtype=torch.float64)
    for t in range(150):
        key, value = k[0, 0, t], v[0, 0, t]
        S = S - beta[0, 0, t] * torch.outer(S @ key - value, key)
        torch.testing.assert_close(out[0, 0, t], S @ q[0, 0, t])


def test_while_keys_are_at_right_angles_it_is_linear_attention() -> None:
    """Nothing is there to be replaced; from the first key that comes again, it is."""
    torch.manual_seed(0)
    q, v = torch.randn(2, 1, 1, 40, 32, dtype=torch.float64)
    k = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q.repeat(2, 1)[None, None, :40]
    one, state = torch.ones(1, 1, 40, dtype=torch.float64), (torch.zeros(1, 1, 32, 32, dtype=torch.float64),)
    replaced = scan(delta, (q, k, v, one, -0.1 * one), state)
    added = scan(decayed, (q, k, v, -0.1 * one), state)
    torch.testing.assert_close(replaced[:, :, :32], added[:, :, :32])
    assert ((replaced - added)[:, :, 32:].abs().amax(-1) > 0.01).all()


# Directions and chunks


def test_in_both_directions_a_reversed_input_gives_a_reversed_output() -> None:
    backend, x = layer(), torch.randn(2, 150, 16)
    torch.testing.assert_close(backend(x.flip(1)), backend(x).flip(1))
    backend.causal = True
    assert (backend(x.flip(1)) - backend(x).flip(1)).abs().max() > 0.01


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 2])
def test_chunks_and_the_convolution_across_them_are_the_recurrence(length: int, causal: bool, padded: bool) -> None:
    backend = layer(causal=causal).double()
    x = torch.randn(2, length, 16, dtype=torch.float64)
    mask = torch.rand(2, length) < 0.3 if padded else torch.zeros(2, length, dtype=torch.bool)
    if padded:
        mask[0, CHUNK - 6 : CHUNK + 2] = True
    real = ~mask[..., None]
    torch.testing.assert_close(backend(x, key_padding_mask=mask) * real, oracle(backend, x, mask) * real)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_inputs_of_low_precision_and_a_hundred_times_the_size_stay_finite(
    dtype: torch.dtype, causal: bool
) -> None:
    backend = layer(causal=causal).to(dtype)
    x = (100 * torch.randn(1, 4096, 16)).to(dtype).requires_grad_()
    y = backend(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_float32_holds_over_a_long_input(causal: bool) -> None:
    backend, x = layer(causal=causal), torch.randn(1, 4096, 16)
    low = backend(x)
    high = backend.double()(x.double())
    assert (low - high).norm() < 1e-5 * high.norm()


# Cost


@pytest.mark.parametrize("causal", [False, True])
def test_no_more_is_kept_than_what_the_linear_maps_need_and_some_states(causal: bool) -> None:
    def saved(length: int) -> int:
        backend, x = layer(d_model=128, causal=causal), torch.randn(1, length, 128, requires_grad=True)
        return saved_bytes(lambda: backend(x), backend)

    one = 4096 * 128 * 4
    # x, q, k and v, the gate, what was read, what goes into ``out``; states at a quarter of q, k and v a direction.
    assert saved(4096) < (7 + (1 if causal else 2) * 3 / 4 + 0.2) * one
    assert saved(4096) < 2.01 * saved(2048)


@pytest.mark.parametrize("causal", [False, True])
def test_far_fewer_operations_than_full_attention(causal: bool) -> None:
    def flops(length: int) -> int:
        backend, x = layer(d_model=64, n_heads=1, causal=causal), torch.randn(1, length, 64, requires_grad=True)
        return count_flops(lambda: backend(x).sum().backward())

    assert 1.98 < flops(1024) / flops(512) < 2.02
    full = 7 * 2 * 8192**2 * 64  # two products forward, five backward
    assert 8 * flops(1024) < full / 8


def test_state_size_counts_what_a_query_reads() -> None:
    for width in (1, 4, 7):
        causal, both = (layer(causal=causal, conv_width=width) for causal in (True, False))
        kept = sum(x[0].numel() for x in causal.begin(torch.randn(3, 16)))
        assert causal.state_size(100) == causal.cache_size(100) == kept
        assert both.state_size(100) == 2 * kept


@pytest.mark.parametrize("conv_width", [0, -1, 2.5])
def test_bad_options_are_said(conv_width: object) -> None:
    expected = rf"gated_deltanet\.conv_width must be an integer of at least 1, got {conv_width}"
    with pytest.raises(ValueError, match=expected):
        GatedDeltaNetConfig(conv_width=conv_width)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_a_convolution_has_no_more_taps_than_there_are_positions(causal: bool) -> None:
    backend = build(GatedDeltaNetConfig(conv_width=10**6), Dims(d_model=8, n_heads=2, max_len=5, causal=causal))
    backend(torch.randn(1, 5, 8)).sum().backward()
    assert len(backend.conv) == 5
    assert backend.conv.grad[:, 0, 0].ne(0).any(-1).all()


@pytest.mark.parametrize("causal", [False, True])
def test_it_starts_by_reading_some_of_all_values(causal: bool) -> None:
    """Weights of either sign say nothing of which values occur; a large β erases at once what all keys share."""
    backend = layer(d_model=64, causal=causal)
    q, k, _, beta, _ = backend._plain(*backend._sequences(torch.randn(1, 200, 64)))
    cosines = q @ k.mT * q.shape[-1] ** 0.5
    assert cosines.mean() > 0.2  # 0.02 with the authors' taps, drawn around 0
    assert 0.01 < beta.mean() < 0.05
