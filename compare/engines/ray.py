"""The engine of a Ray cluster: each run is a remote task, which Ray starts again where its worker or node is lost."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from math import floor
from pathlib import Path
from typing import Any

from compare.engines.base import RETRIES, Listener, Results
from compare.engines.node import carry_out, is_alone, order
from compare.errors import UsageError
from compare.record import Record
from compare.runs.limits import usable_cores
from compare.runs.options import RunOptions
from compare.runs.outcome import new_record
from compare.spec import RunSpec

ANSWERS = 8.0  # seconds that a cluster has to answer
TRIES = 3  # to connect to a cluster that answers
QUEUED = 1000  # runs that Ray holds at once
HEARD = 0.5  # seconds between looks at what the runs tell
TOLD = 5.0  # seconds between events of one phase of a run
STORE = 100 * 2**20  # bytes for objects: records are small
CLIENTS = "/ray.rpc.RayletDriver/ClusterInfo"  # what only the server of Ray's clients does
ROOT = Path(__file__).parents[2]
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # it would print the loss of a worker, which we tell ourselves
    "GRPC_VERBOSITY": "NONE",
}
OURS_ALONE = {"RAY_memory_monitor_refresh_ms": "0"}  # runs limit their memory themselves, and say so in their records


@contextmanager
def connect(address: str | None) -> Iterator[RayEngine]:
    """Connect to a Ray cluster, or start one on this machine; leaving the context disconnects, or ends it.

    address: ``ray://HOST:PORT``; None = one of its own.

    Raises:
        UsageError: Ray is not installed, or the cluster does not answer.
    """
    os.environ |= QUIET
    try:
        import ray

        if address is not None:
            import grpc  # noqa: F401  # its clients need it
    except ImportError as error:
        what = f"--engine ray: {error.name} is not installed"
        raise UsageError(f"{what}; pip install 'attention-zoo[ray]' brings it") from error
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL + 1}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            os.environ |= OURS_ALONE
            cores = max(1, floor(usable_cores()))
            with chdir(ROOT):  # Ray gives its workers the current folder, where a user's random.py would hide another
                ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=STORE, **said)
        else:
            wait_for(address)
            join(address, said)
    except UsageError:
        raise
    except Exception as error:  # Ray and gRPC raise many types
        reason = " ".join(str(error).split())
        raise UsageError(f"--engine {address or 'ray'}: Ray cannot be used: {reason}") from error
    signal.signal(signal.SIGTERM, on_terminate)  # Ray's would end the process without a report
    try:
        yield RayEngine(address or "ray")
    finally:
        ray.shutdown()


def join(address: str, said: dict[str, Any]) -> None:
    """Connect to a cluster, and try again where its head is too busy to start a server for this client in time."""
    import ray

    for left in reversed(range(TRIES)):
        try:
            ray.init(address, **said)
            return
        except (ConnectionError, RuntimeError):
            ray.shutdown()
            if not left:
                raise


def wait_for(address: str) -> None:
    """Raise UsageError where no server of Ray's clients answers: Ray would try for half a minute."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") != "0":  # a channel without certificates would wait in vain
        return
    advice = "check host and port (the port of Ray's clients is 10001 unless another was chosen)"
    direct = [("grpc.enable_http_proxy", 0)]  # as Ray's own channels
    with grpc.insecure_channel(address.removeprefix("ray://"), options=direct) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWERS)
            channel.unary_unary(CLIENTS)(b"", timeout=ANSWERS)
        except grpc.FutureTimeoutError:
            what = f"--engine {address}: no Ray cluster answers there within {ANSWERS:g} s"
            raise UsageError(f"{what}: {advice}") from None
        except grpc.RpcError as error:  # the right server answers too, that we did not say who we are
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise UsageError(f"--engine {address}: this port serves no clients of Ray: {advice}") from None


class RayEngine:
    """Runs specs as tasks of the connected cluster. name: what was typed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def results(self, take: Callable[[], RunSpec | None], run_options: RunOptions, listener: Listener) -> Results:
        import ray
        from ray.util.queue import Queue

        told = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})  # its node may be lost
        running: dict[Any, RunSpec] = {}
        hear = Hearing(told, listener)
        try:
            while True:
                while len(running) < QUEUED and (spec := take()) is not None:
                    demands = self.demands(spec)
                    remote = ray.remote(task).options(max_retries=RETRIES, scheduling_strategy="SPREAD", **demands)
                    running[remote.remote(order(spec, run_options), spec.run_id, told)] = spec
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=HEARD)
                hear.news({spec.run_id: spec for spec in running.values()})
                for reference in done:
                    spec = running.pop(reference)
                    hear.end(spec)
                    yield spec, self.record_of(spec, reference)
        except ConnectionError as error:
            what = f"--engine {self.name}: the cluster does not answer any more; finished runs are kept"
            raise UsageError(f"{what}: continue with --resume") from error
        finally:
            for reference in running:
                with suppress(Exception):  # the cluster may be gone
                    ray.cancel(reference, force=True)
            with suppress(Exception):
                told.shutdown(force=True)

    def demands(self, spec: RunSpec) -> dict[str, float]:
        """What a node must have free for a run.

        Raises:
            UsageError: no node has it at all.
        """
        import ray

        demands: dict[str, float] = {"num_cpus": spec.threads}
        words = [f"{spec.threads} CPUs, the threads of a run (OMP_NUM_THREADS sets them)"]
        if spec.device == "cuda":
            demands["num_gpus"] = 1
            words.append("a GPU")
        elif spec.memory_limit is not None:
            demands["memory"] = spec.memory_limit
            words.append(f"{spec.memory_limit:,} bytes of memory")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        kinds = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        able = [node for node in nodes if all(node.get(kinds[name], 0) >= need for name, need in demands.items())]
        if not able:
            raise UsageError(
                f"--engine {self.name}: expected a node with {' and '.join(words)}, got none of {len(nodes)}"
            )
        if is_alone(spec):  # a larger node may get several such runs, which then wait for one another there
            demands["num_cpus"] = min(node["CPU"] for node in able)
        return demands

    def record_of(self, spec: RunSpec, reference: Any) -> Record:
        """The record of an ended task.

        Raises:
            UsageError: its node cannot run it.
        """
        import ray

        try:
            found: Record | str = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            reason = " ".join(str(error.cause).split())
            if isinstance(error.cause, ImportError) or "failed to import on the worker" in reason:
                what = f"--engine {self.name}: a node cannot import this version of attention-zoo"
                raise UsageError(f"{what}: install the same on all nodes") from error
            return new_record(spec, "error", f"on its node: {reason}")
        except ray.exceptions.RayError as error:
            reason = f"its Ray worker was lost {RETRIES + 1} times, at last: {' '.join(str(error).split())}"
            return new_record(spec, "error", reason)
        if isinstance(found, str):
            raise UsageError(f"--engine {self.name}: {found}")
        return found


class Hearing:
    """Passes on what runs tell. told: the queue that they write to."""

    def __init__(self, told: Any, listener: Listener) -> None:
        self.told, self.listener = told, listener
        self.begun: set[str] = set()

    def news(self, running: dict[str, RunSpec]) -> None:
        """Pass on what was told since the last call, by runs that have not ended."""
        from ray.util.queue import Empty

        news: list[tuple[str, str, Any]] = []
        with suppress(Empty):  # it was lost, and began again
            news = self.told.get_nowait_batch(self.told.qsize())
        for run_id, kind, content in news:
            spec = running.get(run_id)
            if spec is None:
                continue
            if kind == "start" and run_id in self.begun:
                self.listener.warn(
                    f"{spec.label} · {spec.task} · seed {spec.seed}: its worker was lost; it is run again"
                )
            if kind == "warning":
                self.listener.warn(content)
                continue
            self.begin(spec)
            if kind == "event":
                self.listener.update(spec, content)

    def begin(self, spec: RunSpec) -> None:
        if spec.run_id not in self.begun:
            self.begun.add(spec.run_id)
            self.listener.started(spec)

    def end(self, spec: RunSpec) -> None:
        self.begin(spec)  # where nothing was heard
        self.begun.discard(spec.run_id)


def task(text: str, run_id: str, told: Any) -> Record | str:
    """The task of a run, on its node: the result of `carry_out`. told: the queue that hears of it."""
    last: tuple[object, float] = None, 0.0

    def tell(kind: str, content: object = None) -> None:
        with suppress(Exception):  # the run matters more than its display
            told.put_nowait((run_id, kind, content))

    def hear(event: Record) -> None:
        nonlocal last
        phase, at = last
        if event["phase"] != phase or time.perf_counter() - at >= TOLD:
            last = event["phase"], time.perf_counter()
            tell("event", event)

    tell("start")
    return carry_out(text, hear, lambda line: tell("warning", line))
