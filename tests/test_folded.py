"""Long chunks, folded as on a GPU: backends give what short ones give, and memory is linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compare.runs.measure import saved_bytes
from tests.test_scan import CHUNKS, assert_equal, gradients, inputs
from zoo import MultiHeadAttention
from zoo.attention import gau
from zoo.attention.based import BasedConfig
from zoo.attention.gated_deltanet import GatedDeltaNetConfig
from zoo.attention.gau import GAUConfig
from zoo.attention.mamba2 import Mamba2Config
from zoo.attention.retnet import RetNetConfig
from zoo.contract import Tensors
from zoo.cores import scan as core
from zoo.cores.scan import Chunk


def test_memory_of_a_folded_chunk_is_linear() -> None:
    def saved(chunk: Chunk, length: int) -> int:
        sequences, state = inputs(chunk, length)
        leaves = tuple(x.requires_grad_() for x in sequences)
        return saved_bytes(lambda: chunk(0, state, *leaves)[0], nn.Module())

    for chunk in CHUNKS:
        assert saved(chunk, 4096) < 2.1 * saved(chunk, 2048)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        RetNetConfig(),
        Mamba2Config(),
        GatedDeltaNetConfig(),
        *(BasedConfig(window=n, short=0) for n in (0, 1, 9, 90)),
        GAUConfig(chunk=16),
    ],
    ids=str,
)
def test_folded_chunks_give_what_short_ones_give(
    config: object, causal: bool, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long chunks with a rest, and several of them, as a GPU has them."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(config, d_model=16, n_heads=2, max_len=500, causal=causal, rotary=True).double()
    x = torch.randn(2, 500, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 500) < torch.tensor([[0.0], [0.3]]) if padded else None

    def found() -> Tensors:
        y = layer(x, key_padding_mask=mask)
        return y, *gradients(y, (x, *layer.parameters()))

    short = found()
    monkeypatch.setattr(core, "chunk_size", lambda *_: 200)
    monkeypatch.setattr(gau, "together", lambda *_: 5)
    assert_equal(found(), short)
