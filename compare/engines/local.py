"""The engine of a single machine: one run after another, each alone on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from compare.engines.base import Listener, Results
from compare.runs.crew import run_one
from compare.runs.options import RunOptions
from compare.spec import RunSpec


class Local:
    """Runs specs in the order in which it takes them."""

    def results(self, take: Callable[[], RunSpec | None], run_options: RunOptions, listener: Listener) -> Results:
        while (spec := take()) is not None:
            listener.started(spec)
            yield spec, run_one(spec, partial(listener.update, spec), run_options, listener.warn)
