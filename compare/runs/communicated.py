"""The bytes that a process of a run sends to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TIMES = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1}
"""Collective -> how often a process sends its share of the tensor, (W - 1) / W of it."""


def sent_bytes(step: Callable[[], object], processes: int) -> int:
    """Bytes that this process sends in ``step``, where collectives go around a ring.

    Each of W processes sends (W - 1) / W of a tensor to gather it from all, and as much to reduce it to a part for
    each; to reduce it to the whole for each it sends both.
    """
    counter = _Counter()
    with counter:
        step()
    return round(counter.bytes * (processes - 1) / processes)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the largest tensor of each collective, as often as ``TIMES`` says."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sizes = [x.numel() * x.element_size() for x in _tensors_in(args)]
            self.bytes += TIMES.get(func.__name__.partition(".")[0], 0) * max(sizes, default=0)
        return func(*args, **(kwargs or {}))


def _tensors_in(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors_in(each)
