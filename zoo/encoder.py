"""The encoder that every backend plugs into."""

from __future__ import annotations

import copy
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import takeover
from zoo.checkpointing import Part
from zoo.contract import Backend, Device, Dims, UnsupportedError, a_share, at_least, one_of
from zoo.embeddings import Positions, ShortConvolution, make_positions, real_positions, reordered
from zoo.forms import Formed
from zoo.layers import (
    CHOICES,
    NORMS,
    Activation,
    EncoderLayer,
    FeedForward,
    Init,
    Norm,
    NormType,
    ReversibleLayer,
)
from zoo.pretrained import Pretrained
from zoo.reversible import Streams
from zoo.shell import MultiHeadAttention, Shell, check_input, check_step, made_on
from zoo.state import State, prefill_groups

NOT_KEPT = ("self", "__class__", "device", "dtype")  # arguments that say where the encoder lives


class Encoder(Formed, Pretrained):
    """A Transformer encoder with the attention of your choice.

    Takes (B, N) token ids with ``vocab_size``, (B, N, n_features) floats with ``n_features`` (image patches, say), else
    (B, N, d_model) floats. Returns (B, N, d_model).

    Args:
        attn: a name from ``available()``, or an instance of a backend's config class.
        d_ff: hidden width of the feed-forward; by default 4 · d_model (8/3 · d_model for ``swiglu``, which has three
            matrices, so the number of parameters stays the same).
        ff_chunk: positions that a feed-forward computes at once; backward computes their hidden features again. None:
            all positions at once.
        dropout: on the sum of embedding and position, inside the feed-forward and on every sublayer's output.
        attention_dropout: on attention weights, for the backends that hold them; most never do.
        max_len: the longest input.
        norm: the norm stands before each sublayer (``pre``, with one more at the end) or after it (``post``).
        norm_type: LayerNorm (``layer``) or RMSNorm (``rms``, arXiv:1910.07467).
        qk_norm: an RMSNorm on the queries and the keys of each head (see ``MultiHeadAttention``).
        init: how linear maps of shell and feed-forward are drawn (see ``EncoderLayer.initialise``).
        positions: ``sinusoidal``, ``learned``, ``rotary`` (turns queries and keys) or ``none``; ``learned-2d`` and
            ``rotary-2d`` for square pictures of ``max_len`` pixels or patches, row by row.
        class_token: put a learned vector before the embedded input; the result is (B, 1 + N, d_model) and begins with
            that of the class token. Not with ``causal``.
        conv_width: width of a depthwise convolution after the embedding; None for none.
        vocab_size: number of token ids; None for float inputs.
        n_features: width of float inputs, which a linear map projects to d_model; None for inputs of width d_model.
        embedding_std: standard deviation of the initial token embeddings; sublayers add about 1. Small embeddings let a
            layer overwrite its input at once (recall), large ones keep the input (local patterns).
        causal: position t sees positions up to t only.
        checkpointing: in training each layer keeps only its input, and backward runs the layer again (gradient
            checkpointing, Chen et al., arXiv:1604.06174): about a third more time, memory of one layer at a time. With
            ``attention`` or ``feed_forward`` only that part of each layer does so.
        reversible: attention and feed-forward add to two streams in turn, and backward recomputes each layer's input
            from its output (``zoo/reversible.py``): a different function of the same parameters, about a third more
            time, memory of one layer at any depth. Needs ``norm="pre"``.
        device, dtype: of the parameters, as in torch's modules.

    Raises:
        ValueError: unknown name or option, sizes or options that cannot be combined, or ``causal``, ``qk_norm`` or
            ``attention_dropout`` for a method that cannot have it.
    """

    def __init__(
        self,
        attn: object = "full",
        *,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 6,
        d_ff: int | None = None,
        ff_chunk: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        max_len: int = 8192,
        norm: Norm = "pre",
        norm_type: NormType = "layer",
        qk_norm: bool = False,
        init: Init = "zoo",
        activation: Activation = "gelu",
        positions: Positions = "sinusoidal",
        class_token: bool = False,
        conv_width: int | None = None,
        vocab_size: int | None = None,
        n_features: int | None = None,
        embedding_std: float = 1.0,
        causal: bool = False,
        checkpointing: bool | Part = False,
        reversible: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in NOT_KEPT}
        super().__init__()
        self.settings: dict[str, Any] | None = given
        Dims(d_model=d_model, n_heads=n_heads, max_len=max_len)
        at_least(0, n_layers=n_layers)
        recomputed = "layer" if checkpointing is True else checkpointing or None
        for name, choices in CHOICES.items():
            one_of(name, given[name], choices)
        if recomputed is not None:
            one_of("checkpointing", recomputed, get_args(Part))
        a_share("dropout", dropout)
        if d_ff is None:
            d_ff = 8 * d_model // 3 if activation == "swiglu" else 4 * d_model
        sizes = ("conv_width", "vocab_size", "n_features", "ff_chunk")
        at_least(1, d_ff=d_ff, **{name: given[name] for name in sizes if given[name] is not None})
        if vocab_size is not None and n_features is not None:
            raise ValueError(f"expected vocab_size or n_features, got both: {vocab_size} and {n_features}")
        if class_token and causal:
            raise UnsupportedError("a causal encoder cannot have a class token, which would see no other position")
        if reversible and norm != "pre":
            raise UnsupportedError(f"reversible layers need norm='pre', got {norm!r}")
        if reversible and checkpointing:
            raise UnsupportedError(
                "expected reversible or checkpointing, got both: each alone avoids keeping activations"
            )
        self.d_model, self.max_len, self.vocab_size, self.causal = d_model, max_len, vocab_size, causal
        self.n_features = n_features
        self.reversible, self.grid = reversible, positions.endswith("-2d")
        with made_on(device):
            self.embedding = None if vocab_size is None else nn.Embedding(vocab_size, d_model)
            if self.embedding is not None:
                nn.init.normal_(self.embedding.weight, std=embedding_std)
            self.features = None if n_features is None else nn.Linear(n_features, d_model)
            if self.features is not None:
                nn.init.normal_(self.features.weight, std=embedding_std * self.features.in_features**-0.5)
                nn.init.zeros_(self.features.bias)
            self.conv = None if conv_width is None else ShortConvolution(d_model, conv_width, causal=causal)
            self.class_token = nn.Parameter(torch.randn(d_model) * 0.02) if class_token else None
            room = max_len + int(class_token)
            scale = 1.0 if vocab_size is None and n_features is None else embedding_std
            self.positions = make_positions(positions, room, d_model, scale)
            self.dropout = nn.Dropout(dropout)
            self.layers = nn.ModuleList()
            for layer in range(n_layers):
                attention = MultiHeadAttention(
                    attn,
                    d_model=d_model,
                    n_heads=n_heads,
                    max_len=room,
                    causal=causal,
                    rotary="2d" if positions == "rotary-2d" else positions == "rotary",
                    qk_norm=qk_norm,
                    attention_dropout=attention_dropout,
                    layer=layer,
                    n_layers=n_layers,
                )
                feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout, chunk=ff_chunk)
                kind = ReversibleLayer if reversible else EncoderLayer
                added = kind(
                    attention,
                    feed_forward,
                    norm=norm,
                    norm_type=norm_type,
                    dropout=dropout,
                    checkpointing=recomputed,
                )
                added.initialise(init, 2 * n_layers)
                self.layers.append(added)
            self.norm: nn.Module = NORMS[norm_type](d_model) if norm == "pre" else nn.Identity()
        if dtype is not None:
            self.to(dtype)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Encode ``x``; padded positions of the result are 0.

        Args:
            x: (B, N) token ids, (B, N, n_features) or (B, N, d_model) floats, as the encoder was built for.
            key_padding_mask: (B, N) bool, True = padding, anywhere. Real positions have the same outputs as without
                padding.

        Raises:
            ValueError: wrong shape or dtype, N above ``max_len``, or, on a CPU, a token id out of range.
        """
        self._check(x, "B, N")
        x = self._embed(x)
        check_input(x, key_padding_mask, self.d_model, self.max_len)
        if self.grid and x.shape[1] != self.max_len:
            raise UnsupportedError(f"expected a picture of {self.max_len} positions (max_len), got {x.shape[1]}")
        padding = key_padding_mask
        if padding is not None:  # move real positions to the front: then no position counts padding
            key_padding_mask, order = padding.sort(dim=1, stable=True)
            x = reordered(x, order)
        if self.conv is not None:
            x = self.conv(x, key_padding_mask=key_padding_mask)
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
            key_padding_mask = None if key_padding_mask is None else F.pad(key_padding_mask, (1, 0))
        x = self.dropout(self.positions(x))
        if self.reversible:
            x = self._run_streams(x, key_padding_mask)
        else:
            for layer in self.layers:
                x = layer(x, key_padding_mask=key_padding_mask)
        y: Tensor = self.norm(x)
        if padding is None:
            return y
        lead = 0 if self.class_token is None else 1
        real = reordered(y[:, lead:], real_positions(padding)).masked_fill(padding[..., None], 0)
        return torch.cat([y[:, :lead], real], dim=1) if lead else real

    def _run_streams(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        streams, x1, x2 = Streams(), x, x
        for layer in self.layers:
            x1, x2 = layer(x1, x2, streams=streams, key_padding_mask=key_padding_mask)
        return streams.mean(x1, x2)

    def _check(self, x: Tensor, axes: str) -> None:
        """Raise ValueError unless ``x`` has the axes ``axes`` and the kind of input that the encoder was built for."""
        dims = axes.count(",") + 1
        if self.embedding is not None:
            if x.dim() != dims or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise ValueError(f"expected token ids of shape ({axes}), got shape {tuple(x.shape)} of {x.dtype}")
            return
        width = self.d_model if self.n_features is None else self.n_features
        if x.dim() != dims + 1 or x.shape[-1] != width or not x.is_floating_point():
            raise ValueError(f"expected floats of shape ({axes}, {width}), got shape {tuple(x.shape)} of {x.dtype}")

    def _embed(self, x: Tensor) -> Tensor:
        """Token ids or features as floats (…, d_model)."""
        if self.embedding is not None:
            try:
                embedded: Tensor = self.embedding(x.long())
                return embedded
            except IndexError as error:  # on a CPU; an earlier check would make other devices wait
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
        """Encode the next position with a causal encoder, without gradients. All steps together equal one ``forward``.

        >>> state = None
        >>> for token in tokens.unbind(1):  # (B, N) ids
        ...     y, state = encoder.step(token, state)

        Args:
            x: (B,) token ids, (B, n_features) or (B, d_model) floats, as the encoder was built for.
            state: the state that the last step returned; None at the first position.

        Returns:
            (B, d_model), and the state for the next step. Each step consumes its state: pass on the one it returns.

        Raises:
            ValueError: an encoder that is not causal; a state of another encoder, batch or dtype, or a consumed state;
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
        state.consume(self, x)
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

        Equals ``step`` position by position, but runs in parallel, at about the cost of ``forward``.

        >>> y, state = encoder.prefill(prompt)  # (B, N) ids
        >>> y, state = encoder.step(token, state)  # the position after the prompt

        Args:
            x: (B, N) token ids, (B, N, n_features) or (B, N, d_model) floats, as the encoder was built for.
            key_padding_mask: (B, N) bool, True = padding, on either side or between. Padding changes no result, and
                each sample continues from its own length. Samples of one length run as one batch, here and in later
                steps (see ``Mixer.prefill``).

        Returns:
            (B, N, d_model), 0 at padding, and the state for the next step.

        Raises:
            ValueError: an encoder that is not causal; wrong shape or dtype, or N above ``max_len``.
        """
        self._check(x, "B, N")
        if key_padding_mask is not None:
            return prefill_groups(self.prefill, self._new_state, (x,), key_padding_mask)
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
        return self.norm((x + x2) / 2 if self.reversible else x), state

    def _new_state(self, x: Tensor) -> State:
        """The state before the first position, whose inputs are x (B, …)."""

        def form(x: Tensor) -> tuple[Tensor, State]:
            x = self._embed(x)
            return x, self._start(x[:, 0])

        return self.through(form, x[:, None])[1]

    def _start(self, x: Tensor) -> State:
        """The state before the first position, embedded as x (B, C). Raises ValueError unless causal."""
        if not self.causal:
            raise ValueError("expected a causal encoder for steps, got one in both directions: build with causal=True")
        past = () if self.conv is None else (x.new_zeros(len(x), self.conv.reach[0], self.d_model),)
        return State(self, x, past)

    @property
    def kind(self) -> str:
        """The encoder as text, for ``State``: its sizes and the kind of its layers."""
        sizes = f"d_model={self.d_model}, n_layers={len(self.layers)}, max_len={self.max_len}"
        parts = [layer.attention.mixer.kind for layer in self.layers[:1] if isinstance(layer, EncoderLayer)]
        return f"Encoder ({', '.join([sizes, *parts])})"

    def redraw(self, *, after: int | None = None) -> None:
        """Draw the random parts of every backend again (hashes, features, sparse layouts).

        Args:
            after: optimizer steps taken so far. Only backends whose ``redraw_interval`` divides this number draw again;
                for ``performer`` that is every 1000 steps by default. A training loop calls ``redraw`` before each
                optimizer step. No forward draws, so what backward recomputes (checkpoints, reversible layers) stays the
                same. None: every backend draws again.
        """
        for module in self.modules():
            if not isinstance(module, Backend) or isinstance(module, Shell):
                continue
            if after is None or (after and module.redraw_interval and after % module.redraw_interval == 0):
                module.redraw()

    @classmethod
    def from_torch(cls, encoder: nn.TransformerEncoder, attn: object = "full", *, max_len: int = 8192) -> Encoder:
        """An Encoder with the weights of a ``torch.nn.TransformerEncoder``: the same output at every real position.

        The result has no positions (torch's encoder has none) and no dropout on attention weights. Layers may differ in
        heads, widths, norms and activation. A backend's own parameters, as Linformer's projections, keep their initial
        values.

        Raises:
            ValueError: a part that cannot be taken over, as an activation other than relu or gelu, custom layers, or
                ``batch_first=False``; or a backend without query, key and value projections to load.
        """
        layers = takeover.check(encoder)
        d_model, n_heads = layers[0].self_attn.embed_dim, layers[0].self_attn.num_heads
        sizes = {"d_model": d_model, "n_heads": n_heads, "n_layers": 0, "max_len": max_len}
        ours = cls(attn, dropout=0.0, positions="none", **sizes)
        ours.layers.extend(takeover.take_over(layers, attn, max_len=max_len))
        ours.norm = nn.Identity() if encoder.norm is None else copy.deepcopy(encoder.norm)
        ours.settings = None
        return ours.to(layers[0].linear1.weight).train(encoder.training)
