"""Skyformer: its limit, its landmarks, its options. No installable package offers it, so the oracle stands alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compare.runs.measure import saved_bytes
from zoo.attention.skyformer import CHUNK, SkyformerAttention, SkyformerConfig
from zoo.contract import Dims
from zoo.registry import build


def attention(config: SkyformerConfig, length: int = 60) -> SkyformerAttention:
    torch.manual_seed(1)
    backend = build(config, Dims(d_model=16, n_heads=2, max_len=length))
    assert isinstance(backend, SkyformerAttention)
    return backend.double()


def qkv(length: int = 60, scale: float = 1.0) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))
    return scale * q, scale * k, v


def kernelized(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The paper's kernelized attention, exact: what the landmarks stand in for."""
    return torch.exp(-torch.cdist(q, k).square() / (2 * q.shape[-1] ** 0.5)) @ v


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def test_kernelized_attention_is_softmax_attention_with_its_diagonals_in_place_of_row_sums() -> None:
    q, k, v = qkv()
    scores = (q @ k.mT / 8**0.5).exp()
    rows, columns = (torch.exp((x * x).sum(-1) / 8**0.5) ** -0.5 for x in (q, k))
    torch.testing.assert_close(kernelized(q, k, v), rows[..., None] * scores * columns[..., None, :] @ v)


@pytest.mark.parametrize("landmarks", [119, 120, 500])
def test_with_every_key_a_landmark_it_is_kernelized_attention(landmarks: int) -> None:
    q, k, v = qkv()
    backend = attention(SkyformerConfig(landmarks=landmarks, gamma=0.1))
    torch.testing.assert_close(backend(q, k, v), kernelized(q, k, v))


def test_a_short_sample_among_long_ones_is_kernelized_attention_too() -> None:
    q, k, v = qkv(200)
    mask = torch.zeros(2, 200, dtype=torch.bool)
    mask[0, :30] = mask[0, 90:] = True
    real = ~mask[0]
    out = attention(SkyformerConfig(gamma=0.1), 200)(q, k, v, key_padding_mask=mask)[:1, :, real]
    torch.testing.assert_close(out, kernelized(*(x[:1, :, real] for x in (q, k, v))))


def test_the_nystrom_method_with_nearly_all_keys_is_nearly_kernelized_attention() -> None:
    q, k, v = qkv()
    exact = kernelized(q, k, v)
    errors = [
        distance(attention(SkyformerConfig(landmarks=118, gamma=gamma, iterations=30))(q, k, v), exact)
        for gamma in (1e-1, 1e-3)
    ]
    assert errors[0] > 2 * errors[1]


def test_the_iterations_of_the_default_reach_the_inverse_nearly() -> None:
    q, k, v = qkv(scale=0.5)
    few, many = (attention(SkyformerConfig(iterations=n))(q, k, v) for n in (6, 30))
    assert distance(few, many) < 0.01


def test_error_falls_with_more_landmarks() -> None:
    q, k, v = qkv(256, scale=0.5)
    exact = kernelized(q, k, v)
    errors = [distance(attention(SkyformerConfig(landmarks=m), 256)(q, k, v), exact) for m in (8, 32, 128, 512)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3], errors


def test_rows_are_not_normalised() -> None:
    """A query far from all keys receives nothing; twice the same keys give twice the result."""
    q, k, v = qkv()
    backend = attention(SkyformerConfig(landmarks=1000))
    assert float(backend(q + 100, k, v).abs().max()) < 1e-9
    twice = backend(torch.cat([q, q], 2), torch.cat([k, k], 2), torch.cat([v, v], 2))[:, :, :60]
    assert distance(twice, 2 * backend(q, k, v)) < 0.01


def test_landmarks_are_distinct_real_positions_chosen_by_the_real_length_alone() -> None:
    length = 41
    backend = attention(SkyformerConfig(landmarks=13))
    q = torch.arange(length, dtype=torch.float64).expand(2, 2, length)[..., None]
    k = q + 1000
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[0, 3:20] = True  # 24 real positions, with a gap
    mask[1, 4:] = True  # fewer than landmarks
    z, used, *_ = backend._landmarks(q, k, mask)
    first, second = (set(z[b, 0, used[b, 0, :, 0], 0].int().tolist()) for b in range(2))
    assert len(first) == 13
    assert {x % 1000 for x in first} <= {0, 1, 2, *range(20, 41)}
    assert sum(x < 1000 for x in first) == 6
    assert second == {0, 1, 2, 3, 1000, 1001, 1002, 1003}
    real = ~mask[0]
    alone, *_ = backend._landmarks(q[:1, :, real], k[:1, :, real], None)
    assert torch.equal(alone[0], z[0])


def test_redraw_changes_the_landmarks() -> None:
    q, k, v = qkv()
    backend = attention(SkyformerConfig(landmarks=8))
    before = backend(q, k, v)
    backend.redraw()
    assert not torch.allclose(backend(q, k, v), before)


def test_lengths_around_the_chunk_give_the_same_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3):
        results = []
        for chunk in (CHUNK, 10**6):
            monkeypatch.setattr("zoo.attention.skyformer.CHUNK", chunk)
            inputs = [x.requires_grad_() for x in qkv(length)]
            out = attention(SkyformerConfig(landmarks=6), length)(*inputs)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        for chunked, whole in zip(*results, strict=True):
            torch.testing.assert_close(chunked, whole)


def test_nothing_of_length_by_landmarks_is_saved() -> None:
    length = 2048
    backend = build("skyformer", Dims(d_model=4, n_heads=1, max_len=length))
    q, k, v = (torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(3))
    assert saved_bytes(lambda: backend(q, k, v), backend) < length * 128 * 4 / 2


@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_degenerate_kernels_stay_finite(scale: float) -> None:
    """All positions alike (a kernel of rank 1), or none near another (the identity)."""
    q, k, v = (x.float().requires_grad_() for x in qkv(96))
    out = attention(SkyformerConfig(landmarks=32), 96).float()(scale * q, scale * k, v)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(x.isfinite().all() for x in (out, *grads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 0}, "skyformer.landmarks must be an integer of at least 1, got 0"),
        ({"landmarks": 2.5}, "skyformer.landmarks must be an integer of at least 1, got 2.5"),
        ({"iterations": 0}, "skyformer.iterations must be an integer of at least 1, got 0"),
        ({"gamma": 0.0}, "skyformer.gamma must be a positive number, got 0.0"),
        ({"gamma": float("nan")}, "skyformer.gamma must be a positive number, got nan"),
        ({"gamma": "small"}, "skyformer.gamma must be a positive number, got 'small'"),
    ],
)
def test_bad_options_are_said(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SkyformerConfig(**options)
