"""A run whose processes store a part of the model each (torch's FSDP2), and gather the weights of a layer to use them.

It is a module of its own because torch's sharded tensors take a second to import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from compare.runs.model import Model
from compare.runs.ranks import Ranks
from compare.spec import RunSpec


class ShardedRanks(Ranks):
    """Processes that each store a part of weights, gradients and optimizer state."""

    def shared(self, accelerator: Accelerator, model: Model, spec: RunSpec) -> Any:
        prepared = accelerator.prepare(model)
        mesh = init_device_mesh(spec.device, (self.size,))
        for layer in model.encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)  # the rest of it, in place: accelerate prepared this very model
        return prepared

    def clip(self, accelerator: Accelerator, model: nn.Module, limit: float) -> float:
        norm: Any = accelerator.clip_grad_norm_(model.parameters(), limit)
        return float(joined(norm))

    def whole(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = joined(tensors)
        return whole

    def whole_optimizer(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        whole: dict[str, Any] = joined(optimizer.state_dict())
        return whole

    def plain(self, model: Model, build: Callable[[], Model]) -> Model:
        plain = build()
        plain.load_state_dict(self.whole(model, model.state_dict()))
        return plain

    def load_weights(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        own = model.state_dict()
        model.load_state_dict({name: part_like(x, own[name]) for name, x in tensors.items()})

    def load_optimizer(self, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
        owners = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {
            number: {name: part_like(x, owners[number]) for name, x in own.items()}
            for number, own in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": parts})


def joined(value: Any) -> Any:
    """A tensor, or nested dictionaries and lists with tensors, with all that is sharded put together."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: joined(each) for name, each in value.items()}
    return [joined(each) for each in value] if isinstance(value, list) else value


def part_like(x: Any, own: Tensor) -> Any:
    """A whole tensor, sharded as ``own`` is; anything of another shape stays as it is."""
    if isinstance(own, DTensor) and not isinstance(x, DTensor) and x.shape == own.shape:
        return distribute_tensor(x.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return x
