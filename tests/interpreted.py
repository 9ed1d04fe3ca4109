"""Every Triton kernel beside its twin in plain torch, as a program: ``python -m tests.interpreted`` prints the errors.

Triton reads TRITON_INTERPRET=1 when it is imported, so a program of its own sets it.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo import MultiHeadAttention, describe
from zoo.kernels import block_lists

LENGTH, MAX_LEN, D_MODEL, N_HEADS = 21, 32, 12, 2
SPARSE: list[tuple[str, dict[str, Any]]] = [
    ("local", {"window": 5}),
    ("longformer", {"window": 4, "n_global": 3}),
    ("bigbird", {"block_size": 4, "n_random": 1, "n_global": 1}),
    ("block_sparse", {"block_size": 8}),
    ("sparse_transformer", {"stride": 5}),
    ("sparse_transformer", {"stride": 6, "pattern": "fixed", "summary": 2}),
    ("dilated", {"segment": 4, "growth": 2}),
    ("reformer", {"n_hashes": 2, "bucket_size": 8}),
]
SCANS: list[tuple[str, dict[str, Any]]] = [("retnet", {"expand": 2}), ("mamba2", {"state": 5})]


def cases() -> Iterator[tuple[str, str, dict[str, Any], bool, int]]:
    """A label, a backend, its options, whether it is causal, and how many positions one program walks."""
    for name, options in SPARSE:
        for causal in (False, True):
            yield f"{name} {options} causal={causal}", name, options, causal, 2048
    for name, options in (SPARSE[1], SPARSE[2], SPARSE[5]):  # rows in pieces
        yield f"{name} {options} in pieces", name, options, False, 16
    for name, options in SCANS:
        for causal in (False, True):
            yield f"{name} {options} causal={causal}", name, options, causal, 2048


def results(layer: MultiHeadAttention, x: Tensor, mask: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    x = x.detach().clone().to(next(layer.parameters()).dtype).requires_grad_()
    y = layer(x, key_padding_mask=mask)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]  # type: ignore[list-item]


def error(name: str, options: dict[str, Any], causal: bool) -> float:
    """The largest difference from the twin in float64, as a share of the largest number of the tensor."""
    torch.manual_seed(0)
    layers = [
        MultiHeadAttention(
            describe(name).config(**options, kernel=kernel),
            d_model=D_MODEL,
            n_heads=N_HEADS,
            max_len=MAX_LEN,
            causal=causal,
        )
        for kernel in ("triton", "torch")
    ]
    layers[1].load_state_dict(copy.deepcopy(layers[0].state_dict()))
    x = torch.randn(2, LENGTH, D_MODEL)
    mask = torch.arange(LENGTH) >= torch.tensor([[LENGTH], [LENGTH - 6]])
    ours, theirs = results(layers[0], x, mask), results(layers[1].double(), x, mask)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in zip(ours, theirs, strict=True))


def refuses_second_derivatives(name: str) -> bool:
    """Whether gradients that are differentiated again raise, and are not taken for constants."""
    layer = MultiHeadAttention(
        describe(name).config(kernel="triton"), d_model=D_MODEL, n_heads=N_HEADS, max_len=MAX_LEN
    )
    x = torch.randn(1, 9, D_MODEL, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    try:
        torch.autograd.grad(grad.square().sum(), list(layer.parameters()), allow_unused=True)
    except RuntimeError as error:
        return "cannot be differentiated again" in str(error)
    return False


def main() -> None:
    found: dict[str, float] = {
        f"{name} twice": float(not refuses_second_derivatives(name)) for name in ("local", "retnet")
    }
    for label, name, options, causal, walked in cases():
        block_lists.WALKED = walked
        block_lists.make_lists.cache_clear()
        found[label] = error(name, options, causal)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
