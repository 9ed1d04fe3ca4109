"""Kernels for GPUs, each beside its twin in plain torch. They are imported where they run."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run on a CPU, step by step, for tests
