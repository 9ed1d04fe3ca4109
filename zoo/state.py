"""The state of a step form: what it keeps of earlier positions. And a prefill of samples of several lengths."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)  # not uint8: torch reads it as a mask


class State:
    """What a step form keeps of earlier positions.

    Each step consumes its state, because it may write into the state's tensors: pass on the state that the step
    returns. To continue in two ways, copy the state.

    A state works with the module that made it. A copy (``clone``, ``select``, ``to``, ``copy.deepcopy``, ``pickle``,
    ``torch.save`` and ``torch.load``, with ``weights_only=True`` too) works with every module of the same kind, sizes
    and options: a copy of the model, or the model with the same weights in another process.

    Attributes:
        owner: the module whose steps use the state; None in a copy.
        kind: name, sizes and options of the owner.
        length: how many positions the longest sample has had.
        shape, dtype: of an input, (B, …). batch: B.
        tensors: those of a backend, (B, …) each.
        layers: in an encoder, the states of its layers.
        groups: replaces tensors and layers if samples differ in length. A group has the indices of the samples of one
            length, (samples,) on the CPU, and their state; the longest group comes first.
        used: whether a step has consumed the state.
    """

    def __init__(
        self,
        owner: nn.Module,
        x: Tensor,
        tensors: tuple[Tensor, ...] = (),
        *,
        length: int = 0,
        layers: tuple[State, ...] = (),
    ) -> None:
        self.owner: nn.Module | None = owner
        self.kind, self.length, self.tensors, self.layers = kind_of(owner), length, tensors, layers
        self.groups: tuple[tuple[Tensor, State], ...] = ()
        self.shape, self.batch, self.dtype = x.shape, len(x), x.dtype
        self.used = False

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"owner": None}

    @property
    def lengths(self) -> Tensor:
        """How many positions each sample has had, (B,), on the CPU."""
        lengths = torch.full((self.batch,), self.length)
        for samples, state in self.groups:
            lengths[samples] = state.length
        return lengths

    @property
    def size(self) -> int:
        """Numbers kept for one sample, the maximum over the batch."""
        own = sum(math.prod(x.shape[1:]) for x in self.tensors) + sum(layer.size for layer in self.layers)
        return max([own, *(state.size for _, state in self.groups)])

    @property
    def nbytes(self) -> int:
        """Bytes kept for the whole batch."""
        inner = [*self.layers, *(state for _, state in self.groups)]
        return sum(x.nbytes for x in self.tensors) + sum(state.nbytes for state in inner)

    def clone(self) -> State:
        """A copy. Steps of the copy do not change the original, nor the reverse.

        Raises:
            ValueError: a consumed state.
        """
        return self._copy(Tensor.clone)

    def to(self, device: torch.device | str) -> State:
        """A copy on ``device``.

        Raises:
            ValueError: a consumed state.
        """
        return self._copy(lambda x: x.to(device, copy=True))

    def select(self, indices: Tensor) -> State:
        """The state of chosen samples, for reordering in beam search.

        Args:
            indices: (K,) integers from 0 to B - 1, in any order, with repeats or gaps; or (B,) bool, True = keep. The
                new batch size is K, or the number of True.

        Raises:
            ValueError: invalid indices, or a consumed state.
        """
        indices = self._indices(torch.as_tensor(indices))
        if not self.groups:
            return self._copy(lambda x: x.index_select(0, indices.to(x.device)), len(indices))
        groups = []
        for samples, state in self.groups:
            number = torch.full((self.batch,), -1).index_copy_(0, samples, torch.arange(len(samples)))[indices]
            chosen = (number >= 0).nonzero()[:, 0]
            if len(chosen):
                groups.append((chosen, state.select(number[chosen])))
        if len(groups) < 2:
            return groups[0][1] if groups else self.groups[0][1].select(indices)
        return self.grouped(tuple(groups), len(indices))

    def _indices(self, indices: Tensor) -> Tensor:
        """The indices of the samples that ``indices`` choose, (K,), on the CPU."""
        chosen, got = indices.cpu(), f"shape {tuple(indices.shape)} of {indices.dtype}"
        if chosen.dtype == torch.bool and chosen.shape == (self.batch,):
            return chosen.nonzero()[:, 0]
        if chosen.dim() == 1 and (chosen.dtype in INTEGERS or len(chosen) == 0):
            if ((chosen >= 0) & (chosen < self.batch)).all():
                return chosen.long()
            got = f"{int(chosen.min())} to {int(chosen.max())}"
        raise ValueError(
            f"expected (K,) integers from 0 to {self.batch - 1}, or a bool mask of shape ({self.batch},), got {got}"
        )

    def _copy(self, change: Callable[[Tensor], Tensor], batch: int | None = None) -> State:
        """A copy whose tensors are changed, with ``batch`` samples."""
        self._check_unused()
        layers = tuple(layer._copy(change, batch) for layer in self.layers)
        groups = tuple((samples, state._copy(change)) for samples, state in self.groups)
        copy = self.grouped(groups, self.batch if batch is None else batch)
        copy.tensors, copy.layers = tuple(change(x) for x in self.tensors), layers
        return copy

    def grouped(self, groups: tuple[tuple[Tensor, State], ...], batch: int) -> State:
        """A state of the same kind with these groups, ``batch`` samples in all."""
        copy = State.__new__(State)
        copy.__dict__.update(self.__getstate__(), groups=groups, tensors=(), layers=())
        copy.batch, copy.shape = batch, torch.Size((batch, *self.shape[1:]))
        copy.length = max((state.length for _, state in groups), default=self.length)
        return copy

    def _check_unused(self) -> None:
        if self.used or any(state.used for _, state in self.groups):
            raise ValueError(
                f"an earlier step consumed the state after {self.length} positions: "
                "pass on the state that the step returned"
            )

    def consume(self, owner: nn.Module, x: Tensor) -> None:
        """Consume the state for the step of ``owner`` on ``x`` (B, …).

        Raises:
            ValueError: a state of another module, shape or dtype, or a consumed state.
        """
        if self.owner is not owner and (self.owner is not None or self.kind != kind_of(owner)):
            raise ValueError(
                f"expected a state of this {kind_of(owner)}, got one of another model or layer "
                f"({self.kind}): begin with state=None"
            )
        self._check_unused()
        if (self.batch, self.dtype) != (len(x), x.dtype):
            raise ValueError(
                f"expected {self.batch} samples of {self.dtype} to match the state, got {len(x)} of {x.dtype}"
            )
        if self.shape != x.shape:
            raise ValueError(f"expected shape {tuple(self.shape)} to match the state, got shape {tuple(x.shape)}")
        self.used = True
        if not torch.is_inference_mode_enabled():  # outside it, torch forbids writing into inference tensors
            self.tensors = tuple(x.clone() if x.is_inference() else x for x in self.tensors)

    def step_groups(self, step: Callable[..., tuple[Tensor, State]], *inputs: Tensor) -> tuple[Tensor, State]:
        """Call ``step`` on the inputs and state of each group. Returns the results of all samples, and their state.

        Raises:
            ValueError: as ``step`` does, or a wrong number of samples.
        """
        if inputs[0].shape[:1] != (self.batch,):
            raise ValueError(f"expected {self.batch} samples to match the state, got shape {tuple(inputs[0].shape)}")
        stepped = [(samples, *step(*(x[samples] for x in inputs), state)) for samples, state in self.groups]
        first = stepped[0][1]
        out = first.new_empty(self.batch, *first.shape[1:])
        for samples, y, _ in stepped:
            out[samples] = y
        return out, self.grouped(tuple((samples, state) for samples, _, state in stepped), self.batch)


torch.serialization.add_safe_globals([State])  # else torch.load with weights_only=True refuses it


def kind_of(module: nn.Module) -> str:
    """A module as text: for a backend its name, sizes and options."""
    return getattr(module, "kind", "") or type(module).__name__


def prefill_groups(
    prefill: Callable[..., tuple[Tensor, State]],
    start: Callable[[Tensor], State],
    inputs: tuple[Tensor, ...],
    key_padding_mask: Tensor,
    dim: int = 1,
) -> tuple[Tensor, State]:
    """``prefill`` of each sample's real positions, samples of one length as one batch. Returns results and state.

    Args:
        start: returns the state before the first position, for samples of padding alone.
        inputs: the arguments of ``prefill``. Positions are in ``dim``, also in the results, which are 0 at padding.
        key_padding_mask: (B, N) bool, True = padding.

    Raises:
        ValueError: as ``prefill`` does, or a mask of another shape or dtype.
    """
    moved = [x.movedim(dim, 1) for x in inputs]
    shape, device = moved[0].shape[:2], key_padding_mask.device
    if key_padding_mask.dtype != torch.bool or key_padding_mask.shape != shape:
        raise ValueError(
            f"expected key_padding_mask of shape {tuple(shape)} of torch.bool (True = padding), "
            f"got shape {tuple(key_padding_mask.shape)} of {key_padding_mask.dtype}"
        )
    if not key_padding_mask.any():
        return prefill(*inputs)
    real = ~key_padding_mask
    lengths = real.sum(1).cpu()
    groups, results = [], []
    for length in sorted(set(lengths.tolist()), reverse=True):
        samples = (lengths == length).nonzero()[:, 0]
        if not length:
            groups.append((samples, start(moved[0][samples, 0])))
            continue
        number, place = real[samples].nonzero(as_tuple=True)
        at = samples.to(device)[number], place
        y, state = prefill(*(x[at].view(len(samples), length, *x.shape[2:]).movedim(1, dim) for x in moved))
        groups.append((samples, state))
        results.append((at, y.movedim(dim, 1).flatten(0, 1)))
    state = groups[0][1]
    like = results[0][1] if results else moved[0].new_empty(0, *state.shape[1:], dtype=state.dtype)
    out = like.new_zeros(*shape, *like.shape[1:])
    for at, y in results:
        out[at] = y
    return out.movedim(1, dim), state if len(groups) == 1 else state.grouped(tuple(groups), len(out))
