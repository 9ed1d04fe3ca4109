"""Synthesizer: the limits of each kind, memory, chunks.

No installable package has it, so the oracle stands alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import saved_bytes
from zoo.attention import synthesizer
from zoo.attention.synthesizer import Synthesizer, SynthesizerConfig
from zoo.contract import Dims
from zoo.registry import build

KINDS = ("dense", "random", "factorised_dense", "factorised_random")


def make(kind: str, *, rank: int = 32, max_len: int = 40, causal: bool = False, d_model: int = 16) -> Synthesizer:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal)
    backend = build(SynthesizerConfig(kind=kind, rank=rank), dims)
    assert isinstance(backend, Synthesizer)
    return backend


def attend(module: Synthesizer, x: Tensor, logits: Tensor) -> Tensor:
    """softmax(logits) V with the module's own maps; logits (H or 1, N, N)."""
    B, N, C = x.shape
    values = module.value(x).view(B, N, 2, C // 2).transpose(1, 2)
    return module.out((logits.softmax(-1) @ values).transpose(1, 2).reshape(B, N, C))


@pytest.mark.parametrize("causal", [False, True])
def test_random_with_the_logits_of_full_attention_is_full_attention(causal: bool) -> None:
    module = make("random", causal=causal).double()
    x = torch.randn(1, 40, 16, dtype=torch.float64)
    q, k = (torch.randn(1, 2, 40, 8, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        module.logits.copy_((q @ k.mT * 8**-0.5)[0])
    values = module.value(x).view(1, 40, 2, 8).transpose(1, 2)
    full = F.scaled_dot_product_attention(q, k, values, is_causal=causal)
    torch.testing.assert_close(module(x), module.out(full.transpose(1, 2).reshape(1, 40, 16)))


def test_factorised_random_error_falls_with_rank_and_is_zero_at_n() -> None:
    logits = 3 * torch.randn(2, 40, 40, dtype=torch.float64)
    U, S, V = torch.linalg.svd(logits)
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    errors = []
    for rank in (2, 10, 40):
        module = make("factorised_random", rank=rank).double()
        with torch.no_grad():
            module.rows.copy_(U[..., :rank] * S[:, None, :rank])
            module.columns.copy_(V.mT[..., :rank])
        errors.append((module(x) - attend(module, x, logits)).abs().mean().item())
    assert errors[0] > errors[1] > 0.01
    assert errors[2] < 1e-9


def test_dense_can_look_up_a_position_by_the_token() -> None:
    """Each token holds, one-hot, the position that it wants, and gets its value."""
    module = make("dense", rank=16, max_len=16, d_model=16).double()
    wanted = torch.randperm(16)
    x = F.one_hot(wanted, 16).double()[None]
    with torch.no_grad():
        module.hidden.weight.copy_(torch.eye(16).repeat(2, 1))
        module.columns.copy_(100 * torch.eye(16))
    values = module.value(x)
    torch.testing.assert_close(module(x), module.out(values[:, wanted]))


@pytest.mark.parametrize("kind", ["random", "factorised_random"])
def test_random_kinds_mix_by_position_alone(kind: str) -> None:
    module = make(kind).double()
    x, y = (torch.randn(1, 40, 16, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(module(x) + module(y) - module(torch.zeros_like(x)), module(x + y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_saved_bytes_are_linear_for_each_kind(kind: str, causal: bool) -> None:
    """At a head width of 8, below the rank, where a fallback to plain softmax would keep N²."""

    def saved(length: int) -> int:
        module = make(kind, max_len=length, causal=causal)
        x = torch.randn(1, length, 16, requires_grad=True)
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, -3:] = True
        return max(
            saved_bytes(lambda: module(x), module),
            saved_bytes(lambda: module(x, key_padding_mask=mask), module),
        )

    assert saved(2048) / saved(1024) < 2.5


@pytest.mark.parametrize("kind", ["random", "factorised_dense"])
@pytest.mark.parametrize("causal", [False, True])
def test_chunks_of_any_size_give_the_same(kind: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(kind, causal=causal).double()
    x = torch.randn(2, 37, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 37) < 0.3
    mask[:, 0] = False
    weight = torch.randn(2, 37, 16, dtype=torch.float64)
    results = []
    for budget in (2**22, 1, 1000):
        monkeypatch.setattr(synthesizer, "BUDGET", budget)
        y = module(x, key_padding_mask=mask)
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])])
    for other in results[1:]:
        for ours, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("max_len", [1, 2, 3, 9, 10, 11, 100])
def test_factors_cover_every_position_and_no_row_too_many(max_len: int) -> None:
    module = make("factorised_dense", max_len=max_len)
    assert (module.outer - 1) * module.inner < max_len <= module.outer * module.inner
    assert module(torch.randn(2, max_len, 16)).shape == (2, max_len, 16)


def test_kernel_names_what_is_fused() -> None:
    names = {kind: make(kind).kernel(torch.randn(1, 40, 16)).name for kind in KINDS}
    assert {kind for kind, kernel in names.items() if "SDPA" in kernel} == {"dense", "factorised_random"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vanilla"}, r"synthesizer\.kind must be one of dense, random, .*; got 'vanilla'"),
        ({"rank": 0}, r"synthesizer\.rank must be an integer of at least 1, got 0"),
        ({"rank": 1.5}, r"synthesizer\.rank must be an integer of at least 1, got 1\.5"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthesizerConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dense", "factorised_random"])
def test_a_rank_above_the_length_is_merely_unusual(kind: str) -> None:
    out = make(kind, rank=100)(torch.randn(2, 7, 16))
    assert out.isfinite().all()
    assert out.std() > 0
