"""Distillation: a trained model teaches another one of the same task.

Hinton et al., arXiv:1503.02531: the student's loss is ``(1 - w) · loss + w · T² · KL(teacher / T ‖ student / T)``, with
the temperature T on the logits of both; for answers that are numbers, the squared error to the teacher's. ``hidden``
adds the mean squared error between the outputs of the layers (Romero et al., arXiv:1412.6550; here layer by layer, each
normalised). ``attention`` adds the loss of Hedgehog (Zhang et al., arXiv:2402.04347, section 4.2) for variants that
define it: the cross-entropy of the student's attention weights, given those of softmax over the same queries and keys.
With ``--pretrain SHARE`` it is alone in that share, as its authors have it, where only the feature maps learn; the rest
of the training is then that of the task, without a teacher. They begin with the teacher's weights (``--start``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.runs.kept import load
from compare.runs.model import Model, Sizes
from compare.runs.score import OnDevice
from tasks import Task
from zoo.contract import UnsupportedError

WEIGHT, TEMPERATURE = 0.5, 2.0


class Teacher:
    """A trained model, and what a student learns from it.

    Args:
        folder: of the kept model.
        student, task, device: of the run.
        what: ``answers``; ``hidden`` or ``attention`` beside them.

    Raises:
        ValueError: the teacher has another task, other answers or layers of another width or number.
        UnsupportedError: ``attention`` for a student whose attention defines no such loss.
    """

    def __init__(self, folder: Path, student: Model, task: Task, what: str, device: torch.device) -> None:
        kept = load(folder, task.seq_len)
        mine, theirs = Sizes.of(task), Sizes(**kept.record["sizes"])
        if kept.spec.task != task.name or mine != theirs:
            raise ValueError(
                f"--teacher: expected a model of {task.name} with {mine.n_classes} classes and the inputs of this run, "
                f"got one of {kept.spec.task}: {theirs}"
            )
        self.model, self.student, self.what = kept.model.to(device).requires_grad_(False), student, what
        own, other = student.encoder, self.model.encoder
        if what == "hidden" and (own.reversible or other.reversible):
            raise UnsupportedError("--distill hidden: reversible layers have two streams, and keep none of them")
        if what == "hidden" and (own.class_token is None) != (other.class_token is None):
            raise ValueError("--distill hidden: expected a teacher with the same --pool")
        if what == "hidden" and (own.d_model, len(own.layers)) != (other.d_model, len(other.layers)):
            raise ValueError(
                f"--distill hidden: expected a teacher with {len(own.layers)} layers of width {own.d_model}, got "
                f"{len(other.layers)} of {other.d_model}"
            )
        self.learners = attentions_with_loss(student) if what == "attention" else []
        self.seen: dict[str, list[Any]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which the forward of the student is noted."""
        self.seen = {"student": [], "teacher": [], "attention": []}
        handles = []
        if self.what == "hidden":
            pairs = (("student", self.student), ("teacher", self.model))
            layers = [(name, layer) for name, model in pairs for layer in model.encoder.layers]
            handles += [layer.register_forward_hook(self._note(name)) for name, layer in layers]
        handles += [x.register_forward_pre_hook(self._note_inputs, with_kwargs=True) for x in self.learners]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.seen = {}  # or the next step would begin with this one's activations

    def _note(self, name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.seen[name].append(output)

        return note

    def _note_inputs(self, module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        self.seen["attention"].append((module, inputs[0], inputs[1], options.get("key_padding_mask")))

    def loss(self, batch: OnDevice, predicted: Tensor, loss: Tensor) -> Tensor:
        """The student's whole loss, from its predictions (asked, n_classes) and its loss on the task."""
        with torch.no_grad():
            taught, _ = self.model(*batch)
        taught, predicted = taught.float(), predicted.float()
        if predicted.shape[-1] == 1:
            softly = F.mse_loss(predicted, taught)
        else:
            mine, theirs = (F.log_softmax(x / TEMPERATURE, dim=-1) for x in (predicted, taught))
            softly = TEMPERATURE**2 * F.kl_div(mine, theirs, reduction="batchmean", log_target=True)
        total = (1 - WEIGHT) * loss + WEIGHT * softly
        for pair in zip(self.seen["student"], self.seen["teacher"], strict=True):
            mine, theirs = (F.layer_norm(x.float(), x.shape[-1:]) for x in pair)
            real = self.real_positions(batch[2], mine)
            total = total + F.mse_loss(mine[real], theirs[real])
        return total + self.attention_loss() if self.learners else total

    def real_positions(self, padding: Tensor | None, x: Tensor) -> Tensor:
        """Which positions of layers are real, (B, N) bool: they stand at the front, behind a class token."""
        if padding is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        lead = int(self.student.encoder.class_token is not None)
        lengths = (~padding).flatten(0, -2).sum(1) + lead
        return torch.arange(x.shape[1], device=x.device) < lengths[:, None]

    def attention_loss(self) -> Tensor:
        """The sum of the losses of attention weights, of the forward that was watched."""
        losses = [
            attention.distillation_loss(q, k, key_padding_mask=padding)
            for attention, q, k, padding in self.seen["attention"]
        ]
        return torch.stack(losses).sum()


def attentions_with_loss(model: nn.Module) -> list[nn.Module]:
    """The attentions that define ``distillation_loss``.

    Raises:
        UnsupportedError: there are none.
    """
    found = [module for module in model.modules() if hasattr(module, "distillation_loss")]
    if not found:
        raise UnsupportedError("--distill attention: the attention has no weights of its own to compare (hedgehog has)")
    return found
