"""Masks of ``transformers``, read as backends take them: padding, and whether the mask is causal too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

UNKNOWN = ("softcap", "position_bias", "s_aux", "cache", "head_mask", "cu_seq_lens_q", "cu_seq_lens_k")
"""Arguments of attention functions that change the weights, and that no backend has."""
# A mask of ours is bool, (B, N, 1), or (B, N, 2) if it is causal too; True = padding. N is 0 where nothing is padding.
# So it says all that backends need, survives copies, and looks like no mask of another kind.


@dataclass(frozen=True)
class Mask:
    """A mask as backends take it. padding: (B, N) bool, True = padding; None = none."""

    causal: bool
    padding: Tensor | None


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    config: Any = None,
    others: bool = False,
    **_: Any,
) -> Tensor:
    """The mask of a batch, as ``is_ours`` knows it.

    others: return any other mask as torch's kernels take it, instead of raising.

    Raises:
        ValueError: a mask that no backend has, or a model that mixes values by itself.
    """
    from transformers import masking_utils as theirs

    check_class(config.__class__)
    if attention_mask is not None and is_ours(attention_mask):  # a model passed it on to a part of it
        return attention_mask
    if attention_mask is not None and attention_mask.dim() != 2:
        shape = tuple(attention_mask.shape)
        raise ValueError(f"attention_mask: expected one of (batch, tokens), which says what is padding, got {shape}")
    whole = local_size is None or local_size >= kv_length + kv_offset
    causal = is_causal(mask_function) if whole else None
    if causal is None and others:
        made: Tensor = theirs.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        return made
    if causal is None:
        kind = f"a window of {local_size}" if local_size else "chunks, packed sequences or a function of its own"
        raise ValueError(
            f"expected a causal mask or one in both directions, with or without padding, got one with {kind}: "
            "no attention of the zoo can have it"
        )
    if causal and int(q_offset) + q_length != kv_offset + kv_length:
        raise ValueError("expected a cache that grows, got one with room for more positions: use a DynamicCache")
    padding = theirs.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    hidden = torch.zeros(batch_size, 0, dtype=torch.bool, device=device)
    if padding is not None:
        given = ~padding[:, kv_offset : kv_offset + kv_length].to(device=device, dtype=torch.bool)
        hidden = given if bool(given.any()) else hidden
    return hidden[..., None].expand(-1, -1, 2 if causal else 1)


def is_ours(mask: Tensor) -> bool:
    """Whether ``make_mask`` made a mask."""
    return mask.dim() == 3 and mask.dtype == torch.bool and mask.shape[2] in (1, 2)


@cache
def check_class(config: type) -> None:
    """Raise ValueError where the models of a config's class do not call the attention functions that they name."""
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(config, None)
    for cls in found if isinstance(found, tuple) else (found,):
        if cls is not None and not cls._can_set_attn_implementation():
            raise ValueError(f"{cls.__name__} mixes values by itself: transformers cannot give it another attention")


def is_causal(mask_function: Callable[..., Any] | None) -> bool | None:
    """Whether a mask function of ``transformers`` is the causal one, apart from a window; None for any other but that
    in both directions."""
    from transformers import masking_utils as theirs

    kinds: dict[Any, bool] = {theirs.bidirectional_mask_function: False, theirs.causal_mask_function: True}
    held = inspect.getclosurevars(mask_function).nonlocals if mask_function else {}
    parts: tuple[Any, ...] = held.get("mask_functions", ())
    if len(parts) == 2 and parts[0].__qualname__.startswith("sliding_window"):  # and_masks(window, kind)
        return kinds.get(parts[1])
    return kinds.get(mask_function)


def read_mask(module: nn.Module, key: Tensor, mask: Tensor | None, arguments: dict[str, Any]) -> Mask:
    """The mask that a model gave to its attention.

    Raises:
        ValueError: a mask that ``make_mask`` did not make, or an argument that no backend has.
    """
    name, window = type(module).__name__, arguments.get("sliding_window")
    if given := [argument for argument in UNKNOWN if arguments.get(argument) is not None]:
        raise ValueError(f"{name} asks for {', '.join(given)}, which no attention of the zoo has")
    if window is not None and window < key.shape[2]:
        raise ValueError(f"{name} asks for a window of {window} in {key.shape[2]} positions: see zoo.hf.swap")
    if mask is None:  # the model makes none: torch's kernels have the same rule
        causal = arguments.get("is_causal")
        return Mask(bool(getattr(module, "is_causal", True) if causal is None else causal), None)
    if not is_ours(mask):
        raise ValueError(
            f"{name} got a mask of shape {tuple(mask.shape)} that no attention of the zoo can have: expected an "
            "attention_mask (B, N), 1 = real and 0 = padding"
        )
    return Mask(mask.shape[2] == 2, mask[..., 0] if mask.shape[1] else None)


def dense(mask: Tensor, asked: int, length: int) -> Tensor:
    """A mask of ``make_mask`` as torch's kernels take it: (B, 1, M or 1, N) bool, True = seen."""
    hidden = mask[..., 0] if mask.shape[1] else mask.new_zeros(len(mask), length)
    seen = ~hidden[:, None, None, :]
    if mask.shape[2] == 1:
        return seen
    return seen & torch.ones(asked, length, dtype=torch.bool, device=mask.device).tril(length - asked)
