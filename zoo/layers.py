"""The layers of an encoder: mixing and feed-forward, on one stream or on two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpointing import Part, checkpointed
from zoo.embeddings import Positions
from zoo.forms import Formed
from zoo.functional import Calls
from zoo.reversible import Streams
from zoo.shell import MultiHeadAttention, Shell
from zoo.state import State

Norm = Literal["pre", "post"]
NormType = Literal["layer", "rms"]
Activation = Literal["gelu", "relu", "swiglu"]
Init = Literal["zoo", "torch", "xavier", "gpt2"]

LITERALS = {"norm": Norm, "norm_type": NormType, "activation": Activation, "init": Init, "positions": Positions}
CHOICES = {name: get_args(literal) for name, literal in LITERALS.items()}
"""Argument of an encoder -> the words that it may be."""
NORMS: dict[NormType, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": partial(nn.init.kaiming_uniform_, a=5**0.5),
    "xavier": nn.init.xavier_uniform_,
    "gpt2": partial(nn.init.normal_, std=0.02),
}


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity between. (B, N, C) -> (B, N, C).

    ``swiglu`` (arXiv:2002.05202) multiplies one half of the hidden features by the SiLU of the other.

    Args:
        chunk: positions computed at once (Reformer, arXiv:2001.04451, section 3); backward computes their hidden
            features again, so only those of one chunk are in memory at a time. None: all positions at once.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: Activation, dropout: float, chunk: int | None = None
    ) -> None:
        super().__init__()
        self.activation, self.chunk = activation, chunk
        self.hidden = nn.Linear(d_model, 2 * d_ff if activation == "swiglu" else d_ff)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(d_ff, d_model)
        for linear in (self.hidden, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.chunk is None or x.shape[-2] <= self.chunk:
            return self._feed(x)
        modules = self.hidden, self.dropout, self.out
        return torch.cat(
            [checkpointed(self._feed, part, *modules) for part in torch.split(x, self.chunk, dim=-2)], dim=-2
        )

    def _feed(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        if self.activation == "swiglu":
            value, gate = h.chunk(2, dim=-1)
            h = value * F.silu(gate)
        else:
            h = F.relu(h) if self.activation == "relu" else F.gelu(h)
        y: Tensor = self.out(self.dropout(h))
        return y


class EncoderLayer(Formed):
    """Mixing and feed-forward, each with a residual connection and a norm before (pre) or after (post).

    Args:
        checkpointing: the part that keeps only its input for backward: the whole ``layer``, its ``attention`` or its
            ``feed_forward``, each with its norm; None: no part.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: FeedForward,
        *,
        norm: Norm,
        norm_type: NormType = "layer",
        dropout: float,
        checkpointing: Part | None = None,
    ) -> None:
        super().__init__()
        self.norm, self.checkpointing = norm, checkpointing
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = (NORMS[norm_type](attention.d_model) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        run = partial(self._run, key_padding_mask=key_padding_mask)
        return checkpointed(run, x, *self.children()) if self.checkpointing == "layer" else run(x)

    def _run(self, x: Tensor, *, key_padding_mask: Tensor | None) -> Tensor:
        mix = partial(self._mix, key_padding_mask=key_padding_mask)
        mixed = checkpointed(mix, x, self.norm1, self.attention) if self.checkpointing == "attention" else mix(x)
        return self._add(x, mixed)

    def _mix(self, x: Tensor, *, key_padding_mask: Tensor | None) -> Tensor:
        before = self.norm1(x) if self.norm == "pre" else x
        mixed: Tensor = self.attention(before, key_padding_mask=key_padding_mask)
        return mixed

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
        """The two residual connections. mixed: the attention's output for ``x``."""
        x = x + self.dropout(mixed)
        if self.norm == "post":
            x = self.norm1(x)
        if self.checkpointing == "feed_forward":
            x = x + checkpointed(self._feed, x, self.norm2, self.feed_forward, self.dropout)
        else:
            x = x + self._feed(x)
        y: Tensor = self.norm2(x) if self.norm == "post" else x
        return y

    def _feed(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.feed_forward(self.norm2(x) if self.norm == "pre" else x))
        return y

    @torch.no_grad()
    def initialise(self, scheme: Init, branches: int) -> None:
        """Draw the linear maps of shell and feed-forward by a scheme, and scale the outputs of both sublayers.

        Args:
            scheme: ``zoo`` keeps what construction drew; ``torch`` is nn.Linear's default, ``xavier`` is Glorot's
                uniform, ``gpt2`` is normal with a deviation of 0.02. Biases are 0. What a backend draws itself stays.
            branches: sublayers in the encoder. Their outputs are scaled by branches^-1/2, so that their sum has the
                same size at any depth.
        """
        mixer = self.attention.mixer
        if scheme != "zoo":
            own = (mixer.qkv, mixer.out) if isinstance(mixer, Shell) else (mixer.out,)
            for linear in (*own, self.feed_forward.hidden, self.feed_forward.out):
                INITS[scheme](linear.weight)
        for out in (mixer.out, self.feed_forward.out):
            out.weight.mul_(branches**-0.5)


class ReversibleLayer(EncoderLayer):
    """The same sublayers, each after its norm, on two streams, (B, N, C) each. Attention reads the second stream and
    adds to the first; feed-forward reads the first and adds to the second."""

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
