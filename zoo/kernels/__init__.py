"""Kernels for GPUs, each beside its twin in plain torch. They are imported where they run."""

import importlib
import importlib.util
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run on a CPU, step by step, for tests


def load() -> None:
    """Import the kernels, so that what counts FLOPs knows their formulas before they run."""
    if importlib.util.find_spec("triton") is not None:
        for name in ("block_attention", "decayed", "recurrence"):
            importlib.import_module(f"zoo.kernels.{name}")
