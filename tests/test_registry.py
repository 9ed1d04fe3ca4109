"""Registering a backend from one's own file, and what goes wrong there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from zoo import Encoder, available, describe, register
from zoo.contract import Attention, Dims, Traits
from zoo.registry import _entries


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    scale: float = 1.0


class PlainAttention(Attention):
    """Values, scaled."""

    traits = Traits(family="test", source="none", year=None, time="O(N)", memory="O(N)", causal=False)

    def __init__(self, dims: Dims, config: PlainConfig) -> None:
        super().__init__()
        self.scale = config.scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return self.scale * v


@pytest.fixture
def plain() -> Iterator[None]:
    available()
    register("plain", config=PlainConfig)(PlainAttention)
    yield
    del _entries["plain"]


@pytest.mark.usefixtures("plain")
def test_a_registered_backend_is_available_everywhere() -> None:
    assert "plain" in available()
    assert describe("plain").options == {"scale": 1.0}
    assert describe("plain").summary == "Values, scaled."
    encoder = Encoder(PlainConfig(scale=2.0), d_model=8, n_heads=2, n_layers=1, max_len=16)
    assert encoder(torch.randn(1, 5, 8)).shape == (1, 5, 8)


@pytest.mark.usefixtures("plain")
def test_two_backends_of_one_name_are_refused_and_both_are_named() -> None:
    @dataclass(frozen=True)
    class OtherConfig:
        pass

    class Other(PlainAttention):
        pass

    with pytest.raises(
        ValueError, match=r"cannot register .*Other as 'plain'.*PlainAttention is registered as 'plain'"
    ):
        register("plain", config=OtherConfig)(Other)


def test_unknown_names_get_the_closest_match_and_the_list() -> None:
    with pytest.raises(ValueError, match=r"unknown attention 'reforme'. Did you mean 'reformer'\? Available: block"):
        describe("reforme")
