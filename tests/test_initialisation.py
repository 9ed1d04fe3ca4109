"""The benchmark of initialisations changes what it says and nothing else."""

from __future__ import annotations

import pytest
import torch

from benchmarks.initialisation import as_authors, start_with
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


def test_the_authors_start_is_that_of_torchs_maps_and_leaves_other_backends_alone() -> None:
    torch.manual_seed(0)
    encoder = Encoder("gated_deltanet", d_model=64, n_heads=4, n_layers=1, max_len=8)
    encoder.apply(as_authors)
    weights = encoder.state_dict()
    assert all(not value.any() for name, value in weights.items() if name.endswith("strength"))
    (maps,) = (value for name, value in weights.items() if name.endswith("qkv.weight"))
    assert maps.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)
    full = Encoder("full", d_model=64, n_heads=4, n_layers=1, max_len=8)
    before = {name: value.clone() for name, value in full.state_dict().items()}
    full.apply(as_authors)
    assert all(torch.equal(value, before[name]) for name, value in full.state_dict().items())
