"""The multi-head shell, which makes any backend a sublayer and checks its inputs and outputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from zoo.contract import SHELL_INIT, Attention, Backend, Device, Dims, Kernel, Mixer
from zoo.embeddings import RotaryPositions
from zoo.forms import Formed
from zoo.functional import split
from zoo.registry import build
from zoo.state import State, prefill_groups


class Shell(Mixer):
    """Turns an ``Attention`` into a ``Mixer``: projections, heads, rotary positions."""

    def __init__(self, dims: Dims, attention: Attention) -> None:
        super().__init__(dims)
        self.n_heads = dims.n_heads
        self.inputs = 2 if attention.traits.shared_qk else 3  # (q, v) or (q, k, v)
        self.qkv = nn.Linear(dims.d_model, self.inputs * dims.d_model)
        norms = self.inputs - 1 if dims.qk_norm else 0
        self.qk_norms = nn.ModuleList(nn.RMSNorm(dims.d_head) for _ in range(norms))
        self.rotary = RotaryPositions.of(dims, dims.d_head)
        self.attention = attention
        self.kind = attention.kind
        self.out = nn.Linear(dims.d_model, dims.d_model)
        nn.init.normal_(self.qkv.weight, std=dims.d_model**-0.5)
        (attention.traits.init or SHELL_INIT).scale(self.qkv.weight[: -dims.d_model])
        nn.init.normal_(self.out.weight, std=dims.d_model**-0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x)
        mixed = self.attention(q, k, v, key_padding_mask=key_padding_mask)
        check_output(self.attention, mixed, v)
        y: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return y

    def _project(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, C), positions from ``first`` on -> q, k, v (B, H, N, D)."""
        pieces = split(self.qkv(x), self.inputs)
        q, *k, v = (rearrange(piece, "b n (h d) -> b h n d", h=self.n_heads) for piece in pieces)
        if self.qk_norms:
            q, *k = (norm(x) for norm, x in zip(self.qk_norms, (q, *k), strict=True))
        if self.rotary is not None:
            q, k = self.rotary(q, first), [self.rotary(x, first) for x in k]
        return q, k[0] if k else q, v

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See ``Mixer.step``. The state is that of the attention."""
        if state is not None and state.groups:
            return state.step_groups(self.step, x)

        def form(x: Tensor) -> tuple[Tensor, State]:
            q, k, v = self._project(x, 0 if state is None else state.length)
            mixed, after = self.attention.step(q[:, :, 0], k[:, :, 0], v[:, :, 0], state)
            return self.out(rearrange(mixed, "b h d -> b 1 (h d)")), after

        y, after = self.through(form, x[:, None])
        return y[:, 0], after

    def start(self, x: Tensor) -> State:
        def form(x: Tensor) -> tuple[Tensor, State]:
            return x, self.attention.start(self._project(x)[2][:, :, 0])

        return self.through(form, x[:, None])[1]

    @torch.no_grad()
    def prefill(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """See ``Mixer.prefill``. The state is that of the attention."""
        if key_padding_mask is not None:
            return prefill_groups(self.prefill, self.start, (x,), key_padding_mask)

        def form(x: Tensor) -> tuple[Tensor, State]:
            mixed, state = self.attention.prefill(*self._project(x))
            return self.out(rearrange(mixed, "b h n d -> b n (h d)")), state

        return self.through(form, x)

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        heads = rearrange(x, "b n (h d) -> b h n d", h=self.n_heads)
        return self.attention.kernel(heads, key_padding_mask)

    def state_size(self, length: int) -> int | None:
        return self.attention.state_size(length)

    def cache_size(self, length: int) -> int | None:
        return self.attention.cache_size(length)

    def redraw(self) -> None:
        self.attention.redraw()


def made_on(device: Device) -> AbstractContextManager[object]:
    """A context that makes parameters and buffers on ``device``; None: on the default device."""
    return nullcontext() if device is None else torch.device(device)


class MultiHeadAttention(Formed):
    """One attention sublayer with its projections. (B, N, d_model) -> (B, N, d_model).

    Args:
        attn: a name from ``available()``, or an instance of a backend's config class.
        d_model, n_heads: width, and the number of heads that split it.
        max_len: the longest input.
        causal: position t sees positions up to t only.
        rotary: turn queries and keys by their position; ``2d``: by its row and column in a square picture.
        qk_norm: normalise the queries and the keys of each head by an RMSNorm, before positions turn them (Henry et
            al., arXiv:2010.04245; Dehghani et al., arXiv:2302.05442): logits cannot grow without bound.
        attention_dropout: share of the attention weights that training drops, for backends that hold them.
        layer, n_layers: index of the sublayer in a stack, from 0, for backends that differ by depth.
        device, dtype: of the parameters, as in torch's modules.

    Raises:
        ValueError: unknown name, sizes that do not fit, or ``causal``, ``qk_norm`` or ``attention_dropout`` for a
            method that cannot have it.
    """

    def __init__(
        self,
        attn: object = "full",
        *,
        d_model: int,
        n_heads: int,
        max_len: int = 8192,
        causal: bool = False,
        rotary: bool | Literal["2d"] = False,
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        layer: int = 0,
        n_layers: int = 1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dims = Dims(
            d_model=d_model,
            n_heads=n_heads,
            max_len=max_len,
            causal=causal,
            rotary=rotary,
            layer=layer,
            n_layers=n_layers,
            qk_norm=qk_norm,
            attention_dropout=attention_dropout,
        )
        self.d_model, self.max_len = d_model, max_len
        with made_on(device):
            backend = build(attn, dims)
            if isinstance(backend, Attention):
                backend = Shell(dims, backend)
        assert isinstance(backend, Mixer)
        self.mixer: Mixer = backend
        if dtype is not None:
            self.to(dtype)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``x`` (B, N, d_model) between positions; padded positions of the result are 0.

        Args:
            key_padding_mask: (B, N) bool, True = padding, as in ``nn.MultiheadAttention``. No output reads padding.
                But blocks, buckets and learned patterns count padding before or between real positions. An ``Encoder``
                moves such padding to the end.

        Raises:
            ValueError: wrong shape or dtype, or N above ``max_len``; or a backend that breaks its contract.
        """
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        y: Tensor = self.mixer(x, key_padding_mask=key_padding_mask)
        check_output(self.mixer, y, x)
        return y if key_padding_mask is None else y.masked_fill(key_padding_mask[..., None], 0)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form, without gradients. All steps together equal one ``forward``.

        Args:
            x: (B, d_model), the input at the next position; the result has the same shape.
            state: the state that the last step returned; None at the first position.

        Raises:
            ValueError: a layer that is not causal; a state of another layer, batch or dtype, or a consumed state; wrong
                shape; or more positions than ``max_len``.
        """
        check_step(x, self.d_model, state, self.max_len)
        y, after = self.through_step(self.mixer.step, x, state)
        check_output(self.mixer, y, x)
        return y, after

    def prefill(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """``forward`` of a prompt, and the state for the steps that follow, without gradients.

        Equals ``step`` position by position, but runs in parallel, at about the cost of ``forward``.

        Args:
            x: (B, N, d_model), like the result; padded positions of the result are 0.
            key_padding_mask: (B, N) bool, True = padding, on either side or between. Padding changes no result, and
                each sample continues from its own length (see ``Mixer.prefill``).

        Raises:
            ValueError: a layer that is not causal; wrong shape or dtype, or N above ``max_len``.
        """
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        y, state = self.through(partial(self.mixer.prefill, key_padding_mask=key_padding_mask), x)
        check_output(self.mixer, y, x)
        return y, state

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        """The code that mixes inputs like ``x`` (B, N, d_model)."""
        return self.mixer.kernel(x, key_padding_mask)

    def state_size(self, length: int) -> int | None:
        """How many numbers a query reads of ``length`` positions: see ``Backend.state_size``."""
        return self.mixer.state_size(length)

    def cache_size(self, length: int) -> int | None:
        """How many numbers the state has after ``length`` positions: see ``Backend.cache_size``."""
        return self.mixer.cache_size(length)


def check_input(x: Tensor, key_padding_mask: Tensor | None, d_model: int, max_len: int) -> None:
    """Raise ValueError unless ``x`` is (B, N, d_model) floats, 1 <= N <= max_len, and the mask (B, N) bool."""
    if x.dim() != 3 or x.shape[-1] != d_model or not x.is_floating_point():
        raise ValueError(f"expected floats of shape (B, N, {d_model}), got shape {tuple(x.shape)} of {x.dtype}")
    if not 1 <= x.shape[1] <= max_len:
        advice = ": build with a larger max_len" if x.shape[1] else ""
        raise ValueError(f"expected 1 to {max_len} positions (max_len), got {x.shape[1]}{advice}")
    if key_padding_mask is None:
        return
    if key_padding_mask.dtype != torch.bool or key_padding_mask.shape != x.shape[:2]:
        raise ValueError(
            f"expected key_padding_mask of shape {tuple(x.shape[:2])} of torch.bool (True = padding), "
            f"got shape {tuple(key_padding_mask.shape)} of {key_padding_mask.dtype}"
        )


def check_step(x: Tensor, d_model: int, state: State | None, max_len: int) -> None:
    """Raise ValueError unless ``x`` is (B, d_model) floats, ``state`` a State or None, and a position is left."""
    if x.dim() != 2 or x.shape[-1] != d_model or not x.is_floating_point():
        raise ValueError(f"expected floats of shape (B, {d_model}), got shape {tuple(x.shape)} of {x.dtype}")
    if state is not None and not isinstance(state, State):
        raise ValueError(f"expected the state that the last step returned, or None, got {type(state).__name__}")
    if state is not None and state.length >= max_len:
        raise ValueError(f"expected at most {max_len} positions (max_len), got one more: build with a larger max_len")


def check_output(backend: Backend, y: object, like: Tensor) -> None:
    """Raise ValueError unless the result ``y`` has the shape and dtype of the input, as the contract requires.

    Under autocast any dtype passes: it is that of the last operation.
    """
    any_dtype = torch.is_autocast_enabled(like.device.type)
    if isinstance(y, Tensor) and y.shape == like.shape and (any_dtype or y.dtype == like.dtype):
        return
    got = f"shape {tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
    cls = type(backend)
    raise ValueError(
        f"{cls.__module__}:{cls.__qualname__} breaks the contract: forward must return its input's "
        f"shape {tuple(like.shape)} and dtype {like.dtype}, got {got}"
    )
