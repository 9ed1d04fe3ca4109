"""The benchmark of initial sizes changes queries and keys alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.initialisation import start_with
from zoo import Encoder


def test_queries_and_keys_get_the_variance_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    encoder = Encoder(d_model=256, n_heads=4, n_layers=2, max_len=8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    start_with(encoder, 0.25)
    for name, value in encoder.state_dict().items():
        if not name.endswith("qkv.weight"):
            assert torch.equal(value, before[name])
            continue
        assert value[:512].square().mean().item() * 256 == pytest.approx(0.25)
        assert torch.equal(value[512:], before[name][512:])
