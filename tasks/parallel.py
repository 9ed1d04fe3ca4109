"""Work on all cores, results in order, without needing a guard in the user's script."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(make: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """``make`` of each job, in the order of the jobs, a few at a time: what is not read yet is hardly begun.

    ``make`` must be a function of a module, and what it returns must not depend on the process that runs it.
    """
    from joblib import cpu_count
    from joblib.externals.loky import get_reusable_executor

    # joblib.Parallel hands out the next job when one is done, whether or not its result was read.
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
