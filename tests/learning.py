"""Train a small model on a task, for tests that see learning."""

from __future__ import annotations

import tasks
from compare.runs.data import make_task
from compare.runs.train import Trainer
from compare.spec import RunSpec


def small_spec(
    task: str,
    seq_len: int,
    options: dict[str, int | float | str | bool] | None = None,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float | None = None,
) -> RunSpec:
    """Full attention on a task, its own settings, so many steps, on one thread."""
    defaults = tasks.get(task).defaults
    return RunSpec(
        variant="full",
        task=task,
        task_options=tuple(sorted((options or {}).items())),
        seq_len=seq_len,
        seed=0,
        budget=None,
        steps=steps,
        batch_size=batch_size,
        d_model=defaults.d_model,
        n_heads=defaults.n_heads,
        n_layers=defaults.n_layers,
        conv_width=defaults.conv_width,
        embedding_std=defaults.embedding_std,
        positions=defaults.positions,
        lr=lr or defaults.lr,
        device="cpu",
        dtype="float32",
        threads=1,
    )


def learns(spec: RunSpec) -> tuple[float, float]:
    """Test score after training, and the best trivial baseline."""
    trainer = Trainer(spec, make_task(spec))
    trainer.train(lambda done, loss: None)
    return trainer.evaluate("test").score, max(trainer.task.facts["baselines"].values())
