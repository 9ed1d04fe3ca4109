"""GAU: its parts, steps across chunks, saturated gates, and agreement with FLASH-pytorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.peers.gau import Peer
from compare.runs.measure import saved_bytes
from tests.oracles.gau import oracle
from zoo import MultiHeadAttention
from zoo.attention.gau import GatedAttentionUnit, GAUConfig
from zoo.contract import Dims
from zoo.registry import build


def gau(
    *,
    query_width: int = 8,
    expand: int = 1,
    chunk: int = 16,
    causal: bool = False,
    d_model: int = 16,
    max_len: int = 512,
    rotary: bool = False,
) -> GatedAttentionUnit:
    torch.manual_seed(0)
    dims = Dims(d_model=d_model, n_heads=2, max_len=max_len, causal=causal, rotary=rotary)
    backend = build(GAUConfig(query_width=query_width, expand=expand, chunk=chunk), dims)
    assert isinstance(backend, GatedAttentionUnit)
    with torch.no_grad():
        backend.offset.normal_(std=0.1)
    return backend


@pytest.mark.parametrize("causal", [False, True])
def test_a_chunk_over_all_positions_is_the_quadratic_unit(causal: bool) -> None:
    """Figure 2 of the paper, where the linear part is switched off."""
    backend = gau(chunk=48, causal=causal).double()
    with torch.no_grad():
        backend.scale[2:], backend.offset[2:] = 0, 0
    x = torch.randn(2, 48, 16, dtype=torch.float64)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    u, v, z = F.silu(backend.hidden(normed)).split([16, 16, 8], dim=-1)
    q, k = (z * backend.scale[i] + backend.offset[i] for i in (0, 1))
    weights = (q @ k.mT / 48).relu() ** 2
    if causal:
        weights = weights.tril()
    torch.testing.assert_close(backend(x), backend.out(u * (weights @ v)))


def test_only_the_linear_part_reaches_other_chunks() -> None:
    backend = gau().double()
    x = torch.randn(1, 64, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 50] += 1
    assert (backend(changed) - backend(x))[:, :48].abs().max() > 1e-6
    with torch.no_grad():
        backend.scale[2:], backend.offset[2:] = 0, 0
    assert torch.equal(backend(changed)[:, :48], backend(x)[:, :48])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_over_many_chunks_it_matches_the_oracle(causal: bool, chunk: int) -> None:
    backend = gau(chunk=chunk, causal=causal, expand=2).double()
    x = torch.randn(2, 70, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 70) < 0.3
    mask[1, :33] = True  # whole chunks of padding
    weight = torch.randn(2, 70, 16, dtype=torch.float64).masked_fill(mask[..., None], 0)
    leaves = [x, *backend.parameters()]
    results = [
        [y * (weight != 0), *torch.autograd.grad((y * weight).sum(), leaves)]
        for y in (backend(x, key_padding_mask=mask), oracle(backend, x, key_padding_mask=mask))
    ]
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
@pytest.mark.parametrize("rotary", [False, True])
def test_steps_follow_the_forward(chunk: int, rotary: bool) -> None:
    backend = gau(chunk=chunk, causal=True, rotary=rotary)
    x = torch.randn(2, 200, 16)
    state, outputs = None, []
    for position in range(200):
        y, state = backend.step(x[:, position], state)
        outputs.append(y)
        assert state.size == backend.cache_size(position + 1)
    torch.testing.assert_close(torch.stack(outputs, dim=1), backend(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_saturated_gates_are_finite(causal: bool, bias: float) -> None:
    """A SiLU far below 0 is 0, far above it is its input."""
    backend = gau(causal=causal)
    with torch.no_grad():
        backend.hidden.bias[:16] = bias
    x = torch.randn(2, 100, 16, requires_grad=True)
    y = backend(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert (y.abs().max() == 0) == (bias < 0)
    assert x.grad is not None
    assert all(g is not None and g.isfinite().all() for g in [x.grad, *(p.grad for p in backend.parameters())])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_long_inputs_of_any_size_are_finite_in_low_precision(dtype: torch.dtype, causal: bool) -> None:
    backend = gau(query_width=16, chunk=256, causal=causal, max_len=16384).to(dtype)
    for scale in (0.0, 1e-4, 100.0):
        x = (scale * torch.randn(1, 16384, 16, dtype=dtype)).requires_grad_()
        y = backend(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("query_width", "chunk"), [(16, 64), (128, 256)])
def test_the_sums_of_weights_are_of_the_order_of_one_at_first(query_width: int, chunk: int, causal: bool) -> None:
    """With a value of 1 at each place: what the gate is multiplied by."""
    torch.manual_seed(0)
    backend = build(
        GAUConfig(query_width=query_width, chunk=chunk), Dims(d_model=128, n_heads=2, max_len=512, causal=causal)
    )
    with torch.no_grad():
        backend.hidden.weight[:256] = 0
        backend.hidden.bias[:256] = 1.2784645  # SiLU of it is 1
        backend.out.weight.copy_(torch.eye(128))
    sums = backend(torch.randn(2, 512, 128))[:, chunk:]
    assert 0.2 < sums.mean() < 2


def test_queries_and_keys_are_no_wider_than_the_input() -> None:
    assert gau(query_width=128).scale.shape == (4, 16)


def test_rotary_turns_all_queries_and_keys() -> None:
    """Shifted by whole chunks, only distances count. Each of the two parts changes when it is taken away."""
    x = torch.randn(1, 40, 16, dtype=torch.float64)
    shifted = torch.cat([torch.zeros(1, 32, 16, dtype=torch.float64), x], dim=1)
    mask = torch.arange(72)[None] < 32
    for off in (slice(0, 2), slice(2, 4)):
        backend = gau(rotary=True).double()
        with torch.no_grad():
            backend.scale[off], backend.offset[off] = 0, 0
        turned = backend(x)
        torch.testing.assert_close(backend(shifted, key_padding_mask=mask)[:, 32:], turned, atol=1e-5, rtol=1e-5)
        backend.rotary = None
        assert (backend(x) - turned).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_kept_is_linear_and_small(causal: bool) -> None:
    def saved(length: int) -> int:
        backend = gau(query_width=128, chunk=256, causal=causal, d_model=128, max_len=length)
        x = torch.randn(1, length, 128, requires_grad=True)
        return saved_bytes(lambda: backend(x), backend)

    assert saved(8192) / saved(4096) < 2.1
    assert saved(8192) < 15 * 8192 * 128 * 4


def test_the_state_is_the_sum_and_a_chunk() -> None:
    backend = gau(query_width=8, expand=2, chunk=16, causal=True)
    assert backend.state_size(5) == 8 * 32 + 5 * (8 + 32)
    assert backend.state_size(500) == 8 * 32 + 16 * (8 + 32)
    assert backend.cache_size(500) == 8 * 32 + 1 + 4 * (8 + 32)
    assert backend.cache_size(16) == 8 * 32 + 1


@pytest.mark.parametrize("option", ["query_width", "expand", "chunk"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_bad_options_are_said(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"gau\.{option} must be an integer of at least 1, got {value}"):
        GAUConfig(**{option: value})  # type: ignore[arg-type]


# Agreement with FLASH-pytorch


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "expand"), [(128, 1), (100, 2), (64, 1)])
def test_it_agrees_with_flash_pytorch_on_two_chunks(causal: bool, length: int, expand: int) -> None:
    """Outputs and the gradients of the input; in its causal form more chunks are divided by another number."""
    config = GAUConfig(query_width=16, expand=expand, chunk=64)
    ours = MultiHeadAttention(config, d_model=32, n_heads=2, max_len=256, causal=causal)
    theirs = Peer(ours).double()
    ours = ours.double()
    x, weight = torch.randn(2, 2, length, 32, dtype=torch.float64)
    leaf = x.requires_grad_()
    for mine, other in zip(
        *([y, torch.autograd.grad((y * weight).sum(), leaf)[0]] for y in (ours(leaf), theirs(leaf))), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-7)


def test_not_causal_it_agrees_with_flash_pytorch_on_many_chunks() -> None:
    ours = MultiHeadAttention(GAUConfig(query_width=16, chunk=32), d_model=32, n_heads=2, max_len=256)
    x = torch.randn(2, 250, 32)
    torch.testing.assert_close(ours(x), Peer(ours)(x), atol=1e-5, rtol=1e-4)


def test_causal_flash_pytorch_grows_with_the_number_of_chunks_and_ours_does_not() -> None:
    """Each chunk the same: the mean of what earlier ones hold stays, their sum over the length of one does not."""
    ours = MultiHeadAttention(GAUConfig(query_width=16, chunk=32), d_model=32, n_heads=2, max_len=512, causal=True)
    x = torch.randn(1, 32, 32).repeat(1, 8, 1)
    y, theirs = (layer(x).unflatten(1, (8, 32)) for layer in (ours, Peer(ours)))
    torch.testing.assert_close(y[:, 1], y[:, 7], atol=1e-5, rtol=1e-4)
    assert theirs[:, 7].norm() > 2 * theirs[:, 1].norm()


@pytest.mark.parametrize("causal", [False, True])
def test_a_chunk_beyond_max_len_is_one_over_all_positions(causal: bool) -> None:
    x = torch.randn(2, 40, 16)
    torch.testing.assert_close(
        gau(chunk=10**6, max_len=48, causal=causal)(x), gau(chunk=48, max_len=48, causal=causal)(x)
    )
