"""What is peculiar to single backends: limits at which they become full attention, options, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from compare.measure import count_flops, saved_bytes
from zoo import MultiHeadAttention
from zoo.attention.block_sparse import BlockSparseConfig
from zoo.attention.full import FullConfig
from zoo.attention.linformer import LinformerConfig
from zoo.attention.reformer import ReformerConfig
from zoo.contract import Attention, Dims
from zoo.registry import build


def attention(config: object, length: int = 60, *, causal: bool = False) -> Attention:
    backend = build(config, Dims(d_model=16, n_heads=2, max_len=length, causal=causal))
    assert isinstance(backend, Attention)
    return backend.double()


def qkv(length: int = 60) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))


# Limits


def test_linformer_with_rank_n_and_identity_projections_is_full_attention() -> None:
    backend = attention(LinformerConfig(rank=60))
    q, k, v = qkv()
    with torch.no_grad():
        backend.projection.copy_(torch.eye(60))
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("causal", [False, True])
def test_block_sparse_with_all_blocks_is_full_attention(causal: bool) -> None:
    backend = attention(BlockSparseConfig(block_size=8, layout=torch.ones(8, 8, dtype=torch.bool)), causal=causal)
    q, k, v = qkv()
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_reformer_in_one_bucket_is_full_attention_without_self(causal: bool) -> None:
    backend = attention(ReformerConfig(bucket_size=64), causal=causal)
    q, _, v = qkv()
    logits = q @ F.normalize(q, dim=-1).mT
    logits = logits.masked_fill(torch.eye(60, dtype=torch.bool), -1e5)
    if causal:
        logits = logits.masked_fill(torch.ones(60, 60, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(backend(q, q, v), logits.softmax(-1) @ v)


def test_reformer_error_falls_with_more_hashes() -> None:
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


# Linformer


def test_linformer_sharing_sets_the_number_of_projections() -> None:
    shapes = {
        sharing: attention(LinformerConfig(rank=5, sharing=sharing)).projection.shape[:2]
        for sharing in ("none", "heads", "kv")
    }
    assert shapes == {"none": (2, 2), "heads": (2, 1), "kv": (1, 1)}


# Block-sparse


def test_block_sparse_default_layout_has_window_global_and_random_blocks() -> None:
    layout = attention(BlockSparseConfig(block_size=4, window=3, n_global=1, n_random=2), 400).layout
    row = torch.arange(100)
    window = (row[:, None] - row).abs() <= 1
    assert layout[window].all()
    assert layout[0].all()
    assert layout[:, 0].all()
    others = layout & ~window
    others[0] = others[:, 0] = False
    assert (others.sum(1)[5:] == 2).all()
    for length in (25, 50):  # a shorter input keeps at least half of its random blocks
        assert others[2:length, :length].sum() >= length - 8


def test_block_sparse_takes_any_layout() -> None:
    torch.manual_seed(1)
    layout = torch.rand(8, 8) < 0.4
    layout[3] = False  # a row that sees nothing
    backend = attention(BlockSparseConfig(block_size=8, layout=layout))
    q, k, v = qkv()
    dense = torch.kron(layout, torch.ones(8, 8, dtype=torch.bool))[:60, :60]
    torch.testing.assert_close(backend(q, k, v), F.scaled_dot_product_attention(q, k, v, attn_mask=dense))
    assert (backend(q, k, v)[:, :, 24:32] == 0).all()


def test_block_sparse_row_that_sees_all_does_not_cost_the_others() -> None:
    def flops(n_global: int) -> int:
        backend = build(BlockSparseConfig(n_global=n_global), Dims(d_model=16, n_heads=2, max_len=8192))
        q, k, v = (torch.randn(1, 2, 8192, 8) for _ in range(3))
        return count_flops(lambda: backend(q, k, v))

    dense = 4 * 2 * 8192**2 * 8
    assert flops(0) < dense / 20
    assert flops(1) < dense / 10


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("config", [BlockSparseConfig(), ReformerConfig()], ids=["block_sparse", "reformer"])
def test_no_tensor_of_n_by_n_is_ever_made(config: object, causal: bool, padded: bool) -> None:
    """No tensor in forward or backward has N²/4 elements, at a width where the honest ones are far below."""
    length = 8192
    backend = build(config, Dims(d_model=4, n_heads=1, max_len=length, causal=causal))
    q, v = (torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(2))
    mask = torch.zeros(1, length, dtype=torch.bool) if padded else None
    if mask is not None:
        mask[:, 8000:] = True
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    with Watch():
        backend(q, q, v, key_padding_mask=mask).sum().backward()
    assert largest < length**2 / 4, f"a tensor of {largest} elements"


# Full


def test_full_with_padding_and_causal_saves_no_matrix() -> None:
    def saved(length: int) -> int:
        backend = build("full", Dims(d_model=16, n_heads=2, max_len=length, causal=True))
        q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, : length // 3] = True
        return saved_bytes(lambda: backend(q, k, v, key_padding_mask=mask), backend)

    assert saved(4096) / saved(2048) < 2.5


def test_full_runs_the_kernel_asked_for_or_refuses() -> None:
    q, k, v = (x.float() for x in qkv())
    default = attention(FullConfig()).float()(q, k, v)
    for kernel in ("flash", "math"):
        backend = attention(FullConfig(kernel=kernel)).float()
        torch.testing.assert_close(backend(q, k, v), default)
        assert kernel in backend.kernel(q).name
    with pytest.raises(NotImplementedError, match=r"full\.kernel='efficient' cannot run on cpu"):
        attention(FullConfig(kernel="efficient"))(q, k, v)


# xformers


def test_xformers_says_what_ran_instead_on_cpu() -> None:
    kernel = attention_kernel("xformers")
    assert kernel.fallback
    assert "SDPA flash (cpu)" in kernel.name
    assert "xformers has no cpu kernel" in kernel.name
    assert not attention_kernel("full").fallback


def attention_kernel(name: str):  # type: ignore[no-untyped-def]
    return MultiHeadAttention(name, d_model=16, n_heads=2, max_len=60).kernel(torch.randn(1, 60, 16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers' kernels need a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
def test_xformers_kernel_matches_full_on_cuda(causal: bool) -> None:
    q, k, v = (torch.randn(3, 2, 100, 32, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    mask = torch.zeros(3, 100, dtype=torch.bool, device="cuda")
    mask[0, 70:] = True
    mask[2] = True
    dims = Dims(d_model=64, n_heads=2, max_len=100, causal=causal)
    for padding in (None, mask):
        ours, full = (build(name, dims)(q, k, v, key_padding_mask=padding) for name in ("xformers", "full"))
        if padding is not None:
            ours, full = (x.masked_fill(padding[:, None, :, None], 0) for x in (ours, full))
        torch.testing.assert_close(ours, full, atol=2e-2, rtol=2e-2)


# Bad options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinformerConfig(rank=0), "linformer.rank must be an integer of at least 1, got 0"),
        (lambda: LinformerConfig(rank=2.5), "linformer.rank must be an integer of at least 1, got 2.5"),
        (lambda: LinformerConfig(sharing="all"), "linformer.sharing must be one of none, heads, kv; got 'all'"),
        (lambda: ReformerConfig(n_hashes=-1), "reformer.n_hashes must be an integer of at least 1, got -1"),
        (lambda: ReformerConfig(bucket_size=0), "reformer.bucket_size must be an integer of at least 1"),
        (lambda: BlockSparseConfig(block_size=0), "block_sparse.block_size must be an integer of at least 1"),
        (lambda: BlockSparseConfig(window=2), "block_sparse.window must be odd .*got 2"),
        (lambda: BlockSparseConfig(layout=torch.ones(3, 3)), r"\(blocks, blocks\) bool tensor, got shape \(3, 3\)"),
        (
            lambda: attention(BlockSparseConfig(layout=torch.ones(3, 3, dtype=torch.bool), block_size=8)),
            "at least 8 × 8 blocks for max_len=60, got 3 × 3",
        ),
        (lambda: FullConfig(kernel="fast"), "full.kernel must be one of auto, .*got 'fast'"),
    ],
)
def test_bad_options_are_said(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "config",
    [LinformerConfig(rank=500), ReformerConfig(bucket_size=500), BlockSparseConfig(block_size=500, window=9)],
    ids=lambda config: type(config).__name__,
)
def test_options_larger_than_the_input_are_merely_unusual(config: object) -> None:
    q, _, v = qkv()
    out = attention(config)(q, q, v)
    assert out.isfinite().all()
    assert out.std().item() > 0
