"""Pipeline parallelism: each process of a mesh has some of an encoder's layers, and micro-batches pass from one to the
next, in torch's schedule 1F1B (PipeDream, arXiv:2006.09503).

A stage is an ``Encoder`` with fewer parts: the first has embedding and positions, the last the final norm and the head.
Activations travel between stages; every process knows the padding mask, which needs no travel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from zoo.contract import UnsupportedError
from zoo.encoder import Encoder
from zoo.parallel.collectives import check_mesh

Loss = Callable[[Tensor, Tensor], Tensor]


class Stage(nn.Module):
    """The layers of one rank. Parameters have the names that they have in a module with ``encoder`` and ``head``."""

    def __init__(self, encoder: Encoder, head: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.on_meta = [] if head is None else [copy.deepcopy(head).to("meta")]  # in a list: no module of this one

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.encoder(x, key_padding_mask=key_padding_mask)
        return (y if self.head is None else read(self.head, y, key_padding_mask)).contiguous()

    def result(self, encoded: Tensor) -> Tensor:
        """A tensor on the meta device like ``forward``'s result, for encodings (B, N, C) without padding."""
        encoded = encoded.to("meta")
        return read(self.on_meta[0].to(encoded.dtype), encoded, None) if self.on_meta else encoded


def read(head: nn.Module, y: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """What a head makes of encodings (B, N, C)."""
    masked = "key_padding_mask" in signature(head.forward).parameters
    result: Tensor = head(y, key_padding_mask=key_padding_mask) if masked else head(y)
    return result


def split_layers(encoder: Encoder, mesh: DeviceMesh, head: nn.Module | None = None) -> Stage:
    """The stage of this rank: an equal share of the layers of ``encoder``, which share their parameters with it.

    Args:
        encoder: with the same parameters on every rank.
        mesh: one dimension.
        head: called with encodings (B, N, C), and with ``key_padding_mask`` if it takes one. On the last stage.

    Raises:
        ValueError: layers that the ranks do not divide.
        UnsupportedError: a class token, or reversible layers, whose two streams end in one encoder.
    """
    check_mesh(mesh)
    check_layers(encoder, mesh.size())
    rank, ranks, layers = mesh.get_local_rank(), mesh.size(), len(encoder.layers)
    part = copy.copy(encoder)
    part._modules = dict(encoder._modules)
    part.layers = nn.ModuleList()
    for number in range(rank * layers // ranks, (rank + 1) * layers // ranks):
        part.layers.add_module(str(number), encoder.layers[number])  # with its number in the whole encoder
    part.settings = None
    if rank > 0:
        part.embedding = part.features = part.conv = part.n_features = None
        part.positions, part.dropout = nn.Identity(), nn.Dropout(0.0)
    if rank + 1 < ranks:
        part.norm, head = nn.Identity(), None
    return Stage(part, head)


def check_layers(encoder: Encoder, ranks: int) -> None:
    """Raise what ``split_layers`` raises for an encoder that it cannot split over so many ranks."""
    layers = len(encoder.layers)
    if layers % ranks or not layers:
        raise ValueError(f"expected layers that {ranks} processes divide, got {layers}")
    if encoder.class_token is not None or encoder.reversible:
        raise UnsupportedError("a class token and reversible layers cannot pass from stage to stage")


class Pipeline:
    """Runs batches through the stages of a mesh.

    Args:
        stage: what ``split_layers`` returns, also in a wrapper, as ``DistributedDataParallel`` over other processes.
        mesh: the same one.
        micro_batches: into how many equal parts a batch is cut, at least one for each stage.
        loss: of predictions and targets of some samples, so that the losses of all micro-batches sum to that of the
            batch: divide by the size of the batch, not by that of the micro-batch.

    Raises:
        ValueError: fewer micro-batches than stages.
    """

    def __init__(self, stage: nn.Module, mesh: DeviceMesh, *, micro_batches: int, loss: Loss) -> None:
        if micro_batches < mesh.size():
            raise ValueError(f"expected at least {mesh.size()} micro-batches, one a stage, got {micro_batches}")
        self.stage, self.mesh, self.micro_batches, self.loss = stage, mesh, micro_batches, loss
        self.inner = next(module for module in stage.modules() if isinstance(module, Stage))
        self.schedules: dict[bool, tuple[object, PipelineScheduleSingle]] = {}
        """Whether it trains -> the latest shape of batches and its schedule, which has buffers of that shape."""

    @property
    def is_last(self) -> bool:
        return self.mesh.get_local_rank() == self.mesh.size() - 1

    def step(self, x: Tensor, targets: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Forward and backward of one batch, the same on all ranks. Returns its loss, float32, on all ranks.

        Raises:
            ValueError: a batch that the micro-batches do not divide.
        """
        if len(x) % self.micro_batches:
            raise ValueError(f"expected a batch that {self.micro_batches} micro-batches divide, got {len(x)} samples")
        losses: list[Tensor] = []
        beside: dict[str, Any] = {"target": targets, "losses": losses} if self.is_last else {}
        self._run(x, key_padding_mask, self.micro_batches, beside)
        total = torch.stack(losses).detach().sum().float() if self.is_last else torch.zeros((), device=x.device)
        dist.broadcast(total, group=self.mesh.get_group(), group_src=self.mesh.size() - 1)
        return total

    @torch.no_grad()
    def predict(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor | None:
        """Forward of one batch of any size: the predictions on the last rank, None on the others."""
        return self._run(x, key_padding_mask, math.gcd(len(x), self.micro_batches), {})

    def _run(self, x: Tensor, key_padding_mask: Tensor | None, parts: int, beside: dict[str, Any]) -> Tensor | None:
        trains, kind = torch.is_grad_enabled(), (x.shape, x.dtype)
        if trains not in self.schedules or self.schedules[trains][0] != kind:
            self.schedules[trains] = kind, self._schedule(x, parts)
        options = beside if key_padding_mask is None else {**beside, "key_padding_mask": key_padding_mask}
        inputs = (x,) if self.mesh.get_local_rank() == 0 else ()
        try:
            predicted: Tensor | None = self.schedules[trains][1].step(*inputs, **options)
        except RuntimeError as error:  # torch tells the shapes of a stage that failed, and hides why
            raise (error.__cause__ or error) from None
        return predicted

    def _schedule(self, x: Tensor, parts: int) -> PipelineScheduleSingle:
        """The schedule for batches like ``x`` in ``parts`` micro-batches.

        Shapes are given: torch would find them by a run on arbitrary numbers, from which a backend that adapts learns.
        """
        size, trains, rank = len(x) // parts, torch.is_grad_enabled(), self.mesh.get_local_rank()
        dtype = next(parameter.dtype for parameter in self.inner.parameters() if parameter.is_floating_point())
        encoded = torch.empty(size, x.shape[1], self.inner.encoder.d_model, dtype=dtype, device="meta")
        stage = PipelineStage(
            self.stage,
            rank,
            self.mesh.size(),
            x.device,
            input_args=x[:size] if rank == 0 else encoded.requires_grad_(trains),
            output_args=self.inner.result(encoded).detach().requires_grad_(trains),
            group=self.mesh.get_group(),
        )
        if trains:
            return Schedule1F1B(stage, parts, loss_fn=self.loss, scale_grads=False)
        return ScheduleGPipe(stage, parts, scale_grads=False)
