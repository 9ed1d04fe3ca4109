"""The two contracts that every backend keeps, and the facts that it declares.

Shape letters, the same everywhere: ``B`` batch, ``H`` heads, ``N`` length, ``D`` head width, ``C`` d_model,
``M`` reduced size (rank, landmarks, features). Masks are boolean and True means padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.forms import Formed
from zoo.state import State, prefill_groups

Tensors = tuple[Tensor, ...]
Device = torch.device | str | int | None


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

    ``layer`` of ``n_layers``: where in the model the backend stands, from 0. A sublayer alone is layer 0 of 1.

    Raises:
        ValueError: a size below 1, ``d_model`` that the heads do not divide, or a ``layer`` that is none of
            ``n_layers``.
    """

    d_model: int
    n_heads: int
    max_len: int
    causal: bool = False
    rotary: bool = False
    layer: int = 0
    n_layers: int = 1

    def __post_init__(self) -> None:
        at_least(1, d_model=self.d_model, n_heads=self.n_heads, max_len=self.max_len, n_layers=self.n_layers)
        at_least(0, layer=self.layer)
        if self.layer >= self.n_layers:
            raise ValueError(f"layer must be below n_layers, got layer={self.layer}, n_layers={self.n_layers}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be a multiple of n_heads, got d_model={self.d_model}, n_heads={self.n_heads}"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True)
class Init:
    """How large queries and keys are in a fresh model. Values and outputs have variance 1 in every one.

    Attributes:
        variance: of each of their numbers, where the layer's inputs have variance 1.
        source: who has it so, and where.
    """

    variance: float
    source: str

    @torch.no_grad()
    def scale(self, weight: Tensor) -> None:
        """Bring weights that give numbers of variance 1 to this variance."""
        weight.mul_(self.variance**0.5)


# Measured on mqar at 64 with the context at a random place, 4 heads, 500 steps at 3e-3, two seeds: full ends at 89 and
# 96 % from 1/3, at 84 and 88 % from 1 (benchmarks/initialisation.py). Most authors' code in torch starts there.
SHELL_INIT = Init(variance=1 / 3, source="torch's default for nn.Linear")


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
        adapts: a forward in training changes its buffers.
        subquadratic: time, and bytes saved for backward, grow slower than N².
        shared_qk: keys are the queries, so the shell projects them once.
        init: the initial size of queries and keys, with its source, where the method needs another than ``SHELL_INIT``:
            its authors', or a measured one. A ``Mixer`` initialises itself.
        rotary: ``positions="rotary"`` has an effect, as it has on every ``Attention``. False for a ``Mixer`` that
            ignores it.
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
    adapts: bool = False
    subquadratic: bool = False
    shared_qk: bool = False
    init: Init | None = None
    rotary: bool = True
    exceptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Kernel:
    """The code that ran. ``fallback``: another kernel than the one that the backend is named for."""

    name: str
    fallback: bool = False


def check_length(length: int, max_len: int) -> None:
    """Raise ValueError where there is no position, or more than ``max_len``."""
    if not 1 <= length <= max_len:
        raise ValueError(f"expected 1 to {max_len} positions (max_len), got {length}: build with a larger max_len")


class Backend(Formed):
    """What an ``Attention`` and a ``Mixer`` have in common. Subclasses take ``(dims: Dims, config)``.

    ``dims`` stays as an attribute, and of it ``causal``, ``max_len`` and ``d_model`` as attributes of their own.

    A causal backend has a step form that equals ``forward`` position by position. It defines ``begin`` and ``advance``.
    ``absorb`` computes all positions in parallel and returns what the steps would keep.
    """

    traits: ClassVar[Traits]
    name: ClassVar[str]  # under which it is registered
    undecayed: ClassVar[tuple[str, ...]] = ()  # matrices, or modules of them, that are trained without weight decay
    kind: str = ""  # as it was built: name, sizes and options, for ``State``
    redraw_interval: int = 0  # optimizer steps between two draws in training, where its authors draw so; 0 = never

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims, self.causal, self.max_len, self.d_model = dims, dims.causal, dims.max_len, dims.d_model

    def bind_to(self, name: str, size: int) -> None:
        """Refuse weights built for another ``size``, where the function depends on it and no parameter's shape
        shows it. An empty buffer has the size as its shape; ``load_state_dict`` compares it, and the error names it.
        """
        self.register_buffer(f"built_for_{name}", torch.empty(size, 0))

    def begin(self, x: Tensor) -> Tensors:
        """What the step form keeps before the first position: (B, …) tensors. x: an input as ``advance`` gets it."""
        raise NotImplementedError

    def cache_size(self, length: int) -> int | None:
        """Numbers in the state of one sample after ``length`` positions; None = there is no step form."""
        return None

    def start(self, x: Tensor) -> State:
        """The state before the first position of a step form on ``x`` (B, …); ValueError where there is none."""
        if not self.traits.causal:
            raise ValueError(f"{self.name} has no causal form, so it cannot decode step by step")
        if not self.causal:
            raise ValueError(
                f"expected a causal layer for steps, got {self.name} in both directions: build with causal=True"
            )
        try:
            return State(self, x, self.begin(x))
        except NotImplementedError:
            raise ValueError(f"{self.name} has no step form: it does not define begin and advance") from None

    def _consumed(self, x: Tensor, state: State | None) -> State:
        """The state that a step on ``x`` (B, …) consumes: ``state`` or a new one; ValueError where there is none."""
        if state is None or not self.causal:
            state = self.start(x)
        if state.length == self.max_len:
            raise ValueError(
                f"expected at most {self.max_len} positions (max_len), got one more: build with a larger max_len"
            )
        state.consume(self, x)
        return state

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        """What computes the mixing for inputs like ``x``, the first that forward takes. Records and charts name it."""
        return Kernel("torch ops")

    def state_size(self, length: int) -> int | None:
        """The reading: values a query attends to among ``length`` positions, or the summary of them; None = not told.

        Counts the numbers of one layer and one sample, all heads: keys and values, or the summary. They bound what a
        query can recall (Zoology, arXiv:2312.04927; Based, arXiv:2402.18668). Counts the query that reads most, unless
        the method says otherwise. Does not count parameters, nor what chooses the keys.
        """
        return None

    def redraw(self) -> None:
        """Draw the random parts again from torch's global generator. Does nothing without random parts.

        The parts become new tensors, so a backward still to come uses the old ones.
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

        May write into ``tensors``, what is kept of earlier positions.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form. q, k, v and the result: (B, H, D); state: None before the first.

        Autocast is off, as in a scan: what is kept and summed is as precise as the inputs, at least float32.

        Raises:
            ValueError: no causal form, wrong shape, more positions than ``max_len``, or a state of another module,
                shape or dtype, or a consumed one.
        """
        if v.dim() != 3 or not q.shape == k.shape == v.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(f"expected q, k and v of one shape (B, H, D), got {shapes}")
        if state is not None and state.groups:
            return state.step_groups(self.step, q, k, v)
        before = self._consumed(v, state)
        with torch.autocast(v.device.type, enabled=False):
            out, tensors = self.through(
                lambda q, k, v: self.advance(q, k, v, before.tensors, before.length),
                *(x[:, :, None] for x in (q, k, v)),
            )
        return out[:, :, 0], State(self, v, tensors, length=before.length + 1)

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        """The results at all positions, and what is kept after them. q, k, v and the result: (B, H, N, D).

        The default calls ``advance`` for one position after another: right, and slow. A backend whose ``forward`` can
        return what is kept at the end overrides it.
        """
        tensors, rows = self.begin(v[:, :, 0]), []
        for position in range(v.shape[2]):
            at = slice(position, position + 1)
            row, tensors = self.advance(q[:, :, at], k[:, :, at], v[:, :, at], tensors, position)
            rows.append(row)
        return torch.cat(rows, dim=2), tensors

    @torch.no_grad()
    def prefill(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """``forward`` of the causal form, and the state after it for the steps that follow.

        q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding. Like ``Mixer.prefill``.
        Autocast is off, as in steps.
        """
        if v.dim() != 4 or not q.shape == k.shape == v.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(f"expected q, k and v of one shape (B, H, N, D), got {shapes}")
        if key_padding_mask is not None:
            return prefill_groups(self.prefill, self.start, (q, k, v), key_padding_mask, dim=2)
        check_length(v.shape[2], self.max_len)
        state = self.start(v[:, :, 0])
        with torch.autocast(v.device.type, enabled=False):
            out, state.tensors = self.through(self.absorb, q, k, v)
        state.length = v.shape[2]
        return out, state


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

        May write into ``tensors``, what is kept of earlier positions.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form. x and the result: (B, C); state: None before the first.

        Raises:
            ValueError: no causal form, wrong shape, more positions than ``max_len``, or a state of another module,
                shape or dtype, or a consumed one.
        """
        if x.dim() != 2 or x.shape[-1] != self.d_model:
            raise ValueError(f"expected x of shape (B, {self.d_model}), got {tuple(x.shape)}")
        if state is not None and state.groups:
            return state.step_groups(self.step, x)
        before = self._consumed(x, state)
        out, tensors = self.through(lambda x: self.advance(x, before.tensors, before.length), x[:, None])
        return out[:, 0], State(self, x, tensors, length=before.length + 1)

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        """The results at all positions, and what is kept after them. x and the result: (B, N, C).

        The default calls ``advance`` for one position after another: right, and slow. A backend whose ``forward`` can
        return what is kept at the end overrides it.
        """
        tensors, rows = self.begin(x[:, 0]), []
        for position in range(x.shape[1]):
            row, tensors = self.advance(x[:, position : position + 1], tensors, position)
            rows.append(row)
        return torch.cat(rows, dim=1), tensors

    @torch.no_grad()
    def prefill(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """``forward`` of the causal form, and the state after it for the steps that follow.

        With padding, each sample gives what it gives without padding, and continues from its own length. Samples of one
        length run as one batch, here and in later steps: padding costs nothing, and k different lengths cost k smaller
        calls a step.

        Args:
            x: (B, N, C), as the result, which is 0 at padding.
            key_padding_mask: (B, N) bool, True = padding, on either side or between.

        Raises:
            ValueError: no causal form, wrong shape, or N above ``max_len``.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"expected x of shape (B, N, {self.d_model}), got {tuple(x.shape)}")
        if key_padding_mask is not None:
            return prefill_groups(self.prefill, self.start, (x,), key_padding_mask)
        check_length(x.shape[1], self.max_len)
        state = self.start(x[:, 0])
        out, state.tensors = self.through(self.absorb, x)
        state.length = x.shape[1]
        return out, state
