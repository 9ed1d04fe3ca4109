"""Engines: what runs the specs of a comparison, on this machine or on a cluster.

Ray and submitit are imported in the files of their names, when such an engine is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compare.engines.base import Engine
from compare.engines.local import Local
from compare.errors import UsageError


@contextmanager
def open_engine(name: str, out: Path, timeout: float | None) -> Iterator[Engine]:
    """The engine of ``--engine``; leaving the context ends what it still runs.

    Args:
        name: as ``compare.values.engine`` reads it.
        out: the folder of the results.
        timeout: seconds after which a run is stopped; None = never.

    Raises:
        UsageError: its library is not installed, or its cluster does not answer.
    """
    if name == "local":
        yield Local()
    elif name == "slurm":
        if timeout is None:
            raise UsageError("--engine slurm needs --timeout SECONDS: Slurm asks of each job how long it may take")
        from compare.engines.slurm import Slurm

        yield Slurm(out, timeout)
    else:
        from compare.engines.ray import connect

        with connect(None if name == "ray" else name) as engine:
            yield engine
