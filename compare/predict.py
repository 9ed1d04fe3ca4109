"""`python -m compare predict`: classifies new texts by a kept model, or fills in what they hide; csv in, csv out."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from compare.choice import find
from compare.comparison import choose_device
from compare.errors import UsageError
from compare.runs.data import make_task
from compare.runs.execute import settle_cpu
from compare.runs.kept import Kept, load
from tasks import Task
from tasks.files import read_files
from tasks.folders import format_of
from tasks.labelled import pick_text_column
from tasks.layouts import letters_of

WINDOW = 4096  # rows in memory at a time; sorted by length among themselves
TOKENS = 2**16  # of a batch, at most
ADDED = ("prediction", "probability")


class Answer(NamedTuple):
    """What the model says of a text. probability: of the class; of filled texts, the mean over the hidden parts."""

    prediction: str
    probability: float | None


def predict(options: argparse.Namespace) -> int:
    """Write the rows of the data with the columns of ``ADDED``.

    Raises:
        UsageError: no kept model of texts, or a file without its column.
    """
    try:
        if options.attn:
            find(options.attn, "--attn")  # imports it
        kept = load(options.model)
        settle_cpu(kept.spec.threads)
        predictor = Predictor(kept, make_task(kept.spec), torch.device(choose_device(options.device)))
        table = read_files([options.data], format_of(options.data) or "csv")
        usual = str(kept.record["data"].get("text_column", ""))  # "" = chosen by its name
        column = pick_text_column(table.features, options.text_column or usual, "predict")
        if taken := [name for name in ADDED if name in table.features]:
            raise ValueError(f"{options.data}: expected no column {taken[0]!r}, which the predictions get")
        with writing(options.out) as file:
            write_rows(predictor, table, column, file)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no memory, or a missing library
        raise UsageError(" ".join(str(error).split())) from error
    return 0


@contextmanager
def writing(out: Path | None) -> Iterator[IO[str]]:
    """A file that appears when it is whole; None: stdout."""
    if out is None:
        yield sys.stdout
        return
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            yield file
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def write_rows(predictor: Predictor, table: Any, column: str, file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*table.features, *ADDED])
    columns = (TextColumn("predicting"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
    begun, rows = time.perf_counter(), iter(table)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("predicting", total=len(table))
        while window := list(islice(rows, WINDOW)):
            texts = [as_text(row[column]) for row in window]
            for row, answer in zip(window, predictor.answers(texts), strict=True):
                probability = "" if answer.probability is None else f"{answer.probability:.6f}"
                cells = [letters_of(as_text(value)) for value in row.values()]
                writer.writerow([*cells, answer.prediction, probability])
            bar.advance(shown, len(window))
    print(f"{len(table):,} rows in {time.perf_counter() - begun:.1f} s", file=sys.stderr)


def as_text(value: object) -> bytes:
    """A value of a table as the bytes of its text; a missing one is empty."""
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode("utf-8", "surrogatepass")


@dataclass
class Predictor:
    """A kept model and the task that reads its texts.

    Raises:
        ValueError: the model neither classifies nor restores texts.
    """

    kept: Kept
    task: Task
    device: torch.device

    def __post_init__(self) -> None:
        if self.task.kind not in ("sequence", "token"):
            raise ValueError(f"--model: expected a model that classifies or restores, got one of {self.task.name}")
        self.task.ids_of([])
        self.kept.model.to(self.device)

    @torch.no_grad()
    def answers(self, texts: Sequence[bytes]) -> list[Answer]:
        """One answer for each text, in order; texts of similar length share a batch. An empty text has no answer."""
        ids = self.task.ids_of(texts)
        order = sorted((place for place, own in enumerate(ids) if len(own)), key=lambda place: len(ids[place]))
        found = [Answer("", None)] * len(texts)
        for batch in batches(order, ids):
            for place, chances in zip(batch, self.chances([ids[place] for place in batch]), strict=True):
                if self.task.kind == "sequence":
                    found[place] = classified(chances, self.kept.record["class_names"])
                else:
                    found[place] = filled(self.task, texts[place], ids[place], chances)
        return found

    def chances(self, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """Probabilities of the classes, (B, n_classes), or at each position, (B, N, n_classes)."""
        model, dtype = self.kept.model, self.kept.spec.dtype
        inputs, padding = padded(rows, self.device)
        with torch.autocast(self.device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            encoded = model.encoder(inputs, key_padding_mask=padding)
            if self.task.kind == "sequence":
                padding = padding if model.encoder.class_token is None else None
                predicted: Tensor = model.head(encoded, key_padding_mask=padding)
            else:
                predicted = model.head(encoded)
        return predicted.float().softmax(-1).cpu()


def batches(order: Sequence[int], ids: Sequence[NDArray[np.int64]]) -> Iterator[list[int]]:
    """Places in order of length, in batches of at most ``TOKENS`` tokens with padding."""
    batch: list[int] = []
    for place in order:
        if batch and len(ids[place]) * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def padded(rows: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """(B, N) ids, 0 at padding, and the padding, None without any."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    padding = torch.ones(len(rows), longest, dtype=torch.bool)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.from_numpy(own)
        padding[row, : len(own)] = False
    return ids.to(device), padding.to(device) if padding.any() else None


def classified(chances: Tensor, names: Sequence[str]) -> Answer:
    best = int(chances.argmax())
    return Answer(names[best] if names else str(best), float(chances[best]))


def filled(task: Task, text: bytes, ids: NDArray[np.int64], chances: Tensor) -> Answer:
    """The text with the likeliest answer in each hidden place. chances: (N or more, n_classes)."""
    places = np.flatnonzero(task.hidden(ids))
    best = chances[places].max(-1)
    answer = task.filled(text, best.indices.numpy())
    return Answer(letters_of(answer), float(best.values.mean()) if len(places) else None)
