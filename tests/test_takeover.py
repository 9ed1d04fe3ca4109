"""torch's encoder taken over: the same function with the same weights, or a reason in one line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from zoo import Encoder
from zoo.attention.linformer import LinformerConfig


@pytest.mark.parametrize(
    ("norm_first", "activation", "final_norm", "bias"),
    [*itertools.product([False, True], ["relu", "gelu"], [False, True], [True]), (True, "gelu", True, False)],
)
def test_weights_of_torch_encoder_give_the_same_output(
    norm_first: bool, activation: str, final_norm: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        32, 4, 80, activation=activation, norm_first=norm_first, batch_first=True, layer_norm_eps=1e-4, bias=bias
    )
    norm = nn.LayerNorm(32) if final_norm else None
    theirs = nn.TransformerEncoder(layer, 3, norm=norm, enable_nested_tensor=False).eval()
    for parameter in theirs.parameters():  # torch starts biases and norms at 0 and 1, which would hide mistakes
        nn.init.normal_(parameter, std=0.2)
    ours = Encoder.from_torch(theirs, max_len=64)
    x = torch.randn(2, 33, 32)
    mask = torch.zeros(2, 33, dtype=torch.bool)
    mask[0, 20:] = True
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    padded = theirs(x, src_key_padding_mask=mask)
    torch.testing.assert_close(ours(x, key_padding_mask=mask)[~mask], padded[~mask], atol=1e-5, rtol=1e-5)


def test_from_torch_takes_another_attention_and_refuses_one_without_projections() -> None:
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, batch_first=True), 2, enable_nested_tensor=False)
    assert Encoder.from_torch(theirs, LinformerConfig(rank=8), max_len=64)(torch.randn(1, 20, 32)).shape == (1, 20, 32)
    with pytest.raises(ValueError, match="no query, key and value projections"):
        Encoder.from_torch(theirs, "none")


def torch_layer(kind: type[nn.TransformerEncoderLayer] = nn.TransformerEncoderLayer, **options: Any) -> Any:
    return kind(16, **({"nhead": 2, "dim_feedforward": 24, "batch_first": True} | options))


def torch_encoder(*layers: nn.Module, norm: nn.Module | None = None) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoder(torch_layer(), 0, norm=norm, enable_nested_tensor=False)
    theirs.layers.extend(layers)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    return theirs.eval()


def changed(layer: nn.TransformerEncoderLayer, **parts: object) -> nn.TransformerEncoderLayer:
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


class NewName(nn.TransformerEncoderLayer):
    """The same layer."""


class Doubled(nn.TransformerEncoderLayer):
    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(src, *args, **kwargs)


class OwnFeedForward(nn.TransformerEncoderLayer):
    def _ff_block(self, x: Tensor) -> Tensor:
        return -super()._ff_block(x)


class OwnEncoder(nn.TransformerEncoder):
    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return -super().forward(src, *args, **kwargs)


TAKEN: dict[str, Callable[[], nn.TransformerEncoder]] = {
    "final RMSNorm": lambda: torch_encoder(torch_layer(), norm=nn.RMSNorm(16)),
    "final Identity": lambda: torch_encoder(torch_layer(), norm=nn.Identity()),
    "final norm without weights": lambda: torch_encoder(
        torch_layer(), norm=nn.LayerNorm(16, eps=0.1, elementwise_affine=False)
    ),
    "final norm without bias": lambda: torch_encoder(torch_layer(), norm=nn.LayerNorm(16, bias=False)),
    "norms of one's own": lambda: torch_encoder(
        changed(torch_layer(), norm1=nn.RMSNorm(16), norm2=nn.LayerNorm(16, eps=0.1, elementwise_affine=False))
    ),
    "norm before and after": lambda: torch_encoder(torch_layer(norm_first=True), torch_layer()),
    "layers that differ": lambda: torch_encoder(
        torch_layer(nhead=4, dim_feedforward=8, activation="gelu", layer_norm_eps=0.1),
        torch_layer(dropout=0.0, bias=False),
        torch_layer(dim_feedforward=5, norm_first=True, dropout=0.5),
    ),
    "modules as activation": lambda: torch_encoder(
        torch_layer(activation=nn.GELU()), torch_layer(activation=nn.ReLU(inplace=True))
    ),
    "partial activation": lambda: torch_encoder(
        torch_layer(activation=partial(F.gelu)), torch_layer(activation=partial(F.gelu, approximate="none"))
    ),
    "functions as activation": lambda: torch_encoder(
        torch_layer(activation=torch.relu), torch_layer(activation=F.gelu)
    ),
    "a subclass of the same function": lambda: torch_encoder(torch_layer(NewName)),
    "float64": lambda: torch_encoder(torch_layer(), norm=nn.RMSNorm(16)).double(),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_from_torch_is_the_same_function(kind: str) -> None:
    theirs = TAKEN[kind]()
    ours = Encoder.from_torch(theirs, max_len=64)
    dtype = theirs.layers[0].linear1.weight.dtype
    x, mask = torch.randn(3, 21, 16, dtype=dtype), torch.zeros(3, 21, dtype=torch.bool)
    mask[0, 13:] = mask[1, 20:] = True
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)
    padded = theirs(x, src_key_padding_mask=mask)
    torch.testing.assert_close(ours(x, key_padding_mask=mask)[~mask], padded[~mask], atol=1e-6, rtol=1e-5)


def with_hook(kind: str) -> nn.TransformerEncoder:
    theirs = torch_encoder(torch_layer())
    if kind == "pruned":
        prune.l1_unstructured(theirs.layers[0].linear1, "weight", 0.5)
    else:
        theirs.layers[0].register_forward_hook(lambda _part, _inputs, y: 2 * y)
    return theirs


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another module": (lambda: torch_layer(), "expected a torch.nn.TransformerEncoder, got TransformerEncoderLayer"),
    "an encoder of one's own": (
        lambda: OwnEncoder(torch_layer(), 1, enable_nested_tensor=False),
        "OwnEncoder cannot be taken over: it overrides forward",
    ),
    "no layers": (lambda: torch_encoder(), "expected an encoder with layers, got none"),
    "a layer of another class": (
        lambda: torch_encoder(torch_layer(), nn.Linear(16, 16)),
        "layer 1 cannot be taken over: expected a TransformerEncoderLayer, got Linear",
    ),
    "its own forward": (
        lambda: torch_encoder(torch_layer(), torch_layer(Doubled)),
        "layer 1 cannot be taken over: Doubled overrides forward",
    ),
    "its own feed-forward": (lambda: torch_encoder(torch_layer(OwnFeedForward)), "overrides _ff_block"),
    "a patched forward": (lambda: torch_encoder(changed(torch_layer(), forward=F.relu)), "overrides forward"),
    "hooks": (lambda: with_hook("own"), "the hooks of layers.0 cannot be taken over"),
    "pruned": (lambda: with_hook("pruned"), "the hooks of layers.0.linear1 cannot be taken over"),
    "batch in the middle": (
        lambda: torch_encoder(torch_layer(), torch_layer(batch_first=False)),
        "layer 1 cannot be taken over: expected batch_first=True, got (N, B, d_model) inputs",
    ),
    "add_zero_attn": (
        lambda: torch_encoder(
            changed(torch_layer(), self_attn=nn.MultiheadAttention(16, 2, batch_first=True, add_zero_attn=True))
        ),
        "add_zero_attn=True is not supported",
    ),
    "add_bias_kv": (
        lambda: torch_encoder(
            changed(torch_layer(), self_attn=nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True))
        ),
        "add_bias_kv=True is not supported",
    ),
    "kdim": (
        lambda: torch_encoder(changed(torch_layer(), self_attn=nn.MultiheadAttention(16, 2, batch_first=True, kdim=8))),
        "expected keys and values of width d_model, got kdim=8 and vdim=16",
    ),
    "another attention": (
        lambda: torch_encoder(changed(torch_layer(), self_attn=nn.Identity())),
        "expected self_attn to be a MultiheadAttention, got Identity",
    ),
    "another linear map": (
        lambda: torch_encoder(changed(torch_layer(), linear2=nn.Bilinear(24, 24, 16))),
        "expected linear2 to be a Linear, got Bilinear",
    ),
    "another norm": (
        lambda: torch_encoder(changed(torch_layer(), norm2=nn.BatchNorm1d(16))),
        "norm2: expected a LayerNorm, an RMSNorm or an Identity, got BatchNorm1d",
    ),
    "another final norm": (
        lambda: torch_encoder(torch_layer(), norm=nn.Linear(16, 16)),
        "the final norm cannot be taken over: expected a LayerNorm, an RMSNorm or an Identity, got Linear",
    ),
    "a norm over positions": (
        lambda: torch_encoder(torch_layer(), norm=nn.LayerNorm((21, 16))),
        "expected a norm over 16 features, got one over (21, 16)",
    ),
    "dropouts that differ": (
        lambda: torch_encoder(changed(torch_layer(), dropout2=nn.Dropout(0.3))),
        "expected one dropout after both sublayers, got 0.1 and 0.3",
    ),
    "silu": (lambda: torch_encoder(torch_layer(activation=F.silu)), "expected the activation relu or gelu"),
    "gelu with tanh": (
        lambda: torch_encoder(torch_layer(activation=nn.GELU(approximate="tanh"))),
        "expected the activation relu or gelu, got GELU(approximate='tanh')",
    ),
    "partial gelu with tanh": (
        lambda: torch_encoder(torch_layer(activation=partial(F.gelu, approximate="tanh"))),
        "expected the activation relu or gelu",
    ),
    "lambda": (lambda: torch_encoder(torch_layer(activation=lambda x: x)), "expected the activation relu or gelu"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_from_torch_names_what_it_cannot_take_over(kind: str) -> None:
    build, message = REFUSED[kind]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Encoder.from_torch(build(), max_len=64)
    assert "\n" not in str(caught.value)


def test_from_torch_keeps_dropout_where_it_is_and_what_is_frozen() -> None:
    theirs = torch_encoder(torch_layer(dropout=0.25))
    theirs.layers[0].linear1.requires_grad_(False)
    ours = Encoder.from_torch(theirs.train(), max_len=64)
    assert ours.training
    assert [(name, part.p) for name, part in ours.named_modules() if isinstance(part, nn.Dropout)] == [
        ("dropout", 0.0), ("layers.0.feed_forward.dropout", 0.25), ("layers.0.dropout", 0.25)
    ]  # fmt: skip
    frozen = [name for name, parameter in ours.named_parameters() if not parameter.requires_grad]
    assert frozen == ["layers.0.feed_forward.hidden.weight", "layers.0.feed_forward.hidden.bias"]
