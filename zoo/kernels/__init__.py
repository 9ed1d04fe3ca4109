"""Kernels for GPUs, each beside its twin in plain torch. They are imported where they run."""

import importlib
import importlib.util
import os
from collections.abc import Callable

from torch import Tensor

from zoo.functional import traced

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run on a CPU, step by step, for tests


def load() -> None:
    """Import the kernels, so that what counts FLOPs knows their formulas before they run."""
    if importlib.util.find_spec("triton") is not None:
        for name in ("block_attention", "decayed", "recurrence"):
            importlib.import_module(f"zoo.kernels.{name}")


def runs(name: str, kernel: str, x: Tensor, refusal: Callable[[], str]) -> bool:
    """Whether the kernel ``name`` computes for an input ``x``: where it can, unless ``torch`` is asked for.

    Args:
        name: of the kernel, as an option ``kernel`` names it.
        kernel: the option: ``auto``, ``torch`` or ``name``.
        refusal: why it cannot run, empty where it can; asked where Triton is installed.

    Raises:
        NotImplementedError: it is asked for and cannot run.
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
