"""The encoder: shapes, options, and what users can get wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from compare.runs.measure import saved_bytes
from zoo import Encoder, MultiHeadAttention, available
from zoo.attention.performer import PerformerConfig
from zoo.attention.reformer import ReformerConfig
from zoo.heads import ClassificationHead, TokenHead

SMALL = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_len": 64}


def test_defaults_work_as_they_stand() -> None:
    encoder = Encoder(attn="linformer").eval()
    assert (encoder.d_model, len(encoder.layers), encoder.max_len) == (512, 6, 8192)
    assert encoder.layers[0].feed_forward.hidden.out_features == 2048
    assert encoder(torch.randn(1, 100, 512)).shape == (1, 100, 512)


def test_every_backend_runs_in_the_encoder_and_as_a_sublayer(name: str) -> None:
    x = torch.randn(2, 50, 32)
    assert Encoder(attn=name, **SMALL)(x).shape == x.shape
    assert MultiHeadAttention(attn=name, d_model=32, n_heads=4, max_len=64)(x).shape == x.shape


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "none"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_options_combine(positions: str, activation: str, norm: str) -> None:
    encoder = Encoder(positions=positions, activation=activation, norm=norm, conv_width=4, vocab_size=10, **SMALL)
    y = encoder(torch.randint(10, (2, 50)))
    y.square().sum().backward()
    assert y.shape == (2, 50, 32)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_positions_tell_permutations_apart(positions: str) -> None:
    def pooled_difference(kind: str) -> float:
        torch.manual_seed(0)
        encoder = Encoder(positions=kind, vocab_size=10, **SMALL).eval()
        a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 1, 4, 2]])
        return (encoder(a).mean(1) - encoder(b).mean(1)).abs().max().item()

    assert pooled_difference("none") < 1e-5
    assert pooled_difference(positions) > 1e-3


@pytest.mark.parametrize("conv_width", [None, 1, 4, 5])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_padding_and_batch_mates_change_nothing(name: str, conv_width: int | None, positions: str) -> None:
    encoder = Encoder(name, conv_width=conv_width, positions=positions, **SMALL).double().eval()
    x = torch.randn(2, 40, 32, dtype=torch.float64)
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, 23:] = True
    y = encoder(x.masked_fill(mask[..., None], 1e4), key_padding_mask=mask)
    torch.testing.assert_close(y[:1, :23], encoder(x[:1, :23]), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(y[1:], encoder(x[1:]), atol=1e-9, rtol=1e-9)
    assert (y[mask] == 0).all()


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_causal_encoder_does_not_see_the_future(positions: str) -> None:
    encoder = Encoder(causal=True, conv_width=4, positions=positions, **SMALL).eval()
    x = torch.randn(1, 40, 32)
    edited = x.clone()
    edited[:, 20] += 1
    difference = (encoder(x) - encoder(edited)).abs().amax((0, 2))
    assert (difference[:20] == 0).all()
    assert difference[20] > 0


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("attn", ["full", "linformer"])
def test_twelve_layers_train_without_nan(norm: str, attn: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(attn, d_model=32, n_heads=4, n_layers=12, max_len=64, norm=norm, vocab_size=20, dropout=0.0)
    head = TokenHead(32, 20)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    tokens = torch.randint(20, (8, 32), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(head(encoder(tokens)).flatten(0, 1), tokens.flatten())
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_twelve_layers_of_every_backend_give_finite_gradients(name: str, norm: str) -> None:
    encoder = Encoder(name, d_model=32, n_heads=4, n_layers=12, max_len=64, norm=norm)
    encoder(torch.randn(2, 40, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_activations_keep_their_size_with_depth() -> None:
    torch.manual_seed(0)
    encoder = Encoder(d_model=64, n_heads=4, n_layers=24, max_len=64, dropout=0.0)
    x = torch.randn(2, 64, 64)
    for layer in encoder.layers:
        x = layer(x)
    assert 0.5 < x.std() < 3


def test_redraw_reaches_every_layer() -> None:
    encoder = Encoder(ReformerConfig(bucket_size=8), **SMALL)
    before = [layer.attention.mixer.attention.rotations.clone() for layer in encoder.layers]
    encoder.redraw()
    after = [layer.attention.mixer.attention.rotations for layer in encoder.layers]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_redraw_after_so_many_steps_reaches_those_whose_interval_is_over() -> None:
    encoder = Encoder(PerformerConfig(features=8, redraw_interval=3), **SMALL)
    kept = Encoder(PerformerConfig(features=8, redraw_interval=0), **SMALL)
    hashes = Encoder(ReformerConfig(bucket_size=8), **SMALL)  # which its authors draw in every forward, and no trainer

    def drawn(encoder: Encoder, after: int) -> bool:
        before = [buffer.clone() for buffer in encoder.buffers()]
        encoder.redraw(after=after)
        return any(not torch.equal(a, b) for a, b in zip(before, encoder.buffers(), strict=True))

    assert [step for step in range(10) if drawn(encoder, step)] == [3, 6, 9]
    assert not any(drawn(each, step) for each in (kept, hashes) for step in range(10))


def test_heads_pool_over_real_positions() -> None:
    x = torch.randn(2, 10, 32)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[0, 4:] = True
    head = ClassificationHead(32, 3)
    torch.testing.assert_close(head(x, key_padding_mask=mask)[0], head(x[:1, :4])[0])
    cls = ClassificationHead(32, 3, pool="cls")
    torch.testing.assert_close(cls(x), cls(x[:, :1]))
    torch.testing.assert_close(cls(x, key_padding_mask=~mask)[0], cls(x[:1, 4:])[0])
    assert TokenHead(32, 7)(x).shape == (2, 10, 7)
    with pytest.raises(ValueError, match="pool must be one of mean, cls; got 'max'"):
        ClassificationHead(32, 3, pool="max")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn": "linfromer"}, "unknown attention 'linfromer'. Did you mean 'linformer'.*Available: .*full"),
        ({"attn": 3}, "attn must be a name or a registered config, got 3"),
        ({"d_model": 30, "n_heads": 4}, "d_model must be a multiple of n_heads, got d_model=30, n_heads=4"),
        ({"d_model": 0}, "d_model must be an integer of at least 1, got 0"),
        ({"n_heads": -1}, "n_heads must be an integer of at least 1, got -1"),
        ({"max_len": 0}, "max_len must be an integer of at least 1, got 0"),
        ({"norm": "middle"}, "norm must be one of pre, post; got 'middle'"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"positions": "absolute"}, "positions must be one of"),
        ({"d_model": 12, "n_heads": 4, "positions": "rotary"}, "d_head must be even, got 3"),
        ({"conv_width": -2}, "conv_width must be an integer of at least 1, got -2"),
        ({"conv_width": 0}, "conv_width must be an integer of at least 1, got 0"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, got 0"),
        ({"n_layers": -1}, "n_layers must be an integer of at least 0, got -1"),
        ({"attn": "linformer", "causal": True}, "linformer has no causal form; these have: .*full"),
    ],
)
def test_wrong_construction_is_said_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Encoder(**(SMALL | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.randn(2, 65, 32), None, r"expected 1 to 64 positions \(max_len\), got 65"),
        (torch.randn(2, 0, 32), None, "expected 1 to 64 positions"),
        (torch.randn(2, 9, 31), None, r"expected floats of shape \(B, N, 32\), got shape \(2, 9, 31\)"),
        (torch.randn(9, 32), None, r"expected floats of shape \(B, N, 32\)"),
        (torch.randint(5, (2, 9)), None, r"expected floats of shape \(B, N, 32\), got shape \(2, 9\) of torch.int64"),
        (torch.randn(2, 9, 32), torch.zeros(2, 8, dtype=torch.bool), r"mask of shape \(2, 9\).*got shape \(2, 8\)"),
        (torch.randn(2, 9, 32), torch.zeros(2, 9), "torch.bool .*got shape .* of torch.float32"),
        (torch.randn(2, 9, 32), torch.zeros(9, dtype=torch.bool), "mask of shape"),
    ],
)
def test_wrong_input_is_said_in_one_line(x: torch.Tensor, mask: torch.Tensor | None, message: str) -> None:
    for module in (Encoder(**SMALL), MultiHeadAttention("none", d_model=32, n_heads=4, max_len=64)):
        with pytest.raises(ValueError, match=message):
            module(x, key_padding_mask=mask)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_ids_of_any_integer_dtype_are_taken(dtype: torch.dtype) -> None:
    encoder = Encoder(vocab_size=10, causal=True, **SMALL).eval()
    tokens = torch.arange(10).view(2, 5)
    assert torch.equal(encoder(tokens.to(dtype)), encoder(tokens))
    assert torch.equal(encoder.step(tokens[:, 0].to(dtype))[0], encoder.step(tokens[:, 0])[0])


@pytest.mark.parametrize(("ids", "got"), [([0, 10], "0 to 10"), ([-1, 3], "-1 to 3")])
def test_an_id_out_of_range_is_said_in_one_line(ids: list[int], got: str) -> None:
    encoder = Encoder(vocab_size=10, causal=True, **SMALL)
    for run, tokens in ((encoder, torch.tensor([ids])), (encoder.step, torch.tensor(ids))):
        with pytest.raises(
            ValueError, match=rf"^expected token ids from 0 to 9 \(vocab_size - 1\), got ids from {got}$"
        ):
            run(tokens)


def test_floats_for_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected token ids of shape \(B, N\), got shape \(2, 9, 32\)"):
        Encoder(vocab_size=10, **SMALL)(torch.randn(2, 9, 32))


def test_import_zoo_stays_light() -> None:
    heavy = {"datasets", "matplotlib", "accelerate", "xformers", "torch._dynamo", "compare", "tasks"}
    code = f"import sys, zoo; zoo.available(); print({heavy} & set(sys.modules) or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_the_names_a_user_imports() -> None:
    import zoo

    used = {"Encoder", "MultiHeadAttention", "TorchAttention", "available", "describe"}
    assert set(zoo.__all__) == used | {"Attention", "Dims", "Mixer", "Traits", "register"}, "a backend needs the rest"
    assert {"full", "naive", "linformer", "reformer", "block_sparse", "xformers", "none"} <= set(available())


def test_checkpointing_changes_memory_and_nothing_else(name: str) -> None:
    def trained(*, checkpointing: bool) -> tuple[list[Tensor], list[Tensor], int]:
        torch.manual_seed(0)
        encoder = Encoder(
            name, d_model=16, n_heads=2, n_layers=4, max_len=48, vocab_size=9, checkpointing=checkpointing
        )
        tokens = torch.randint(9, (3, 48))
        mask = torch.arange(48) >= torch.tensor([48, 30, 7])[:, None]
        kept = saved_bytes(lambda: encoder(tokens, key_padding_mask=mask), encoder)
        torch.manual_seed(1)
        for _ in range(2):
            encoder(tokens, key_padding_mask=mask).square().mean().backward()
        return [p.grad for p in encoder.parameters()], [b.clone() for b in encoder.buffers()], kept

    grads, buffers, kept = trained(checkpointing=False)
    again, buffers_again, kept_again = trained(checkpointing=True)
    torch.testing.assert_close(again, grads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(buffers_again, buffers)
    assert 4 * 3 * 48 * 16 * 4 <= kept_again < kept / 2
