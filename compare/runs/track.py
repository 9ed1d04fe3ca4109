"""TensorBoard and Weights & Biases, through accelerate's trackers: curves and scores beside the records."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compare.errors import UsageError
from compare.record import Record
from compare.spec import RunSpec

TRACKERS = ("tensorboard", "wandb")


def check_trackers(names: list[str]) -> tuple[str, ...]:
    """Check these trackers, and return each once.

    Raises:
        UsageError: one is unknown, or its library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--track: expected trackers among {', '.join(TRACKERS)}, got {name!r}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--track {name}: {name} is not installed; pip install 'attention-zoo[track]' brings it")
    return tuple(dict.fromkeys(names))


class Tracking:
    """The trackers of one run, which write below ``folder``; wandb stays offline.

    A failure while they write is a warning, and the run continues.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, spec: RunSpec, warn: Callable[[str], None]) -> None:
        from accelerate import Accelerator

        self.warn = warn
        title = f"{spec.label} · {spec.task} · N {spec.seq_len} · seed {spec.seed}"
        own = folder / spec.run_id
        own.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_SILENT"] = "true"
        self.accelerator = Accelerator(cpu=spec.device == "cpu", log_with=list(names), project_dir=str(own))
        wandb = {"dir": str(own), "mode": "offline", "name": title, "id": spec.run_id, "group": spec.task}
        config = json.loads(spec.to_json())
        plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in config.items()}
        self.accelerator.init_trackers("attention-zoo", config=plain, init_kwargs={"wandb": wandb})

    def log(self, point: dict[str, Any], step: int) -> None:
        """Log a point of the curve."""
        with self.warning_of_errors():
            self.accelerator.log(numbers(point), step=step)

    def end(self, record: Record) -> None:
        """Log the final figures of the run, and flush everything to disk."""
        with self.warning_of_errors():
            final = {f"final/{name}": value for name, value in numbers(record).items()}
            self.accelerator.log(final, step=record.get("train_steps"))
            self.accelerator.end_training()

    @contextmanager
    def warning_of_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # trackers raise many types
            self.warn(f"tracking: {' '.join(str(error).split()) or type(error).__name__}")


def numbers(fields: dict[str, Any]) -> dict[str, float]:
    """The fields that a tracker can plot."""
    return {name: value for name, value in fields.items() if isinstance(value, int | float)}
