"""Top-k attention: limits, exact counts of keys, chunks, memory.

No maintained package offers it (the paper's code is no package), so the oracle stands alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import saved_bytes
from zoo.attention import topk
from zoo.attention.topk import TopKConfig, largest
from zoo.contract import Attention, Dims
from zoo.functional import full_attention
from zoo.registry import build


def attention(k: int, length: int = 60, *, causal: bool = False) -> Attention:
    backend = build(TopKConfig(k=k), Dims(d_model=16, n_heads=2, max_len=length, causal=causal))
    assert isinstance(backend, Attention)
    return backend


def qkv(length: int = 60, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, 2, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def results(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of a fixed weighted sum of it."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("k", [60, 500])
def test_with_k_of_n_it_is_full_attention(k: int, causal: bool) -> None:
    q, k_, v = qkv()
    want = F.scaled_dot_product_attention(q, k_, v, is_causal=causal)
    torch.testing.assert_close(attention(k, causal=causal)(q, k_, v), want)


@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_k_keys_or_fewer_attend_to_all(causal: bool) -> None:
    """Padding leaves 20 of 60 keys, so k = 20 drops none although k < N."""
    inputs = qkv()
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[0, 5:45:2] = False
    mask[1, 40:] = False
    shown = ~mask[:, None, :, None]
    ours = attention(20, causal=causal)(*inputs, key_padding_mask=mask) * shown
    want = full_attention(*inputs, key_padding_mask=mask, causal=causal) * shown
    for a, b in zip(results(ours, inputs), results(want, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_each_query_reads_its_k_largest_and_nothing_else(causal: bool, padded: bool) -> None:
    q, k, v = qkv(batch=1)
    mask = torch.zeros(1, 60, dtype=torch.bool)
    mask[:, 3:30:3] = padded
    visible = (~mask[0]).expand(60, 60)
    visible = visible.tril() if causal else visible
    logits = (q @ k.mT)[0, 0].masked_fill(~visible, -torch.inf)
    for i in (0, 1, 2, 7, 40, 59):
        out = attention(4, causal=causal)(q, k, v, key_padding_mask=mask if padded else None)
        (read,) = torch.autograd.grad(out[0, 0, i].sum(), v)
        kept = min(4, int(visible[i].sum()))
        assert set(read[0, 0].any(-1).nonzero()[:, 0].tolist()) == set(logits[i].topk(kept).indices.tolist())


def test_error_falls_as_k_grows() -> None:
    q, k, v = (x.detach() for x in qkv(length=200))
    exact = F.scaled_dot_product_attention(q, k, v)
    errors = [float((attention(n, 200)(q, k, v) - exact).abs().mean()) for n in (1, 8, 64, 199)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3], errors


@pytest.mark.parametrize(("n", "k"), [(9, 1), (64, 3), (97, 3), (100, 11), (1000, 7), (1003, 100), (50, 50)])
def test_two_searches_find_what_one_finds(n: int, k: int) -> None:
    torch.manual_seed(n)
    for x in (torch.randn(5, 6, n), torch.randint(4, (5, 6, n)).float()):  # the second has ties everywhere
        values, index = largest(x, k)
        assert torch.equal(values.sort().values, x.topk(k).values.flip(-1))
        assert torch.equal(x.gather(-1, index), values)
        assert all(len(set(row)) == k for row in index.flatten(0, 1).tolist())


@pytest.mark.parametrize("causal", [False, True])
def test_chunks_of_any_size_give_the_same(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = qkv()
    mask = torch.rand(2, 60) < 0.3
    want = results(attention(5, causal=causal)(*inputs, key_padding_mask=mask), inputs)
    for budget in (1, 500, 10_000):
        monkeypatch.setattr(topk, "BUDGET", budget)
        ours = results(attention(5, causal=causal)(*inputs, key_padding_mask=mask), inputs)
        for a, b in zip(ours, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_logits_that_overflow_half_precision_choose_rightly() -> None:
    """Logits around 1e5: infinite in float16, and most of them equal in bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        q, k, v = (x.detach() for x in qkv(dtype=dtype))
        q, k = 200 * q, 200 * k
        ours = attention(3)(q, k, v)
        torch.testing.assert_close(ours, attention(3)(q.double(), k.double(), v.double()).to(dtype))


def test_inputs_and_indices_are_all_that_is_kept() -> None:
    length, k = 512, 16
    inputs = qkv(length, batch=1, dtype=torch.float32)
    backend = attention(k, length)
    assert saved_bytes(lambda: backend(*inputs), backend) == 4 * (3 * 2 * length * 8 + 2 * length * k)


def test_no_tensor_of_n_by_n_is_ever_made() -> None:
    length = 8192
    backend = build(TopKConfig(k=8), Dims(d_model=4, n_heads=1, max_len=length))
    inputs = [torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[:, 8000:] = True
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor))
            return out

    with Watch():
        out = backend(*inputs, key_padding_mask=mask)
        out.sum().backward()
    assert max(sizes) <= topk.BUDGET <= length**2 / 16


def test_kernel_says_when_it_is_full_attention() -> None:
    backend = attention(20)
    assert "topk" in backend.kernel(torch.randn(1, 2, 60, 8)).name
    assert "SDPA" in backend.kernel(torch.randn(1, 2, 20, 8)).name


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_bad_options_are_said(k: object) -> None:
    with pytest.raises(ValueError, match=rf"topk\.k must be an integer of at least 1, got {k}"):
        TopKConfig(k=k)  # type: ignore[arg-type]
