"""Each backend knows which layer of how many it is, however the model is built, and a backend may read it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from zoo import Attention, Dims, Encoder, MultiHeadAttention, Traits, register
from zoo.contract import Backend, Tensors
from zoo.registry import _entries
from zoo.shell import Shell

SIZES = {"d_model": 16, "n_heads": 2, "max_len": 32}


@dataclass(frozen=True, kw_only=True)
class FadingConfig:
    """fade: what a layer at the end of an endless stack leaves of its values."""

    fade: float = 0.5


class FadingAttention(Attention):
    """Values, times 1 in the first layer and less in each after it."""

    traits = Traits(family="test", source="none", year=None, time="O(N)", memory="O(N)", causal=True)

    def __init__(self, dims: Dims, config: FadingConfig) -> None:
        super().__init__(dims)
        self.share = 1 - (1 - config.fade) * dims.layer / dims.n_layers

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return self.share * v

    def begin(self, x: Tensor) -> Tensors:
        return ()

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return self.share * v, ()


@pytest.fixture
def _fading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.registry._entries", dict(_entries))
    register("fading", config=FadingConfig)(FadingAttention)


fading = pytest.mark.usefixtures("_fading")


def places(module: nn.Module) -> set[tuple[int, int]]:
    """(layer, n_layers) that the backends in a module were told."""
    return {(part.dims.layer, part.dims.n_layers) for part in module.modules() if isinstance(part, Backend)}


@pytest.mark.parametrize("how", ["plain", "reversible", "meta", "copied"])
def test_each_layer_knows_its_place(name: str, how: str) -> None:
    encoder = Encoder(
        name, n_layers=3, **SIZES, reversible=how == "reversible", device="meta" if how == "meta" else None
    )
    if how == "copied":
        encoder = copy.deepcopy(encoder)
    assert [places(layer) for layer in encoder.layers] == [{(0, 3)}, {(1, 3)}, {(2, 3)}]


def test_a_sublayer_alone_is_the_only_one(name: str) -> None:
    assert places(MultiHeadAttention(name, **SIZES)) == {(0, 1)}
    assert places(MultiHeadAttention(name, **SIZES, layer=2, n_layers=4)) == {(2, 4)}


def test_layers_of_torch_know_their_place() -> None:
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), num_layers=3)
    ours = Encoder.from_torch(theirs)
    assert [places(layer) for layer in ours.layers] == [{(0, 3)}, {(1, 3)}, {(2, 3)}]


@pytest.mark.parametrize(("layer", "n_layers"), [(3, 3), (-1, 3), (0, 0)])
def test_a_place_that_does_not_exist_is_an_error(layer: int, n_layers: int) -> None:
    with pytest.raises(ValueError, match="layer"):
        Dims(**SIZES, layer=layer, n_layers=n_layers)


@fading
@pytest.mark.parametrize("options", [{}, {"reversible": True}, {"checkpointing": True}], ids=str)
def test_a_backend_that_reads_its_place_works(options: dict[str, bool]) -> None:
    """Its layers differ by their place alone, in forward, backward and steps."""
    torch.manual_seed(0)
    encoder = Encoder("fading", n_layers=2, **SIZES, dropout=0.0, causal=True, **options).double()
    attentions = [part for part in encoder.modules() if isinstance(part, FadingAttention)]
    assert [attention.share for attention in attentions] == [1, 0.75]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    y = encoder(x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)
    _, state = encoder.prefill(x[:, :3])
    for position in (3, 4):
        row, state = encoder.step(x[:, position], state)
        torch.testing.assert_close(row, y[:, position].detach())
    attentions[1].share = 1.0
    assert not torch.allclose(encoder(x), y)


@fading
def test_a_copied_layer_keeps_the_place_of_the_original() -> None:
    """A stack of copies of one layer is that layer again and again: its weights too are those of the original."""
    layer = Encoder("fading", n_layers=2, **SIZES).layers[1]
    twin = copy.deepcopy(layer)
    assert places(twin) == {(1, 2)}
    shell = twin.attention.mixer
    assert isinstance(shell, Shell)
    assert isinstance(shell.attention, FadingAttention)
    assert shell.attention.share == 0.75
