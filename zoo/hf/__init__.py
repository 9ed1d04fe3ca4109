"""Attention backends inside the models of Hugging Face's ``transformers``.

>>> import zoo.hf
>>> zoo.hf.register()  # every backend without parameters
>>> AutoModel.from_config(config, attn_implementation="zoo_local")
>>> zoo.hf.swap(bert, attn="linformer")  # any backend on queries, keys and values; the model keeps its weights

The model keeps its projections, positions, norms and feed-forwards; a backend replaces what mixes values between
positions. Padding is honoured, and so is the causal mask of a decoder. Every other mask is refused: windows shorter
than the input, chunks, packed sequences, masks of one's own, biases of positions.

Source: transformers' AttentionInterface and AttentionMaskInterface, version 5.20 to 5.x.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import Attention, Dims, UnsupportedError, check_length
from zoo.entry import REFERENCE, Entry
from zoo.hf.masks import Mask, dense, is_ours, make_mask, read_mask
from zoo.registry import available, build, describe, resolve

OLDEST, NEXT_MAJOR = (5, 20), 6
SWAPPED = "zoo_swapped"
PART = "zoo_attention"
"""The name of a backend in the attention module of a model, and in the names of its weights."""
SELF_ATTENTION = (
    *("AlbertAttention", "BertSelfAttention", "CamembertSelfAttention", "DeiTAttention", "Dinov2Attention"),
    *("DistilBertSelfAttention", "ElectraSelfAttention", "ErnieSelfAttention", "ModernBertAttention"),
    *("RobertaPreLayerNormSelfAttention", "RobertaSelfAttention", "ViTAttention", "XLMRobertaSelfAttention"),
)
"""The attention modules that ``swap`` knows, by class."""
CLASS_TOKENS = 2  # at most, before the patches of a picture
Backends = dict[tuple[object, ...], Attention]
_built: WeakKeyDictionary[nn.Module, Backends] = WeakKeyDictionary()


@dataclass(frozen=True)
class Swapped:
    """What ``swap`` did. layers: the attention modules with a backend. left: those that stay as they were: they see a
    window or another sequence, or ``swap`` does not know them. new: the names of the parameters and buffers that the
    model did not have.
    """

    layers: list[str]
    left: list[str]
    new: list[str]


def register(attn: object = None, *, name: str | None = None, max_len: int | None = None) -> list[str]:
    """Add backends to the attention implementations of ``transformers``, and the one of models that ``swap`` changed.

    Random parts of a backend are drawn from the number of the layer, so a model that is loaded again is the same
    function. Dropout of attention weights needs ``full``, ``naive`` or ``xformers``; others train without it, with a
    warning.

    Args:
        attn: a name from ``available()``, or an instance of a backend's config class, for other options than the
            defaults; None = all backends that can be registered.
        name: what models call it; None = ``zoo_`` and the name of the backend.
        max_len: the longest input; None = as the model's config says, or else the next power of two.

    Returns:
        The names, for ``attn_implementation``.

    Raises:
        ImportError: no ``transformers``, or another version.
        UnsupportedError: a backend with parameters, with buffers that training changes, with shared queries and keys,
            or without queries, keys and values: ``swap`` takes the first two.
        ValueError: an unknown backend, or ``name`` without ``attn``.
    """
    functions, masks = interfaces()
    functions.register(SWAPPED, swapped)
    masks.register(SWAPPED, partial(make_mask, others=True))
    if attn is None:
        if name is not None:
            raise ValueError("name: expected attn too, the backend that gets the name")
        chosen = [entry for entry in map(describe, available()) if not obstacle(entry, entry.config())]
        return [each for entry in chosen for each in register(entry.name, max_len=max_len)]
    entry, config = resolve(attn)
    if reason := obstacle(entry, config):
        raise UnsupportedError(f"{entry.name} cannot be registered: {reason}")
    name = name or f"zoo_{entry.name}"
    functions.register(name, partial(registered, config, max_len))
    masks.register(name, make_mask)
    return [name]


def swap(model: nn.Module, attn: object = "full", *, max_len: int | None = None) -> Swapped:
    """Put a backend into every self-attention of a model, which keeps its weights.

    To load a swapped model again, make the original one, swap it in the same way, and load the ``state_dict``. A
    pickled one needs ``zoo.hf.register()`` first.

    Args:
        model: of a class with one of the attention modules in ``SELF_ATTENTION``. Cross-attention, and layers with a
            window of their own (ModernBERT's), stay as they are.
        attn: a name from ``available()``, or an instance of a backend's config class.
        max_len: the longest input; None = as the model's config says.

    Raises:
        ImportError: no ``transformers``, or another version.
        UnsupportedError: a model of another class, or whose attention cannot be set; a backend without queries, keys
            and values, or with shared ones; or a decoder with a backend that has no causal form.
        ValueError: an unknown backend; a backend that does not fit the model's sizes; or a config that does not tell
            the longest input.
    """
    register("full")  # and the implementation of swapped models
    from transformers import PreTrainedModel

    entry, config = resolve(attn)
    if reason := shape_obstacle(entry):
        raise UnsupportedError(f"{entry.name} cannot be put into a model: {reason}")
    known = {name: module for name, module in model.named_modules() if type(module).__name__ in SELF_ATTENTION}
    if not known or not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"expected a model of transformers with one of {', '.join(SELF_ATTENTION)}, got {type(model).__name__}"
        )
    chosen = {name: module for name, module in known.items() if getattr(module, "sliding_window", None) is None}
    backends: dict[str, Attention] = {}
    for number, (name, module) in enumerate(chosen.items()):
        heads, width = sizes_of(module)
        dims = Dims(
            d_model=heads * width,
            n_heads=heads,
            max_len=max_len or longest(module),
            causal=bool(module.is_causal),
            layer=number,
            n_layers=len(chosen),
            attention_dropout=dropout_of(module) if entry.traits.weights else 0.0,
        )
        weight = next(module.parameters())
        backend = build(config, dims)
        assert isinstance(backend, Attention)
        backends[name] = backend.to(weight.device, weight.dtype).train(module.training)
    if not entry.traits.weights and any(map(dropout_of, chosen.values())):
        warn_of_dropout(entry.name)
    for name, built in backends.items():  # all were built: the model changes as a whole or not at all
        chosen[name].add_module(PART, built)
    before = model.config._attn_implementation
    model.set_attn_implementation(SWAPPED)
    if any(module.config._attn_implementation != SWAPPED for module in chosen.values()):  # it was told in the log only
        model.set_attn_implementation(before)
        for module in chosen.values():
            delattr(module, PART)
        raise UnsupportedError(f"{type(model).__name__}: transformers cannot set its attention (it reads its source)")
    left = [name for name, module in model.named_modules() if hasattr(module, "is_causal") and name not in chosen]
    new = [f"{name}.{PART}.{part}" for name, built in backends.items() for part in built.state_dict()]
    return Swapped(list(chosen), left, new)


# What a model calls


def registered(
    config: object,
    max_len: int | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The attention function of a registered backend. query: (B, H, N, D); key, value: (B, H / groups, N, D)."""
    crosses = getattr(module, "is_cross_attention", False) or type(module).__name__.endswith("CrossAttention")
    if crosses or (getattr(module, "is_decoder", False) and not getattr(module, "is_causal", True)):
        raise ValueError(f"{type(module).__name__} attends to another sequence, which no attention of the zoo does")
    mask = read_mask(module, key, attention_mask, arguments)
    length = key.shape[2]
    positions = max_len or getattr(getattr(module, "config", None), "max_position_embeddings", None) or 0
    if length > positions:
        positions = 1 << (length - 1).bit_length()
    backend = backend_of(module, config, query, positions, mask, dropout)
    return mix(module, backend, query, key, value, mask, scaling), None


def swapped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The attention function of swapped models: the module's backend, or torch's where it has none."""
    backend = getattr(module, PART, None)
    if backend is not None:
        mask = read_mask(module, key, attention_mask, arguments)
        if mask.causal != backend.causal:
            words = ["one in both directions", "a causal one"]
            raise ValueError(f"{type(module).__name__} expected {words[backend.causal]} mask, got {words[mask.causal]}")
        return mix(module, backend, query, key, value, mask, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and is_ours(attention_mask):
        attention_mask = dense(attention_mask, query.shape[2], key.shape[2])
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments
    )
    return out, None


def backend_of(module: nn.Module, config: object, query: Tensor, max_len: int, mask: Mask, dropout: float) -> Attention:
    """The backend of one module for such inputs, built when it is first needed and kept as long as the module."""
    entry, _ = resolve(config)
    if dropout and not entry.traits.weights:
        warn_of_dropout(entry.name)
        dropout = 0.0
    heads, width = query.shape[1], query.shape[3]
    layer = getattr(module, "layer_idx", None)
    if layer is None:  # modules of one model run in order
        owner = getattr(module, "config", None)
        layer = next((n for n, other in enumerate(alike(owner)) if other is module), len(alike(owner)))
    built = _built.setdefault(module, {})
    kind = (config, heads, width, max_len, mask.causal, dropout)
    if kind not in built:
        dims = Dims(
            d_model=heads * width,
            n_heads=heads,
            max_len=max_len,
            causal=mask.causal,
            layer=layer,
            n_layers=layer + 1,
            attention_dropout=dropout,
        )
        state = torch.default_generator.get_state()
        try:  # the generators of GPUs stay as they are: a checkpoint would not draw the same dropout again
            torch.default_generator.manual_seed(layer)
            with torch.device("cpu"), torch.inference_mode(mode=False):
                made = build(config, dims)
        finally:
            torch.default_generator.set_state(state)
        assert isinstance(made, Attention)
        built[kind] = made
    return built[kind].to(query.device).train(module.training)


def alike(config: object) -> list[nn.Module]:
    """The modules with backends that have this config, in the order of their first calls."""
    return [module for module in _built if getattr(module, "config", None) is config]


def mix(
    module: nn.Module,
    backend: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scaling: float | None,
) -> Tensor:
    """Queries (B, H, M, D), keys and values (B, H / groups, N, D) -> (B, M, H, D).

    Fewer queries than keys are the last ones, of a decoder with a cache: each step then costs as much as a whole
    forward. (An ``Encoder`` decodes with the step forms.)
    """
    width, length, asked = query.shape[3], key.shape[2], query.shape[2]
    check_length(length, backend.max_len)
    if value.shape[3] != width:
        raise ValueError(
            f"{type(module).__name__}: expected values as wide as queries, got {value.shape[3]} and {width}"
        )
    if asked != length and not backend.causal:
        raise ValueError(f"{type(module).__name__}: expected self-attention, got {asked} queries of {length} keys")
    if asked != length and backend.traits.reads_queries:
        raise ValueError(f"{backend.name} reads earlier queries, which a cache does not keep: use use_cache=False")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if scaling is not None and abs(scaling * width**0.5 - 1) > 1e-6:
        query = query * (scaling * width**0.5)
    if asked < length:  # outputs read no other query
        query = F.pad(query, (0, 0, length - asked, 0))
    out: Tensor = backend(query, key, value, key_padding_mask=mask.padding)
    if mask.padding is not None:  # what stands at padding is undefined; NaN there would spread in the next layer
        out = out.masked_fill(mask.padding[:, None, :, None] & ~out.isfinite(), 0)
    return rearrange(out[:, :, length - asked :], "b h n d -> b n h d").contiguous()


# What can be put into a model


def interfaces() -> tuple[Any, Any]:
    """The classes with which ``transformers`` registers attention functions and masks.

    Raises:
        ImportError: it is not installed, or another version.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise ImportError("zoo.hf needs transformers: pip install 'attention-zoo[hf]'") from error
    installed = version("transformers")
    if not OLDEST <= tuple(int(part) for part in installed.split(".")[:2]) < (NEXT_MAJOR, 0):
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(f"zoo.hf: expected transformers {oldest} or newer, below {NEXT_MAJOR}, got {installed}")
    return AttentionInterface, AttentionMaskInterface


def shape_obstacle(entry: Entry) -> str:
    """Why a backend cannot take the queries, keys and values of another model; "" if it can."""
    if not issubclass(entry.cls, Attention):
        return "it mixes whole inputs, not the values of queries and keys"
    return "its keys are its queries, and the model has both" if entry.traits.shared_qk else ""


def obstacle(entry: Entry, config: object) -> str:
    """Why a backend cannot be registered; "" if it can."""
    if reason := shape_obstacle(entry):
        return reason
    if entry.traits.adapts:
        return "training changes its buffers, which must belong to the model: use zoo.hf.swap"
    if next(entry.build(REFERENCE, config).parameters(), None) is not None:
        return "it has parameters, which must belong to the model: use zoo.hf.swap"
    return ""


def sizes_of(module: nn.Module) -> tuple[int, int]:
    """The number of heads, and their width, of an attention module."""
    config: Any = module.config
    width = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    return config.num_attention_heads, width or config.hidden_size // config.num_attention_heads


def longest(module: nn.Module) -> int:
    """The longest input of a model: of text as its config says; of pictures all patches, with class tokens.

    Raises:
        ValueError: the config does not tell.
    """
    config: object = module.config
    if positions := getattr(config, "max_position_embeddings", None):
        return int(positions)
    if (picture := getattr(config, "image_size", None)) and (patch := getattr(config, "patch_size", None)):
        sides, steps = ([int(n) for n in ([x, x] if isinstance(x, int) else x)] for x in (picture, patch))
        return math.prod(side // step for side, step in zip(sides, steps, strict=True)) + CLASS_TOKENS
    raise ValueError(f"max_len: expected the longest input, which {type(config).__name__} does not tell")


def dropout_of(module: nn.Module) -> float:
    """The share of attention weights that training drops in a module of ``SELF_ATTENTION``."""
    found = getattr(module, "attention_dropout", getattr(module, "dropout", 0.0))
    return float(found.p if isinstance(found, nn.Dropout) else found)


def warn_of_dropout(name: str) -> None:
    warnings.warn(
        f"{name} does not hold the weight of each pair: the model trains without its dropout of attention weights",
        stacklevel=2,
    )
