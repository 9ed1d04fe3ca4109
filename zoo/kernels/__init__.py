"""Kernels for GPUs; each has a twin in plain torch. They are imported only where they run."""

import importlib
import importlib.util
import os
from collections.abc import Callable

from torch import Tensor

from zoo.functional import traced

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # tests run Triton's kernels on a CPU, interpreted


def load() -> None:
    """Import the kernels, so that FLOP counters know their formulas before they run."""
    if importlib.util.find_spec("triton") is not None:
        for name in ("block_attention", "decayed", "recurrence"):
            importlib.import_module(f"zoo.kernels.{name}")


def runs(name: str, kernel: str, x: Tensor, refusal: Callable[[], str]) -> bool:
    """Whether the kernel ``name`` computes for an input ``x``: if it can, unless the option is ``torch``.

    Args:
        name: the kernel's name in the option ``kernel``.
        kernel: the option: ``auto``, ``torch`` or ``name``.
        refusal: returns why the kernel cannot run, empty if it can; called only where Triton is installed.

    Raises:
        NotImplementedError: the option is ``name`` and the kernel cannot run.
    """
    if kernel == "torch" or (kernel == "auto" and x.device.type == "cpu" and not INTERPRETED):
        return False
    if traced():
        why = "compilers and torch.func can trace plain torch only"
    elif x.numel() == 0:
        return False
    elif importlib.util.find_spec("triton") is None:
        why = "Triton is not installed"
    else:
        why = refusal()
    if why and kernel == name:
        raise NotImplementedError(f"kernel={name!r} cannot run here: {why}; use kernel='auto'")
    return not why
