"""Time, memory and FLOPs of one step. Everything here is measured in a process that does nothing else."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels import INTERPRETED, load


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of several runs, and their quartiles."""

    median: float
    spread: tuple[float, float]


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_it(
    fn: Callable[[], object],
    device: torch.device,
    *,
    warm_up: int = 1,
    seconds: float = 2.0,
    first: Callable[[float], float] = float,
) -> Timing:
    """Time ``fn`` after ``warm_up`` calls: at least 3 times, then until ``seconds`` are spent, at most 20 times.

    first: returns the number of the process whose clock decides, so that all call ``fn`` equally often.
    """
    for _ in range(warm_up):
        fn()
    synchronise(device)
    took: list[float] = []
    while len(took) < 3 or (len(took) < 20 and first(sum(took)) < seconds):
        start = time.perf_counter()
        fn()
        synchronise(device)
        took.append(time.perf_counter() - start)
    low, _, high = statistics.quantiles(took, n=4, method="inclusive")
    return Timing(statistics.median(took), (low, high))


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a large square matrix product, the median of several: the peak rate of the machine."""
    size = 4096 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / time_it(lambda: a @ b, device, seconds=1.0).median


def saved_bytes(forward: Callable[[], object], module: nn.Module) -> int:
    """Bytes that ``forward`` saves for backward: the storages of all saved tensors, each counted once.

    Parameters and buffers exist anyway and do not count.
    """
    own = {own_part(x).untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is reused

    def pack(x: Tensor) -> Tensor:
        storage = own_part(x).untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    del out
    return sum(saved.values())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once; of sharded tensors those of this process's parts."""
    storages = [own_part(x).untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def own_part(x: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


def peak_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that one ``step`` adds at its peak to the memory held before it; None where they cannot be measured.

    CUDA: the allocator's peak. Linux: the high-water mark of resident memory, reset before the step; memory that
    earlier steps freed or left as garbage is returned first, so that it does not hide the memory of this step. Call it
    after a warm-up.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    reset.write_text("5")
    step()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class OnParts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets operations on split tensors become operations on this process's parts before other modes see them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(each, "to_local") for each in types):
            return NotImplemented
        return func(*args, **(kwargs or {}))


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in ``step`` (a multiply-add is two), fused attention included,
    and of its Fourier transforms (5 n log2 n each, half of it where they are real).

    Recomputation in a custom backward counts, because it is executed. Of split tensors this process's parts count.
    """
    if INTERPRETED or torch.cuda.is_available():
        load()
    with FlopCounterMode(display=False, custom_mapping=FORMULAS | _of_xformers()) as counter, OnParts():  # type: ignore[no-untyped-call]
        step()
    return int(counter.get_total_flops())


def between(counted: Mapping[int, float]) -> Callable[[int], float]:
    """Length -> FLOPs per token: counted ones, joined by straight lines between logarithms.

    Below the shortest counted length the value is that of the shortest, beyond the longest that of the longest.
    """
    lengths = sorted(counted)
    known = np.log([counted[length] for length in lengths])
    return lambda length: float(np.exp(np.interp(math.log(length), np.log(lengths), known)))


def _forward_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """FLOPs of two matrix products, from shapes (B, H, N, D)."""
    B, H, N, D = q
    return 4 * int(B * H * N * D * k[-2])


def _backward_flops(_grad: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    """FLOPs of backward: five matrix products, including the recomputed logits."""
    return _forward_flops(q, k) * 5 // 2


def _real_transform(x: Any, dim: Any, *_: Any, **__: Any) -> int:
    """FLOPs from the shape of the real side and the transformed dimensions."""
    return int(2.5 * math.prod(x) * math.log2(math.prod(x[d] for d in dim)))


def _real_inverse(x: Any, dim: Any, _normalisation: Any, last: int, *_: Any, **__: Any) -> int:
    """FLOPs from the shape of the complex side and ``last``, the real numbers in the last transformed dimension."""
    real = list(x)
    real[dim[-1]] = last
    return _real_transform(real, dim)


def _complex_transform(x: Any, dim: Any, *_: Any, **__: Any) -> int:
    return 2 * _real_transform(x, dim)


FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
    torch.ops.aten._fft_r2c: _real_transform,
    torch.ops.aten._fft_c2r: _real_inverse,
    torch.ops.aten._fft_c2c: _complex_transform,
}


def _of_xformers() -> dict[Any, Callable[..., int]]:
    """Formulas for the kernels of xformers: torch lacks some, and reads (B, N, H, D) as (B, H, N, D) in others."""

    def formula(q: int, starts: int, products: int) -> Callable[..., int]:
        """Make a formula from the positions of two arguments and the number of matrix products."""

        def flops(*arguments: Any, **_: Any) -> int:
            return products * _product_flops(arguments[q], arguments[starts])

        flops._get_raw = True  # type: ignore[attr-defined]  # it sees tensors, not shapes
        return flops

    aten, flash = torch.ops.aten, torch.ops.xformers_flash
    formulas = {
        aten._efficient_attention_forward: formula(0, 4, 2),
        aten._efficient_attention_backward: formula(1, 6, 5),
    }
    if hasattr(flash, "flash_fwd"):  # xformers is loaded and has these kernels
        formulas |= {flash.flash_fwd: formula(0, 3, 2), flash.flash_bwd: formula(2, 7, 5)}
    return formulas


def _product_flops(q: Tensor, starts: Tensor | None) -> int:
    """FLOPs of a product of q (B, N, H, D), or of q (…, N, H, D) with samples one after another: each begins at one of
    ``starts``, and the last of these is the end."""
    lengths = [q.shape[1]] * len(q) if starts is None else starts.diff().tolist()
    return sum(2 * q.shape[-2] * q.shape[-1] * n**2 for n in lengths)
