"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from compare.record import Record
from compare.runs.options import RunOptions
from compare.spec import RunSpec

RETRIES = 3  # of a run whose node or worker was lost
Results = Generator[tuple[RunSpec, Record], None, None]


class Listener(Protocol):
    """Hears how runs go on."""

    def started(self, spec: RunSpec) -> None: ...

    def update(self, spec: RunSpec, event: Record) -> None: ...

    def warn(self, text: str) -> None: ...


class Engine(Protocol):
    """Runs specs, one after another or several at once, and never two on the same cores."""

    def results(self, take: Callable[[], RunSpec | None], run_options: RunOptions, listener: Listener) -> Results:
        """Run specs until none is left, and yield the record of each when it ends. Closing it ends what still runs.

        Args:
            take: returns a run that may start now; None where all that are left wait for others. It is asked again
                after each result.
            run_options: how each run is executed.
            listener: hears starts, progress and warnings.

        Raises:
            UsageError: the machines cannot do the runs.
        """
        ...
