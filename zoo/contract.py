"""The two contracts that backends keep, ``Attention`` and ``Mixer``, and the facts that a backend declares.

Shape letters, the same everywhere: ``B`` batch, ``H`` heads, ``N`` length, ``D`` head width, ``C`` d_model,
``M`` reduced size (rank, landmarks, features). Masks are boolean and True means padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from zoo.forms import Formed
from zoo.state import State, prefill_groups

Tensors = tuple[Tensor, ...]
Device = torch.device | str | int | None


class UnsupportedError(ValueError, NotImplementedError):
    """A backend cannot have what the model asks for, by its nature."""


def at_least(low: int, **options: int) -> None:
    """Raise ValueError for the first option that is not an integer or is below ``low``."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def a_share(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= ``value`` < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError if ``value`` is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes and settings of the model, as a backend receives them.

    ``rotary``: queries and keys are turned by their position; ``2d``: by its row and column in a picture. The shell
    turns them for every ``Attention``; a ``Mixer`` with its own queries and keys turns them itself.

    ``layer`` of ``n_layers``: the index of the backend's layer in the model, from 0. A single sublayer is layer 0 of 1.

    ``qk_norm``: the shell normalises queries and keys of each head. ``attention_dropout``: the share of attention
    weights that training drops.

    Raises:
        ValueError: a size below 1, ``d_model`` not a multiple of ``n_heads``, ``layer`` not below ``n_layers``, or
            ``attention_dropout`` outside [0, 1).
    """

    d_model: int
    n_heads: int
    max_len: int
    causal: bool = False
    rotary: bool | Literal["2d"] = False
    layer: int = 0
    n_layers: int = 1
    qk_norm: bool = False
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, d_model=self.d_model, n_heads=self.n_heads, max_len=self.max_len, n_layers=self.n_layers)
        at_least(0, layer=self.layer)
        if self.layer >= self.n_layers:
            raise ValueError(f"layer must be below n_layers, got layer={self.layer}, n_layers={self.n_layers}")
        a_share("attention_dropout", self.attention_dropout)
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be a multiple of n_heads, got d_model={self.d_model}, n_heads={self.n_heads}"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True)
class Init:
    """The initial size of queries and keys. Values and outputs start at variance 1 in every backend.

    Attributes:
        variance: of the numbers in queries and keys, for inputs of variance 1.
        source: the paper or code that has this variance.
    """

    variance: float
    source: str

    @torch.no_grad()
    def scale(self, weight: Tensor) -> None:
        """Scale weights whose results have variance 1, so that the results have this variance."""
        weight.mul_(self.variance**0.5)


# Measured on mqar at 64 tokens, 500 optimizer steps at 3e-3, three seeds (results/cpu-2core/initialisation): full
# reaches 99.4 to 99.9 % from 1/3, and 95.7 to 99.4 % from 1; nystromformer 43.3 to 61.2 %, and 24.5 to 40.8 %. Most
# authors' torch code has 1/3.
SHELL_INIT = Init(variance=1 / 3, source="torch's default for nn.Linear")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a backend declares about itself; the contract suite tests it.

    Attributes:
        family: the kind of method: exact, fixed sparse, content sparse, low-rank, learned pattern, kernel, control …
        source: paper with its arXiv number, or the library that the backend wraps.
        year: of the paper; None without one.
        time, memory: cost of one forward in N; ``memory`` is what forward keeps for backward.
        causal: has a causal form.
        bidirectional: how the form in both directions sees both sides: at once, or by two merged directions.
        capacity: the config's field that buys accuracy for cost: rank, window, features … None without one.
        exact: equals softmax attention on every input.
        stochastic: has random parts, which only construction and ``redraw()`` draw.
        adapts: a forward in training changes the backend's buffers.
        subquadratic: time, and bytes saved for backward, grow more slowly than N².
        shared_qk: keys are the queries, so the shell projects them once.
        reads_queries: an output of the causal form reads earlier queries too, not only its own.
        init: the initial size of queries and keys of an ``Attention``, with its source; None = ``SHELL_INIT``.
        rotary: whether ``positions="rotary"`` has an effect; False for a ``Mixer`` that ignores it.
        weights: computes ``attention_dropout``: it has the weights of single pairs to drop.
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
    reads_queries: bool = False
    init: Init | None = None
    rotary: bool = True
    weights: bool = False
    exceptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Kernel:
    """The code that computes. ``fallback``: not the kernel that the backend is named after."""

    name: str
    fallback: bool = False


def check_length(length: int, max_len: int) -> None:
    """Raise ValueError if there are no positions, or more than ``max_len``."""
    if not 1 <= length <= max_len:
        raise ValueError(f"expected 1 to {max_len} positions (max_len), got {length}: build with a larger max_len")


class Backend(Formed):
    """The base of ``Attention`` and ``Mixer``. Subclasses take ``(dims: Dims, config)``.

    ``dims`` is an attribute; so are its ``causal``, ``max_len`` and ``d_model``.

    A causal backend can have a step form, which equals ``forward`` position by position: it defines ``begin`` and
    ``advance``. ``absorb`` computes all positions in parallel and returns the tensors that the steps would keep.
    """

    traits: ClassVar[Traits]
    name: ClassVar[str]  # its registered name
    undecayed: ClassVar[tuple[str, ...]] = ()  # matrices, or modules with matrices, that train without weight decay
    kind: str = ""  # name, sizes and options as built, for ``State``
    built_from: object = None  # its config
    joined_heads: str = ""  # why an ``Attention`` cannot compute some heads without the others; empty: it can
    redraw_interval: int = 0  # optimizer steps between two draws in training, as its authors draw; 0 = never

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims, self.causal, self.max_len, self.d_model = dims, dims.causal, dims.max_len, dims.d_model

    @property
    def dropped(self) -> float:
        """The share of attention weights that a call drops now: ``attention_dropout`` in training."""
        return self.dims.attention_dropout if self.training else 0.0

    def bind_to(self, name: str, size: int) -> None:
        """Refuse to load weights built for another ``size``, for functions that depend on a size that no parameter's
        shape shows. An empty buffer has the size as its shape; ``load_state_dict`` compares it and names it in errors.
        """
        self.register_buffer(f"built_for_{name}", torch.empty(size, 0))

    def begin(self, x: Tensor) -> Tensors:
        """The tensors (B, …) that the step form keeps before the first position. x: an input as ``start`` gets it."""
        raise NotImplementedError

    def cache_size(self, length: int) -> int | None:
        """How many numbers the state of one sample has after ``length`` positions; None without a step form."""
        return None

    def start(self, x: Tensor) -> State:
        """The state before the first step on ``x`` (B, …). Raises ValueError without a step form."""
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
        """The state that a step on ``x`` (B, …) consumes: ``state`` or a new one. Raises ValueError without steps."""
        if state is None or not self.causal:
            state = self.start(x)
        if state.length == self.max_len:
            raise ValueError(
                f"expected at most {self.max_len} positions (max_len), got one more: build with a larger max_len"
            )
        state.consume(self, x)
        return state

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        """The code that mixes inputs like ``x``, forward's first argument. Records and charts name it."""
        return Kernel("torch ops")

    def state_size(self, length: int) -> int | None:
        """The reading: how many numbers a query reads of ``length`` positions; None = unknown.

        Counts keys and values, or the summary that replaces them, of one layer and one sample, all heads. The reading
        bounds what a query can recall (Zoology, arXiv:2312.04927; Based, arXiv:2402.18668). Counts the query that reads
        most, unless the method says otherwise. Does not count parameters, nor the numbers that choose the keys.
        """
        return None

    def redraw(self) -> None:
        """Draw the random parts again from torch's global generator. Does nothing without random parts.

        The parts become new tensors, so a later backward of an earlier forward still uses the old ones.
        """


class Attention(Backend, ABC):
    """A mechanism that mixes values between positions, on heads.

    The multi-head shell owns the query, key, value and output projections, checks every input, and sets the outputs
    at padded positions to 0.
    """

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``v``. q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding."""

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        """The result at ``position``, and the tensors kept after it. q, k, v and the result: (B, H, 1, D).

        ``tensors``: those kept after earlier positions; this method may write into them.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form. q, k, v and the result: (B, H, D); state: None before the first.

        Autocast is off, as in a scan: kept tensors and sums are as precise as the inputs, at least float32.

        Raises:
            ValueError: no causal form, wrong shape, more positions than ``max_len``, a state of another module, shape
                or dtype, or a consumed state.
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
        """The results at all positions, and the tensors kept after them. q, k, v and the result: (B, H, N, D).

        The default calls ``advance`` for each position, slowly. A backend overrides it if ``forward`` has the tensors.
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
        """``forward`` of the causal form, and the state for the steps that follow.

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
    """A whole sublayer, for methods without the queries, keys and values of heads.

    It ends in the linear map ``out``, whose initial weights the encoder scales down with depth.
    """

    out: nn.Linear

    @abstractmethod
    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix ``x``. x and the result: (B, N, C); key_padding_mask: (B, N) bool, True = padding."""

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        """The result at ``position``, and the tensors kept after it. x and the result: (B, 1, C).

        ``tensors``: those kept after earlier positions; this method may write into them.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next position of the causal form. x and the result: (B, C); state: None before the first.

        Raises:
            ValueError: no causal form, wrong shape, more positions than ``max_len``, a state of another module, shape
                or dtype, or a consumed state.
        """
        if x.dim() != 2 or x.shape[-1] != self.d_model:
            raise ValueError(f"expected x of shape (B, {self.d_model}), got {tuple(x.shape)}")
        if state is not None and state.groups:
            return state.step_groups(self.step, x)
        before = self._consumed(x, state)
        out, tensors = self.through(lambda x: self.advance(x, before.tensors, before.length), x[:, None])
        return out[:, 0], State(self, x, tensors, length=before.length + 1)

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        """The results at all positions, and the tensors kept after them. x and the result: (B, N, C).

        The default calls ``advance`` for each position, slowly. A backend overrides it if ``forward`` has the tensors.
        """
        tensors, rows = self.begin(x[:, 0]), []
        for position in range(x.shape[1]):
            row, tensors = self.advance(x[:, position : position + 1], tensors, position)
            rows.append(row)
        return torch.cat(rows, dim=1), tensors

    @torch.no_grad()
    def prefill(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """``forward`` of the causal form, and the state for the steps that follow.

        Padding changes no result, and each sample continues from its own length. Samples of one length run as one
        batch, here and in later steps: padding costs nothing, and k different lengths cost k smaller calls a step.

        Args:
            x: (B, N, C), like the result, which is 0 at padding.
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
