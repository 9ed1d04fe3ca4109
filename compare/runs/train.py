"""The single training loop."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from compare.runs.clocks import add_since, clocks, shares
from compare.runs.data import count_tokens, length_of
from compare.runs.measure import synchronise
from compare.runs.model import Model, decay_groups
from compare.runs.outcome import DivergedError
from compare.schedule import lr_factor
from compare.spec import RunSpec
from tasks import IGNORE, Batch, EvalSplit, Task
from tasks.base import BITS_PER_BYTE, EXPLAINED_VARIANCE, Metric

CURVE_POINTS = 100
VALIDATIONS = 10
TIMED_STEPS = 1000  # the latest at full length; their median is compared with the measurement before training
FEWEST_TIMED = 3
PROGRESS_SECONDS = 0.5  # between reports of progress, beside those at points of the curve
VALIDATION_SHARE = 0.1  # of the training time, at most, apart from the last validation
TEST_TOKENS = 2**19  # at most, at another length than that of training: softmax at 65,536 takes minutes for them
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Tally:
    """Sums of loss and score over predictions, kept on the device until they are read.

    Accuracy counts right predictions; explained variance is 1 - squared error / variance of the targets; bits per byte
    are the loss to the base 2.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.count = 0
        self.sums: dict[str, Tensor | float] = dict.fromkeys(("loss", "correct", "target", "square"), 0.0)

    def add(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Add a batch, (asked, n_classes) and (asked,), and return its mean loss."""
        predicted = predicted.float()
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
        return loss

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


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step, tokens, flops, seconds: totals of the training so far.
        loading: part of these seconds in which batches were made. validating: seconds of validation, beside them.
        cpu: CPU seconds of the process in these seconds.
        spent: seconds of the process and of the machine, validation included, as `clocks` counts them.
        full: seconds per micro-batch of the latest steps at full length, without loading.
        seq_len, taken: the length of the current phase, and the micro-batches taken in it.
        curve: its points so far.
        tally: loss and score of the steps since the last point.
    """

    tally: Tally
    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    loading: float = 0.0
    validating: float = 0.0
    cpu: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    full: list[float] = field(default_factory=list)
    seq_len: int = 0
    taken: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Trainer:
    """Model, optimizer and accelerator of one run."""

    spec: RunSpec
    task: Task
    model: Any = field(init=False)
    optimizer: Any = field(init=False)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(Tally(self.task.metric))
        torch.manual_seed(self.spec.seed)
        self.accelerator = Accelerator(
            cpu=self.spec.device == "cpu",
            mixed_precision=MIXED_PRECISION[self.spec.dtype],
            gradient_accumulation_steps=self.spec.accumulate,
            dynamo_backend="inductor" if self.spec.compile else "no",
        )
        self.device: torch.device = self.accelerator.device
        model = Model(self.spec, self.task)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.encoder = model.encoder
        optimizer = torch.optim.AdamW(decay_groups(model, self.spec.weight_decay), lr=self.spec.lr)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, targets = (torch.from_numpy(x).to(self.device) for x in (batch.inputs, batch.targets))
        padding = None if batch.padding is None else torch.from_numpy(batch.padding).to(self.device)
        return inputs, targets, padding

    def held_bytes(self) -> int:
        """Bytes of weights, buffers and optimizer state, which are held between steps; each storage is counted once.

        The optimizer has its state after its first step.
        """
        state = (value for values in self.optimizer.state.values() for value in values.values())
        tensors = [*self.model.parameters(), *self.model.buffers(), *filter(torch.is_tensor, state)]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def forward(self, batch: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        logits, targets = self.model(*batch)
        return logits, targets

    def step(self, batch: tuple[Tensor, Tensor, Tensor | None], tally: Tally) -> None:
        """Run forward, backward and, after the last micro-batch of a step, the optimizer."""
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(tally.add(*self.forward(batch)))
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.spec.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(
        self, split: EvalSplit, on_progress: Callable[[], None] = lambda: None, elsewhere: Task | None = None
    ) -> Evaluation:
        """Loss and score over all of a split.

        elsewhere: the task at another length; at most ``TEST_TOKENS`` of its tokens are evaluated.
        """
        self.model.eval()
        task, size, most = self.task, self.spec.batch_size, None
        if elsewhere is not None:
            task, size = elsewhere, max(1, size * self.spec.seq_len // elsewhere.seq_len)
            most = max(1, TEST_TOKENS // elsewhere.seq_len)
        total = Tally(task.metric)
        slices = {name: Tally(task.metric) for name in task.slice_names}
        for batch in task.eval_batches(split, size, most):
            on_progress()
            predicted, targets = self.forward(self.to_device(batch))
            total.add(predicted, targets)
            if batch.slices is not None:
                part = torch.from_numpy(batch.slices[batch.targets != IGNORE]).to(self.device)
                for number, tally in enumerate(slices.values()):
                    if bool((inside := part == number).any()):
                        tally.add(predicted[inside], targets[inside])
        self.model.train()
        scores = {name: tally.read()[1] for name, tally in slices.items() if tally.count}
        return Evaluation(*total.read(), total.count, scores)

    def train(
        self,
        on_progress: Callable[[float, float | None], None],
        flops_per_token: Callable[[int], float] = lambda _: 0.0,
        on_step: Callable[[float], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Train from ``progress`` to the end of the budget.

        Args:
            on_progress: called at each point of the curve, and now and then between, with the share done, 0 to 1, and
                the latest mean loss.
            flops_per_token: length -> FLOPs of forward and backward per token.
            on_step: called between steps, outside training time, with the seconds trained.

        Returns:
            Steps, seconds, tokens and FLOPs of the training, and the part of its seconds in which batches were made;
            CPU seconds of the process, CPU time that others took, and the time of a step at full length (None where
            there were too few); the curve; loss, score and size of the last validation. Validation is not training
            time.

        Raises:
            DivergedError: the loss is not finite.
        """
        spec, at = self.spec, self.progress
        batches: Iterator[Batch] | None = None
        reported, read = time.perf_counter(), clocks()
        self.model.train()
        while (done := share_done(spec, at.step, at.seconds)) < 1 or at.step == 0:
            wanted, size = next((length, size) for end, length, size in spec.phases() if done < end)
            if wanted != at.seq_len:
                at.seq_len, at.taken, batches = wanted, 0, None
            if batches is None:
                batches = self.task.train_batches(size, wanted, spec.seed)
                deque(islice(batches, at.taken), maxlen=0)
            for group in self.optimizer.param_groups:
                group["lr"] = spec.lr * lr_factor(spec.lr_schedule, spec.warmup, done)
            start, cpu, loading, is_full = time.perf_counter(), time.process_time(), at.loading, True
            self.encoder.redraw(after=at.step)
            for _ in range(spec.accumulate):
                begun = time.perf_counter()
                batch = next(batches)
                at.loading += time.perf_counter() - begun
                is_full &= length_of(batch) == spec.seq_len and len(batch.inputs) == spec.batch_size
                tokens = count_tokens(batch)
                at.tokens += tokens
                at.flops += tokens * flops_per_token(length_of(batch))
                self.step(self.to_device(batch), at.tally)
            synchronise(self.device)
            took = time.perf_counter() - start
            at.seconds += took
            at.cpu += time.process_time() - cpu
            if is_full:
                at.full = [*at.full[1 - TIMED_STEPS :], (took - at.loading + loading) / spec.accumulate]
            at.taken += spec.accumulate
            at.step += 1
            done = share_done(spec, at.step, at.seconds)
            at_point = done >= 1 or done * CURVE_POINTS >= len(at.curve) + 1
            if at_point:
                at.curve.append(self.point(done))
                at.spent, read = add_since(at.spent, read, now := clocks()), now
            if at_point or time.perf_counter() - reported >= PROGRESS_SECONDS:
                reported = time.perf_counter()
                on_progress(min(done, 1.0), at.curve[-1]["train_loss"] if at.curve else None)
            on_step(at.seconds)
        return {
            "train_steps": at.step,
            "train_seconds": at.seconds,
            "loader_seconds": at.loading,
            "train_cpu_seconds": at.cpu,
            **{f"train_{name}": share for name, share in shares(at.spent, spec.threads).items()},
            "train_step_seconds": statistics.median(at.full) if len(at.full) >= FEWEST_TIMED else None,
            "train_tokens": at.tokens,
            "train_flops": at.flops,
            "curve": at.curve,
            "val_loss": at.curve[-1]["val_loss"],
            "val_score": at.curve[-1]["val_score"],
            "val_size": at.curve[-1]["val_size"],
        }

    def point(self, done: float) -> dict[str, Any]:
        """The next point of the curve: training since the last point, and validation where it is due."""
        at = self.progress
        loss, score = at.tally.read()
        at.tally = Tally(self.task.metric)
        point: dict[str, Any] = {"step": at.step, "seconds": round(at.seconds, 3), "tokens": at.tokens}
        point |= {"flops": at.flops, "seq_len": at.seq_len, "train_loss": loss, "train_score": score}
        point |= {"val_loss": None, "val_score": None}
        validated = sum(p["val_loss"] is not None for p in at.curve)
        if done >= 1 or (done * VALIDATIONS >= validated + 1 and at.validating <= VALIDATION_SHARE * at.seconds):
            begun = time.perf_counter()
            result = self.evaluate("validation")
            point |= {"val_loss": result.loss, "val_score": result.score, "val_size": result.size}
            at.validating += time.perf_counter() - begun
        return point

    def state(self) -> dict[str, Any]:
        """All that a training continues from, as tensors and plain values."""
        at = self.progress
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "progress": {field.name: getattr(at, field.name) for field in fields(at) if field.name != "tally"},
            "tally": {"count": at.tally.count, "sums": at.tally.sums},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the ``state`` that another process returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        tally = Tally(self.task.metric)
        tally.count = state["tally"]["count"]
        tally.sums = {name: torch.as_tensor(sum_, device=self.device) for name, sum_ in state["tally"]["sums"].items()}
        self.progress = Progress(tally=tally, **state["progress"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])


def share_done(spec: RunSpec, step: int, seconds: float) -> float:
    """The share of the training that is done: 0 to 1, or a little above after the last step of a budget."""
    return step / spec.steps if spec.steps is not None else seconds / (spec.budget or math.inf)
