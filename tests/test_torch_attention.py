"""The call of nn.MultiheadAttention, alone and in nn.TransformerEncoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo import TorchAttention, available
from zoo.contract import UnsupportedError


def padded() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 20, 32), torch.zeros(3, 20, dtype=torch.bool)
    mask[1, 13:] = True
    mask[2, 5:] = True
    return x, mask


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_full_in_torchs_encoder_is_torchs(train: bool, masked: bool) -> None:
    x, mask = padded()
    theirs = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
    ours = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    ours.self_attn = TorchAttention.from_torch(theirs.self_attn)
    stacks = [nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(train) for layer in (ours, theirs)]
    y, wanted = (stack(x, src_key_padding_mask=mask if masked else None) for stack in stacks)
    real = ~mask if masked else torch.ones_like(mask)
    torch.testing.assert_close(y[real], wanted[real], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        again = stacks[0](x, src_key_padding_mask=mask if masked else None)
    torch.testing.assert_close(again[real], y[real].detach())


@pytest.mark.parametrize("attn", available())
def test_every_backend_works_in_torchs_encoder(attn: str) -> None:
    x, mask = padded()
    layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
    layer.self_attn = TorchAttention(32, 4, attn=attn, max_len=64)
    with torch.no_grad():
        stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        y = stack(x, src_key_padding_mask=mask)
        again = stack(x.masked_fill(mask[..., None], 3.0), src_key_padding_mask=mask)
    assert y.shape == x.shape
    torch.testing.assert_close(again[~mask], y[~mask], rtol=1e-4, atol=1e-5)


def test_causal_masks() -> None:
    x, _ = padded()
    later = nn.Transformer.generate_square_subsequent_mask(20)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    ours = TorchAttention.from_torch(theirs, causal=True)
    wanted, _ = theirs(x, x, x, attn_mask=later, need_weights=False)
    for mask in (later, later.isneginf()):
        torch.testing.assert_close(ours(x, x, x, attn_mask=mask, is_causal=True)[0], wanted)
    with pytest.raises(ValueError, match="expected the causal mask"):
        ours(x, x, x, attn_mask=torch.zeros(20, 20))
    with pytest.raises(ValueError, match="expected no attn_mask"):
        TorchAttention(32, 4)(x, x, x, attn_mask=later)


def test_an_encoder_built_before_says_what_to_change() -> None:
    x, mask = padded()
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2).eval()
    for layer in stack.layers:
        layer.self_attn = TorchAttention.from_torch(layer.self_attn, "local")
        assert layer.self_attn.attention.mixer.attention.dims.attention_dropout == 0
    with torch.no_grad():
        with pytest.raises(ValueError, match="set its use_nested_tensor to False"):
            stack(x, src_key_padding_mask=mask)
        stack.use_nested_tensor = False
        assert stack(x, src_key_padding_mask=mask).isfinite().all()
    kept = TorchAttention.from_torch(nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True), "full")
    assert kept.attention.mixer.attention.dims.attention_dropout == 0.1


def test_one_sample_without_a_batch() -> None:
    x, mask = padded()
    module = TorchAttention(32, 4, attn="linear").eval()
    whole, none = module(x, x, x, key_padding_mask=mask)
    assert none is None
    torch.testing.assert_close(module(x[1], x[1], x[1], key_padding_mask=mask[1])[0], whole[1])


def test_calls_that_cannot_be_answered() -> None:
    x, mask = padded()
    module = TorchAttention(32, 4)
    with pytest.raises(ValueError, match="same tensor as query"):
        module(x, x.clone(), x)
    with pytest.raises(ValueError, match="need_weights: expected False"):
        module(x, x, x, need_weights=True)
    with pytest.raises(ValueError, match="expected floats of 0 and -inf"):
        module(x, x, x, key_padding_mask=mask.float())
    nested = torch.nested.nested_tensor([x[0], x[1]])
    with pytest.raises(ValueError, match="got a nested one"):
        module(nested, nested, nested)
    with pytest.raises(ValueError, match="expected batch_first=True"):
        TorchAttention.from_torch(nn.MultiheadAttention(32, 4))
    with pytest.raises(UnsupportedError, match="no query, key and value projections"):
        TorchAttention.from_torch(nn.MultiheadAttention(32, 4, batch_first=True), "hyena")
    with pytest.raises(ValueError, match="without add_bias_kv"):
        TorchAttention.from_torch(nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=True))
