"""Big Bird: its limit, layouts, cost, bad options, agreement with transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.peers.bigbird import BLOCK, N_RANDOM, Layer, copy_weights, pair, their_config, without_random
from compare.runs.measure import count_flops
from zoo import MultiHeadAttention
from zoo.attention.bigbird import BigBirdAttention, BigBirdConfig
from zoo.contract import Dims
from zoo.cores.blocks import attend
from zoo.cores.parts import Group, Part, layout_groups


def attention(length: int = 60, *, causal: bool = False, n_heads: int = 2, **options: int) -> BigBirdAttention:
    dims = Dims(d_model=8 * n_heads, n_heads=n_heads, max_len=length, causal=causal)
    return BigBirdAttention(dims, BigBirdConfig(**options))


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


# Limits


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 8, "window": 15},
        {"block_size": 8, "n_global": 8},
        {"block_size": 8, "n_global": 1000},
        {"block_size": 8, "n_random": 1000},
        {"block_size": 1000},
        {"block_size": 8, "window": 1001, "n_global": 0, "n_random": 0},
    ],
    ids=str,
)
def test_with_all_blocks_it_is_full_attention(options: dict[str, int], causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = qkv()
    backend = attention(causal=causal, **options)
    if options.get("n_random") == 1000 and not causal:  # random blocks of row i lie below twice i
        backend.layout.fill_(True)
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def test_error_falls_with_more_random_blocks() -> None:
    torch.manual_seed(0)
    q, k, v = qkv(512)
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = []
    for n_random in (0, 8, 32):
        backend = attention(512, block_size=8, window=1, n_global=1, n_random=n_random)
        errors.append(float((backend(q, k, v) - exact).abs().mean()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2], errors


# Layout


@pytest.mark.parametrize("causal", [False, True])
def test_each_head_has_a_window_leading_global_blocks_and_random_blocks_of_its_own(causal: bool) -> None:
    torch.manual_seed(0)
    layout = attention(400, causal=causal, n_heads=4, block_size=4, window=5, n_global=2, n_random=3).layout
    assert layout.shape == (4, 100, 100)
    row = torch.arange(100)
    fixed = (row[:, None] - row).abs() <= 2
    fixed[:2] = fixed[:, :2] = True
    if causal:
        fixed = fixed.tril()
        assert not layout.triu(1).any()
    assert layout[:, fixed].all()
    random = layout & ~fixed
    assert (random[:, 9:].sum(-1) == 3).all()
    for head in range(1, 4):
        assert (random[head] != random[0]).any(-1)[9:].float().mean() > 0.9


def test_random_blocks_lie_anywhere_and_half_of_them_survive_in_shorter_inputs() -> None:
    torch.manual_seed(0)
    layout = attention(1024, n_heads=8, block_size=4, window=1, n_global=0, n_random=3).layout
    random = layout & ~torch.eye(256, dtype=torch.bool)
    assert random.any(0).any(0)[:250].all()
    for blocks in (16, 64, 128):
        kept = random[:, 2:blocks, :blocks].sum().item()
        drawn = random[:, 2:blocks].sum().item()
        assert kept > drawn / 2
        assert kept < drawn


def test_a_shorter_input_sees_what_the_layout_shows_of_it() -> None:
    torch.manual_seed(0)
    backend = attention(200, block_size=8)
    q, k, v = qkv(77)
    dense = backend.layout.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :77, :77]
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, attn_mask=dense))


def test_redraw_draws_other_random_blocks_from_the_global_generator() -> None:
    torch.manual_seed(0)
    backend = attention(400, block_size=4)
    first = backend.layout.clone()
    q, k, v = qkv(400)
    before = backend(q, k, v)
    backend.redraw()
    assert not torch.equal(backend.layout, first)
    assert not torch.allclose(backend(q, k, v), before)
    assert torch.equal(backend.layout.sum(-1)[:, 9:], first.sum(-1)[:, 9:])
    torch.manual_seed(0)
    backend.redraw()
    assert torch.equal(backend.layout, first)
    torch.testing.assert_close(backend(q, k, v), before)


# Cost, options


@pytest.mark.parametrize("causal", [False, True])
def test_it_costs_its_blocks_and_not_the_length(causal: bool) -> None:
    backend = attention(8192, causal=causal)
    q, k, v = (torch.randn(1, 2, 8192, 8, requires_grad=True) for _ in range(3))
    dense = (2 + 5) * 2 * 2 * 8192**2 * 8
    assert count_flops(lambda: backend(q, k, v).sum().backward()) < dense / 10


def test_kernel_is_named() -> None:
    assert "blocks" in attention().kernel(torch.randn(1, 2, 60, 8)).name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, r"bigbird\.block_size must be an integer of at least 1, got 0"),
        ({"block_size": 2.5}, r"bigbird\.block_size must be an integer of at least 1, got 2\.5"),
        ({"window": -1}, r"bigbird\.window must be an integer of at least 1, got -1"),
        ({"window": 4}, r"bigbird\.window must be odd .*got 4"),
        ({"n_global": -1}, r"bigbird\.n_global must be an integer of at least 0, got -1"),
        ({"n_random": -1}, r"bigbird\.n_random must be an integer of at least 0, got -1"),
        ({"n_random": 0.5}, r"bigbird\.n_random must be an integer of at least 0, got 0\.5"),
    ],
)
def test_bad_options_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigBirdConfig(**options)


# Agreement with transformers


def results(layer: torch.nn.Module, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Output at real positions, and gradients of the input and of each projection."""
    leaf = x.clone().requires_grad_()
    y = layer(leaf, key_padding_mask=mask)
    shown = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else ~mask
    (y[shown] * torch.linspace(-1, 1, y[shown].numel(), dtype=x.dtype).view(-1, x.shape[-1])).sum().backward()
    if isinstance(layer, MultiHeadAttention):
        inputs, out = [layer.mixer.qkv], layer.mixer.out
    else:
        inputs, out = [layer.attention.query, layer.attention.key, layer.attention.value], layer.out
    weight, bias = (torch.cat([getattr(linear, which).grad for linear in inputs]) for which in ("weight", "bias"))
    return [y[shown], leaf.grad, weight, bias, out.weight.grad, out.bias.grad]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [768, 1024])
def test_outputs_and_gradients_are_those_of_transformers(length: int, padded: bool) -> None:
    """With its layout; padding anywhere."""
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=length)[0]
    ours, theirs = found.ours.double(), found.theirs.double()
    x = torch.randn(2, length, 64, dtype=torch.float64)
    mask = torch.rand(2, length) < 0.3 if padded else None
    for own, other in zip(results(ours, x, mask), results(theirs, x, mask), strict=True):
        assert own.abs().max() > 0
        torch.testing.assert_close(own, other, atol=1e-9, rtol=1e-8)


def test_the_pair_has_random_blocks_of_its_own_in_each_head() -> None:
    found = pair(d_model=64, n_heads=4, length=1024)[0]
    random = found.ours.mixer.attention.layout & ~without_random(16)
    assert (random.sum(-1)[:, 1:-1] == N_RANDOM).all()
    assert not torch.equal(random[0], random[1])


def raw(ours: MultiHeadAttention, drawn: list[Any]) -> Layer:
    """Their layer as it comes; ``drawn`` collects the random blocks that it draws, (blocks − 2, 3) a head."""
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    class Recorded(BigBirdBlockSparseAttention):
        def _bigbird_block_rand_mask(self, *args: Any, **kwargs: Any) -> Any:
            drawn.append(super()._bigbird_block_rand_mask(*args, **kwargs))
            return drawn[-1]

    layer = Layer(Recorded(their_config(64, 4), seed=3), 64)
    copy_weights(ours, layer)
    return layer.double()


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_transformers_counts_blocks_twice_that_it_draws_twice_and_ours_does_not(training: bool) -> None:
    """At 1,024 it may draw the last block, which is global; at evaluation it draws block 0 three times in every row.

    Ours has a set of blocks. Its core, given one part more for each random block, gives what transformers gives.
    """
    torch.manual_seed(0)
    ours = MultiHeadAttention(BigBirdConfig(), d_model=64, n_heads=4, max_len=1024).double()
    drawn: list[Any] = []
    theirs = raw(ours, drawn).train(training)
    x = torch.randn(2, 1024, 64, dtype=torch.float64)
    want = theirs(x)
    chosen = torch.stack([torch.as_tensor(head[:14]) for head in drawn])  # (H, blocks − 2, 3)
    fixed = without_random(16)
    repeated = fixed[1:-1].expand(4, -1, -1).gather(-1, chosen.long())
    assert repeated.any()
    assert repeated.all() == (not training)
    if not training:
        assert (chosen == 0).all()

    layout = fixed.repeat(4, 1, 1)
    layout[:, 1:-1].scatter_(-1, chosen.long(), True)
    ours.mixer.attention.layout.copy_(layout)
    assert (ours(x) - want).norm() > 0.01 * want.norm()

    q, k, v = rearrange(ours.mixer.qkv(x), "b n (i h d) -> i b h n d", i=3, h=4)
    base = 16 * torch.arange(4)[:, None]
    rows = (base + torch.arange(1, 15)).flatten()
    parts = [Part(groups=layout_groups(fixed, 4, BLOCK, {}), size=BLOCK)]
    for number in range(N_RANDOM):
        columns = (base + chosen[..., number]).flatten()[:, None]
        parts.append(Part(groups=[Group(rows=rows, columns=columns)], size=BLOCK))
    counted = ours.mixer.out(rearrange(attend(q, k, v, parts), "b h n d -> b n (h d)"))
    torch.testing.assert_close(counted, want, atol=1e-10, rtol=1e-8)


@torch.no_grad()
def test_padding_moves_the_last_global_block_of_transformers_and_nothing_in_ours() -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(BigBirdConfig(), d_model=64, n_heads=4, max_len=1024).double()
    theirs = raw(ours, []).eval()
    x = torch.randn(2, 1024, 64, dtype=torch.float64)
    mask = (torch.arange(1024) >= 896).expand(2, -1)
    for layer, moves in ((ours, False), (theirs, True)):
        short, long = layer(x[:, :896]), layer(x, key_padding_mask=mask)[:, :896]
        assert torch.allclose(short, long, atol=1e-9) != moves


@torch.no_grad()
def test_transformers_wants_whole_blocks_and_ours_takes_any_length() -> None:
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=1024)[0]
    ours, theirs = found.ours.double(), found.theirs.double()
    x = torch.randn(2, 1024, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match="multiple of block size"):
        theirs(x[:, :1000])
    mask = (torch.arange(1024) >= 1000).expand(2, -1)
    want = theirs(x, key_padding_mask=mask)[:, :1000]
    torch.testing.assert_close(ours(x[:, :1000]), want, atol=1e-9, rtol=1e-8)
