"""The bytes that operations move between the processor and the memory, and the rate at which a machine moves them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compare.runs.measure import OnParts, time_it

COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes: more than any cache holds
UNTOUCHED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
OVERWRITTEN = {"copy_", "fill_", "zero_"}  # their first argument is written, not read
# Of these the first argument is touched at some places only: as many as the result has, or the last argument.
LOOKED_UP = {"gather", "index", "index_select", "embedding", "take"}
PARTLY_WRITTEN = {"scatter_", "scatter_add_", "index_add_", "index_copy_", "index_put_", "_index_put_impl_"}


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that no cache holds; the median of several."""
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_it(lambda: target.copy_(source), device, seconds=1.0).median


def moved_bytes(step: Callable[[], object]) -> int:
    """Bytes that the operations of ``step`` read and write, if each reads all that it needs from memory and writes all
    its results there.

    An estimate: a cache that still holds what the operation before wrote saves bytes, and an operation that walks over
    its inputs several times takes more. A fused operation counts its inputs and results, not what it keeps to itself.
    """
    with Traffic() as traffic, OnParts():  # type: ignore[no-untyped-call]
        step()
    return int(traffic.total)


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += bytes_of(func, args, kwargs or {}, result)
        return result


def bytes_of(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that one operation reads and writes; 0 for one that only looks at the same bytes in another way."""
    schema = func._schema
    name = schema.name.partition("::")[2]
    looks = [out.alias_info is not None and not out.alias_info.is_write for out in schema.returns]
    if name in UNTOUCHED or (looks and all(looks)):
        return 0
    written = sum(map(extent, tensors(result)))
    outputs = {argument.name for argument in schema.arguments if argument.is_out}
    first, *rest = args or (None,)
    others = sum(map(extent, tensors([*rest, *(value for key, value in kwargs.items() if key not in outputs)])))
    if name in OVERWRITTEN:
        return others + written
    if name in LOOKED_UP:
        return others + 2 * written
    if name in PARTLY_WRITTEN:
        return others + 2 * max(map(extent, tensors(rest)), default=0)
    return sum(map(extent, tensors(first))) + others + written


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def extent(x: Tensor) -> int:
    """Bytes of its elements; those that expanding repeats count once."""
    sizes = (size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
    return math.prod(sizes) * x.element_size()
