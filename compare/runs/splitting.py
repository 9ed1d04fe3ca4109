"""A run whose processes compute parts of every sample: some heads of each layer, or a piece of each sequence.

It is a module of its own because torch's split tensors take a second to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from compare.launch import Seat
from compare.parallel import sizes_of
from compare.runs.data import at_full_length, length_of
from compare.runs.measure import own_part
from compare.runs.model import Model, decay_groups
from compare.runs.ranks import Ranks
from compare.spec import RunSpec
from tasks import Batch
from zoo.parallel.context import split_sequence
from zoo.parallel.tensor import clip_grad_norm, own_tensors, plain_name, split_heads, whole_tensors

AVERAGED = ("data", "context")  # kinds whose processes have the same parameters, and other gradients
Tensors = dict[str, Tensor]


def split_ranks(seat: Seat, spec: RunSpec) -> SplitRanks:
    """This process of a run that splits samples; the last kind counts fastest, as neighbours communicate most."""
    assert spec.parallel is not None
    sizes = sizes_of(spec.parallel)
    mesh = init_device_mesh(spec.device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    return SplitRanks(seat.rank, seat.size, mesh=mesh)


@dataclass(frozen=True)
class SplitRanks(Ranks):
    """Processes on a mesh. Those that differ only in "tensor" or "context" take the same samples, and get the same
    result of a model.

    order: names of the model's parameters on one process, as its optimizer numbers them.
    """

    mesh: DeviceMesh = field(kw_only=True)
    order: list[str] = field(default_factory=list)

    @property
    def share(self) -> int:
        return self._place("data")

    @property
    def shares(self) -> int:
        return self._size("data")

    @property
    def lot(self) -> int:
        return self.share * self._size("context") + self._place("context")

    def rows(self, batch: Batch) -> Batch:
        """Its share, padded to a length that the processes of a sequence divide."""
        pieces = self._size("context")
        return at_full_length(super().rows(batch), -(-length_of(batch) // pieces) * pieces)

    def take_mean(self, x: Tensor) -> None:
        for kind in filter(self._has, AVERAGED):
            dist.all_reduce(x, group=self.mesh[kind].get_group())
            x /= self._size(kind)

    def shared(self, prepared: Any, model: Model, spec: RunSpec) -> Any:
        self.order[:] = names_of(model, decay_groups(model, spec.weight_decay))
        if self._has("tensor"):
            split_heads(model, self.mesh["tensor"])
        if self._has("context"):
            split_sequence(model.encoder, self.mesh["context"])
        return prepared  # accelerate prepared this very model

    @torch.no_grad()
    def clip(self, accelerator: Accelerator, model: nn.Module, limit: float) -> float:
        """Average the gradients too: ``DistributedDataParallel`` takes no split tensors."""
        gradients = [own_part(p.grad) for p in model.parameters() if p.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        self.take_mean(joined)
        means: tuple[Tensor, ...] = torch.split(joined, [x.numel() for x in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        if self._has("tensor"):
            return float(clip_grad_norm(model, limit, self.mesh["tensor"]))
        return super().clip(accelerator, model, limit)

    def whole(self, model: nn.Module, tensors: Tensors) -> Tensors:
        return whole_tensors(model, tensors, self.mesh["tensor"]) if self._has("tensor") else tensors

    def whole_optimizer(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        state: dict[str, Any] = optimizer.state_dict()
        own = names_of(model, optimizer.param_groups)
        return state | {"state": renumbered(state["state"], own, self.order, lambda x: self.whole(model, x))}

    def plain(self, model: Model, build: Callable[[], Model]) -> Model:
        plain = build()
        plain.load_state_dict(self.whole(model, model.state_dict()))
        return plain

    def load_weights(self, model: nn.Module, tensors: Tensors) -> None:
        model.load_state_dict(self._own(model, tensors))

    def load_optimizer(self, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
        own = names_of(model, optimizer.param_groups)
        values = renumbered(state["state"], self.order, own, lambda x: self._own(model, x))
        optimizer.load_state_dict(state | {"state": values})

    def _own(self, model: nn.Module, tensors: Tensors) -> Tensors:
        return own_tensors(model, tensors, self.mesh["tensor"]) if self._has("tensor") else tensors

    def _has(self, kind: str) -> bool:
        return kind in (self.mesh.mesh_dim_names or ())

    def _size(self, kind: str) -> int:
        return self.mesh[kind].size() if self._has(kind) else 1

    def _place(self, kind: str) -> int:
        return self.mesh.get_local_rank(kind) if self._has(kind) else 0


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    """The names of an optimizer's parameters, as one process has them."""
    names = {p: plain_name(name) for name, p in model.named_parameters()}
    return [names[p] for group in groups for p in group["params"]]


def renumbered(
    values: dict[int, dict[str, Any]], before: list[str], after: list[str], change: Callable[[Tensors], Tensors]
) -> dict[int, dict[str, Any]]:
    """The values that an optimizer has of each parameter, changed and with other numbers. before, after: names."""
    named = {before[number]: own for number, own in values.items()}
    averages = sorted({kind for own in named.values() for kind in own} - {"step"})
    changed = {kind: change({name: own[kind] for name, own in named.items()}) for kind in averages}
    moved = {kind: {plain_name(name): x for name, x in tensors.items()} for kind, tensors in changed.items()}
    return {
        number: {"step": named[name]["step"], **{kind: moved[kind][name] for kind in averages}}
        for number, name in enumerate(after)
        if name in named
    }
