"""Kernels for GPUs: interpreted on a CPU beside their twins in plain torch; asked for, they run or say why not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from zoo import MultiHeadAttention, describe

SPARSE = ("local", "longformer", "bigbird", "block_sparse", "sparse_transformer", "dilated", "reformer")
SCANS = ("retnet", "mamba2")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_equal_their_twins() -> None:
    """Outputs and gradients, with padding, in both directions and causal, and where several programs share a row; whose
    gradients are differentiated again raises.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "tests.interpreted"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 25
    # causal reformer: the gradient of a logit of -1e5 has two digits in float32, in either implementation
    limits = {label: 0.1 if label.startswith("reformer") and label.endswith("True") else 1e-5 for label in errors}
    assert {label: error for label, error in errors.items() if error > limits[label]} == {}


@pytest.mark.parametrize(
    ("backend", "kernel"), [*((name, "triton") for name in SPARSE + SCANS), ("gated_deltanet", "fla")]
)
def test_a_kernel_that_cannot_run_is_an_error_and_auto_says_what_runs(backend: str, kernel: str) -> None:
    x = torch.randn(1, 9, 16)
    options = {"d_model": 16, "n_heads": 2, "max_len": 16}
    asked = MultiHeadAttention(describe(backend).config(kernel=kernel), **options)
    with pytest.raises(NotImplementedError, match=rf"kernel='{kernel}' cannot run here: .* use kernel='auto'"):
        asked(x)
    theirs = {"triton": "Triton", "fla": "flash-linear-attention"}[kernel]
    assert theirs not in MultiHeadAttention(backend, **options).kernel(x).name


@pytest.mark.parametrize("backend", [*SPARSE, *SCANS, "gated_deltanet"])
def test_an_unknown_kernel_is_refused_in_one_line(backend: str) -> None:
    with pytest.raises(ValueError, match=rf"{backend}.kernel must be one of auto, torch, .*; got 'fast'"):
        describe(backend).config(kernel="fast")


def test_gradients_of_what_is_counted_alone_are_not_differentiated_again() -> None:
    """Those of flash-linear-attention's kernels, which would be taken for constants."""
    pytest.importorskip("triton")
    from zoo.kernels.recurrence import _Counted

    x = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(_Counted.apply(x**3, 5).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("backend", ["local", "bigbird", "retnet"])
def test_a_kernel_asked_for_is_an_error_under_a_compiler_too(backend: str) -> None:
    layer = MultiHeadAttention(describe(backend).config(kernel="triton"), d_model=16, n_heads=2, max_len=16)
    with pytest.raises(NotImplementedError, match="can trace plain torch only; use kernel='auto'"):
        torch.func.vmap(layer)(torch.randn(2, 1, 9, 16))
