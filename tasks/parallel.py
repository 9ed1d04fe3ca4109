"""Work on all cores with results in order; the user's script needs no ``__main__`` guard."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(make: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """``make`` of each job, in the order of the jobs; only a few jobs start before their results are read.

    ``make`` must be a function of a module, and its result must not depend on the process that runs it.
    """
    from joblib import cpu_count
    from joblib.externals.loky import get_reusable_executor

    # joblib.Parallel would start the next job whether or not earlier results are read.
    cores = cpu_count()
    executor = get_reusable_executor(max_workers=cores)
    begun: deque[Any] = deque()
    try:
        for job in jobs:
            begun.append(executor.submit(make, job))
            if len(begun) > 2 * cores:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        executor.shutdown(wait=False, kill_workers=True)
