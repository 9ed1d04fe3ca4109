"""What torch.compile does in this process: the time it takes, and the graph breaks it makes."""

from __future__ import annotations

import sys


def compile_seconds() -> float:
    """Seconds spent compiling so far; 0 where nothing was compiled."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0.0 if utils is None else float(utils.calculate_time_spent()["total_wall_time"])


def graph_breaks() -> int:
    """Places so far at which a compiled function went back to Python."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else sum(utils.counters["graph_break"].values())


def check_compiler(device: str) -> None:
    """Raise NotImplementedError unless torch.compile finds the C++ compiler that it needs on a CPU."""
    if device != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise NotImplementedError("torch.compile needs a C++ compiler on a CPU: install g++ or clang") from error
