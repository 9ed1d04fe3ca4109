"""The encoder that every backend plugs into, and the multi-head shell around an ``Attention``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.contract import Attention, Backend, Dims, Kernel, Mixer, State, at_least, one_of
from zoo.embeddings import LearnedPositions, RotaryPositions, ShortConvolution, SinusoidalPositions
from zoo.functional import AsFound, split
from zoo.registry import build
from zoo.reversible import Branch, two_streams

Norm = Literal["pre", "post"]
Activation = Literal["gelu", "relu", "swiglu"]
Positions = Literal["sinusoidal", "learned", "rotary", "none"]


class Heads(Mixer):
    """The shell that turns an ``Attention`` into a ``Mixer``: projections, heads, rotary positions."""

    def __init__(self, dims: Dims, attention: Attention) -> None:
        super().__init__()
        self.n_heads = dims.n_heads
        self.inputs = 2 if attention.traits.shared_qk else 3  # (q, v) or (q, k, v)
        self.qkv = nn.Linear(dims.d_model, self.inputs * dims.d_model)
        self.rotary = RotaryPositions(dims.max_len, dims.d_head) if dims.rotary else None
        self.attention = attention
        self.out = nn.Linear(dims.d_model, dims.d_model)
        nn.init.normal_(self.qkv.weight, std=dims.d_model**-0.5)
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
        q, k, v = self._project(x[:, None], 0 if state is None else state.length)
        mixed, state = self.attention.step(q[:, :, 0], k[:, :, 0], v[:, :, 0], state)
        return self.out(rearrange(mixed, "b h d -> b (h d)")), state

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        heads = rearrange(x, "b n (h d) -> b h n d", h=self.n_heads)
        return self.attention.kernel(heads, key_padding_mask)

    def state_size(self, length: int) -> int | None:
        return self.attention.state_size(length)

    def cache_size(self, length: int) -> int | None:
        return self.attention.cache_size(length)

    def redraw(self) -> None:
        self.attention.redraw()


class MultiHeadAttention(nn.Module):
    """One attention sublayer with its projections. (B, N, d_model) -> (B, N, d_model).

    Args:
        attn: a name from ``available()``, or an instance of a backend's config class.
        d_model, n_heads: width, and the heads that share it.
        max_len: the longest input that will come.
        causal: position t sees positions up to t only.
        rotary: turn queries and keys by their position.

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
    ) -> None:
        super().__init__()
        dims = Dims(d_model=d_model, n_heads=n_heads, max_len=max_len, causal=causal, rotary=rotary)
        backend = build(attn, dims)
        if isinstance(backend, Attention):
            backend = Heads(dims, backend)
        assert isinstance(backend, Mixer)
        self.d_model, self.max_len = d_model, max_len
        self.mixer: Mixer = backend

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``x`` (B, N, d_model) between positions; padded positions of the result are 0.

        Args:
            key_padding_mask: (B, N) bool, True = padding, as in ``nn.MultiheadAttention``.

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
            ValueError: a layer that is not causal; a state of another layer, batch or dtype, or one that is used up;
                wrong shape; or more positions than ``max_len``.
        """
        check_step(x, self.d_model, state, self.max_len)
        y, after = self.mixer.step(x, state)
        check_output(self.mixer, y, x)
        return y, after

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        """What computes the mixing for inputs like ``x`` (B, N, d_model)."""
        return self.mixer.kernel(x, key_padding_mask)

    def state_size(self, length: int) -> int | None:
        """Numbers that stand between ``length`` positions and a query: see ``Backend.state_size``."""
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


class EncoderLayer(nn.Module):
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
        """The next position of the causal form, x: (B, C)."""
        mixed, state = self.attention.step(self.norm1(x) if self.norm == "pre" else x, state)
        return self._add(x, mixed), state

    def _add(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The two residual connections, given what the attention made of ``x``."""
        x = x + self.dropout(mixed)
        if self.norm == "pre":
            return x + self._feed(x)
        x = self.norm1(x)
        y: Tensor = self.norm2(x + self.dropout(self.feed_forward(x)))
        return y

    def branches(self, key_padding_mask: Tensor | None) -> tuple[Branch, Branch]:
        """The two sublayers, after their norms, as a reversible encoder runs them."""

        def mix(x: Tensor) -> Tensor:
            y: Tensor = self.dropout(self.attention(self.norm1(x), key_padding_mask=key_padding_mask))
            return y

        return Branch(mix, (self.norm1, self.attention)), Branch(self._feed, (self.norm2, self.feed_forward))

    def step_streams(self, x1: Tensor, x2: Tensor, state: State | None) -> tuple[Tensor, Tensor, State]:
        """The next position of the causal form in a reversible encoder, x1 and x2: (B, C)."""
        mixed, state = self.attention.step(self.norm1(x2), state)
        x1 = x1 + self.dropout(mixed)
        return x1, x2 + self._feed(x1), state

    def _feed(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.feed_forward(self.norm2(x)))
        return y


class Encoder(nn.Module):
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
        self.checkpointing, self.reversible = checkpointing, reversible
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
            self.layers.append(EncoderLayer(attention, feed_forward, norm=norm, dropout=dropout))
        self.norm: nn.Module = nn.LayerNorm(d_model) if norm == "pre" else nn.Identity()
        self._shrink_residual_branches()

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
            key_padding_mask: (B, N) bool, True = padding.

        Raises:
            ValueError: wrong shape or dtype, or N above ``max_len``.
        """
        x = self._embed(x, "B, N")
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        if self.conv is not None:
            x = self.conv(x, key_padding_mask=key_padding_mask)
        x = self.dropout(self.positions(x))
        branches: list[Branch] = []
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            if self.reversible:
                branches += layer.branches(key_padding_mask)
            else:
                x = self._run(layer, x, key_padding_mask)
        if self.reversible:
            x = two_streams(branches, x)
        y: Tensor = self.norm(x)
        return y if key_padding_mask is None else y.masked_fill(key_padding_mask[..., None], 0)

    def _run(self, layer: EncoderLayer, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            y: Tensor = layer(x, key_padding_mask=key_padding_mask)
            return y
        kept: Tensor = _Keep.apply(x)  # type: ignore[no-untyped-call]
        again = partial(as_before, layer)
        y = checkpoint(layer, kept, key_padding_mask=key_padding_mask, use_reentrant=False, context_fn=again)
        return y

    def _embed(self, x: Tensor, axes: str) -> Tensor:
        """What comes in, ``axes`` long, as floats (…, d_model)."""
        dims = axes.count(",") + 1
        if self.embedding is not None:
            if x.dim() != dims or x.is_floating_point() or x.dtype == torch.bool:
                raise ValueError(f"expected token ids of shape ({axes}), got shape {tuple(x.shape)} of {x.dtype}")
            x = self.embedding(x)
        if self.features is not None:
            if x.dim() != dims + 1 or x.shape[-1] != self.features.in_features or not x.is_floating_point():
                wanted = f"({axes}, {self.features.in_features})"
                raise ValueError(f"expected floats of shape {wanted}, got shape {tuple(x.shape)} of {x.dtype}")
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
            (B, d_model), and the state for the next step; the one given is used up.

        Raises:
            ValueError: an encoder that is not causal; a state of another encoder, batch or dtype, or one that is used
                up; wrong shape; or more positions than ``max_len``.
        """
        x = self._embed(x, "B")
        check_step(x, self.d_model, state, self.max_len)
        if not self.causal:
            raise ValueError("expected a causal encoder for steps, got one in both directions: build with causal=True")
        if state is None:
            state = State(self, x)
            if self.conv is not None:
                state.tensors = (x.new_zeros(len(x), self.conv.reach[0], self.d_model),)
        state.take(self, x)
        like, tensors, layers = x, state.tensors, []
        if self.conv is not None:
            x, past = self.conv.step(x, *tensors)
            tensors = (past,)
        if not isinstance(self.positions, nn.Identity):
            x = self.positions(x[:, None], state.length)[:, 0]
        x = x2 = self.dropout(x)
        for layer, before in zip(self.layers, state.layers or [None] * len(self.layers), strict=True):
            assert isinstance(layer, EncoderLayer)
            if self.reversible:
                x, x2, after = layer.step_streams(x, x2, before)
            else:
                x, after = layer.step(x, before)
            layers.append(after)
        if self.reversible:
            x = (x + x2) / 2
        return self.norm(x), State(self, like, tensors, length=state.length + 1, layers=tuple(layers))

    def redraw(self) -> None:
        """Draw the random parts of every backend again (hashes, features, sparse layouts)."""
        for module in self.modules():
            if isinstance(module, Backend) and not isinstance(module, Heads):
                module.redraw()

    @classmethod
    def from_torch(cls, encoder: nn.TransformerEncoder, attn: object = "full", *, max_len: int = 8192) -> Encoder:
        """An Encoder with the weights of a ``torch.nn.TransformerEncoder``: the same output at every real position.

        Positions are left out (torch's encoder has none). A backend's own parameters, as Linformer's projections,
        keep their initial values.

        Raises:
            ValueError: an activation other than relu or gelu, or a backend that has no query, key and value
                projections to load.
        """
        layers = [layer for layer in encoder.layers if isinstance(layer, nn.TransformerEncoderLayer)]
        first = layers[0]
        activation = ACTIVATIONS.get(first.activation)
        if activation is None:
            raise ValueError(f"expected an encoder with relu or gelu, got {first.activation}")
        ours = cls(
            attn,
            d_model=first.self_attn.embed_dim,
            n_heads=first.self_attn.num_heads,
            n_layers=len(layers),
            d_ff=first.linear1.out_features,
            dropout=first.dropout.p,
            max_len=max_len,
            norm="pre" if first.norm_first else "post",
            activation=activation,
            positions="none",
        )
        ours.norm = nn.Identity() if encoder.norm is None else nn.LayerNorm(ours.d_model)
        ours.to(first.linear1.weight)
        if isinstance(encoder.norm, nn.LayerNorm):
            _copy(encoder.norm, ours.norm)
        for source, target in zip(layers, ours.layers, strict=True):
            assert isinstance(target, EncoderLayer)
            mixer = target.attention.mixer
            if not isinstance(mixer, Heads) or mixer.inputs != 3:
                raise ValueError(f"{attn!r} has no query, key and value projections to load weights into")
            attention = source.self_attn
            _copy(attention.out_proj, mixer.out)
            _copy(attention, mixer.qkv, weight="in_proj_weight", bias="in_proj_bias")
            _copy(source.linear1, target.feed_forward.hidden)
            _copy(source.linear2, target.feed_forward.out)
            _copy(source.norm1, target.norm1)
            _copy(source.norm2, target.norm2)
        return ours.train(encoder.training)


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
    return nullcontext(), AsFound(layer)


ACTIVATIONS: dict[object, Activation] = {
    F.relu: "relu",
    F.gelu: "gelu",
    torch.relu: "relu",
}


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module, weight: str = "weight", bias: str = "bias") -> None:
    """Copy weight, bias (absent means 0) and, for a LayerNorm, epsilon."""
    target.get_parameter("weight").copy_(source.get_parameter(weight))
    given = getattr(source, bias)
    target.get_parameter("bias").copy_(torch.zeros_like(target.get_parameter("bias")) if given is None else given)
    if isinstance(source, nn.LayerNorm) and isinstance(target, nn.LayerNorm):
        target.eps = source.eps


def check_input(x: Tensor, key_padding_mask: Tensor | None, d_model: int, max_len: int) -> None:
    """Raise ValueError where ``x`` is not (B, N, d_model) floats or the mask not (B, N) bool, 1 <= N <= max_len."""
    if x.dim() != 3 or x.shape[-1] != d_model or not x.is_floating_point():
        raise ValueError(f"expected floats of shape (B, N, {d_model}), got shape {tuple(x.shape)} of {x.dtype}")
    if not 1 <= x.shape[1] <= max_len:
        raise ValueError(f"expected 1 to {max_len} positions (max_len), got {x.shape[1]}: build with a larger max_len")
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
