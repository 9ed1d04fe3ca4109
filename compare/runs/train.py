"""The single training loop."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from compare.parallel import is_staged
from compare.record import as_kept
from compare.runs.clocks import add_since, clocks, shares
from compare.runs.compiled import compile_seconds, graph_breaks
from compare.runs.data import count_tokens, length_of
from compare.runs.divergence import first_bad_output, first_not_finite
from compare.runs.kept import find_model, start_from
from compare.runs.measure import storage_bytes, synchronise
from compare.runs.model import Model, decay_groups, restoring_loss
from compare.runs.outcome import DivergedError
from compare.runs.progress import Progress, part_of, share_done
from compare.runs.ranks import ALONE, Ranks
from compare.runs.score import Evaluation, OnDevice, Tally, evaluate, to_device
from compare.runs.teacher import Teacher
from compare.runs.tune import check_start, tune
from compare.schedule import CURVE_POINTS, VALIDATION_SHARE, VALIDATIONS, at_length, lr_factor
from compare.spec import RunSpec
from tasks import Batch, EvalSplit, Task

TIMED_STEPS = 1000  # the latest at full length; their median is compared with the measurement before training
FEWEST_TIMED = 3
PROGRESS_SECONDS = 0.5  # between reports of progress, beside those at points of the curve
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass
class Trainer:
    """Model, optimizer and accelerator of one run.

    out: the folder of the results, which may hold the model to start from and the teacher.
    ranks: the processes that share the training. Batches are those of the whole run; ``to_device`` takes a share.
    kept: the weights of the best validation so far, where training stops early.
    restoring: whether the training is in its self-supervised part. tuned: whether the encoder is fixed.
    trained: the model itself; ``model`` is what accelerate and the ranks make of it, or its quantised copy.
    """

    spec: RunSpec
    task: Task
    out: str | None = None
    ranks: Ranks = ALONE
    model: Any = field(init=False)
    optimizer: Any = field(init=False)
    progress: Progress = field(init=False)
    kept: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.progress = Progress(self.training_tally())
        self.micro_batches: list[OnDevice] = []
        self.steps = 0  # of the optimizer, those of a measurement too
        self.restoring = False
        torch.manual_seed(self.spec.seed)
        self.accelerator = Accelerator(
            cpu=self.spec.device == "cpu",
            mixed_precision=MIXED_PRECISION[self.spec.dtype],
            gradient_accumulation_steps=self.spec.accumulate,
            dynamo_backend="inductor" if self.spec.compile else "no",
        )
        self.device: torch.device = self.accelerator.device
        self.trained = model = Model(self.spec, self.task)
        if self.spec.start is not None:
            check_start(self.spec, start_from(model, self.spec, find_model(self.spec.start, self.out)))
        self.parameters = sum(p.numel() for part in (model.encoder, model.head) for p in part.parameters())
        self.tuned = False
        self.model = self.ranks.shared(self.accelerator, model, self.spec)
        self.encoder = model.encoder
        if self.spec.pretrain:
            self.optimizer = self.accelerator.prepare(self.make_optimizer())
        else:
            self.begin_tuning()
        self.teacher = None
        if self.spec.teacher is not None:
            folder = find_model(self.spec.teacher, self.out)
            self.teacher = Teacher(folder, model, self.task, self.spec.distill, self.device)
        self.ranks.draw_apart(self.spec.seed)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(decay_groups(self.trained, self.spec.weight_decay), lr=self.spec.lr)

    def begin_tuning(self) -> None:
        """Begin the training of the task with a new optimizer. With ``tune``, the encoder is fixed from then on; what
        the method adds, and the head, are trained."""
        if self.spec.tune is not None and not self.tuned:
            tune(self.trained, self.spec.tune)
            self.tuned = True
        self.accelerator._optimizers.clear()  # accelerate unscales the gradients of each optimizer that it knows
        self.optimizer = self.accelerator.prepare(self.make_optimizer())

    def training_tally(self) -> Tally:
        return Tally(self.task.metric, self.spec.label_smoothing)

    def to_device(self, batch: Batch) -> OnDevice:
        return to_device(self.ranks.rows(batch), self.device)

    def held_bytes(self) -> int:
        """Bytes of weights, buffers and optimizer state, which are held between steps; each storage is counted once.

        Those of a teacher count too. The optimizer has its state after its first step.
        """
        state = (value for values in self.optimizer.state.values() for value in values.values())
        models = [self.model, *([] if self.teacher is None else [self.teacher.model])]
        weights = [x for model in models for x in (*model.parameters(), *model.buffers())]
        return storage_bytes([*weights, *filter(torch.is_tensor, state)])

    def forward(self, batch: OnDevice) -> tuple[Tensor, Tensor]:
        logits, targets = self.model(*batch)
        return logits, targets

    def loss(self, batch: OnDevice, tally: Tally) -> Tensor:
        """The loss that training minimises; of several processes, their mean is the loss of the whole batch. The tally
        gets loss and score of the task; nothing in the self-supervised part."""
        by_attention = self.spec.pretrain > 0 and self.spec.distill == "attention"
        if self.restoring and not by_attention:
            predicted, targets = self.model(*batch, restore=True)
            return self.ranks.weighted(restoring_loss(predicted, targets), len(targets))
        if self.teacher is None or (by_attention and not self.restoring):
            predicted, targets = self.forward(batch)
            return self.ranks.weighted(tally.add(predicted, targets), len(targets))
        with self.teacher.watching():
            predicted, targets = self.forward(batch)
            if self.restoring:
                return self.teacher.attention_loss()
            with self.accelerator.autocast():
                loss = self.teacher.loss(batch, predicted, tally.add(predicted, targets))
                return self.ranks.weighted(loss, len(targets))

    def learn(self, batch: OnDevice, tally: Tally) -> Tensor:
        """Run forward and backward of a micro-batch, and return its ``loss``, without a graph."""
        if not is_staged(self.spec.parallel):
            loss = self.loss(batch, tally)
            self.accelerator.backward(loss)
        else:  # torch's schedule runs both
            loss = self.model.learn(batch, tally)
        return loss.detach()

    def step(self, batch: OnDevice, tally: Tally) -> float | None:
        """Run forward, backward and, after the last micro-batch of a step, the optimizer.

        Returns:
            The norm of the gradients; None before the last micro-batch, or where loss scaling skips the step.

        Raises:
            DivergedError: loss or gradients are not finite; the weights are still those before the step.
        """
        norm = None
        self.micro_batches.append(batch)
        with self.accelerator.accumulate(self.model):
            self.ranks.average(self.model, self.accelerator.sync_gradients)
            loss = self.learn(batch, tally)
            if self.restoring:
                self.progress.restored.append(self.ranks.total([float(loss)])[0] / self.ranks.shares)
            if self.accelerator.sync_gradients:
                norm = self.ranks.clip(self.accelerator, self.trained, self.spec.clip_norm or math.inf)
                scaled = self.accelerator.scaler is not None  # a scaler skips steps whose gradients overflow
                reached = float(loss)
                if not math.isfinite(norm) and not (scaled and math.isfinite(reached)):
                    where = self.where_it_diverged()
                    raise DivergedError(f"step {self.steps + 1}: loss {reached:.3g}, gradient norm {norm:.3g}; {where}")
                self.micro_batches.clear()
                self.steps += 1
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.ranks.join_buffers(self.trained)
        return norm if norm is not None and math.isfinite(norm) else None

    def where_it_diverged(self) -> str:
        """Repeat the micro-batches of a step until one is not finite, and name the module."""
        if self.spec.compile or self.ranks.size > 1:
            return f"without --{'compile' if self.spec.compile else 'parallel'} the run names the module"
        self.model.zero_grad()
        for batch in self.micro_batches:

            def forward(batch: OnDevice = batch) -> Tensor:
                return self.loss(batch, self.training_tally())

            try:
                said = first_not_finite(self.trained, forward, Tensor.backward)
            except Exception as error:  # no memory for the repetition, say: the training did diverge
                return f"the step could not be repeated ({type(error).__name__})"
            if said:
                return said
        return "repeated, the step is finite: a random part decided, or the sum over micro-batches overflowed"

    def evaluate(
        self, split: EvalSplit, on_progress: Callable[[], None] = lambda: None, elsewhere: Task | None = None
    ) -> Evaluation:
        """Loss and score over all of a split.

        elsewhere: the task at another length; at most ``TEST_TOKENS`` of its tokens are evaluated.
        """
        task, size, most = self.task, self.spec.batch_size, None
        if elsewhere is not None:
            task, size, most = elsewhere, *at_length(self.spec, elsewhere.seq_len)
        self.model.eval()
        run = partial(evaluate, self.model, task, split, size, self.device, on_progress, most, self.ranks)
        try:
            return run()
        except DivergedError as error:
            watchable = not self.spec.compile and self.ranks.size == 1
            where = f"; {first_bad_output(self.trained, run)}" if watchable else ""
            raise DivergedError(f"{split} after step {self.steps}: {error}{where}") from None
        finally:
            self.model.train()

    def train(
        self,
        on_progress: Callable[[float, float | None], None],
        flops_per_token: Callable[[int, bool], float] = lambda *_: 0.0,
        on_step: Callable[[float], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Train from ``progress`` to the end of the budget.

        Args:
            on_progress: called at each point of the curve, and now and then between, with the share done, 0 to 1, and
                the latest mean loss.
            flops_per_token: length, and whether the step is self-supervised -> FLOPs of forward and backward.
            on_step: called between steps, outside training time, with the seconds trained.

        Returns:
            Steps, seconds (without those of compiling), tokens and FLOPs of the training, and the part of its seconds
            in which batches were made; CPU seconds of the process, CPU time that others took, and the time of a step at
            full length (None where there were too few); the curve; loss, score and size of the last validation.
            Validation is not training time.

        Raises:
            DivergedError: the loss is not finite.
        """
        spec, at = self.spec, self.progress
        batches: Iterator[Batch] | None = None
        reported, read = time.perf_counter(), clocks()
        self.model.train()
        while ((done := share_done(spec, at.step, at.seconds)) < 1 and not self.stops_early()) or at.step == 0:
            restoring, part_done = part_of(spec, done)
            if self.restoring and not restoring:
                self.begin_tuning()
            self.restoring = restoring
            wanted, size = next((length, size) for end, length, size in spec.phases() if part_done < end)
            if wanted != at.seq_len:
                at.seq_len, at.taken, batches = wanted, 0, None
            if batches is None:
                batches = self.task.train_batches(size, wanted, spec.seed)
                deque(islice(batches, at.taken), maxlen=0)
            for group in self.optimizer.param_groups:
                group["lr"] = spec.lr * lr_factor(spec.lr_schedule, spec.warmup, part_done)
            start, cpu, loading, is_full = time.perf_counter(), time.process_time(), at.loading, not restoring
            compiled = compile_seconds()
            with self.ranks.alike(spec.seed, at.step):
                self.encoder.redraw(after=at.step)
            for _ in range(spec.accumulate):
                begun = time.perf_counter()
                batch = next(batches)
                at.loading += time.perf_counter() - begun
                is_full &= length_of(batch) == spec.seq_len and len(batch.inputs) == spec.batch_size
                tokens = count_tokens(batch)
                at.tokens += tokens
                at.flops += tokens * flops_per_token(length_of(batch), restoring)
                norm = self.step(self.to_device(batch), at.tally)
                if norm is not None:
                    at.norms = at.norms[0] + norm, at.norms[1] + 1
            synchronise(self.device)
            compiled = compile_seconds() - compiled
            took = self.ranks.first(time.perf_counter() - start - compiled)
            at.seconds += took
            at.cpu += time.process_time() - cpu
            if is_full:
                at.full = [*at.full[1 - TIMED_STEPS :], took - at.loading + loading]
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
        last = at.curve[-1]
        if self.kept:
            self.trained.load_state_dict(self.kept)
            last = next(point for point in at.curve if point["step"] == at.best)
        return {
            "train_steps": at.step,
            "train_seconds": at.seconds,
            "loader_seconds": at.loading,
            "train_cpu_seconds": at.cpu,
            **{
                f"train_{name}": share
                for name, share in shares(at.spent, spec.threads, alone=self.ranks.size == 1).items()
            },
            "train_step_seconds": statistics.median(at.full) if len(at.full) >= FEWEST_TIMED else None,
            **({"compile_seconds": compile_seconds(), "graph_breaks": graph_breaks()} if spec.compile else {}),
            "train_tokens": at.tokens,
            "train_flops": at.flops,
            "curve": [as_kept(point) for point in at.curve],
            "val_loss": last["val_loss"],
            "val_score": last["val_score"],
            "val_size": last["val_size"],
        }

    def stops_early(self) -> bool:
        """Whether as many validations as the spec allows have passed without a better score."""
        return self.spec.early_stopping is not None and self.progress.worse >= self.spec.early_stopping

    def point(self, done: float) -> dict[str, Any]:
        """The next point of the curve: training since the last point, and validation where it is due."""
        at = self.progress
        tally = at.tally.over(self.ranks)
        loss, score = tally.read() if tally.count else (None, None)
        at.tally = self.training_tally()
        total, steps = at.norms
        at.norms = 0.0, 0
        point: dict[str, Any] = {"step": at.step, "seconds": round(at.seconds, 3), "tokens": at.tokens}
        point["grad_norm"] = total / steps if steps else None
        point |= {"flops": at.flops, "seq_len": at.seq_len, "train_loss": loss, "train_score": score}
        point |= {"val_loss": None, "val_score": None}
        if at.restored:
            point["restoring_loss"] = statistics.fmean(at.restored)
            at.restored = []
        restoring, done = part_of(self.spec, done)
        if restoring:
            return point
        validated = sum(p["val_loss"] is not None for p in at.curve)
        if done >= 1 or (done * VALIDATIONS >= validated + 1 and at.validating <= VALIDATION_SHARE * at.seconds):
            begun = time.perf_counter()
            result = self.evaluate("validation")
            point |= {"val_loss": result.loss, "val_score": result.score, "val_size": result.size}
            if self.spec.early_stopping is not None:
                self.keep_best(result.score)
            at.validating += self.ranks.first(time.perf_counter() - begun)
        return point

    def keep_best(self, score: float) -> None:
        """Keep a copy of the weights if no earlier validation has a better or equal score."""
        at, sign = self.progress, -1 if self.task.metric.lower_is_better else 1
        scores = [sign * point["val_score"] for point in at.curve if point["val_score"] is not None]
        if not scores or sign * score > max(scores):
            at.best, at.worse = at.step, 0
            self.kept = {name: x.detach().clone() for name, x in self.trained.state_dict().items()}
        else:
            at.worse += 1

    def state(self) -> dict[str, Any]:
        """All that a training continues from, in any number of processes, as tensors and plain values."""
        at = self.progress
        tally = at.tally.over(self.ranks)
        scaler = self.accelerator.scaler
        return {
            "model": self.ranks.whole(self.trained, self.trained.state_dict()),
            "kept": self.ranks.whole(self.trained, self.kept) if self.kept else {},
            "tuned": self.tuned,
            "restoring": self.restoring,
            "optimizer": self.ranks.whole_optimizer(self.trained, self.optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "progress": {field.name: getattr(at, field.name) for field in fields(at) if field.name != "tally"},
            "tally": {"count": tally.count, "sums": tally.sums},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the ``state`` that another process returned."""
        if state["tuned"] and not self.tuned:
            self.begin_tuning()
        self.restoring = state["restoring"]
        if state["kept"]:
            self.ranks.load_weights(self.trained, state["kept"])
            self.kept = {name: x.detach().clone() for name, x in self.trained.state_dict().items()}
        self.ranks.load_weights(self.trained, state["model"])
        self.ranks.load_optimizer(self.trained, self.optimizer, state["optimizer"])
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        tally = self.training_tally()
        if self.ranks.share == 0:  # it has counted for all
            sums = state["tally"]["sums"].items()
            tally.count = state["tally"]["count"]
            tally.sums = {name: torch.as_tensor(sum_, device=self.device) for name, sum_ in sums}
        self.progress = Progress(tally=tally, **state["progress"])
        self.steps = self.progress.step
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])
        self.ranks.draw_apart(self.spec.seed, self.steps)
