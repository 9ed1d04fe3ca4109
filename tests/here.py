"""The command line and its runs in the process of the tests, which has imported already what takes a process seconds.

For tests of what a comparison does; those of how a run is kept apart start processes.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from PIL import Image

from compare.__main__ import main
from compare.record import Record
from compare.runs.child import Events
from compare.runs.execute import execute
from compare.runs.measure import time_it
from compare.runs.options import RunOptions
from compare.spec import RunSpec
from tasks import cache
from tasks.generated import Generated

FEW = 256
OnEvent = Callable[[Record], None]
Warn = Callable[[str], None]


@contextmanager
def few_samples(few: int = FEW) -> Iterator[None]:
    """Generated tasks have few samples, in tables of their own: building and evaluating thousands takes seconds."""
    count, folder_of = Generated.count, cache.folder_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generated, "count", lambda task, split: min(count(task, split), few))
        patch.setattr(cache, "folder_of", lambda key: folder_of(f"{key}-few-{few}"))
        yield


class Heard(Events):
    """Events that go to functions in place of a pipe."""

    def __init__(self, on_event: OnEvent, warn: Warn) -> None:
        super().__init__(io.StringIO())
        self.on_event, self.warn = on_event, warn  # type: ignore[method-assign]

    def send(self, event: Record) -> None:
        self.on_event(event)


def run_whole(
    spec: RunSpec,
    on_event: OnEvent = lambda _: None,
    run_options: RunOptions | None = None,
    warn: Warn = lambda _: None,
) -> Record:
    """``run_one`` without a process of its own; each step is timed three times."""
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("compare.runs.measure.time_it", partial(time_it, seconds=0.0))
            record = execute(spec, run_options or RunOptions(), Heard(on_event, warn), time.perf_counter())
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    found: Record = json.loads(json.dumps(record))  # as through the pipe
    return found


run_here = few_samples()(run_whole)


def leave_blank(_figure: Figure, file: Path, *, format: str, **_: object) -> None:
    """In place of ``Figure.savefig``, which takes most of the time of a report."""
    if format == "svg":
        file.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>')
    else:
        Image.new("L", (1, 1)).save(file, format)


@contextmanager
def blank_charts() -> Iterator[None]:
    """Charts are laid out as ever, and their files are blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", leave_blank)
        yield


@few_samples()
@blank_charts()
def compare_here(*words: str) -> CompletedProcess[str]:
    """``python -m compare`` with these words, on few samples; its charts are blank."""
    said, complained = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.setattr("compare.engines.local.run_one", run_whole)
        with pytest.raises(SystemExit) as stop:
            main(list(words))
    assert isinstance(stop.value.code, int)
    return CompletedProcess(words, stop.value.code, said.getvalue(), complained.getvalue())
