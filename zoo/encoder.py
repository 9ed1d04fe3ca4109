"""The encoder that every backend plugs into, and the multi-head shell around an ``Attention``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import takeover
from zoo.contract import (
    SHELL_INIT,
    Attention,
    Backend,
    Device,
    Dims,
    Formed,
    Kernel,
    Mixer,
    State,
    at_least,
    one_of,
    prefill_groups,
)
from zoo.embeddings import (
    LearnedPositions,
    RotaryPositions,
    ShortConvolution,
    SinusoidalPositions,
    real_positions,
    reordered,
)
from zoo.functional import Calls, RestoreBuffers, as_function, split
from zoo.registry import build
from zoo.reversible import Streams

Norm = Literal["pre", "post"]
Activation = Literal["gelu", "relu", "swiglu"]
Positions = Literal["sinusoidal", "learned", "rotary", "none"]


class Heads(Mixer):
    """The shell that turns an ``Attention`` into a ``Mixer``: projections, heads, rotary positions."""

    def __init__(self, dims: Dims, attention: Attention) -> None:
        super().__init__(dims)
        self.n_heads = dims.n_heads
        self.inputs = 2 if attention.traits.shared_qk else 3  # (q, v) or (q, k, v)
        self.qkv = nn.Linear(dims.d_model, self.inputs * dims.d_model)
        self.rotary = RotaryPositions(dims.max_len, dims.d_head) if dims.rotary else None
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
        if self.rotary is not None:
            q, k = self.rotary(q, first), [self.rotary(x, first) for x in k]
        return q, k[0] if k else q, v

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As ``Mixer.step``; the state is the attention's."""
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
        """As ``Mixer.prefill``; the state is the attention's."""
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
    """A context in which parameters and buffers are made on ``device``; None: on the default device."""
    return nullcontext() if device is None else torch.device(device)


class MultiHeadAttention(Formed):
    """One attention sublayer with its projections. (B, N, d_model) -> (B, N, d_model).

    Args:
        attn: a name from ``available()``, or an instance of a backend's config class.
        d_model, n_heads: width, and the heads that share it.
        max_len: the longest input that will come.
        causal: position t sees positions up to t only.
        rotary: turn queries and keys by their position.
        device, dtype: of the parameters, as torch's modules have them.

    Raises:
        ValueError: unknown name, sizes that do not fit, or ``causal`` for a method without a causal form.
    """

    def __init__(
        self,
        attn: object = "full",
        *,
        d_model: int,
        n_heads: int,
        max_len: int = 8192,
        causal: bool = False,
        rotary: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dims = Dims(d_model=d_model, n_heads=n_heads, max_len=max_len, causal=causal, rotary=rotary)
        self.d_model, self.max_len = d_model, max_len
        with made_on(device):
            backend = build(attn, dims)
            if isinstance(backend, Attention):
                backend = Heads(dims, backend)
        assert isinstance(backend, Mixer)
        self.mixer: Mixer = backend
        if dtype is not None:
            self.to(dtype)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``x`` (B, N, d_model) between positions; padded positions of the result are 0.

        Args:
            key_padding_mask: (B, N) bool, True = padding, as in ``nn.MultiheadAttention``. Nothing reads padding.
                Padding before or between real positions keeps its places, which blocks, buckets and learned patterns
                count; an ``Encoder`` takes it out.

        Raises:
            ValueError: wrong shape or dtype, or N above ``max_len``; or a backend that breaks its contract.
        """
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        y: Tensor = self.mixer(x, key_padding_mask=key_padding_mask)
        check_output(self.mixer, y, x)
        return y if key_padding_mask is None else y.masked_fill(key_padding_mask[..., None], 0)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form, without gradients; all steps together equal one ``forward``.

        Args:
            x: (B, d_model), the input at the next position; the result has its shape.
            state: what the step before returned; None at the first position.

        Raises:
            ValueError: a layer that is not causal; a state of another layer, batch or dtype, or a consumed one; wrong
                shape; or more positions than ``max_len``.
        """
        check_step(x, self.d_model, state, self.max_len)
        y, after = self.through_step(self.mixer.step, x, state)
        check_output(self.mixer, y, x)
        return y, after

    def prefill(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """``forward`` of a prompt and the state after it, without gradients, for the steps that follow.

        Computes in parallel what ``step`` computes one position after another, at about the cost of ``forward``.

        Args:
            x: (B, N, d_model), as the result; padded positions of the result are 0.
            key_padding_mask: (B, N) bool, True = padding, on either side or between. Each sample gives what it gives
                without padding, and continues from its own length (see ``Mixer.prefill``).

        Raises:
            ValueError: a layer that is not causal; wrong shape or dtype, or N above ``max_len``.
        """
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        y, state = self.through(partial(self.mixer.prefill, key_padding_mask=key_padding_mask), x)
        check_output(self.mixer, y, x)
        return y, state

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        """What computes the mixing for inputs like ``x`` (B, N, d_model)."""
        return self.mixer.kernel(x, key_padding_mask)

    def state_size(self, length: int) -> int | None:
        """Numbers a query attends to among ``length`` positions: see ``Backend.state_size``."""
        return self.mixer.state_size(length)

    def cache_size(self, length: int) -> int | None:
        """Numbers that the step form keeps after ``length`` positions: see ``Backend.cache_size``."""
        return self.mixer.cache_size(length)


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity between. (B, N, C) -> (B, N, C).

    ``swiglu`` (arXiv:2002.05202) multiplies one half of the hidden features by the SiLU of the other.
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.hidden = nn.Linear(d_model, 2 * d_ff if activation == "swiglu" else d_ff)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(d_ff, d_model)
        for linear in (self.hidden, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        if self.activation == "swiglu":
            value, gate = h.chunk(2, dim=-1)
            h = value * F.silu(gate)
        else:
            h = F.relu(h) if self.activation == "relu" else F.gelu(h)
        y: Tensor = self.out(self.dropout(h))
        return y


class EncoderLayer(Formed):
    """Mixing and feed-forward, each with a residual connection and a LayerNorm before (pre) or after (post)."""

    def __init__(self, attention: MultiHeadAttention, feed_forward: FeedForward, *, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm = norm
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = nn.LayerNorm(attention.d_model), nn.LayerNorm(attention.d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        before = self.norm1(x) if self.norm == "pre" else x
        return self._add(x, self.attention(before, key_padding_mask=key_padding_mask))

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The next position of the causal form. x and the result: (B, C)."""

        def form(x: Tensor) -> tuple[Tensor, State]:
            before = self.norm1(x) if self.norm == "pre" else x
            mixed, after = self.attention.step(before[:, 0], state)
            return self._add(x, mixed[:, None]), after

        y, after = self.through(form, x[:, None])
        return y[:, 0], after

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        """``forward`` of a causal layer, x: (B, N, C), and the state after it."""

        def form(x: Tensor) -> tuple[Tensor, State]:
            mixed, state = self.attention.prefill(self.norm1(x) if self.norm == "pre" else x)
            return self._add(x, mixed), state

        return self.through(form, x)

    def _add(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The two residual connections, given what the attention made of ``x``."""
        x = x + self.dropout(mixed)
        if self.norm == "pre":
            return x + self._feed(x)
        x = self.norm1(x)
        y: Tensor = self.norm2(x + self.dropout(self.feed_forward(x)))
        return y

    def _feed(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.feed_forward(self.norm2(x)))
        return y


class ReversibleLayer(EncoderLayer):
    """The same sublayers, each after its norm, on two streams: attention adds to the first what it makes of the second,
    and feed-forward to the second what it makes of the first. (B, N, C) each."""

    def forward(  # type: ignore[override]
        self, x1: Tensor, x2: Tensor, *, streams: Streams, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def mix(x: Tensor) -> Tensor:
            y: Tensor = self.dropout(self.attention(self.norm1(x), key_padding_mask=key_padding_mask))
            return y

        x1 = streams.add(x1, x2, Calls(mix, self.norm1, self.attention, self.dropout))
        x2 = streams.add(x2, x1, Calls(self._feed, self.norm2, self.feed_forward, self.dropout))
        return x1, x2

    def step(  # type: ignore[override]
        self, x1: Tensor, x2: Tensor, state: State | None
    ) -> tuple[Tensor, Tensor, State]:
        """The next position of the causal form. x1, x2 and the results: (B, C)."""

        def form(x1: Tensor, x2: Tensor) -> tuple[tuple[Tensor, Tensor], State]:
            mixed, after = self.attention.step(self.norm1(x2)[:, 0], state)
            x1 = x1 + self.dropout(mixed[:, None])
            return (x1, x2 + self._feed(x1)), after

        (x1, x2), after = self.through(form, x1[:, None], x2[:, None])
        return x1[:, 0], x2[:, 0], after

    def prefill(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, State]:  # type: ignore[override]
        """``forward`` of a causal layer, x1 and x2: (B, N, C), and the state after it."""

        def form(x1: Tensor, x2: Tensor) -> tuple[tuple[Tensor, Tensor], State]:
            mixed, state = self.attention.prefill(self.norm1(x2))
            x1 = x1 + self.dropout(mixed)
            return (x1, x2 + self._feed(x1)), state

        (x1, x2), state = self.through(form, x1, x2)
        return x1, x2, state


class Encoder(Formed):
    """A Transformer encoder with the attention of your choice.

    Takes (B, N) token ids where ``vocab_size`` is given, (B, N, n_features) floats where ``n_features`` is (patches of
    an image, say), else (B, N, d_model) floats; returns (B, N, d_model).

    Args:
        attn: a name from ``available()``, or an instance of a backend's config class.
        d_ff: hidden width of the feed-forward; 4 · d_model by default (8/3 · d_model for ``swiglu``, which has
            three matrices, so that the parameters stay the same).
        dropout: on the sum of embedding and position, inside the feed-forward and on every sublayer's output.
            Attention weights have none: most backends never hold them.
        max_len: the longest input that will come.
        norm: LayerNorm before each sublayer (``pre``, with one more at the end) or after it (``post``).
        positions: ``sinusoidal``, ``learned``, ``rotary`` (turns queries and keys) or ``none``.
        conv_width: width of a depthwise convolution after the embedding; None for none.
        vocab_size: number of token ids; None for float inputs.
        n_features: width of float inputs, which a linear map brings to d_model; None where they have it.
        embedding_std: size of the initial token embeddings, beside sublayers that add about 1. Small embeddings let
            a layer overwrite its input at once (recall), large ones keep it (local patterns).
        causal: position t sees positions up to t only.
        checkpointing: in training each layer keeps its input alone, and backward runs the layer again (gradient
            checkpointing, Chen et al., arXiv:1604.06174): about a third more time, memory of one layer at a time.
        reversible: attention and feed-forward add to two streams in turn, and backward computes each layer's input
            again from its output (``zoo/reversible.py``): another function of the same parameters, about a third more
            time, memory of one layer at any depth. Needs ``norm="pre"``.
        device, dtype: of the parameters, as torch's modules have them.

    Raises:
        ValueError: unknown name or option, sizes or options that do not go together, or ``causal`` for a method without
            a causal form.
    """

    def __init__(
        self,
        attn: object = "full",
        *,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 6,
        d_ff: int | None = None,
        dropout: float = 0.1,
        max_len: int = 8192,
        norm: Norm = "pre",
        activation: Activation = "gelu",
        positions: Positions = "sinusoidal",
        conv_width: int | None = None,
        vocab_size: int | None = None,
        n_features: int | None = None,
        embedding_std: float = 1.0,
        causal: bool = False,
        checkpointing: bool = False,
        reversible: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        Dims(d_model=d_model, n_heads=n_heads, max_len=max_len)
        at_least(0, n_layers=n_layers)
        one_of("norm", norm, ("pre", "post"))
        one_of("activation", activation, ("gelu", "relu", "swiglu"))
        one_of("positions", positions, ("sinusoidal", "learned", "rotary", "none"))
        if d_ff is None:
            d_ff = 8 * d_model // 3 if activation == "swiglu" else 4 * d_model
        given = {"d_ff": d_ff, "conv_width": conv_width, "vocab_size": vocab_size, "n_features": n_features}
        at_least(1, **{name: value for name, value in given.items() if value is not None})

        if vocab_size is not None and n_features is not None:
            raise ValueError(f"expected vocab_size or n_features, got both: {vocab_size} and {n_features}")
        if reversible and norm != "pre":
            raise ValueError(f"reversible layers need norm='pre', got {norm!r}")
        if reversible and checkpointing:
            raise ValueError("expected reversible or checkpointing, got both: either keeps activations out of memory")
        self.d_model, self.max_len, self.vocab_size, self.causal = d_model, max_len, vocab_size, causal
        self.n_features = n_features
        self.checkpointing, self.reversible = checkpointing, reversible
        with made_on(device):
            self.embedding = None if vocab_size is None else nn.Embedding(vocab_size, d_model)
            if self.embedding is not None:
                nn.init.normal_(self.embedding.weight, std=embedding_std)
            self.features = None if n_features is None else nn.Linear(n_features, d_model)
            if self.features is not None:
                nn.init.normal_(self.features.weight, std=embedding_std * self.features.in_features**-0.5)
                nn.init.zeros_(self.features.bias)
            self.conv = None if conv_width is None else ShortConvolution(d_model, conv_width, causal=causal)
            self.positions: nn.Module = nn.Identity()
            if positions == "sinusoidal":
                scale = 1.0 if vocab_size is None and n_features is None else embedding_std
                self.positions = SinusoidalPositions(max_len, d_model, scale=scale)
            elif positions == "learned":
                self.positions = LearnedPositions(max_len, d_model)
            self.dropout = nn.Dropout(dropout)
            self.layers = nn.ModuleList()
            for _ in range(n_layers):
                attention = MultiHeadAttention(
                    attn,
                    d_model=d_model,
                    n_heads=n_heads,
                    max_len=max_len,
                    causal=causal,
                    rotary=positions == "rotary",
                )
                feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout)
                kind = ReversibleLayer if reversible else EncoderLayer
                self.layers.append(kind(attention, feed_forward, norm=norm, dropout=dropout))
            self.norm: nn.Module = nn.LayerNorm(d_model) if norm == "pre" else nn.Identity()
            self._shrink_residual_branches()
        if dtype is not None:
            self.to(dtype)

    @torch.no_grad()
    def _shrink_residual_branches(self) -> None:
        """Scale what each sublayer adds by (2 · n_layers)^-1/2, so that the sum keeps its size at any depth."""
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            for out in (layer.attention.mixer.out, layer.feed_forward.out):
                out.weight.mul_((2 * len(self.layers)) ** -0.5)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Encode ``x``; padded positions of the result are 0.

        Args:
            x: (B, N) token ids, (B, N, n_features) or (B, N, d_model) floats, as the encoder was made for.
            key_padding_mask: (B, N) bool, True = padding. Padding changes nothing and takes no place, wherever it
                stands: real positions have the same outputs without it.

        Raises:
            ValueError: wrong shape or dtype, N above ``max_len``, or, on a CPU, a token id out of range.
        """
        self._check(x, "B, N")
        x = self._embed(x)
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        padding = key_padding_mask
        if padding is not None:  # real positions first, so that padding takes no place, wherever it stands
            key_padding_mask, order = padding.sort(dim=1, stable=True)
            x = reordered(x, order)
        if self.conv is not None:
            x = self.conv(x, key_padding_mask=key_padding_mask)
        x = self.dropout(self.positions(x))
        if self.reversible:
            x = self._run_streams(x, key_padding_mask)
        else:
            for layer in self.layers:
                x = self._run(layer, x, key_padding_mask)
        y: Tensor = self.norm(x)
        if padding is None:
            return y
        return reordered(y, real_positions(padding)).masked_fill(padding[..., None], 0)

    def _run(self, layer: nn.Module, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            y: Tensor = layer(x, key_padding_mask=key_padding_mask)
            return y
        kept: Tensor = _Keep.apply(x)  # type: ignore[no-untyped-call]
        again = partial(as_before, layer)
        run: Callable[..., Tensor] = partial(layer, key_padding_mask=key_padding_mask)
        learned: list[Tensor] = []
        plain = all(type(x) in (Tensor, nn.Parameter) for x in layer.parameters())  # not sharded: a call changes these
        if plain and not torch.compiler.is_compiling():
            run, learned = as_function(Calls(run, layer))
        y = checkpoint(run, kept, *learned, use_reentrant=False, context_fn=again)
        return y

    def _run_streams(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        streams = Streams()
        x1 = x2 = x
        for layer in self.layers:
            x1, x2 = layer(x1, x2, streams=streams, key_padding_mask=key_padding_mask)
        return streams.mean(x1, x2)

    def _check(self, x: Tensor, axes: str) -> None:
        """Raise ValueError where ``x`` is not what the encoder was made for, ``axes`` long."""
        dims = axes.count(",") + 1
        if self.embedding is not None:
            if x.dim() != dims or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise ValueError(f"expected token ids of shape ({axes}), got shape {tuple(x.shape)} of {x.dtype}")
            return
        width = self.d_model if self.n_features is None else self.n_features
        if x.dim() != dims + 1 or x.shape[-1] != width or not x.is_floating_point():
            raise ValueError(f"expected floats of shape ({axes}, {width}), got shape {tuple(x.shape)} of {x.dtype}")

    def _embed(self, x: Tensor) -> Tensor:
        """What comes in, as floats (…, d_model)."""
        if self.embedding is not None:
            try:
                embedded: Tensor = self.embedding(x.long())
                return embedded
            except IndexError as error:  # which a CPU raises; to look before would make other devices wait
                low, high = int(x.min()), int(x.max())
                raise ValueError(
                    f"expected token ids from 0 to {self.embedding.num_embeddings - 1} (vocab_size - 1), "
                    f"got ids from {low} to {high}"
                ) from error
        if self.features is not None:
            x = self.features(x)
        return x

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Encode the next position of a causal encoder, without gradients; all steps together equal one ``forward``.

        >>> state = None
        >>> for token in tokens.unbind(1):  # (B, N) ids
        ...     y, state = encoder.step(token, state)

        Args:
            x: (B,) token ids, (B, n_features) or (B, d_model) floats, as the encoder was made for.
            state: what the step before returned; None at the first position.

        Returns:
            (B, d_model), and the state for the next step. The step consumes the state it was given.

        Raises:
            ValueError: an encoder that is not causal; a state of another encoder, batch or dtype, or a consumed one;
                wrong shape; or more positions than ``max_len``.
        """
        if isinstance(state, State) and state.groups:
            return state.step_groups(self.step, x)
        self._check(x, "B")
        return self.through_step(self._step, x, state)

    def _step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        x = self._embed(x[:, None])[:, 0]
        check_step(x, self.d_model, state, self.max_len)
        state = self._start(x) if state is None or not self.causal else state
        state.take(self, x)
        like, tensors, layers = x, state.tensors, []
        if self.conv is not None:
            x, past = self.conv.step(x, *tensors)
            tensors = (past,)
        x = x[:, None]
        x = self.positions(x) if isinstance(self.positions, nn.Identity) else self.positions(x, state.length)
        x = x2 = self.dropout(x)[:, 0]
        layer: Any
        for layer, before in zip(self.layers, state.layers or [None] * len(self.layers), strict=True):
            if self.reversible:
                x, x2, after = layer.step(x, x2, before)
            else:
                x, after = layer.step(x, before)
            layers.append(after)
        if self.reversible:
            x = (x + x2) / 2
        return self.norm(x[:, None])[:, 0], State(self, like, tensors, length=state.length + 1, layers=tuple(layers))

    @torch.no_grad()
    def prefill(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Encode a prompt with a causal encoder, without gradients: ``forward``, and the state for the next ``step``.

        Computes in parallel what ``step`` computes one position after another, at about the cost of ``forward``.

        >>> y, state = encoder.prefill(prompt)  # (B, N) ids
        >>> y, state = encoder.step(token, state)  # the position after the prompt

        Args:
            x: (B, N) token ids, (B, N, n_features) or (B, N, d_model) floats, as the encoder was made for.
            key_padding_mask: (B, N) bool, True = padding, on either side or between. Each sample gives what it gives
                without padding, and continues from its own length. Samples of one length run as one batch, here and in
                later steps (see ``Mixer.prefill``).

        Returns:
            (B, N, d_model), 0 at padding, and the state for the next step.

        Raises:
            ValueError: an encoder that is not causal; wrong shape or dtype, or N above ``max_len``.
        """
        self._check(x, "B, N")
        if key_padding_mask is not None:
            return prefill_groups(self.prefill, self._opened, (x,), key_padding_mask)
        return self.through(self._prefill, x)

    def _prefill(self, x: Tensor) -> tuple[Tensor, State]:
        x = self._embed(x)
        check_input(x, None, self.d_model, self.max_len)
        state = self._start(x[:, 0])
        state.length = x.shape[1]
        if self.conv is not None:
            past = self.conv.reach[0]
            state.tensors = (F.pad(x, (0, 0, past, 0))[:, x.shape[1] :],)
            x = self.conv(x)
        x = x2 = self.dropout(self.positions(x))
        layer: Any
        for layer in self.layers:
            if self.reversible:
                x, x2, after = layer.prefill(x, x2)
            else:
                x, after = layer.prefill(x)
            state.layers += (after,)
        if self.reversible:
            x = (x + x2) / 2
        return self.norm(x), state

    def _opened(self, x: Tensor) -> State:
        """The state before the first position, for inputs x (B, …) of it."""

        def form(x: Tensor) -> tuple[Tensor, State]:
            x = self._embed(x)
            return x, self._start(x[:, 0])

        return self.through(form, x[:, None])[1]

    def _start(self, x: Tensor) -> State:
        """The state before the first position, x: (B, C) of it; ValueError where the encoder has no step form."""
        if not self.causal:
            raise ValueError("expected a causal encoder for steps, got one in both directions: build with causal=True")
        past = () if self.conv is None else (x.new_zeros(len(x), self.conv.reach[0], self.d_model),)
        return State(self, x, past)

    @property
    def kind(self) -> str:
        """What the encoder is, for ``State``: its sizes, and what its layers are."""
        sizes = f"d_model={self.d_model}, n_layers={len(self.layers)}, max_len={self.max_len}"
        parts = [layer.attention.mixer.kind for layer in self.layers[:1] if isinstance(layer, EncoderLayer)]
        return f"Encoder ({', '.join([sizes, *parts])})"

    def redraw(self, *, after: int | None = None) -> None:
        """Draw the random parts of every backend again (hashes, features, sparse layouts).

        Args:
            after: optimizer steps taken so far. Only backends whose ``redraw_interval`` divides it draw again, as
                ``performer`` does every 1000 steps by default. A training loop calls this before each step; no forward
                draws, so what backward computes again (checkpoints, reversible layers) stays the same.
        """
        for module in self.modules():
            if not isinstance(module, Backend) or isinstance(module, Heads):
                continue
            if after is None or (after and module.redraw_interval and after % module.redraw_interval == 0):
                module.redraw()

    @classmethod
    def from_torch(cls, encoder: nn.TransformerEncoder, attn: object = "full", *, max_len: int = 8192) -> Encoder:
        """An Encoder with the weights of a ``torch.nn.TransformerEncoder``: the same output at every real position.

        Positions are left out (torch's encoder has none), and so is the dropout of attention weights. Layers may differ
        in heads, widths, norms and activation. A backend's own parameters, as Linformer's projections, keep their
        initial values.

        Raises:
            ValueError: what cannot be taken over, as an activation other than relu or gelu, layers of one's own, or
                ``batch_first=False``; or a backend that has no query, key and value projections to load.
        """
        layers = takeover.check(encoder)
        d_model, n_heads = layers[0].self_attn.embed_dim, layers[0].self_attn.num_heads
        ours = cls(
            attn, d_model=d_model, n_heads=n_heads, n_layers=0, dropout=0.0, max_len=max_len, positions="none"
        )  # fmt: skip
        for source in layers:
            attention = MultiHeadAttention(attn, d_model=d_model, n_heads=source.self_attn.num_heads, max_len=max_len)
            mixer = attention.mixer
            if not isinstance(mixer, Heads) or mixer.inputs != 3:
                raise ValueError(f"{attn!r} has no query, key and value projections to load weights into")
            activation, d_ff = takeover.activation_of(source), source.linear1.out_features
            assert activation is not None
            feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=source.dropout.p)
            _copy(source.self_attn.in_proj_weight, source.self_attn.in_proj_bias, mixer.qkv)
            _copy(source.self_attn.out_proj.weight, source.self_attn.out_proj.bias, mixer.out)
            _copy(source.linear1.weight, source.linear1.bias, feed_forward.hidden)
            _copy(source.linear2.weight, source.linear2.bias, feed_forward.out)
            norm: Norm = "pre" if source.norm_first else "post"
            target = EncoderLayer(attention, feed_forward, norm=norm, dropout=source.dropout1.p)
            target.norm1, target.norm2 = copy.deepcopy(source.norm1), copy.deepcopy(source.norm2)
            ours.layers.append(target)
        ours.norm = nn.Identity() if encoder.norm is None else copy.deepcopy(encoder.norm)
        return ours.to(layers[0].linear1.weight).train(encoder.training)


class _Keep(torch.autograd.Function):
    """The input, saved for backward, so that a count of saved bytes sees what a checkpoint holds in a closure."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return grad


def as_before(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a layer's forward and for its repetition, which finds a backend's state as the forward found it."""
    return nullcontext(), RestoreBuffers(layer)


@torch.no_grad()
def _copy(weight: Tensor, bias: Tensor | None, target: nn.Linear) -> None:
    """Copy weight and bias (absent means 0), frozen where they are."""
    target.weight.copy_(weight).requires_grad_(weight.requires_grad)
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    target.bias.copy_(bias).requires_grad_(bias.requires_grad)


def check_input(x: Tensor, key_padding_mask: Tensor | None, d_model: int, max_len: int) -> None:
    """Raise ValueError where ``x`` is not (B, N, d_model) floats or the mask not (B, N) bool, 1 <= N <= max_len."""
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
    """Raise ValueError where ``x`` is not (B, d_model) floats, the state none, or ``max_len`` positions are over."""
    if x.dim() != 2 or x.shape[-1] != d_model or not x.is_floating_point():
        raise ValueError(f"expected floats of shape (B, {d_model}), got shape {tuple(x.shape)} of {x.dtype}")
    if state is not None and not isinstance(state, State):
        raise ValueError(f"expected the state that the last step returned, or None, got {type(state).__name__}")
    if state is not None and state.length >= max_len:
        raise ValueError(f"expected at most {max_len} positions (max_len), got one more: build with a larger max_len")


def check_output(backend: Backend, y: object, like: Tensor) -> None:
    """Raise ValueError where a backend does not return the shape and dtype of its input, as its contract says.

    Under autocast the dtype is that of the last operation, whatever came in.
    """
    any_dtype = torch.is_autocast_enabled(like.device.type)
    if isinstance(y, Tensor) and y.shape == like.shape and (any_dtype or y.dtype == like.dtype):
        return
    got = f"shape {tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
    cls = type(backend)
    raise ValueError(
        f"{cls.__module__}:{cls.__qualname__} breaks the contract: forward must return what it takes, "
        f"shape {tuple(like.shape)} of {like.dtype}, got {got}"
    )
