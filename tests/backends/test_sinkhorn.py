"""Sinkhorn attention: its limit, its sort, and agreement with sinkhorn-transformer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.sinkhorn import pair
from zoo.attention.sinkhorn import SinkhornAttention, SinkhornConfig
from zoo.contract import Dims


def backend(*, causal: bool = False, **options: object) -> SinkhornAttention:
    dims = Dims(d_model=16, n_heads=2, max_len=1024, causal=causal)
    return SinkhornAttention(dims, SinkhornConfig(**options))  # type: ignore[arg-type]


def qkv(length: int = 60) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


# Limits


@pytest.mark.parametrize("sort", ["soft", "top"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [60, 500])
def test_one_bucket_is_full_attention(sort: str, causal: bool, size: int) -> None:
    """Non-causal it stands beside itself, so that every key counts twice: the same softmax."""
    q, k, v = qkv()
    full = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    got = backend(bucket_size=size, sort=sort, causal=causal)(q, k, v)
    torch.testing.assert_close(got, full)


def test_error_falls_with_the_bucket() -> None:
    torch.manual_seed(0)
    q, k, v = qkv(256)
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [float((backend(bucket_size=s)(q, k, v) - exact).square().mean()) for s in (8, 32, 128, 256)]
    assert errors == sorted(errors, reverse=True), errors
    assert errors[-1] < 1e-9


# The sort


def sharp(length: int = 64, size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Buckets whose queries ask for one other bucket each, a permutation: q, k, v and the permutation."""
    n = length // size
    asked = torch.randperm(n)
    codes = 6 * torch.eye(n, dtype=torch.float64)
    k = codes.repeat_interleave(size, 0)[None, None].expand(2, 2, -1, -1)
    q = codes[asked].repeat_interleave(size, 0)[None, None].expand(2, 2, -1, -1)
    return q, k, torch.randn(2, 2, length, 8, dtype=torch.float64), asked


@pytest.mark.parametrize("sort", ["soft", "top"])
def test_a_bucket_attends_to_itself_and_to_the_one_that_it_asks_for(sort: str) -> None:
    q, k, v, asked = sharp()
    got = backend(bucket_size=8, sort=sort, temperature=0.3)(q, k, v)
    for u, w in enumerate(asked.tolist()):
        seen = [*range(8 * w, 8 * w + 8), *range(8 * u, 8 * u + 8)]
        want = F.scaled_dot_product_attention(q[:, :, 8 * u : 8 * u + 8], k[:, :, seen], v[:, :, seen])
        torch.testing.assert_close(got[:, :, 8 * u : 8 * u + 8], want, rtol=1e-3, atol=1e-3)


def test_the_balanced_matrix_is_doubly_stochastic() -> None:
    scores = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    R = backend(iterations=50)._balance(scores, None)
    torch.testing.assert_close(R.sum(-1), torch.ones(1, 1, 12).double())
    torch.testing.assert_close(R.sum(-2), torch.ones(1, 1, 12).double())


def test_the_causal_matrix_takes_from_the_past_and_does_not_know_what_follows() -> None:
    past = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    scores = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    causal = backend(causal=True)
    R = causal._balance(scores, past)
    assert (R[..., ~past] == 0).all()
    assert (R[..., 1:, :].sum(-1) > 0).all()
    later = scores.clone()
    later[..., 7:, :] = torch.rand(5, 12, dtype=torch.float64)
    changed = causal._balance(later, past)
    torch.testing.assert_close(changed[..., :7, :], R[..., :7, :])
    assert not torch.allclose(changed[..., 7:, :], R[..., 7:, :])


@pytest.mark.parametrize("sort", ["soft", "top"])
def test_buckets_of_padding_take_no_part(sort: str) -> None:
    """Bucket 2 is padding alone: nothing of it is sorted in, and what remains is as if it were not there."""
    q, k, v = qkv(40)
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[:, 16:24] = True
    left = [*range(16), *range(24, 40)]
    sinkhorn = backend(bucket_size=8, sort=sort)
    got = sinkhorn(q, k, v, key_padding_mask=mask)[:, :, left]
    torch.testing.assert_close(got, sinkhorn(*(x[:, :, left] for x in (q, k, v))))


# The peer


@pytest.mark.parametrize("which", [0, 1], ids=["top", "soft"])
def test_agrees_with_sinkhorn_transformer(which: int) -> None:
    """Outputs and gradients of input and weights; keys and values share their weights (see the pair)."""
    torch.manual_seed(0)
    both = pair(d_model=64, n_heads=4, length=512)[which]
    ours, theirs = both.ours.double(), both.theirs.double()
    x = torch.randn(2, 512, 64, dtype=torch.float64)
    grad = torch.randn_like(x)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(leaf) for layer, leaf in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*outputs)
    for out in outputs:
        out.backward(grad)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    inner = theirs.layer if which else theirs
    queries, keys, values = ours.mixer.qkv.weight.grad.chunk(3)
    their_keys, their_values = inner.to_kv.weight.grad.chunk(2)
    torch.testing.assert_close(queries, inner.to_q.weight.grad)
    torch.testing.assert_close(keys + values, their_keys + their_values)
    torch.testing.assert_close(ours.mixer.out.weight.grad, inner.to_out.weight.grad)


def test_the_peer_sorts_keys_where_values_belong() -> None:
    """Its ``b_v_r = b_k_r``. With values of their own it differs from ours, and equals the sort of the keys."""
    torch.manual_seed(0)
    both = pair(d_model=64, n_heads=4, length=512)[0]
    q, k, v = (torch.randn(2, 4, 512, 16, dtype=torch.float64) for _ in range(3))
    theirs = both.theirs.sinkhorn_attention.double()(q, k, v)
    ours = both.ours.mixer.attention
    assert (ours(q, k, v) - theirs).abs().max() > 0.01
    size = ours.config.bucket_size
    picked = [x.view(2, 4, -1, size, 16) for x in (q, k, v)]
    scores = picked[0].mean(3) @ picked[1].mean(3).mT / 4
    weight, best = scores.softmax(-1).max(-1)
    index = best[..., None, None].expand(-1, -1, -1, size, 16)
    moved = picked[1].gather(2, index) * weight[..., None, None]
    want = F.scaled_dot_product_attention(picked[0], torch.cat([moved, picked[1]], 3), torch.cat([moved, picked[2]], 3))
    torch.testing.assert_close(theirs, want.flatten(2, 3))


def test_padding_reaches_the_peer_but_not_ours() -> None:
    """Its bucket means take padding in."""
    torch.manual_seed(0)
    both = pair(d_model=64, n_heads=4, length=512)[0]
    ours, theirs = both.ours.double(), both.theirs.double()
    mask = torch.zeros(2, 512, dtype=torch.bool)
    mask[:, 300:] = True
    x = torch.randn(2, 512, 64, dtype=torch.float64)
    dirty = x.masked_fill(mask[..., None], 10.0)
    torch.testing.assert_close(ours(x, key_padding_mask=mask), ours(dirty, key_padding_mask=mask))
    before, after = (theirs(y, input_mask=~mask)[:, :300] for y in (x, dirty))
    assert (before - after).abs().max() > 1e-3


def test_the_peer_takes_multiples_of_the_bucket_only() -> None:
    torch.manual_seed(0)
    both = pair(d_model=64, n_heads=4, length=512)[0]
    x = torch.randn(2, 500, 64)
    assert both.ours(x).isfinite().all()
    with pytest.raises(AssertionError, match="divisible by bucket size"):
        both.theirs(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_size": 0}, "sinkhorn.bucket_size must be an integer of at least 1, got 0"),
        ({"bucket_size": 2.5}, "sinkhorn.bucket_size must be an integer of at least 1, got 2.5"),
        ({"iterations": -1}, "sinkhorn.iterations must be an integer of at least 1, got -1"),
        ({"sort": "bubble"}, "sinkhorn.sort must be one of soft, top; got 'bubble'"),
        ({"temperature": 0}, "sinkhorn.temperature must be above 0, got 0"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SinkhornConfig(**options)  # type: ignore[arg-type]
