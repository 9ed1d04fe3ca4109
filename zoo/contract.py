"""The two contracts that every backend keeps, the facts that it declares, and the state of its step form.

Shape letters, the same everywhere: ``B`` batch, ``H`` heads, ``N`` length, ``D`` head width, ``C`` d_model,
``M`` reduced size (rank, landmarks, features). Masks are boolean and True means padding.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]


def at_least(low: int, **options: int) -> None:
    """Raise ValueError for the first option that is no integer or lies below ``low``."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError where ``value`` is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Dims:
    """What the model tells a backend about itself.

    ``rotary``: queries and keys are turned by their position. The shell turns them for every ``Attention``; a ``Mixer``
    that has queries and keys of its own turns them itself.

    Raises:
        ValueError: a size below 1, or ``d_model`` that the heads do not divide.
    """

    d_model: int
    n_heads: int
    max_len: int
    causal: bool = False
    rotary: bool = False

    def __post_init__(self) -> None:
        at_least(1, d_model=self.d_model, n_heads=self.n_heads, max_len=self.max_len)
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be a multiple of n_heads, got d_model={self.d_model}, n_heads={self.n_heads}"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a backend says of itself; the contract suite holds it to this.

    Attributes:
        family: the idea: exact, fixed sparse, content sparse, low-rank, learned pattern, kernel, control …
        source: paper with its arXiv number, or the library that the backend wraps.
        year: of that paper; None where there is none.
        time, memory: cost of one forward in N, ``memory`` being what is kept for backward.
        causal: has a causal form.
        bidirectional: how the other form sees both sides: at once, or how two directions are merged.
        capacity: the config's field that buys accuracy for cost: rank, window, features … None where there is none.
        exact: equals softmax attention on every input.
        stochastic: holds random parts, drawn at construction and again by ``redraw()`` only.
        subquadratic: time, and bytes saved for backward, grow slower than N².
        shared_qk: keys are the queries, so the shell projects them once.
        exceptions: contract law -> why this method cannot hold it (tested as a strict expected failure).
    """

    family: str
    source: str
    year: int | None
    time: str
    memory: str
    causal: bool
    bidirectional: str = "at once"
    capacity: str | None = None
    exact: bool = False
    stochastic: bool = False
    subquadratic: bool = False
    shared_qk: bool = False
    exceptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Kernel:
    """The code that ran. ``fallback``: it is not the one that the backend is named for."""

    name: str
    fallback: bool = False


class State:
    """What a step form keeps of the positions that it has seen.

    A step uses it up, since it may write into its tensors: go on with the state that the step returns.

    Attributes:
        owner: the module whose steps it belongs to.
        length: positions seen.
        shape, dtype: of an input, (B, …); batch: B.
        tensors: of a backend, (B, …) each.
        layers: of an encoder, the states of its layers.
        used: a step has used it up.
    """

    def __init__(
        self, owner: nn.Module, x: Tensor, tensors: Tensors = (), *, length: int = 0, layers: tuple[State, ...] = ()
    ) -> None:
        self.owner, self.length, self.tensors, self.layers = owner, length, tensors, layers
        self.shape, self.batch, self.dtype = x.shape, len(x), x.dtype
        self.used = False

    @property
    def size(self) -> int:
        """Numbers kept of one sample."""
        own = sum(x.numel() for x in self.tensors) // self.batch
        return own + sum(layer.size for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes kept of the whole batch."""
        return sum(x.nbytes for x in self.tensors) + sum(layer.nbytes for layer in self.layers)

    def take(self, owner: nn.Module, x: Tensor) -> None:
        """Use it up for the step of ``owner`` on ``x`` (B, …).

        Raises:
            ValueError: the state of another module, shape or dtype, or one that is used up.
        """
        if self.owner is not owner:
            raise ValueError(
                f"expected a state of this {type(owner).__name__}, got one of another model or layer "
                f"({type(self.owner).__name__}): begin with state=None"
            )
        if self.used:
            raise ValueError(
                f"the state after {self.length} positions is used up by an earlier step: "
                "go on with the state that it returned"
            )
        if (self.batch, self.dtype) != (len(x), x.dtype):
            raise ValueError(
                f"expected {self.batch} samples of {self.dtype}, as the state was begun with, got {len(x)} of {x.dtype}"
            )
        if self.shape != x.shape:
            raise ValueError(
                f"expected shape {tuple(self.shape)}, as the state was begun with, got shape {tuple(x.shape)}"
            )
        self.used = True


class Backend(nn.Module):
    """What an ``Attention`` and a ``Mixer`` have in common. Subclasses take ``(dims: Dims, config)``.

    A causal backend has a step form, position by position, which equals ``forward``: its two parts are ``begin`` and
    ``advance``.
    """

    traits: ClassVar[Traits]
    name: ClassVar[str]  # under which it is registered
    causal: bool = False  # as it was built
    max_len: int = sys.maxsize  # likewise

    def begin(self, x: Tensor) -> Tensors:
        """What the step form keeps before the first position: (B, …) tensors; x: as ``advance`` will get."""
        raise NotImplementedError

    def cache_size(self, length: int) -> int | None:
        """Numbers that the step form keeps of one sample after ``length`` positions; None = there is no step form."""
        return None

    def _open(self, x: Tensor, state: State | None) -> State:
        """The state that a step on ``x`` (B, …) goes on from; ValueError where there can be none."""
        if not self.traits.causal:
            raise ValueError(f"{self.name} has no causal form, so it cannot go step by step")
        if not self.causal:
            raise ValueError(
                f"expected a causal layer for steps, got {self.name} in both directions: build with causal=True"
            )
        if state is None:
            try:
                state = State(self, x, self.begin(x))
            except NotImplementedError:
                raise ValueError(f"{self.name} has no step form: it does not define begin and advance") from None
        if state.length == self.max_len:
            raise ValueError(
                f"expected at most {self.max_len} positions (max_len), got one more: build with a larger max_len"
            )
        state.take(self, x)
        return state

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        """What computes the mixing for inputs like ``x``, the first that forward takes. Records and charts name it."""
        return Kernel("torch ops")

    def state_size(self, length: int) -> int | None:
        """Numbers that stand between ``length`` positions and a query that reads them; None = the backend does not say.

        Of one layer and one sample, all heads: the keys and values that a query attends to, or what takes their place.
        They bound what it can recall (Zoology, arXiv:2312.04927; Based, arXiv:2402.18668). Of the query that reads
        most, where the method does not say otherwise; parameters, and what chooses the keys, are not counted.
        """
        return None

    def redraw(self) -> None:
        """Draw the random parts again, from torch's global generator. Without random parts it does nothing.

        They are new tensors: what a backward that is still to come has seen stays as it is.
        """


class Attention(Backend, ABC):
    """A mechanism that mixes values between positions, given heads.

    The multi-head shell owns the query, key, value and output projections, checks every input, and sets the outputs
    at padded positions to 0.
    """

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``v``. q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding."""

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        """The result at ``position``, and what is kept after it. q, k, v and the result: (B, H, 1, D).

        ``tensors``, what is kept of the positions before, may be written into.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form. q, k, v and the result: (B, H, D); state: None before the first.

        As in a scan there is no autocast: what is kept and summed is as precise as the inputs, float32 at least.

        Raises:
            ValueError: no causal form, wrong shape, more positions than ``max_len``, or a state of another module,
                shape or dtype, or one that is used up.
        """
        if v.dim() != 3 or not q.shape == k.shape == v.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(f"expected q, k and v of one shape (B, H, D), got {shapes}")
        before = self._open(v, state)
        with torch.autocast(v.device.type, enabled=False):
            out, tensors = self.advance(q[:, :, None], k[:, :, None], v[:, :, None], before.tensors, before.length)
        return out[:, :, 0], State(self, v, tensors, length=before.length + 1)


class Mixer(Backend, ABC):
    """A whole sublayer, for methods that are not shaped as queries, keys and values.

    It ends in the linear map ``out``, whose first weights the encoder shrinks with depth.
    """

    out: nn.Linear

    @abstractmethod
    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``x``. x and the result: (B, N, C); key_padding_mask: (B, N) bool, True = padding."""

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        """The result at ``position``, and what is kept after it. x and the result: (B, 1, C).

        ``tensors``, what is kept of the positions before, may be written into.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form. x and the result: (B, C); state: None before the first.

        Raises:
            ValueError: no causal form, wrong shape, more positions than ``max_len``, or a state of another module,
                shape or dtype, or one that is used up.
        """
        if x.dim() != 2 or x.shape[-1] != self.out.out_features:
            raise ValueError(f"expected x of shape (B, {self.out.out_features}), got {tuple(x.shape)}")
        before = self._open(x, state)
        out, tensors = self.advance(x[:, None], before.tensors, before.length)
        return out[:, 0], State(self, x, tensors, length=before.length + 1)
