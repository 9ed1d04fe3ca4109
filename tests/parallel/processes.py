"""Runs checks on several gloo processes, all in one start, which takes seconds."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from zoo.cores import scan

Checks = Callable[[], Iterable[tuple[str, Callable[[], None]]]]


def run(processes: int, checks: Checks, seconds: int) -> None:
    """Run ``checks`` on every process, and fail with the titles and tracebacks of those that fail.

    After a failure a process ends: the others would wait for it in vain.
    """
    with TemporaryDirectory() as folder:
        context = get_context("spawn")
        started = [context.Process(target=_work, args=(rank, processes, checks, folder)) for rank in range(processes)]
        for process in started:
            process.start()
        for process in started:
            process.join(seconds)
        late = [process for process in started if process.is_alive()]
        for process in late:
            process.kill()
        failures = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("failed-*"))]
        assert not failures, "\n".join(failures)
        assert not late, f"{len(late)} of {processes} processes did not end in {seconds} s"
        assert [process.exitcode for process in started] == [0] * processes


def _work(rank: int, processes: int, checks: Checks, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["WORLD_SIZE"] = str(processes)  # as torchrun does
    scan.CACHED = 1  # the shortest chunks, so that short pieces have several
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=timedelta(seconds=60))
    for title, check in checks():
        try:
            check()
        except Exception:
            text = f"{title}, process {rank}:\n{traceback.format_exc()}"
            (Path(folder) / f"failed-{rank}").write_text(text, encoding="utf-8")
            break
    dist.destroy_process_group()
