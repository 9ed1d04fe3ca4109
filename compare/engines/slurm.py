"""The engine of a Slurm cluster: each run is a job, which submitit submits and whose result it reads from a folder.

Partition, account and the like come from Slurm's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT …
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from compare.engines.base import RETRIES, Listener, Results
from compare.engines.node import carry_out, is_alone, order
from compare.errors import UsageError
from compare.record import Record
from compare.runs.options import RunOptions
from compare.runs.outcome import Status, new_record
from compare.spec import RunSpec

QUEUED = 200  # jobs that are in Slurm's queue at once
LOOK = 2.0  # seconds between looks at the jobs
MARGIN = 15 * 60  # seconds that a job may take beyond its run: its start, its data, its wait for cores
ENDED: dict[str, Status] = {"TIMEOUT": "timeout", "OUT_OF_MEMORY": "oom", "CANCELLED": "error"}
"""States of jobs that are not tried again -> the status of their runs."""


class Sent(NamedTuple):
    """A run, its job, and how often it was submitted."""

    spec: RunSpec
    job: Any
    times: int


class Slurm:
    """Runs specs as jobs.

    Args:
        out: the folder of the results, which all nodes share. Jobs and their logs lie in its folder ``slurm``.
        timeout: seconds after which a run is stopped.

    Raises:
        UsageError: submitit is not installed, or this is no machine of a Slurm cluster.
    """

    def __init__(self, out: Path, timeout: float) -> None:
        try:
            import submitit
        except ImportError as error:
            what = "--engine slurm: submitit is not installed"
            raise UsageError(f"{what}; pip install 'attention-zoo[slurm]' brings it") from error
        for tool in ("sbatch", "srun"):
            if shutil.which(tool) is None:
                raise UsageError(
                    f"--engine slurm: found no {tool}: start the comparison on a machine that submits jobs"
                )
        self.executor = submitit.AutoExecutor(folder=out / "slurm", cluster="slurm")
        self.minutes = ceil((timeout + MARGIN) / 60)

    def results(self, take: Callable[[], RunSpec | None], run_options: RunOptions, listener: Listener) -> Results:
        sent: list[Sent] = []
        begun: set[str] = set()
        try:
            while True:
                while len(sent) < QUEUED and (spec := take()) is not None:
                    sent.append(Sent(spec, self.submit(spec, run_options), 1))
                if not sent:
                    return
                time.sleep(LOOK)
                for each in list(sent):
                    spec, job, times = each
                    ended = job.done()
                    if spec.run_id not in begun and (ended or job.state == "RUNNING"):
                        begun.add(spec.run_id)
                        listener.started(spec)
                    if not ended:
                        continue
                    sent.remove(each)
                    record = self.record_of(spec, job)
                    if record is None and times <= RETRIES:
                        what = f"{spec.label} · {spec.task} · seed {spec.seed}"
                        listener.warn(f"{what}: its job was lost ({job.state}); it is run again")
                        sent.append(Sent(spec, self.submit(spec, run_options), times + 1))
                        continue
                    reason = f"its job was lost {times} times, at last with state {job.state}: {job.paths.stderr}"
                    yield spec, record or new_record(spec, "error", reason)
        finally:
            for each in sent:
                each.job.cancel(check=False)

    def submit(self, spec: RunSpec, run_options: RunOptions) -> Any:
        asked: dict[str, int] = {}
        if spec.device == "cuda":
            asked["gpus_per_node"] = 1
        elif spec.memory_limit is not None:
            asked["mem_gb"] = ceil(spec.memory_limit / 2**30) + 1  # and the supervisor
        self.executor.update_parameters(
            name="attention-zoo",
            timeout_min=self.minutes,
            cpus_per_task=spec.threads,
            slurm_srun_args=[f"--cpus-per-task={spec.threads}"],  # srun of Slurm 22.05 and later asks again
            slurm_exclusive=True if is_alone(spec) else None,
            **asked,
        )
        return self.executor.submit(job_of_run, order(spec, run_options))

    def record_of(self, spec: RunSpec, job: Any) -> Record | None:
        """The record of an ended job; None where the job was lost.

        Raises:
            UsageError: its node cannot run it.
        """
        from submitit.core.utils import UncompletedJobError

        error = job.exception()
        if error is None:
            found: Record | str = job.result()
            if isinstance(found, str):
                raise UsageError(f"--engine slurm: {found}")
            return found
        if not isinstance(error, UncompletedJobError):  # raised by what ran on the node
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            told = next((line for line in reversed(lines) if "Error" in line), "no reason found")
            return new_record(spec, "error", f"on its node: {told}; {job.paths.stderr}")
        status = next((status for state, status in ENDED.items() if str(job.state).startswith(state)), None)
        return status and new_record(spec, status, f"Slurm ended its job with state {job.state}")


def job_of_run(text: str) -> Record | str:
    """The job of a run, on its node: the result of `carry_out`."""
    return carry_out(text, lambda _: None, print)
