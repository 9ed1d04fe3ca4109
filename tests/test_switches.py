"""The encoder's switches: places and kinds of norms, initial weights, dropout of attention weights, what backward
recomputes, and feed-forwards in chunks."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.runs.measure import saved_bytes
from zoo import Encoder, describe
from zoo.checkpointing import Part
from zoo.contract import Mixer, UnsupportedError
from zoo.layers import INITS, EncoderLayer, FeedForward
from zoo.shell import Shell

HOLD_WEIGHTS = {"full", "naive", "xformers"}


def make(attn: str = "full", **options: Any) -> Encoder:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_len": 48, "vocab_size": 9, "dropout": 0.0}
    return Encoder(attn, **(sizes | options))


def tokens() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(9, (3, 48)), torch.arange(48) >= torch.tensor([48, 30, 7])[:, None]


def trained(encoder: Encoder) -> tuple[Tensor, list[Tensor | None], int]:
    """Output, gradients, and bytes saved for backward."""
    ids, mask = tokens()
    saved = saved_bytes(lambda: encoder(ids, key_padding_mask=mask), encoder)
    torch.manual_seed(2)
    y = encoder(ids, key_padding_mask=mask)
    y.square().mean().backward()
    return y.detach(), [p.grad for p in encoder.parameters()], saved


@pytest.mark.parametrize("part", ["attention", "feed_forward"])  # whole layers: tests/test_encoder.py
def test_a_part_that_is_recomputed_changes_memory_and_nothing_else(name: str, part: Part) -> None:
    plain, again = (trained(make(name, dropout=0.1, checkpointing=c)) for c in (False, part))
    torch.testing.assert_close(again[0], plain[0])
    torch.testing.assert_close(again[1], plain[1], rtol=1e-4, atol=1e-6)
    if name not in ("none", "mean"):  # their mixing stores nothing that could be spared
        assert again[2] < plain[2]


def test_the_bytes_that_checkpoints_spare_are_those_of_the_part() -> None:
    saved = {part: trained(make(n_layers=4, checkpointing=part))[2] for part in (False, *get_args(Part))}
    hidden = 4 * 3 * 48 * 64 * 4  # layers, samples, positions, d_ff, bytes of a number
    assert saved["layer"] < min(saved["attention"], saved["feed_forward"])
    assert saved[False] - saved["feed_forward"] >= 2 * hidden, "the hidden features before and after the GELU"
    kept = 4 * 3 * 48 * 16 * 4  # one input a layer
    assert saved["layer"] < 3 * kept


@pytest.mark.parametrize("beside", [{}, {"reversible": True}, {"checkpointing": True}, {"activation": "swiglu"}])
def test_a_feed_forward_in_chunks_changes_memory_and_nothing_else(beside: dict[str, Any]) -> None:
    whole, parts = (trained(make(dropout=0.0, ff_chunk=chunk, **beside)) for chunk in (None, 7))
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)
    if not beside:
        assert parts[2] < whole[2]


def test_a_feed_forward_in_chunks_holds_the_features_of_one_chunk() -> None:
    feed = FeedForward(16, 64, activation="gelu", dropout=0.0, chunk=8).eval()
    seen: list[int] = []
    feed.hidden.register_forward_hook(lambda _module, _inputs, y: seen.append(y.shape[-2]))
    feed(torch.randn(2, 30, 16))
    assert seen == [8, 8, 8, 6]


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("norm_type", "kind"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm)])
def test_all_norms_are_of_one_kind(norm: str, norm_type: str, kind: type[nn.Module]) -> None:
    encoder = make(norm=norm, norm_type=norm_type)
    norms = [m for m in encoder.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)]
    assert len(norms) == (5 if norm == "pre" else 4)
    assert all(type(m) is kind for m in norms)
    trained(encoder)


def test_a_normalised_query_has_no_size() -> None:
    """Queries and keys a hundred times as large change nothing, where without the norm they change all."""
    for qk_norm, same in ((True, True), (False, False)):
        encoder = make(qk_norm=qk_norm).eval()
        ids, mask = tokens()
        before = encoder(ids, key_padding_mask=mask)
        with torch.no_grad():
            for layer in encoder.layers:
                layer.attention.mixer.qkv.weight[:32].mul_(100)
        after = encoder(ids, key_padding_mask=mask)
        assert torch.allclose(before, after, atol=1e-4) is same


def test_queries_and_keys_are_normalised_where_the_shell_makes_them(name: str) -> None:
    if issubclass(describe(name).cls, Mixer):
        with pytest.raises(UnsupportedError, match=f"qk_norm: {name} has no queries and keys of the shell"):
            make(name, qk_norm=True)
        return
    _, grads, _ = trained(make(name, qk_norm=True))
    assert all(g is not None and g.isfinite().all() for g in grads)


def test_steps_and_prefill_see_the_normalised_queries() -> None:
    encoder = make(qk_norm=True, causal=True).eval()
    ids, _ = tokens()
    y, state = encoder.prefill(ids[:, :20])
    torch.testing.assert_close(y, encoder(ids[:, :20]))
    for position in range(20, 24):
        step, state = encoder.step(ids[:, position], state)
    torch.testing.assert_close(step, encoder(ids[:, :24])[:, -1])


def test_attention_weights_are_dropped_where_a_method_has_them(name: str) -> None:
    if name not in HOLD_WEIGHTS:
        with pytest.raises(UnsupportedError, match=f"attention_dropout: {name} does not hold the weight of each pair"):
            make(name, attention_dropout=0.5)
        return
    encoder, ids = make(name, attention_dropout=0.5), tokens()[0]
    assert not torch.equal(encoder(ids), encoder(ids)), "training draws"
    torch.testing.assert_close(encoder.eval()(ids), make(name).eval()(ids))


def test_dropped_weights_are_those_of_the_textbook() -> None:
    """softmax, then dropout, then the values: with values of 1 a row sums to its kept weights, scaled up."""
    torch.manual_seed(0)
    for name in HOLD_WEIGHTS:
        shell = make(name, d_model=64, n_heads=1, attention_dropout=0.25).layers[0].attention.mixer
        assert isinstance(shell, Shell)
        q, k = torch.randn(2, 256, 1, 48, 64).mul(0.01)
        out = shell.attention(q, k, torch.ones(256, 1, 48, 64))[..., 0]
        assert out.mean().item() == pytest.approx(1.0, abs=0.01)
        # Of 48 nearly equal weights each row keeps about three quarters, a binomial count.
        assert out.std().item() == pytest.approx((48 * 0.25 * 0.75) ** 0.5 / 36, rel=0.1)


def test_the_schemes_draw_what_they_say() -> None:
    deviations = {"torch": (3 * 256) ** -0.5, "xavier": (2 / (256 + 1024)) ** 0.5, "gpt2": 0.02}
    assert deviations.keys() == INITS.keys()
    for scheme, deviation in deviations.items():
        layer = make(d_model=256, n_layers=1, init=scheme).layers[0]
        assert isinstance(layer, EncoderLayer)
        hidden, out = layer.feed_forward.hidden.weight, layer.feed_forward.out.weight
        assert hidden.std().item() == pytest.approx(deviation, rel=0.02), scheme
        assert layer.feed_forward.hidden.bias.count_nonzero() == 0
        own = {"torch": (3 * 1024) ** -0.5}.get(scheme, deviation)
        assert out.std().item() == pytest.approx(own * 2**-0.5, rel=0.02), "scaled by the number of sublayers"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm_type": "batch"}, "norm_type must be one of layer, rms; got 'batch'"),
        ({"init": "he"}, "init must be one of zoo, torch, xavier, gpt2; got 'he'"),
        ({"checkpointing": "norms"}, "checkpointing must be one of layer, attention, feed_forward; got 'norms'"),
        ({"ff_chunk": 0}, "ff_chunk must be an integer of at least 1, got 0"),
        ({"attention_dropout": 1.0}, "attention_dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_smoothed_targets_keep_the_plain_loss_in_the_curves() -> None:
    from compare.runs.score import Tally
    from tasks.base import ACCURACY

    predicted, targets = torch.randn(20, 5), torch.randint(5, (20,))
    tally = Tally(ACCURACY, 0.1)
    loss = tally.add(predicted, targets)
    # Szegedy et al.: targets of 1 - 0.1 + 0.1 / 5 and 0.1 / 5.
    smooth = torch.full((20, 5), 0.02).scatter(1, targets[:, None], 0.92)
    torch.testing.assert_close(loss, -(smooth * F.log_softmax(predicted, -1)).sum(1).mean())
    assert tally.read()[0] == pytest.approx(F.cross_entropy(predicted, targets).item())
