"""Converts the layers of a ``torch.nn.TransformerEncoder`` to layers of an ``Encoder``, or says why it cannot."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers import EncoderLayer, FeedForward, Norm
from zoo.shell import MultiHeadAttention, Shell

THEIRS = nn.TransformerEncoderLayer
RELU = (F.relu, F.relu_, torch.relu, torch.relu_)


def check(encoder: nn.Module) -> list[nn.TransformerEncoderLayer]:
    """The layers of ``encoder``. Raises a ValueError that names the part that cannot be taken over."""
    if not isinstance(encoder, nn.TransformerEncoder):
        raise ValueError(f"expected a torch.nn.TransformerEncoder, got {type(encoder).__name__}")
    if own := _own_methods(encoder, nn.TransformerEncoder, "forward"):
        raise ValueError(f"{type(encoder).__name__} cannot be taken over: it overrides {own}")
    for name, child in encoder.named_modules():
        if child._forward_hooks or child._forward_pre_hooks:
            raise ValueError(
                f"the hooks of {name or 'the encoder'} cannot be taken over: remove them first (those of pruned "
                "weights with torch.nn.utils.prune.remove)"
            )
    layers = list(encoder.layers)
    if not layers:
        raise ValueError("expected an encoder with layers, got none")
    for number, layer in enumerate(layers):
        if reason := _obstacle(layer):
            raise ValueError(f"layer {number} cannot be taken over: {reason}")
    if encoder.norm is not None and (reason := _norm_obstacle(encoder.norm, layers[-1].self_attn.embed_dim)):
        raise ValueError(f"the final norm cannot be taken over: {reason}")
    return layers


def activation_of(layer: nn.TransformerEncoderLayer) -> Literal["relu", "gelu"] | None:
    """The name of the layer's activation in this package; None without an equivalent."""
    function = layer.activation
    if type(function) is nn.ReLU or function in RELU:
        return "relu"
    if isinstance(function, partial) and function.func is F.gelu and not function.args:
        exact = function.keywords.get("approximate", "none") == "none"
    else:
        exact = function is F.gelu or (type(function) is nn.GELU and function.approximate == "none")
    return "gelu" if exact else None


def _obstacle(layer: nn.Module) -> str:
    """Why a layer cannot be taken over; empty if it can."""
    if not isinstance(layer, THEIRS):
        return f"expected a TransformerEncoderLayer, got {type(layer).__name__}"
    if own := _own_methods(layer, THEIRS, "forward", "_sa_block", "_ff_block"):
        return f"{type(layer).__name__} overrides {own}"
    attention = layer.self_attn
    if not isinstance(attention, nn.MultiheadAttention) or _own_methods(attention, nn.MultiheadAttention, "forward"):
        return f"expected self_attn to be a MultiheadAttention, got {type(attention).__name__}"
    if not attention.batch_first:
        return (
            "expected batch_first=True, got (N, B, d_model) inputs: load the state_dict into an encoder with "
            "batch_first=True, and transpose inputs and outputs"
        )
    if attention.add_zero_attn:
        return "add_zero_attn=True is not supported"
    if attention.bias_k is not None:
        return "add_bias_kv=True is not supported"
    if attention.in_proj_weight is None:
        return f"expected keys and values of width d_model, got kdim={attention.kdim} and vdim={attention.vdim}"
    linears = {"linear1": layer.linear1, "linear2": layer.linear2, "self_attn.out_proj": attention.out_proj}
    for name, linear in linears.items():
        if not isinstance(linear, nn.Linear) or _own_methods(linear, nn.Linear, "forward"):
            return f"expected {name} to be a Linear, got {type(linear).__name__}"
    for name in ("norm1", "norm2"):
        if reason := _norm_obstacle(getattr(layer, name), attention.embed_dim):
            return f"{name}: {reason}"
    for name in ("dropout", "dropout1", "dropout2"):
        if type(getattr(layer, name)) is not nn.Dropout:
            return f"expected {name} to be a Dropout, got {type(getattr(layer, name)).__name__}"
    if layer.dropout1.p != layer.dropout2.p:
        return f"expected one dropout after both sublayers, got {layer.dropout1.p} and {layer.dropout2.p}"
    if activation_of(layer) is None:
        return f"expected the activation relu or gelu, got {layer.activation}"
    return ""


def _norm_obstacle(norm: nn.Module, width: int) -> str:
    if type(norm) not in (nn.LayerNorm, nn.RMSNorm, nn.Identity):
        return f"expected a LayerNorm, an RMSNorm or an Identity, got {type(norm).__name__}"
    shape = getattr(norm, "normalized_shape", (width,))
    return "" if tuple(shape) == (width,) else f"expected a norm over {width} features, got one over {tuple(shape)}"


def _own_methods(module: nn.Module, kind: type[nn.Module], *names: str) -> str:
    """The first of these methods that differs from ``kind``'s; empty if none does."""
    own = [name for name in names if name in vars(module) or getattr(type(module), name) is not getattr(kind, name)]
    return own[0] if own else ""


def take_over(sources: Sequence[nn.TransformerEncoderLayer], attn: object, *, max_len: int) -> list[EncoderLayer]:
    """Layers with ``attn`` and the weights of ``sources``, which ``check`` has passed.

    Raises:
        ValueError: a backend without query, key and value projections to load.
    """
    n_layers = len(sources)
    return [_layer(source, attn, max_len=max_len, layer=n, n_layers=n_layers) for n, source in enumerate(sources)]


def _layer(
    source: nn.TransformerEncoderLayer, attn: object, *, max_len: int, layer: int, n_layers: int
) -> EncoderLayer:
    """Layer ``layer`` of ``n_layers`` with ``attn`` and the weights of ``source``."""
    d_model, n_heads = source.self_attn.embed_dim, source.self_attn.num_heads
    attention = MultiHeadAttention(
        attn, d_model=d_model, n_heads=n_heads, max_len=max_len, layer=layer, n_layers=n_layers
    )
    mixer = attention.mixer
    if not isinstance(mixer, Shell) or mixer.inputs != 3:
        raise ValueError(f"{attn!r} has no query, key and value projections to load weights into")
    activation, d_ff = activation_of(source), source.linear1.out_features
    assert activation is not None
    feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=source.dropout.p)
    copy_linear(source.self_attn.in_proj_weight, source.self_attn.in_proj_bias, mixer.qkv)
    copy_linear(source.self_attn.out_proj.weight, source.self_attn.out_proj.bias, mixer.out)
    copy_linear(source.linear1.weight, source.linear1.bias, feed_forward.hidden)
    copy_linear(source.linear2.weight, source.linear2.bias, feed_forward.out)
    norm: Norm = "pre" if source.norm_first else "post"
    ours = EncoderLayer(attention, feed_forward, norm=norm, dropout=source.dropout1.p)
    ours.norm1, ours.norm2 = copy.deepcopy(source.norm1), copy.deepcopy(source.norm2)
    return ours


@torch.no_grad()
def copy_linear(weight: Tensor, bias: Tensor | None, target: nn.Linear) -> None:
    """Copy weight and bias (no bias: zeros). Frozen ones stay frozen."""
    target.weight.copy_(weight).requires_grad_(weight.requires_grad)
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    target.bias.copy_(bias).requires_grad_(bias.requires_grad)
