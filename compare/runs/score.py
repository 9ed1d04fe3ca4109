"""Loss and score of a model, of the batches of a training and of whole splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.outcome import DivergedError
from compare.runs.ranks import ALONE, Ranks
from tasks import IGNORE, Batch, EvalSplit, Task
from tasks.base import BITS_PER_BYTE, EXPLAINED_VARIANCE, Metric


class Tally:
    """Sums of loss and score over predictions, kept on the device until they are read.

    Accuracy counts right predictions; explained variance is 1 - squared error / variance of the targets; bits per byte
    are the loss to the base 2.

    Args:
        metric: of the score.
        smoothing: share of each target that the loss spreads over all classes (Szegedy et al., arXiv:1512.00567,
            section 7); the sums are those of the plain loss.
    """

    def __init__(self, metric: Metric, smoothing: float = 0.0) -> None:
        self.metric, self.smoothing = metric, smoothing
        self.count = 0
        self.sums: dict[str, Tensor | float] = dict.fromkeys(("loss", "correct", "target", "square"), 0.0)

    def add(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Add a batch, (asked, n_classes) and (asked,), and return its mean loss, smoothed."""
        predicted = predicted.float()
        if not len(targets):  # the share of one process may ask nothing
            return predicted.sum()
        if self.metric == EXPLAINED_VARIANCE:
            loss = F.mse_loss(predicted.squeeze(-1), targets)
            sums = {"target": targets.double().sum(), "square": targets.double().square().sum()}
        else:
            loss = F.cross_entropy(predicted, targets)
            sums = {"correct": (predicted.detach().argmax(-1) == targets).sum()}
        sums["loss"] = loss.detach() * len(targets)
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value
        self.count += len(targets)
        if self.smoothing and self.metric != EXPLAINED_VARIANCE:
            return F.cross_entropy(predicted, targets, label_smoothing=self.smoothing)
        return loss

    def over(self, ranks: Ranks) -> Tally:
        """The tally of all processes of the run."""
        if ranks.size == 1:
            return self
        joined = Tally(self.metric, self.smoothing)
        joined.add_sums(ranks.total(self.numbers()))
        return joined

    def numbers(self) -> list[float]:
        """The number of predictions, and the sums."""
        return [self.count, *map(float, self.sums.values())]

    def add_sums(self, numbers: Sequence[float]) -> None:
        """Add the ``numbers`` of another tally."""
        count, *sums = numbers
        self.count += round(count)
        self.sums = {name: own + other for (name, own), other in zip(self.sums.items(), sums, strict=True)}

    def read(self) -> tuple[float, float]:
        """Return the mean loss and the score.

        Raises:
            DivergedError: the loss is not finite.
        """
        loss, correct, target, square = (float(value) / self.count for value in self.sums.values())
        if not math.isfinite(loss):
            raise DivergedError(f"loss is {loss}")
        if self.metric == BITS_PER_BYTE:
            return loss, loss / math.log(2)
        if self.metric != EXPLAINED_VARIANCE:
            return loss, correct
        variance = square - target**2
        return loss, 1 - loss / variance if variance > 0 else 0.0


class Evaluation(NamedTuple):
    """Mean loss, score and number of predictions of a split, and the score of each of its slices."""

    loss: float
    score: float
    size: int
    slices: dict[str, float]


OnDevice = tuple[Tensor, Tensor, Tensor | None]
"""Inputs, targets and padding of a batch."""


def to_device(batch: Batch, device: torch.device) -> OnDevice:
    inputs, targets = (torch.from_numpy(x).to(device) for x in (batch.inputs, batch.targets))
    return inputs, targets, None if batch.padding is None else torch.from_numpy(batch.padding).to(device)


@torch.no_grad()
def evaluate(
    model: Callable[..., tuple[Tensor, Tensor]],
    task: Task,
    split: EvalSplit,
    size: int,
    device: torch.device,
    on_progress: Callable[[], None],
    most: int | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Loss and score of a model in evaluation mode over a split, in batches of ``size`` samples.

    Args:
        most: at most so many samples; None = all.
        ranks: the processes that share each batch.
    """
    total = Tally(task.metric)
    slices = {name: Tally(task.metric) for name in task.slice_names}
    for batch in map(ranks.rows, task.eval_batches(split, size, most)):
        on_progress()
        predicted, targets = model(*to_device(batch, device))
        total.add(predicted, targets)
        if batch.slices is not None:
            part = torch.from_numpy(batch.slices[batch.targets != IGNORE]).to(device)
            for number, tally in enumerate(slices.values()):
                if bool((inside := part == number).any()):
                    tally.add(predicted[inside], targets[inside])
    total, slices = total.over(ranks), {name: tally.over(ranks) for name, tally in slices.items()}
    scores = {name: tally.read()[1] for name, tally in slices.items() if tally.count}
    return Evaluation(*total.read(), total.count, scores)
