"""A model of which each process has some layers: torch's pipeline, called and trained like the model of one process."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from compare.runs.model import Model
from compare.runs.ranks import Ranks
from compare.runs.score import OnDevice, Tally
from compare.spec import RunSpec
from tasks import IGNORE
from zoo.parallel.pipeline import Pipeline, Stage, split_layers

A_STAGE = 4  # micro-batches a stage: then stages wait little (GPipe, arXiv:1811.06965, section 3.2)


def take_stage(model: Model, mesh: DeviceMesh) -> Stage:
    """Leave ``model`` the layers of this process alone, and the head only on the last one; return its stage."""
    stage = split_layers(model.encoder, mesh)
    model.encoder = stage.encoder
    if mesh.get_local_rank() + 1 < mesh.size():
        del model.head
    return stage


class Staged(nn.Module):
    """The whole model, as its processes have it together. All of them must make the same calls, with the same batches.

    Args:
        model: what ``take_stage`` left of it. stage: its result, prepared by ``accelerator``.
        mesh: of the stages.
        ranks: all processes of the run.
    """

    def __init__(
        self, model: Model, stage: nn.Module, mesh: DeviceMesh, ranks: Ranks, accelerator: Accelerator, spec: RunSpec
    ) -> None:
        super().__init__()
        self.model, self.mesh, self.ranks, self.accelerator = model, mesh, ranks, accelerator
        micro_batches = math.gcd(A_STAGE * mesh.size(), *(batch // ranks.shares for _, _, batch in spec.phases()))
        self.pipeline = Pipeline(stage, mesh, micro_batches=micro_batches, loss=self._loss)
        self.accumulate = spec.accumulate

    def forward(self, inputs: Tensor, targets: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predictions and targets as of ``Model.forward``, on all processes; without gradients."""
        asked = targets[targets != IGNORE]
        predicted = torch.empty(len(asked), self.model.sizes.n_classes, device=inputs.device)
        if not len(inputs):
            return predicted, asked
        x, mask = self.model.sequences(inputs, padding)
        encoded = self.pipeline.predict(x, key_padding_mask=mask)
        if encoded is not None:
            predicted, _ = self._answer(encoded, targets, mask)
        self._tell(predicted)
        return predicted, asked

    def learn(self, batch: OnDevice, tally: Tally) -> Tensor:
        """Forward and backward of a batch. Returns its loss as of ``Trainer.loss``; the tally gets loss and score."""
        inputs, targets, padding = batch
        x, mask = self.model.sequences(inputs, padding)
        asked = int((targets != IGNORE).sum())
        self.weight = self.ranks.weighted(torch.ones((), device=x.device), asked) / max(1, asked) / self.accumulate
        self.tally = Tally(tally.metric, tally.smoothing)
        parts = self.pipeline.micro_batches
        masks = [None] * parts if mask is None else mask.chunk(parts)
        self.parts = list(zip(targets.chunk(parts), masks, strict=True))
        loss = self.pipeline.step(x, torch.arange(parts), key_padding_mask=mask)
        numbers = torch.tensor(self.tally.numbers(), dtype=torch.float64, device=x.device)
        self._tell(numbers)
        tally.add_sums(numbers.tolist())
        return loss * self.accumulate

    def _loss(self, encoded: Tensor, number: Tensor) -> Tensor:
        """The part of micro-batch ``number`` in the loss that is differentiated."""
        predicted, asked = self._answer(encoded, *self.parts[int(number)])
        return self.tally.add(predicted, asked) * len(asked) * self.weight

    def _answer(self, encoded: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():
            predicted, asked = self.model.answer(encoded, targets, mask)
        return predicted.float(), asked

    def _tell(self, x: Tensor) -> None:
        """Give all stages what the last one has."""
        dist.broadcast(x, group=self.mesh.get_group(), group_src=self.mesh.size() - 1)
