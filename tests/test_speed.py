"""What the project promises about cost at 8192 tokens, and the meters themselves.

Tests marked ``bench`` compare two times and run by ``make bench`` alone: a busy machine fails them for nothing.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compare.runs.measure import _product_flops, count_flops, peak_memory, saved_bytes, time_it
from tests.conftest import CACHED
from zoo import MultiHeadAttention, available, describe
from zoo.contract import Dims
from zoo.cores import scan
from zoo.registry import build

CPU = torch.device("cpu")


class Bare(nn.Module):
    """torch's fused attention and its projections, nothing else."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.n_heads, C // self.n_heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


@pytest.fixture(autouse=True)
def usual_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CACHED", CACHED)


def layer_step(layer: nn.Module, length: int) -> Callable[[], None]:
    x, grad = torch.randn(1, length, 256, requires_grad=True), torch.randn(1, length, 256)
    return lambda: layer(x).backward(grad)


def paired_ratio(step: Callable[[], None], reference: Callable[[], None], rounds: int) -> float:
    """The least time of ``step`` over the least of ``reference``, timed in turn: noise only ever adds."""
    times = [(seconds(step), seconds(reference)) for _ in range(rounds + 1)][1:]  # the first round warms up
    return min(first for first, _ in times) / min(second for _, second in times)


def sublayer(name: str, length: int) -> nn.Module:
    return MultiHeadAttention(name, d_model=256, n_heads=4, max_len=length)


@pytest.mark.bench
def test_full_costs_no_more_than_bare_sdpa_with_projections() -> None:
    ratio = paired_ratio(layer_step(sublayer("full", 8192), 8192), layer_step(Bare(256, 4), 8192), 6)
    assert ratio < 1.1  # measured: 0.98


@pytest.fixture(scope="module")
def full_seconds() -> float:
    """Forward + backward of one layer of full attention at 8192."""
    return min(seconds(layer_step(sublayer("full", 8192), 8192)) for _ in range(3))


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


SUBQUADRATIC = [name for name in available() if describe(name).traits.subquadratic]


@pytest.mark.bench
@pytest.mark.parametrize("attention", SUBQUADRATIC)
def test_subquadratic_backends_beat_full_at_8192(attention: str, full_seconds: float) -> None:
    step = layer_step(sublayer(attention, 8192), 8192)
    assert min(seconds(step) for _ in range(3)) < full_seconds  # measured: 0.4 at most on an AMD EPYC, 0.8 on a Xeon


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of what operations return while it lives: the same on every machine, however busy."""

    live = peak = 0

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and id(x.untyped_storage()) not in self.storages:
                self.add(x.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.storages[key] = weakref.finalize(storage, self.free, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def free(self, key: int, size: int) -> None:
        del self.storages[key]
        self.live -= size


def peak_of_live_bytes(attention: str, length: int) -> int:
    """Of a training step of one narrow layer."""
    layer = MultiHeadAttention(attention, d_model=64, n_heads=4, max_len=length)
    x, grad = torch.randn(1, length, 64, requires_grad=True), torch.randn(1, length, 64)
    with LiveBytes() as watch:
        layer(x).backward(grad)
    return watch.peak


@pytest.mark.parametrize("attention", [*SUBQUADRATIC, "full"])
def test_peak_memory_grows_linearly(attention: str) -> None:
    assert peak_of_live_bytes(attention, 4096) < 4.1 * peak_of_live_bytes(attention, 1024)


def test_peak_memory_of_all_pairs_grows_with_their_number() -> None:
    assert peak_of_live_bytes("naive", 2048) > 12 * peak_of_live_bytes("naive", 512)


# The meters themselves


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on a CPU is read from /proc")
def test_peak_memory_sees_what_a_step_takes_and_gives_back() -> None:
    def step() -> None:
        torch.ones(64, 2**20)  # 256 MiB

    assert 250 < (peak_memory(step, CPU) or 0) / 2**20 < 270
    assert (peak_memory(lambda: None, CPU) or 0) < 2**22


def test_saved_bytes_counts_each_storage_once_and_no_parameters() -> None:
    linear = nn.Linear(16, 16)
    x = torch.randn(8, 16, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear) == 8 * 16 * 4
    assert saved_bytes(lambda: linear(x) + linear(x), linear) == 8 * 16 * 4
    assert saved_bytes(lambda: torch.exp(x), linear) == 8 * 16 * 4


def test_flops_count_fused_attention() -> None:
    linear = nn.Linear(32, 32, bias=False)
    assert count_flops(lambda: linear(torch.randn(8, 32))) == 2 * 8 * 32 * 32
    full = build("full", Dims(d_model=32, n_heads=2, max_len=64))
    q, k, v = (torch.randn(1, 2, 64, 16, requires_grad=True) for _ in range(3))
    one_product = 2 * 2 * 64 * 64 * 16
    assert count_flops(lambda: full(q, k, v)) == 2 * one_product
    assert count_flops(lambda: full(q, k, v).sum().backward()) == 7 * one_product


def test_flops_count_the_kernels_of_xformers() -> None:
    """Which see (B, N, H, D), or all samples packed end to end: what is counted is what is computed."""
    forward, backward = torch.ops.aten._efficient_attention_forward, torch.ops.aten._efficient_attention_backward
    q, starts = torch.empty(2, 64, 3, 16, device="meta"), torch.tensor([0, 64, 96])
    product = 2 * 3 * 64 * 64 * 16
    assert count_flops(lambda: forward(q, q, q, None, None, None, None, None, 0.0, 0)) == 2 * 2 * product
    rest = (torch.empty(2, 3, 64, device="meta"), 0.0, q, q, 0, False)
    assert count_flops(lambda: backward(q, q, q, q, None, q, None, None, 64, 64, *rest)) == 2 * 5 * product
    for packed in (torch.empty(96, 3, 16), torch.empty(1, 96, 3, 16)):
        assert _product_flops(packed, starts) == product + product // 4


def test_flops_count_fourier_transforms() -> None:
    x, real = torch.randn(3, 64, dtype=torch.complex64), torch.randn(3, 64)
    assert count_flops(lambda: torch.fft.fft(x)) == 5 * 3 * 64 * 6
    assert count_flops(lambda: torch.fft.rfft(real)) == 5 * 3 * 64 * 6 / 2
    assert count_flops(lambda: torch.fft.irfft(x[:, :33], 64)) == 5 * 3 * 64 * 6 / 2
    assert count_flops(lambda: torch.fft.fft2(torch.ones(8, 16, dtype=torch.complex64))) == 5 * 128 * 7
    fnet = build("fnet", Dims(d_model=32, n_heads=2, max_len=64))
    linear, transform = 2 * 64 * 32 * 32, 5 * 64 * 32 * 11 / 2
    assert count_flops(lambda: fnet(torch.randn(1, 64, 32))) == linear + transform


def test_timing_gives_median_within_its_quartiles() -> None:
    timing = time_it(lambda: time.sleep(0.01), CPU, seconds=0.1)
    assert 0.01 <= timing.spread[0] <= timing.median <= timing.spread[1]
