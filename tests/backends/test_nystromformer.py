"""Nyströmformer: its limit, its landmarks, its options, and agreement with the public packages."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import Pair
from benchmarks.peers.nystromformer import pair
from compare.runs.measure import saved_bytes
from zoo.attention.nystromformer import NystromformerConfig, convolve
from zoo.contract import Attention, Dims
from zoo.cores.landmarks import segments
from zoo.registry import build


def attention(config: NystromformerConfig, *, length: int = 60, d_model: int = 16) -> Attention:
    backend = build(config, Dims(d_model=d_model, n_heads=2, max_len=length))
    assert isinstance(backend, Attention)
    return backend.double()


def qkv(length: int = 60, *, batch: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(batch, 2, length, 8, dtype=torch.float64) for _ in range(3))


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def results(layer: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the input."""
    x = x.clone().requires_grad_()
    y: Tensor = layer(x)
    (grad,) = torch.autograd.grad((y * weight).sum(), x)
    return y.detach(), grad


# Limits


@pytest.mark.parametrize("landmarks", [60, 200])
def test_with_every_position_a_landmark_it_is_full_attention(landmarks: int) -> None:
    q, k, v = qkv()
    out = attention(NystromformerConfig(landmarks=landmarks, conv_width=None))(q, k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))


def test_a_short_sample_within_a_long_batch_is_full_attention() -> None:
    q, k, v = qkv()
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[0, 5:50] = True  # 15 real positions, 16 landmarks
    out = attention(NystromformerConfig(landmarks=16, conv_width=None))(q, k, v, key_padding_mask=mask)
    want = F.scaled_dot_product_attention(*(x[:1, :, ~mask[0]] for x in (q, k, v)))
    torch.testing.assert_close(out[:1, :, ~mask[0]], want)


def test_error_falls_with_more_landmarks() -> None:
    """On a smooth sequence, whose neighbours are alike, as segment means want it."""
    place = torch.linspace(0, 6, 256, dtype=torch.float64)[:, None]
    waves = torch.cat([(place * f).sin() for f in range(1, 9)], dim=-1)
    q = k = waves.expand(1, 2, 256, 8)
    v = qkv(256, batch=1)[2]
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [
        distance(attention(NystromformerConfig(landmarks=m, conv_width=None), length=256)(q, k, v), exact)
        for m in (2, 8, 32)
    ]
    assert errors[0] > errors[1] > 4 * errors[2], errors


# Parts


def test_segments_cover_the_real_positions_in_nearly_equal_parts() -> None:
    real = torch.tensor([0, 1, 3, 4, 5, 7, 8, 100])
    starts, sizes = segments(real, 4)
    for length, start, size in zip(real.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        assert sum(size) == length
        used = [(s, n) for s, n in zip(start, size, strict=True) if n]
        assert len(used) == min(length, 4)
        assert [s for s, _ in used] == [sum(n for _, n in used[:i]) for i in range(len(used))]
        assert not used or max(n for _, n in used) - min(n for _, n in used) <= 1


def test_convolution_counts_padding_as_zero() -> None:
    q, k, v = qkv()
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[:, 20:25] = True
    backend = attention(NystromformerConfig(landmarks=8, conv_width=9))
    plain = attention(NystromformerConfig(landmarks=8, conv_width=None))
    added = backend(q, k, v, key_padding_mask=mask) - plain(q, k, v, key_padding_mask=mask)
    assert isinstance(backend.conv, Tensor)
    padding = mask[:, None, :, None]
    torch.testing.assert_close(added, convolve(v.masked_fill(padding, 0), backend.conv))
    assert not torch.allclose(added, convolve(v, backend.conv))


@pytest.mark.parametrize(("batch", "length", "taps"), [(1, 1024, 33), (2, 256, 65), (1, 20, 33), (2, 300, 1)])
def test_gradient_of_the_filters_in_float32_is_right(batch: int, length: int, taps: int) -> None:
    """Shapes at which torch's own is off by percents among them."""
    torch.manual_seed(0)
    x, weight = (torch.randn(batch, 4, length, 32) for _ in range(2))
    filters = torch.randn(4, taps, requires_grad=True)
    (grad,) = torch.autograd.grad((convolve(x, filters) * weight).sum(), filters)
    padded = F.pad(x.double(), (0, 0, taps // 2, taps // 2))
    want = [(padded[:, :, t : t + length] * weight).sum((0, 2, 3)) for t in range(taps)]
    assert distance(grad, torch.stack(want, dim=1)) < 1e-5


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_of_length_by_landmarks_is_saved(padded: bool) -> None:
    """At width 4, one N × M tensor would outweigh all that is kept."""
    length = 2048
    backend = build(NystromformerConfig(conv_width=None), Dims(d_model=4, n_heads=1, max_len=length))
    q, k, v = (torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(3))
    mask = None
    if padded:
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, 1500:1700] = True
    assert saved_bytes(lambda: backend(q, k, v, key_padding_mask=mask), backend) < length * 64 * 4


@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_degenerate_attention_between_landmarks_stays_finite(scale: float) -> None:
    """All positions alike, or each attending to one alone: A has rank 1, or rows of 0 and 1, some of them twice."""
    q, k, v = (x.float().requires_grad_() for x in qkv(96))
    out = attention(NystromformerConfig(landmarks=16), length=96).float()(scale * q, scale * k, v)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(x.isfinite().all() for x in (out, *grads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 0}, "nystromformer.landmarks must be an integer of at least 1, got 0"),
        ({"landmarks": 2.5}, "nystromformer.landmarks must be an integer of at least 1, got 2.5"),
        ({"iterations": -1}, "nystromformer.iterations must be an integer of at least 1, got -1"),
        ({"conv_width": 0}, "nystromformer.conv_width must be an integer of at least 1, got 0"),
        ({"conv_width": 32}, "nystromformer.conv_width must be odd, got 32"),
    ],
)
def test_bad_options_are_said(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NystromformerConfig(**options)


# Public packages


def peers(*, d_model: int = 128, n_heads: int = 4, length: int = 512) -> dict[str, Pair]:
    pytest.importorskip("nystrom_attention")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return {p.package: p for p in pair(d_model=d_model, n_heads=n_heads, length=length)}


def own_norms(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nystrom-attention invert each sample's and head's matrix by itself, so that its norms are that one's own."""
    source = sys.modules[type(module).__module__]
    together = source.moore_penrose_iter_pinv

    def apart(x: Tensor, iters: int) -> Tensor:
        return torch.stack([torch.cat([together(a[None, None], iters)[0] for a in sample]) for sample in x])

    monkeypatch.setattr(source, "moore_penrose_iter_pinv", apart)


@pytest.mark.parametrize("package", ["nystrom-attention", "transformers"])
@pytest.mark.parametrize("length", [256, 1024])
def test_agrees_with_the_package_in_output_and_gradients(
    package: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding, once its inverse starts as ours does. Weights' gradients too.

    In float64: torch's float32 gradient of the packages' convolution is wrong on CPU (see ``_Convolve``).
    """
    layers = peers(length=length)[package]
    if package == "nystrom-attention":
        own_norms(layers.theirs, monkeypatch)
    x, weight = (torch.randn(2, length, 128, dtype=torch.float64) for _ in range(2))
    for layer in (layers.ours, layers.theirs):
        layer.double()
    for ours, theirs in zip(results(layers.ours, x, weight), results(layers.theirs, x, weight), strict=True):
        assert distance(ours, theirs) < 1e-9
    for layer in (layers.ours, layers.theirs):
        (layer(x) * weight).sum().backward()
    assert distance(gradient(layers.ours, "qkv"), gradient(layers.theirs, "qkv")) < 1e-9
    assert distance(gradient(layers.ours, "conv"), gradient(layers.theirs, "conv")) < 1e-9
    assert distance(gradient(layers.ours, "out"), gradient(layers.theirs, "out")) < 1e-9


def gradient(layer: nn.Module, part: str) -> Tensor:
    """Of the projections in, the convolution or the projection out, by whatever name the layer has for it."""
    names = {
        "qkv": ("mixer.qkv.weight", "to_qkv.weight", *(f"attention.{x}.weight" for x in ("query", "key", "value"))),
        "conv": ("mixer.attention.conv", "res_conv.weight", "attention.conv.weight"),
        "out": ("mixer.out.weight", "to_out.0.weight", "out.weight"),
    }[part]
    own = dict(layer.named_parameters())
    found = [own[name].grad for name in names if name in own]
    return torch.cat([x.flatten() for x in found if x is not None])


def test_pairs_agree_to_their_tolerance_at_batch_1() -> None:
    for layers in peers(length=1024).values():
        x, weight = torch.randn(1, 1024, 128), torch.randn(1, 1024, 128)
        for ours, theirs in zip(results(layers.ours, x, weight), results(layers.theirs, x, weight), strict=True):
            assert distance(ours, theirs) < layers.tolerance


@pytest.mark.parametrize("package", ["nystrom-attention", "transformers"])
def test_the_package_lets_batch_mates_change_a_sample_and_ours_does_not(package: str) -> None:
    layers = peers()[package]
    if package == "transformers":  # as its constructor makes it
        layers.theirs.attention.init_option = "original"  # type: ignore[union-attr]
    x = torch.randn(2, 512, 128)
    x[1] = x[1, :1] * 5 * torch.linspace(0, 1, 512)[:, None]  # all landmarks attend to the last one
    with torch.no_grad():
        ours, theirs = (distance(layer(x)[:1], layer(x[:1])) for layer in (layers.ours, layers.theirs))
    assert ours < 1e-6
    assert theirs > 1e-5


def test_lengths_that_are_no_multiple_differ_as_documented() -> None:
    """nystrom-attention fills the front with zero positions, which its queries then attend to; ours has no such keys.

    With those positions made real inputs, the two agree.
    """
    layers = peers(n_heads=1, length=320)["nystrom-attention"]
    x = torch.randn(1, 300, 128)
    filled = F.pad(x, (0, 0, 20, 0))
    with torch.no_grad():
        assert distance(layers.ours(x), layers.theirs(x)) > 1e-3
        assert distance(layers.ours(filled)[:, 20:], layers.theirs(x)) < 5e-6
