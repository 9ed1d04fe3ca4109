"""Local attention: its limit, its reach, cost, bad options, agreement with the local-attention package."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.local import pair
from compare.runs.measure import count_flops
from tests.oracles.local import oracle
from zoo.attention.local import LocalAttention, LocalConfig
from zoo.contract import Dims


def attention(window: int, length: int = 60, *, causal: bool = False) -> LocalAttention:
    return LocalAttention(Dims(d_model=16, n_heads=2, max_len=length, causal=causal), LocalConfig(window=window))


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [59, 60, 1000])
def test_a_window_over_the_whole_input_is_full_attention(window: int, causal: bool) -> None:
    q, k, v = qkv()
    ours = attention(window, causal=causal)(q, k, v)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, is_causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 15, 16, 17, 100, 128, 129])
def test_a_query_sees_exactly_its_window(window: int, causal: bool) -> None:
    length = 300
    v = torch.randn(1, 2, length, 8, dtype=torch.float64, requires_grad=True)
    q, k = torch.randn(2, 1, 2, length, 8, dtype=torch.float64)
    out = attention(window, length, causal=causal)(q, k, v)
    for i in (0, 1, 127, 128, 150, 298, 299):
        (seen,) = torch.autograd.grad(out[:, :, i].sum(), v, retain_graph=True)
        last = i if causal else min(length - 1, i + window)
        want = torch.arange(max(0, i - window), last + 1)
        assert torch.equal(seen[0, 0, :, 0].nonzero()[:, 0], want)
        assert torch.equal(seen[0, 1, :, 0].nonzero()[:, 0], want)


def test_error_falls_as_the_window_grows() -> None:
    q, k, v = qkv(200)
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [float((attention(w, 200)(q, k, v) - exact).abs().mean()) for w in (2, 16, 64, 150)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3], errors


@pytest.mark.parametrize("causal", [False, True])
def test_it_costs_its_window_and_not_the_length(causal: bool) -> None:
    def flops(length: int) -> int:
        backend = attention(128, length, causal=causal)
        q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        return count_flops(lambda: backend(q, k, v).sum().backward())

    dense = (2 + 5) * 2 * 2 * 8192**2 * 8
    assert flops(8192) < dense / (25 if causal else 18)
    assert flops(8192) < 2.1 * flops(4096)


def test_kernel_is_named() -> None:
    assert "blocks" in attention(8).kernel(torch.randn(1, 2, 60, 8)).name


@pytest.mark.parametrize("window", [0, -1, 2.5, True])
def test_bad_options_are_said(window: object) -> None:
    with pytest.raises(ValueError, match=rf"local\.window must be an integer of at least 1, got {window}"):
        LocalConfig(window=window)  # type: ignore[arg-type]


# Agreement with the local-attention package


@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients_are_those_of_the_local_attention_package(causal: bool) -> None:
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=1024, causal=causal)[0]
    ours, theirs = found.ours.double(), found.theirs.double()
    x = torch.randn(2, 1024, 64, dtype=torch.float64)
    weight = torch.randn_like(x)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (y * weight).sum().backward()
        results.append([y, leaf.grad])
    results[0] += [ours.mixer.qkv.weight.grad, ours.mixer.out.weight.grad]
    results[1] += [theirs.to_qkv.weight.grad, theirs.to_out.weight.grad]
    for own, other in zip(*results, strict=True):
        assert own.abs().max() > 0
        torch.testing.assert_close(own, other, atol=1e-10, rtol=1e-8)


@torch.no_grad()
def test_the_package_sees_its_own_filling_at_other_lengths_and_ours_does_not() -> None:
    """It fills up to a multiple of its window with keys of 0, which count unless a mask comes along."""
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=512)[0]
    ours, theirs = found.ours.double(), found.theirs.double()
    x = torch.randn(2, 500, 64, dtype=torch.float64)
    everything = torch.ones(2, 500, dtype=torch.bool)
    torch.testing.assert_close(ours(x), theirs(x, mask=everything), atol=1e-10, rtol=1e-8)
    first = 512 - 12 - 256  # the first query that sees a filled key
    assert bool(((ours(x) - theirs(x)).abs() > 1e-4)[:, first:].any(-1).all())
    torch.testing.assert_close(ours(x)[:, :first], theirs(x)[:, :first], atol=1e-10, rtol=1e-8)
    filled = F.pad(x, (0, 0, 0, 12))  # their quirk in ours: keys of 0, because there are no biases
    torch.testing.assert_close(ours(filled)[:, :500], theirs(x), atol=1e-10, rtol=1e-8)


@torch.no_grad()
def test_padding_hides_the_same_keys_in_the_package() -> None:
    torch.manual_seed(0)
    found = pair(d_model=64, n_heads=4, length=512)[0]
    ours, theirs = found.ours.double(), found.theirs.double()
    x = torch.randn(2, 512, 64, dtype=torch.float64)
    padding = torch.rand(2, 512) < 0.3
    own, other = ours(x, key_padding_mask=padding), theirs(x, mask=~padding)
    torch.testing.assert_close(own[~padding], other[~padding], atol=1e-10, rtol=1e-8)


def test_the_oracle_reads_what_the_package_reads() -> None:
    """At a size where the dense matrix is small, so that the two references check each other."""
    torch.manual_seed(0)
    from local_attention import LocalAttention as Theirs

    q, k, v = qkv(40)
    for causal in (False, True):
        theirs: nn.Module = Theirs(8, causal=causal, exact_windowsize=True, use_rotary_pos_emb=False)
        want = oracle(attention(8, 40, causal=causal), q, k, v)
        torch.testing.assert_close(theirs(q, k, v), want, atol=1e-12, rtol=1e-9)
