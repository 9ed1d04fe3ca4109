"""Hedgehog: large inputs, and the distillation loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import saved_bytes
from tests.oracles.hedgehog import oracle, weights
from zoo.attention import hedgehog as module_of_hedgehog
from zoo.attention.hedgehog import HedgehogAttention
from zoo.contract import Dims
from zoo.cores.scan import CHUNK
from zoo.registry import build


def hedgehog(*, causal: bool = False, d_head: int = 8, n_heads: int = 2, trained: bool = True) -> HedgehogAttention:
    """``trained``: with maps that are no longer the identity."""
    torch.manual_seed(0)
    backend = build("hedgehog", Dims(d_model=n_heads * d_head, n_heads=n_heads, max_len=4096, causal=causal))
    assert isinstance(backend, HedgehogAttention)
    if trained:
        with torch.no_grad():
            for maps in backend.parameters():
                maps.add_(torch.randn_like(maps), alpha=0.3)
    return backend


def qkv(length: int, *, batch: int = 2, n_heads: int = 2, d_head: int = 8) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, batch, n_heads, length, d_head, dtype=torch.float64))


def test_maps_begin_as_the_identity_and_are_of_each_head() -> None:
    backend = hedgehog(trained=False)
    assert [p.shape for p in backend.parameters()] == [(2, 8, 8)] * 2
    assert all(torch.equal(p[head], torch.eye(8)) for p in backend.parameters() for head in (0, 1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_over_several_chunks_it_matches_the_oracle(causal: bool, padded: bool) -> None:
    backend = hedgehog(causal=causal).double()
    length = 2 * CHUNK + 5
    leaves = [x.requires_grad_() for x in qkv(length)]
    mask = torch.rand(2, length) < 0.3 if padded else torch.zeros(2, length, dtype=torch.bool)
    weight = torch.randn(2, 2, length, 8, dtype=torch.float64).masked_fill(mask[:, None, :, None], 0)
    results = [
        [out * (weight != 0), *torch.autograd.grad((out * weight).sum(), [*leaves, *backend.parameters()])]
        for out in (backend(*leaves, key_padding_mask=mask), oracle(backend, *leaves, key_padding_mask=mask))
    ]
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_saturated_features_give_mixtures_of_values_and_finite_gradients(causal: bool, scale: float) -> None:
    backend = hedgehog(causal=causal)
    q, k, v = (x.float() for x in qkv(300))
    leaves = [x.requires_grad_() for x in (scale * q, scale * k, v + 10)]
    out = backend(*leaves)
    out.sum().backward()
    assert (out > leaves[2].min() - 1e-3).all()
    assert (out < leaves[2].max() + 1e-3).all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in [*leaves, *backend.parameters()])


def test_the_state_is_what_the_product_keeps() -> None:
    backend = hedgehog(causal=True)
    total, reference = backend.begin(torch.zeros(3, 2, 8))
    assert total[0].numel() == backend.state_size(50) == 2 * 16 * 9
    assert total[0].numel() + reference[0].numel() == backend.cache_size(50)


@pytest.mark.parametrize("length", [1, 7, 300])
def test_steps_follow_the_forward(length: int) -> None:
    backend = hedgehog(causal=True)
    q, k, v = (x.float() for x in qkv(length))
    state, outputs = None, []
    for position in range(length):
        out, state = backend.step(q[:, :, position], k[:, :, position], v[:, :, position], state)
        outputs.append(out)
        assert state.size == backend.cache_size(position + 1)
    torch.testing.assert_close(torch.stack(outputs, dim=2), backend(q, k, v), atol=1e-5, rtol=1e-4)


# The distillation loss


def softmax_weights(q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return logits.softmax(-1)


def literal_loss(backend: HedgehogAttention, q: Tensor, k: Tensor) -> Tensor:
    target, ours = softmax_weights(q, k, causal=backend.causal), weights(backend, q, k)
    return -torch.where(target > 0, target * ours.clamp(min=1e-300).log(), 0).sum(-1).mean()


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_is_the_cross_entropy_and_reaches_the_maps_alone(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = hedgehog(causal=causal).double()
    q, k, _ = qkv(37)
    want = torch.autograd.grad(literal_loss(backend, q, k), list(backend.parameters()))
    leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
    for budget in (2**22, 1000, 1):
        monkeypatch.setattr(module_of_hedgehog, "BUDGET", budget)
        loss = backend.distillation_loss(*leaves)
        torch.testing.assert_close(loss, literal_loss(backend, q, k), atol=1e-12, rtol=1e-10)
        for ours, literal in zip(torch.autograd.grad(loss, list(backend.parameters())), want, strict=True):
            torch.testing.assert_close(ours, literal, atol=1e-12, rtol=1e-10)
    backend.distillation_loss(*leaves).backward()
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_is_the_mean_over_real_queries_of_their_real_keys(causal: bool) -> None:
    """Of samples of different lengths, and padding before, between and after what is real."""
    backend = hedgehog(causal=causal).double()
    q, k, _ = qkv(40, batch=3)
    mask = torch.rand(3, 40) < 0.4
    mask[2] = True
    q, k = (x.masked_fill(mask[:, None, :, None], 1e4) for x in (q, k))
    total, count = 0.0, 0
    for b in (0, 1):
        real = (~mask[b]).nonzero()[:, 0]
        total += len(real) * literal_loss(backend, q[b : b + 1, :, real], k[b : b + 1, :, real]).item()
        count += len(real)
    loss = backend.distillation_loss(q, k, key_padding_mask=mask)
    assert loss.item() == pytest.approx(total / count, rel=1e-10)
    assert backend.distillation_loss(q, k, key_padding_mask=torch.ones_like(mask)) == 0
    gradients = torch.autograd.grad(loss, list(backend.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_loss_is_least_where_weights_agree() -> None:
    """With equal keys both attentions are uniform: the loss is the entropy of the target, and its gradient 0."""
    backend = hedgehog().double()
    q, k, _ = qkv(20)
    k = k[:, :, :1].expand_as(k)
    loss = backend.distillation_loss(q, k)
    assert loss.item() == pytest.approx(torch.tensor(20.0).log().item())
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss, list(backend.parameters())))
    q, k, _ = qkv(20)
    target = softmax_weights(q, k, causal=False)
    assert backend.distillation_loss(q, k) > -(target * target.log()).sum(-1).mean() + 0.01


@pytest.mark.parametrize("causal", [False, True])
def test_a_few_steps_on_the_loss_bring_it_close_to_softmax_attention(causal: bool) -> None:
    """Sequences of twelve tokens, each with its query and key; the error is that on sequences it was not trained on."""
    backend = hedgehog(causal=causal, d_head=16, trained=False)
    tokens, maps = torch.randn(12, 16), torch.randn(2, 16, 16) / 4

    def draw() -> tuple[Tensor, ...]:
        asked, held = torch.randint(12, (2, 4, 1, 64))
        return tokens[asked] @ maps, tokens[held] @ maps, torch.randn(4, 2, 64, 16)

    (q, k, _), new = draw(), draw()
    exact = F.scaled_dot_product_attention(*new, is_causal=causal)

    def errors() -> tuple[float, float]:
        target, ours = (find(*new[:2]) for find in (partial(softmax_weights, causal=causal), partial(weights, backend)))
        return (backend(*new) - exact).norm().item(), (target - ours).abs().sum(-1).mean().item()

    before = errors()
    optimizer = torch.optim.Adam(backend.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        backend.distillation_loss(q, k).backward()
        optimizer.step()
    for first, last in zip(before, errors(), strict=True):
        assert last < first / 3


def test_the_loss_keeps_no_square_of_the_length() -> None:
    def saved(length: int) -> int:
        backend = hedgehog(n_heads=1)
        q, k, _ = (x.float() for x in qkv(length, batch=1, n_heads=1))
        return saved_bytes(lambda: backend.distillation_loss(q, k), backend)

    assert saved(4096) < 2.5 * saved(2048)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_large_inputs_in_low_precision_is_finite(dtype: torch.dtype) -> None:
    backend = hedgehog(causal=True).to(dtype)
    q, k, _ = (100 * x.to(dtype) for x in qkv(50))
    loss = backend.distillation_loss(q, k)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backend.parameters())
