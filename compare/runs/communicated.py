"""The bytes that a process of a run sends to the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from compare.runs.measure import OnParts
from compare.runs.traffic import tensors

TIMES = {
    **dict.fromkeys(("allreduce_", "all_reduce"), 2),
    **dict.fromkeys(("allgather_", "_allgather_base_", "all_gather_into_tensor"), 1),
    "broadcast_": 1,
    **dict.fromkeys(("reduce_scatter_", "_reduce_scatter_base_", "reduce_scatter_tensor"), 1),
}
"""Collective -> how often a process sends its share of the tensor, (W - 1) / W of it. Names with _ at the end are of
``torch.distributed``, the others of what DTensors call."""


def sent_bytes(step: Callable[[], object]) -> float:
    """Bytes that this process sends in ``step``, where collectives go around a ring.

    Each of W processes of a group sends (W - 1) / W of a tensor to gather it from all, and as much to reduce it to a
    part for each; to reduce it to the whole for each it sends both; what one tells all, all but the last pass on. What
    goes to one process counts as it is.
    """
    counter = _Counter()
    with counter, OnParts():  # type: ignore[no-untyped-call]
        step()
    return counter.bytes


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            name, given = func.__name__.partition(".")[0], dict(zip(_argument_names(func), args, strict=False))
            if name in TIMES:
                group, whole = _group_of(given), max(map(_size, [*args, result]))
                self.bytes += TIMES[name] * whole * (group.size() - 1) / group.size()
            elif name == "send":
                self.bytes += _size(given["tensors"])
            elif name == "alltoall_base_":
                rows, kept = given["input_split_sizes"], _group_of(given).rank()
                self.bytes += _size(given["input"]) * (1 - rows[kept] / max(1, sum(rows)))
        return result


def _argument_names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments]


def _group_of(given: dict[str, Any]) -> dist.ProcessGroup:
    if "process_group" in given:
        return dist.ProcessGroup.unbox(given["process_group"])
    named = given["group_name"]
    group = _resolve_process_group(named) if isinstance(named, str) else named  # type: ignore[arg-type]
    return group


def _size(values: Any) -> int:
    """Bytes of all tensors in nested lists."""
    return sum(x.numel() * x.element_size() for x in tensors(values))
