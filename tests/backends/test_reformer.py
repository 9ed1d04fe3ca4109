"""Reformer: its limits, bad options, agreement with reformer-pytorch and with transformers.

Both packages lay the chunks of all rounds in one circle, so the first chunk of a round also sees the last chunk of the
round before it; ours lets it see its own chunk alone. ``dense`` below is the layer with and without that, and the
packages equal the one, ours the other.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.reformer import BUCKET, HASHES, SEED, pair
from zoo import MultiHeadAttention
from zoo.attention.reformer import ReformerAttention, ReformerConfig
from zoo.contract import Dims


def attention(config: ReformerConfig, length: int = 60, *, causal: bool = False) -> ReformerAttention:
    return ReformerAttention(Dims(d_model=16, n_heads=2, max_len=length, causal=causal), config).double()


def qv(length: int = 60) -> tuple[Tensor, Tensor]:
    q, v = (torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(2))
    return q, v


@pytest.mark.parametrize("causal", [False, True])
def test_in_one_bucket_it_is_full_attention_without_self(causal: bool) -> None:
    backend = attention(ReformerConfig(bucket_size=64), causal=causal)
    q, v = qv()
    logits = q @ F.normalize(q, dim=-1).mT
    logits = logits.masked_fill(torch.eye(60, dtype=torch.bool), -1e5)
    if causal:
        logits = logits.masked_fill(torch.ones(60, 60, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(backend(q, q, v), logits.softmax(-1) @ v)


@pytest.mark.parametrize("n_hashes", [2, 3, 4])
def test_a_position_that_sees_itself_alone_gets_its_own_value(n_hashes: int) -> None:
    """In float32 too, where a logit of -1e5 has two digits behind the point."""
    torch.manual_seed(0)
    q, v = (x.float() for x in qv())
    out = attention(ReformerConfig(bucket_size=4, n_hashes=n_hashes), causal=True).float()(q, q, v)
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0], atol=1e-5, rtol=1e-5)


def test_error_falls_with_more_hashes() -> None:
    """Against full attention over shared queries, on inputs with clear neighbours."""
    torch.manual_seed(0)
    centres = 6 * F.normalize(torch.randn(16, 8, dtype=torch.float64), dim=-1)
    q = centres[torch.randint(16, (1, 2, 256))] + 0.1 * torch.randn(1, 2, 256, 8, dtype=torch.float64)
    v = torch.randn(1, 2, 256, 8, dtype=torch.float64)
    logits = (q @ F.normalize(q, dim=-1).mT).masked_fill(torch.eye(256, dtype=torch.bool), -1e5)
    exact = logits.softmax(-1) @ v
    errors = []
    for n_hashes in (1, 4, 16):
        backend = attention(ReformerConfig(bucket_size=16, n_hashes=n_hashes), 256)
        errors.append(float((backend(q, q, v) - exact).abs().mean()))
    assert errors[0] > errors[1] > errors[2], errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReformerConfig(n_hashes=-1), "reformer.n_hashes must be an integer of at least 1, got -1"),
        (lambda: ReformerConfig(bucket_size=0), "reformer.bucket_size must be an integer of at least 1"),
    ],
)
def test_bad_options_are_said(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bucket_larger_than_the_input_is_merely_unusual() -> None:
    q, v = qv()
    out = attention(ReformerConfig(bucket_size=500))(q, q, v)
    assert out.isfinite().all()
    assert out.std().item() > 0


# Agreement with reformer-pytorch and transformers

LENGTH, D_MODEL, N_HEADS = 256, 32, 2
D_HEAD = D_MODEL // N_HEADS


def dense(layer: MultiHeadAttention, x: Tensor, *, circle: bool, epsilon: float = 0.0) -> Tensor:
    """The whole layer with ``layer``'s weights: pairs counted over the rounds, one softmax over all.

    Args:
        circle: the first chunk of a round sees the last chunk of the round before it.
        epsilon: added to the mean square of a query before its key is divided by the root.
    """
    q, v = layer.mixer.qkv(x).unflatten(-1, (2, N_HEADS, D_HEAD)).permute(2, 0, 3, 1, 4)
    rotations = layer.mixer.attention.rotations  # (rounds, H, D, half)
    rotated = torch.einsum("bhnd,rhdc->bhrnc", q.detach(), rotations[..., : LENGTH // BUCKET // 2])
    buckets = torch.cat([rotated, -rotated], dim=-1).argmax(-1)
    chunks = buckets.argsort(stable=True).unflatten(-1, (-1, BUCKET)).flatten(2, 3)  # (B, H, rounds * chunks, S)
    before = chunks.roll(1, dims=2)
    times = torch.zeros(*q.shape[:2], LENGTH, LENGTH, dtype=x.dtype)
    for b, h, c in torch.cartesian_prod(*map(torch.arange, chunks.shape[:3])).tolist():
        times[b, h, chunks[b, h, c, :, None], chunks[b, h, c]] += 1
        if circle or c % (LENGTH // BUCKET):
            times[b, h, chunks[b, h, c, :, None], before[b, h, c]] += 1
    keys = q * (q.square().mean(-1, keepdim=True) + epsilon).rsqrt() * D_HEAD**-0.5
    logits = (q @ keys.mT).masked_fill(torch.eye(LENGTH, dtype=torch.bool), -1e5) + times.log()
    return layer.mixer.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def in_float64(package: str) -> tuple[MultiHeadAttention, nn.Module]:
    """The adapter's pair in float64, where the same seed gives the peer other rotations than in float32."""
    torch.manual_seed(1)
    found = next(p for p in pair(d_model=D_MODEL, n_heads=N_HEADS, length=LENGTH) if p.package == package)
    ours, theirs = found.ours.double(), found.theirs.double()
    sets = N_HEADS if package == "transformers" else 1
    torch.manual_seed(SEED)
    drawn = torch.randn(sets, D_HEAD, HASHES, LENGTH // BUCKET // 2, dtype=torch.float64)
    ours.mixer.attention.rotations.copy_(drawn.permute(2, 0, 1, 3))
    return ours, theirs


def output_and_gradients(compute: Callable[[Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Output, and the gradients of the input and of ``weights``."""
    x = x.clone().requires_grad_()
    y = compute(x)
    grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    return [y, *torch.autograd.grad(y, [x, *weights], grad)]


def our_weights(layer: nn.Module) -> list[Tensor]:
    return [layer.mixer.qkv.weight, layer.mixer.out.weight, layer.mixer.out.bias]


@pytest.mark.parametrize("package", ["reformer-pytorch", "transformers"])
def test_both_packages_are_the_dense_layer_on_a_circle_and_ours_is_the_one_without(package: str) -> None:
    ours, theirs = in_float64(package)
    x = torch.randn(2, LENGTH, D_MODEL, dtype=torch.float64)
    weights = our_weights(ours)
    straight = output_and_gradients(lambda x: dense(ours, x, circle=False), x, weights)
    for own, literal in zip(output_and_gradients(ours, x, weights), straight, strict=True):
        torch.testing.assert_close(own, literal, atol=1e-10, rtol=1e-8)

    # transformers adds 1e-6 to the mean square of a query; reformer-pytorch scales its queries, ours do not.
    epsilon, scale = (1e-6, 1.0) if package == "transformers" else (0.0, D_HEAD**0.5)
    circle = output_and_gradients(lambda x: dense(ours, x, circle=True, epsilon=epsilon), x, weights)
    if package == "transformers":
        inner, out = theirs.attention, theirs.out
        their_weights = [inner.query_key.weight, inner.value.weight, out.weight, out.bias]
    else:
        inner = theirs.layer
        their_weights = [inner.toqk.weight, inner.tov.weight, inner.to_out.weight, inner.to_out.bias]
    y, dx, d_query, d_value, *rest = output_and_gradients(theirs, x, their_weights)
    other = [y, dx, torch.cat([scale * d_query, d_value]), *rest]
    for own, literal in zip(other, circle, strict=True):
        torch.testing.assert_close(own, literal, atol=1e-10, rtol=1e-8)

    assert (circle[0] - straight[0]).norm() / straight[0].norm() > 0.01, "the circle makes no difference here"


def test_the_benchmark_would_see_other_rotations() -> None:
    """The circle is within the pair's tolerance; another draw of the rotations is not."""
    torch.manual_seed(0)
    for found in pair(d_model=D_MODEL, n_heads=N_HEADS, length=1024):
        x = torch.randn(1, 1024, D_MODEL)
        with torch.no_grad():
            theirs, ours = found.theirs(x), found.ours(x)
            found.ours.mixer.redraw()
            redrawn = found.ours(x)
        assert (ours - theirs).norm() / theirs.norm() < found.tolerance
        assert (redrawn - theirs).norm() / theirs.norm() > found.tolerance


def test_reformer_pytorch_refuses_lengths_that_ours_takes() -> None:
    found = pair(d_model=D_MODEL, n_heads=N_HEADS, length=LENGTH)[0]
    x = torch.randn(1, LENGTH - 1, D_MODEL)
    assert found.ours(x).shape == x.shape
    with pytest.raises(AssertionError, match="divisible"):
        found.theirs(x)
