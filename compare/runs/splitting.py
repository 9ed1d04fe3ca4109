"""A run whose processes compute parts of every sample: heads of each layer, some layers, or a piece of each sequence.

It is a module of its own because torch's split tensors take a second to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
from compare.runs.staging import Staged, take_stage
from compare.spec import RunSpec
from tasks import Batch
from zoo.parallel.context import split_sequence
from zoo.parallel.tensor import grad_norm, own_tensors, plain_name, split_heads, whole_tensors

AVERAGED = ("data", "context")  # kinds whose processes have the same parameters, and other gradients
Tensors = dict[str, Tensor]
Names = list[list[str]]
Named = TypeVar("Named")


def split_ranks(seat: Seat, spec: RunSpec) -> SplitRanks:
    """This process of a run that splits samples; the last kind counts fastest, as neighbours communicate most."""
    assert spec.parallel is not None
    sizes = sizes_of(spec.parallel)
    mesh = init_device_mesh(spec.device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    return SplitRanks(seat.rank, seat.size, mesh=mesh)


@dataclass(frozen=True)
class SplitRanks(Ranks):
    """Processes on a mesh. Those that are alike in "data" take the same samples, and get the same result of a model.

    order: for each group of the optimizer the names of its parameters, as one process has them.
    """

    mesh: DeviceMesh = field(kw_only=True)
    order: Names = field(default_factory=list)

    @property
    def share(self) -> int:
        return self._place("data")

    @property
    def shares(self) -> int:
        return self._size("data")

    @property
    def lot(self) -> int:
        return (self.share * self._size("pipeline") + self.stage) * self._size("context") + self._place("context")

    @property
    def stage(self) -> int:
        return self._place("pipeline")

    def rows(self, batch: Batch) -> Batch:
        """Its share, padded to a length that the processes of a sequence divide."""
        pieces = self._size("context")
        return at_full_length(super().rows(batch), -(-length_of(batch) // pieces) * pieces)

    def take_mean(self, x: Tensor) -> None:
        for kind in filter(self._has, AVERAGED):
            dist.all_reduce(x, group=self.mesh[kind].get_group())
            x /= self._size(kind)

    def shared(self, accelerator: Accelerator, model: Model, spec: RunSpec) -> Any:
        self.order[:] = names_of(model, decay_groups(model, spec.weight_decay))
        stage = take_stage(model, self.mesh["pipeline"]) if self._has("pipeline") else None
        prepared = accelerator.prepare(model)
        if self._has("tensor"):
            split_heads(model, self.mesh["tensor"])
        if self._has("context"):
            split_sequence(model.encoder, self.mesh["context"])
        if stage is not None:
            return Staged(model, accelerator.prepare(stage), self.mesh["pipeline"], self, accelerator, spec)
        return prepared  # it is this very model

    @torch.no_grad()
    def clip(self, accelerator: Accelerator, model: nn.Module, limit: float) -> float:
        """Average the gradients too: ``DistributedDataParallel`` takes no split tensors."""
        gradients = [own_part(p.grad) for p in model.parameters() if p.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        self.take_mean(joined)
        means: tuple[Tensor, ...] = torch.split(joined, [x.numel() for x in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        if not self._has("tensor") and not self._has("pipeline"):
            return super().clip(accelerator, model, limit)
        norm = grad_norm(model, self.mesh["tensor"]) if self._has("tensor") else nn.utils.get_total_norm(gradients)
        if self._has("pipeline"):
            square = norm.square()
            dist.all_reduce(square, group=self.mesh["pipeline"].get_group())
            norm = square.sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(scale)
        return float(norm)

    def whole(self, model: nn.Module, tensors: Tensors) -> Tensors:
        return self._of_all_stages(self._of_all_heads(model, tensors))

    def whole_optimizer(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        state: dict[str, Any] = optimizer.state_dict()
        named = by_name(state, names_of(model, optimizer.param_groups), lambda x: self._of_all_heads(model, x))
        return numbered(state, self._of_all_stages(named), self.order)

    def plain(self, model: Model, build: Callable[[], Model]) -> Model:
        plain = build()
        plain.load_state_dict(self.whole(model, model.state_dict()))
        return plain

    def load_weights(self, model: nn.Module, tensors: Tensors) -> None:
        model.load_state_dict(self._own(model, tensors))

    def load_optimizer(self, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
        named = by_name(state, self.order, lambda x: self._own(model, x))
        optimizer.load_state_dict(numbered(state, named, names_of(model, optimizer.param_groups)))

    def _own(self, model: nn.Module, tensors: Tensors) -> Tensors:
        if self._has("tensor"):
            return own_tensors(model, tensors, self.mesh["tensor"])
        own = model.state_dict()
        return {name: x for name, x in tensors.items() if name in own}

    def _of_all_heads(self, model: nn.Module, tensors: Tensors) -> Tensors:
        return whole_tensors(model, tensors, self.mesh["tensor"]) if self._has("tensor") else tensors

    def _of_all_stages(self, named: dict[str, Named]) -> dict[str, Named]:
        """What each stage has, by names that differ."""
        if not self._has("pipeline"):
            return named
        group = self.mesh["pipeline"].get_group()
        parts: list[Any] = [None] * group.size()
        dist.all_gather_object(parts, named, group=group)
        return {name: own for part in parts for name, own in part.items()}

    def _has(self, kind: str) -> bool:
        return kind in (self.mesh.mesh_dim_names or ())

    def _size(self, kind: str) -> int:
        return self.mesh[kind].size() if self._has(kind) else 1

    def _place(self, kind: str) -> int:
        return self.mesh.get_local_rank(kind) if self._has(kind) else 0


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> Names:
    """For each group of an optimizer the names of its parameters, as one process has them."""
    names = {p: plain_name(name) for name, p in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in groups]


def by_name(state: dict[str, Any], names: Names, change: Callable[[Tensors], Tensors]) -> dict[str, dict[str, Any]]:
    """What an optimizer's state has of each parameter, by its name in ``names``; its averages are changed."""
    joined = [name for group in names for name in group]
    named = {joined[number]: own for number, own in state["state"].items()}
    averages = sorted({kind for own in named.values() for kind in own} - {"step"})
    changed = {kind: change({name: own[kind] for name, own in named.items()}) for kind in averages}
    moved = {kind: {plain_name(name): x for name, x in tensors.items()} for kind, tensors in changed.items()}
    return {
        name: {"step": own["step"], **{kind: moved[kind][name] for kind in averages}}
        for name, own in named.items()
        if all(name in tensors for tensors in moved.values())
    }


def numbered(state: dict[str, Any], named: dict[str, dict[str, Any]], names: Names) -> dict[str, Any]:
    """An optimizer's state for parameters in other groups, or in another order. named: what it has of each."""
    joined = [name for group in names for name in group]
    numbers = iter(range(len(joined)))
    groups = zip(state["param_groups"], names, strict=True)
    moved = [group | {"params": [next(numbers) for _ in own]} for group, own in groups]
    values = {number: named[name] for number, name in enumerate(joined) if name in named}
    return state | {"state": values, "param_groups": moved}
