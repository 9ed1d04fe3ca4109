"""Routing attention: its limit, its centroids in training, and agreement with routing-transformer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.routing import pair
from compare.runs.measure import saved_bytes
from zoo import MultiHeadAttention
from zoo.attention.local import LocalAttention, LocalConfig
from zoo.attention.routing import RoutingAttention, RoutingConfig
from zoo.contract import Dims


def backend(length: int = 60, **options: object) -> RoutingAttention:
    torch.manual_seed(0)
    dims = Dims(d_model=16, n_heads=2, max_len=length)
    return RoutingAttention(dims, RoutingConfig(**options)).double().eval()  # type: ignore[arg-type]


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


# Limits


@pytest.mark.parametrize("window", [60, 500])
def test_one_cluster_is_full_attention(window: int) -> None:
    q, k, v = qkv()
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[0, 20:30] = True
    full = F.scaled_dot_product_attention(q, k, v, ~mask[:, None, None])
    got = backend(window=window)(q, k, v, key_padding_mask=mask)
    real = ~mask[:, None, :, None]
    torch.testing.assert_close(got * real, full * real)


def test_error_falls_with_the_window() -> None:
    """Against full attention, on queries and keys in clear groups, with centroids that k-means has fitted."""
    torch.manual_seed(0)
    centres = 6 * F.normalize(torch.randn(16, 8, dtype=torch.float64), dim=-1)
    q, k = (centres[torch.randint(16, (1, 2, 256))] + 0.1 * torch.randn(1, 2, 256, 8).double() for _ in range(2))
    v = torch.randn(1, 2, 256, 8, dtype=torch.float64)
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = []
    for window in (16, 64, 256):
        routing = backend(256, window=window, decay=0.0).train()
        for _ in range(10):
            routing(q, k, v)
        errors.append(float((routing.eval()(q, k, v) - exact).square().mean()))
    assert errors[0] > errors[1] > errors[2], errors


# Centroids


def test_only_training_moves_the_centroids_and_padding_takes_no_part() -> None:
    q, k, v = qkv()
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[:, 33:] = True
    moved = []
    for content in (0.0, 1e4):
        routing = backend(window=8, decay=0.5)
        before = routing.centroids.clone()
        dirty = [x.masked_fill(mask[:, None, :, None], content) for x in (q, k, v)]
        first = routing(*dirty, key_padding_mask=mask)
        assert torch.equal(routing.centroids, before)
        same = routing.train()(*dirty, key_padding_mask=mask)
        assert torch.equal(first, same), "the centroids moved before they were used"
        moved.append(routing.centroids.clone())
        assert not torch.equal(moved[-1][:, :5], before[:, :5])
        assert torch.equal(moved[-1][:, 5:], before[:, 5:]), "33 positions have 5 clusters"
    torch.testing.assert_close(*moved)


def test_backward_uses_what_the_forward_selected() -> None:
    q, k, v = qkv()
    grads = []
    for decay in (1.0, 0.0):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = backend(window=8, decay=decay).train()(*leaves)
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for kept, replaced in zip(*grads, strict=True):
        assert torch.equal(kept, replaced)


def test_training_lowers_the_distance_to_the_centroids() -> None:
    q, k, v = qkv()
    routing = backend(window=8, decay=0.2).train()

    def nearness() -> float:
        units = F.normalize(torch.cat([q, k], 2), dim=-1)
        means = F.normalize(routing.centroids, dim=-1)
        return float((units @ means.mT).max(-1).values.mean())

    start = nearness()
    for _ in range(20):
        routing(q, k, v)
    assert nearness() > start + 0.05


def test_a_position_that_no_cluster_takes_gets_zero() -> None:
    routing = backend(window=8)
    q, k, v = qkv()
    q[:, :, 7] = -8 * routing.centroids[:, :8].mean(1)  # far from all
    q[:, :, 7] -= q[:, :, :7].mean(2)
    taken = torch.cat([F.normalize(q, dim=-1) @ c for c in routing.centroids[:, :8, :, None].unbind(1)], -1)
    chosen = taken.topk(8, dim=2).indices
    out = routing(q, k, v)
    for b in range(2):
        for h in range(2):
            left_out = set(range(60)) - set(chosen[b, h].flatten().tolist())
            assert left_out
            for t in range(60):
                assert bool((out[b, h, t] == 0).all()) == (t in left_out)


def test_saved_bytes_do_not_depend_on_the_clusters() -> None:
    def saved(window: int) -> int:
        routing = backend(2048, window=window)
        leaves = [x.requires_grad_() for x in qkv(2048)]
        return saved_bytes(lambda: routing(*leaves), routing)

    assert saved(16) < 1.1 * saved(256)


def test_half_of_the_heads_rounded_down_are_local() -> None:
    q, k, v = qkv()
    half = backend(window=9, half_local=True)
    near = LocalAttention(Dims(d_model=16, n_heads=2, max_len=60), LocalConfig(window=4))
    assert half.centroids.shape == (1, 7, 8)
    assert torch.equal(half(q, k, v)[:, :1], near(q, k, v)[:, :1])
    assert half.state_size(60) == 2 * (9 + 9) * 8
    single = RoutingAttention(Dims(d_model=8, n_heads=1, max_len=60), RoutingConfig(half_local=True))
    assert single.near == 0


# The peer


def test_agrees_with_routing_transformer() -> None:
    """Outputs and gradients of input and weights. Its mean divides by count + 1e-5, hence the tolerance."""
    torch.manual_seed(0)
    (both,) = pair(d_model=64, n_heads=4, length=512)
    ours, theirs = both.ours.double(), both.theirs.double()
    x = torch.randn(2, 512, 64, dtype=torch.float64)
    grad = torch.randn_like(x)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(leaf) for layer, leaf in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*outputs, rtol=3e-5, atol=1e-5)
    for out in outputs:
        out.backward(grad)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=3e-5, atol=1e-5)
    inner = theirs.layer
    weights = torch.cat([w.weight.grad for w in (inner.to_q, inner.to_k, inner.to_v)])
    torch.testing.assert_close(ours.mixer.qkv.weight.grad, weights, rtol=3e-5, atol=1e-3)
    torch.testing.assert_close(ours.mixer.out.weight.grad, inner.to_out.weight.grad, rtol=3e-5, atol=1e-3)


def test_one_step_of_k_means_is_that_of_routing_transformer() -> None:
    torch.manual_seed(0)
    (both,) = pair(d_model=64, n_heads=4, length=512)
    ours, theirs = both.ours.double(), both.theirs.double()
    ours.mixer.attention.config = RoutingConfig(window=128, decay=0.999)
    x = torch.randn(2, 512, 64, dtype=torch.float64)
    ours(x)
    theirs(x)
    kmeans = theirs.layer.global_attn.kmeans
    kmeans.update()
    torch.testing.assert_close(ours.mixer.attention.centroids, kmeans.means)


def test_padding_reaches_the_peer_but_not_ours() -> None:
    """Padding may fill the peer's clusters and leave real positions without one."""
    torch.manual_seed(0)
    (both,) = pair(d_model=64, n_heads=4, length=512)
    ours, theirs = both.ours.double().eval(), both.theirs.layer.double().eval()
    mask = torch.zeros(2, 512, dtype=torch.bool)
    mask[:, 300:] = True
    x = torch.randn(2, 512, 64, dtype=torch.float64)
    changed = torch.where(mask[..., None], torch.randn_like(x), x)
    before, after = (ours(y, key_padding_mask=mask) for y in (x, changed))
    torch.testing.assert_close(before, after)
    before, after = (theirs(y, input_mask=~mask)[0] for y in (x, changed))
    assert (before - after)[:, :300].abs().max() > 1e-3


def test_state_dict_holds_the_centroids_of_training() -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(RoutingConfig(window=16), d_model=16, n_heads=2, max_len=64)
    layer(torch.randn(2, 64, 16))
    other = copy.deepcopy(layer)
    other.mixer.redraw()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 64, 16)
    assert torch.equal(layer.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "routing.window must be an integer of at least 1, got 0"),
        ({"window": 2.5}, "routing.window must be an integer of at least 1, got 2.5"),
        ({"decay": 1.5}, "routing.decay must be from 0 to 1, got 1.5"),
        ({"decay": -0.1}, "routing.decay must be from 0 to 1, got -0.1"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingConfig(**options)  # type: ignore[arg-type]
