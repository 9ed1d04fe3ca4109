"""Any backend with the call of ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from zoo.contract import Device, UnsupportedError
from zoo.registry import resolve
from zoo.shell import MultiHeadAttention, Shell
from zoo.takeover import copy_linear


class TorchAttention(nn.Module):
    """Self-attention with the call of ``nn.MultiheadAttention``, batch first. It works in ``nn.TransformerEncoder``:

    >>> layer = nn.TransformerEncoderLayer(512, 8, batch_first=True)
    >>> layer.self_attn = TorchAttention(512, 8, attn="linformer")
    >>> encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    Args:
        embed_dim, num_heads: width, and the number of heads that split it.
        attn: a name from ``available()``, or an instance of a backend's config class.
        dropout: share of the attention weights that training drops, for backends that hold them.
        max_len: the longest input.
        causal: position t sees positions up to t only.
        device, dtype: of the parameters, as in torch's modules.

    Raises:
        ValueError: unknown name, sizes that do not fit, or ``causal`` or ``dropout`` for a method that cannot have it.
    """

    batch_first = True
    in_proj_bias = None  # torch's layers then call ``forward``, and not a kernel of their own
    _qkv_same_embed_dim = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        attn: object = "full",
        dropout: float = 0.0,
        max_len: int = 8192,
        causal: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.causal = embed_dim, num_heads, causal
        self.attention = MultiHeadAttention(
            attn,
            d_model=embed_dim,
            n_heads=num_heads,
            max_len=max_len,
            causal=causal,
            attention_dropout=dropout,
            device=device,
            dtype=dtype,
        )

    @property
    def in_proj_weight(self) -> None:
        """Raises ValueError: only an ``nn.TransformerEncoder`` that was built around another attention reads it."""
        raise ValueError(
            "TorchAttention takes no nested tensors: build nn.TransformerEncoder with enable_nested_tensor=False, or "
            "set its use_nested_tensor to False"
        )

    @classmethod
    def from_torch(
        cls, source: nn.MultiheadAttention, attn: object = "full", *, max_len: int = 8192, causal: bool = False
    ) -> Self:
        """The attention ``attn`` with the projections of ``source``, and its dropout where the backend can have it.

        Raises:
            ValueError: ``batch_first=False``, keys or values of another width, ``add_bias_kv`` or ``add_zero_attn``.
            UnsupportedError: a backend without projections of queries, keys and values.
        """
        if not source.batch_first:
            raise ValueError("expected batch_first=True, got inputs (N, B, embed_dim)")
        if source.in_proj_weight is None or source.bias_k is not None or source.add_zero_attn:
            raise ValueError("expected keys and values of width embed_dim, without add_bias_kv and add_zero_attn")
        weight = source.in_proj_weight
        made = cls(
            source.embed_dim,
            source.num_heads,
            attn=attn,
            dropout=source.dropout if resolve(attn)[0].traits.weights else 0.0,
            max_len=max_len,
            causal=causal,
            device=weight.device,
            dtype=weight.dtype,
        )
        mixer = made.attention.mixer
        if not isinstance(mixer, Shell) or mixer.inputs != 3:
            raise UnsupportedError(f"{attn!r} has no query, key and value projections to load weights into")
        copy_linear(weight, source.in_proj_bias, mixer.qkv)
        copy_linear(source.out_proj.weight, source.out_proj.bias, mixer.out)
        return made.train(source.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Mix ``query``, (B, N, embed_dim) or (N, embed_dim), with itself. The result has its shape, and 0 at padding.

        Args:
            key, value: the same tensor as ``query``.
            key_padding_mask: (B, N) or (N); bool, True = padding, or floats, -inf = padding and 0 = real.
            need_weights: must be False: only some backends hold the weights of pairs.
            attn_mask: None, or the causal mask (N, N) in a causal module.
            average_attn_weights: has no effect without weights.
            is_causal: True only in a causal module.

        Raises:
            ValueError: other keys or values, a nested tensor, weights, or a mask that the backend cannot have.
        """
        if query.is_nested:
            raise ValueError("expected a dense tensor, got a nested one")
        if not (same(key, query) and same(value, query)):
            raise ValueError("expected self-attention: key and value must be the same tensor as query")
        if need_weights:
            raise ValueError("need_weights: expected False, only some attentions hold the weights of pairs")
        single = query.dim() == 2
        x, padding = query, as_padding(key_padding_mask)
        if single:
            x, padding = x[None], None if padding is None else padding[None]
        if (is_causal or attn_mask is not None) and not self.causal:
            raise ValueError("expected no attn_mask: build with causal=True for a causal one; others cannot be had")
        if attn_mask is not None and not is_causal_mask(attn_mask, x.shape[1]):
            raise ValueError(f"expected the causal mask ({x.shape[1]}, {x.shape[1]}), got another attn_mask")
        y: Tensor = self.attention(x, key_padding_mask=padding)
        return (y[0] if single else y), None


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are one, or the same view of one."""
    return x is y or (x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride())


def as_padding(mask: Tensor | None) -> Tensor | None:
    """A padding mask of torch's modules as bool, True = padding.

    Raises:
        ValueError: floats other than 0 and -inf, which are no padding.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask
    hidden = mask.isneginf()
    if not bool((hidden | (mask == 0)).all()):
        raise ValueError("key_padding_mask: expected floats of 0 and -inf, or bool; weights of positions cannot be had")
    return hidden


def is_causal_mask(mask: Tensor, length: int) -> bool:
    """Whether an ``attn_mask`` hides exactly the later positions: bool, True = hidden, or floats, -inf = hidden."""
    later = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:
        return torch.equal(mask, later)
    return mask.shape == later.shape and torch.equal(mask, torch.zeros_like(mask).masked_fill(later, -torch.inf))
