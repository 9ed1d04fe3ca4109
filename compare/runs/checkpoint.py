"""The checkpoint that a killed run continues from: one file, replaced in one step while the run trains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch

from compare.runs.ranks import ALONE, Ranks

FORMAT = 5
"""Raise it when the content changes: checkpoints of another format are not used."""
SHARE = 0.02  # of the training time, at most, that writing takes
Restored = TypeVar("Restored")


class Checkpoint:
    """The checkpoint of one run.

    Args:
        path: the file; its folder is made with the first checkpoint.
        every: seconds of training between checkpoints, at least.
        warn: called with one line on what went wrong; the run continues.
        ranks: the processes of the run, which all call `load` and `save`; only rank 0 reads and writes the file.
    """

    def __init__(self, path: Path, every: float, warn: Callable[[str], None], ranks: Ranks = ALONE) -> None:
        self.path, self.every, self.warn, self.ranks = path, every, warn, ranks
        self.due = every  # seconds of training
        self.failed = False

    def load(self, restore: Callable[[dict[str, Any]], Restored]) -> Restored | None:
        """Return ``restore`` of the stored state; None where there is no usable state."""
        state = self.ranks.told(self._read() if self.ranks.rank == 0 else None)
        if state is None:
            return None
        try:
            restored = restore(state)
        except Exception as error:
            self._start_over(error)
            return None
        self.due = state["seconds"] + self.every
        return restored

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            # Only tensors and plain values are read: any other pickle could run any code.
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, got {state['format']}")
        except Exception as error:  # torch raises many types on a damaged file
            self._start_over(error)
            return None
        return state

    def _start_over(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, UnpicklingError):  # torch's own message advises to trust the file
            reason = "damaged, or holds more than tensors and plain values"
        self.warn(f"{self.path} cannot be used ({reason}); the run starts over")

    def save(self, state: dict[str, Any], seconds: float) -> None:
        """Replace the file after ``seconds`` of training. The first failure is a warning; none stops the run."""
        started = time.perf_counter()
        if self.ranks.rank == 0:
            self._write(state | {"format": FORMAT, "seconds": seconds})
        took = self.ranks.first(time.perf_counter() - started)
        self.due = seconds + max(self.every, took / SHARE)

    def _write(self, state: dict[str, Any]) -> None:
        part = self.path.with_name(self.path.name + ".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except (OSError, RuntimeError) as error:  # torch turns some OSErrors into RuntimeErrors
            with suppress(OSError):
                part.unlink()
            if not self.failed:
                self.warn(
                    f"{self.path} cannot be written ({first_line(error)}); training continues without a checkpoint"
                )
            self.failed = True

    def discard(self) -> None:
        if self.ranks.rank == 0:
            with suppress(OSError):
                self.path.unlink()


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
