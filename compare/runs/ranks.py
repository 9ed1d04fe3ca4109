"""The processes of one run as the code of the run sees them: a number, and what they say to one another.

``ALONE`` is a run of one process, where every method returns what it was given. Otherwise each method is a meeting of
all processes: each must call it, in the same order. Decisions that a clock makes are those of rank 0 (``first``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compare.launch import Seat
from compare.parallel import is_sharded, split_sizes
from compare.runs.model import Model
from compare.spec import RunSpec
from tasks import Batch
from zoo.contract import Traits

Told = TypeVar("Told")
ARRIVAL = 300.0  # seconds in which the commands of a launch must have started


@dataclass(frozen=True)
class Ranks:
    """This process among the ``size`` processes of the run: its number is ``rank``, from 0.

    Each process takes one of the ``shares`` of a batch: that of the number ``share``. ``repeats`` processes take the
    same one.
    """

    rank: int = 0
    size: int = 1

    @property
    def share(self) -> int:
        return self.rank

    @property
    def shares(self) -> int:
        return self.size

    @property
    def repeats(self) -> int:
        return self.size // self.shares

    @property
    def lot(self) -> int:
        """Processes of the same number draw the same random numbers."""
        return self.rank

    @property
    def stage(self) -> int:
        """Processes of the same number have the same layers."""
        return 0

    def rows(self, batch: Batch) -> Batch:
        """This process's share of a batch: neighbouring samples. Shares differ by at most one sample."""
        if self.shares == 1:
            return batch
        low, high = (len(batch.inputs) * each // self.shares for each in (self.share, self.share + 1))
        parts: dict[str, Any] = {name: None if x is None else x[low:high] for name, x in vars(batch).items()}
        return replace(batch, **parts)

    def weighted(self, loss: Tensor, count: int) -> Tensor:
        """A mean over ``count`` targets, scaled so that its mean over the processes is the mean over all targets."""
        if self.size == 1:
            return loss
        total = torch.tensor(float(count), device=loss.device)
        dist.all_reduce(total)
        return loss * (count * self.size / total)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the shares of a batch."""
        return [x / self.repeats for x in self._reduced(values, dist.ReduceOp.SUM)]

    def most(self, value: float) -> float:
        """The largest value of a process."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, how)
        return [float(x) for x in numbers]

    def first(self, value: float) -> float:
        """The number of rank 0."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(number, src=0)
        return float(number)

    def told(self, value: Told) -> Told:
        """What rank 0 has, of any type that pickle takes."""
        if self.size == 1:
            return value
        listed = [value]
        dist.broadcast_object_list(listed, src=0, device=torch.device("cpu"))
        return listed[0]

    @contextmanager
    def alike(self, seed: int, step: int) -> Iterator[None]:
        """A context in which processes with the same layers draw alike; outside each draws its own random numbers."""
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((step << 32) + (self.stage << 16) + seed)
            yield

    def draw_apart(self, seed: int, step: int = 0) -> None:
        """Let each ``lot`` but the first draw random numbers of its own from now on."""
        if self.lot:
            torch.manual_seed((step << 32) + (self.lot << 16) + seed)

    @torch.no_grad()
    def join_buffers(self, model: nn.Module) -> None:
        """Replace the buffers that forward updates by their means over the processes, which saw other samples."""
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(traits := getattr(module, "traits", None), Traits) and traits.adapts:
                for buffer in filter(torch.is_floating_point, module.buffers(recurse=False)):
                    self.take_mean(buffer)

    def take_mean(self, x: Tensor) -> None:
        """Replace a tensor by its mean over the processes that have the same parameters."""
        dist.all_reduce(x)
        x /= self.size

    def shared(self, accelerator: Accelerator, model: Model, spec: RunSpec) -> Any:
        """What a training calls in place of the model.

        Its backward averages the gradients over the processes. Every process has the same weights before.
        """
        prepared = accelerator.prepare(model)
        if self.size == 1:
            return prepared
        # `join_buffers` joins the buffers. A pretraining leaves one head unused in each of its parts.
        return DistributedDataParallel(prepared, broadcast_buffers=False, find_unused_parameters=spec.pretrain > 0)

    def average(self, shared: Any, due: bool) -> None:
        """Say whether the next backward averages the gradients: after the last micro-batch of a step.

        Sharded models average after each micro-batch: their gradients could not wait in parts.
        """
        if isinstance(shared, DistributedDataParallel):
            shared.require_backward_grad_sync = due

    def clip(self, accelerator: Accelerator, model: nn.Module, limit: float) -> float:
        """Scale the gradients of a step so that their norm is at most ``limit``, and return the norm they had."""
        norm = accelerator.clip_grad_norm_(model.parameters(), limit)
        assert norm is not None
        return float(norm)

    def whole(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors named as those of the trained model, as one process has them."""
        return tensors

    def whole_optimizer(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        """The state of the optimizer, as one process has it."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def plain(self, model: Model, build: Callable[[], Model]) -> Model:
        """The model with all its weights, to write it to disk. build: makes one of its sizes."""
        return model

    def load_weights(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Load tensors by name, as ``whole`` returned them."""
        model.load_state_dict(tensors)

    def load_optimizer(self, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
        """Load the state of an optimizer, as ``whole_optimizer`` returned it."""
        optimizer.load_state_dict(state)


ALONE = Ranks()


def connect(address: str, port: int, prefix: str, *, opens: bool = False) -> Any:
    """The store of a launch, with its keys below a prefix.

    opens: whether it is opened here; else it is waited for.
    """
    wait = timedelta(seconds=ARRIVAL)
    store = dist.TCPStore(address, port, is_master=opens, wait_for_workers=False, timeout=wait)  # type: ignore[attr-defined]
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def join(seat: Seat, spec: RunSpec) -> Ranks:
    """Meet the other processes of a run; waits until all are here. On CUDA each process sees one GPU."""
    store = connect(seat.address, seat.port, seat.prefix)
    dist.init_process_group(
        backend="gloo" if spec.device == "cpu" else "cpu:gloo,cuda:nccl",
        store=store,
        rank=seat.rank,
        world_size=seat.size,
    )
    if is_sharded(spec.parallel):
        from compare.runs.sharing import ShardedRanks  # takes a second

        return ShardedRanks(seat.rank, seat.size)
    if split_sizes(spec.parallel):
        from compare.runs.splitting import split_ranks  # takes a second

        return split_ranks(seat, spec)
    return Ranks(seat.rank, seat.size)
