"""Comparisons over Ray: a cluster of two workers on this machine, and what goes wrong with others."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.display import Display
from compare.engines import open_engine
from compare.errors import UsageError
from compare.lock import hold
from compare.record import Record, read_records
from compare.runs.options import RunOptions
from compare.runs.sequence import run_all
from compare.spec import RunSpec
from tests.clusters import SPEC, WORDS, dying_in, lines, linux, runs_left, said, silent
from tests.here import compare_here, run_whole
from tests.test_resume import ROOT, untimed


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A run has one thread, so that a node of one CPU can do it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def ray_cluster(*cpus: int) -> Iterator[str]:
    """The address of a Ray cluster on this machine, with a node for each number of CPUs."""
    pytest.importorskip("ray")
    from compare.engines.ray import QUIET

    os.environ |= QUIET
    import ray
    from ray.cluster_utils import Cluster

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    on_terminate = signal.getsignal(signal.SIGTERM)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    first, *rest = ({"num_cpus": number, "object_store_memory": 80 * 2**20} for number in cpus)
    serving = {"ray_client_server_port": port, "include_dashboard": False}
    try:
        found = Cluster(initialize_head=True, head_node_args=first | serving)
    except Exception as error:  # it raises many types: no shared memory, no loopback
        pytest.skip(f"no Ray cluster starts on this machine: {error}")
    try:
        for size in rest:
            found.add_node(**size)
        signal.signal(signal.SIGTERM, on_terminate)
        yield f"ray://127.0.0.1:{port}"
    finally:
        ray.shutdown()  # what is still connected would keep the cluster from ending
        found.shutdown()
        signal.signal(signal.SIGTERM, on_terminate)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster with two workers of one CPU each."""
    with ray_cluster(1, 1) as address:
        yield address


@pytest.mark.alone  # the cluster takes all cores
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_ray_comparison_goes_on_and_equals_the_local_one(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "--variants", "full,linear", "--no-control"]
    engine = ["--out", str(tmp_path / "cluster"), "--engine", cluster]
    with monkeypatch.context() as patch:
        finished = Display.finished

        def interrupt(display: Display, spec: RunSpec, record: Record) -> None:
            finished(display, spec, record)
            raise KeyboardInterrupt

        patch.setattr(Display, "finished", interrupt)
        stopped = compare_here(*words, *engine)
    assert stopped.returncode == 130, stopped.stderr
    assert "interrupted: 1 finished runs are kept" in stopped.stdout
    (kept,) = lines(tmp_path / "cluster")
    resumed = compare_here(*words, *engine, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == stopped.stderr == ""
    assert "1 of 2 runs are already in" in resumed.stdout
    assert f"2 runs, engine {cluster}" in resumed.stdout
    assert "ray" not in resumed.stdout.replace(cluster, "").replace(str(tmp_path), ""), "only our own words"
    assert runs_left() == []
    records = lines(tmp_path / "cluster")
    assert records[0] == kept
    assert len(records) == 2
    assert {record["variant"] for record in records} == {"full", "linear"}
    for record in records:
        here = run_whole(RunSpec.from_json(json.dumps(record["spec"])))
        expected, found = untimed(here) | {"machine": None}, untimed(record) | {"machine": None}
        assert {name: found[name] for name in expected} == expected
        assert (record["machine"]["cores"], record["machine"]["threads"]) == (1, 1)
        assert f"--engine {cluster}" in record["machine"]["command"]


@pytest.mark.alone
@linux
def test_a_run_whose_ray_worker_is_killed_goes_on_from_its_checkpoint(
    cluster: str, tmp_path: Path, own_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_and_lose(cluster, dying_in(tmp_path, monkeypatch), tmp_path)


@pytest.mark.alone
@pytest.mark.long
@linux
def test_a_run_whose_node_is_lost_goes_on_from_its_checkpoint(
    tmp_path: Path, own_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = dying_in(tmp_path, monkeypatch)
    with ray_cluster(0, 1, 1) as address:
        run_and_lose(address, replace(dying, options=(("above", 1), *dying.options)), tmp_path)


def run_and_lose(address: str, dying: RunSpec, folder: Path) -> None:
    """Two runs, of which one kills what it runs on."""
    specs = [dying, replace(SPEC, variant="linear")]
    out, display = folder / "out", silent()
    out.mkdir()
    options = RunOptions(out=str(out), checkpoint_every=1e-9)
    with hold(out, "test"), open_engine(address, out, None) as engine:
        records = run_all(specs, out / "records.jsonl", display, {}, options, None, engine)
    assert (folder / "died").exists()
    assert [(r["run_id"], r["status"], r["reason"]) for r in records] == [(s.run_id, "ok", "") for s in specs]
    assert sorted(r["run_id"] for r in lines(out)) == sorted(s.run_id for s in specs), "a row is lost or doubled"
    assert read_records(out / "records.jsonl")[1] == []
    assert records[0]["train_steps"] == 4
    assert (folder / "died-made").read_text() == "111", "measured and trained, then trained on"
    assert said(display).count("its worker was lost; it is run again") == 1
    assert not (out / "checkpoints").exists()
    assert runs_left() == []


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.usefixtures("one_thread")
def test_ablate_searches_rates_and_teaches_over_a_ray_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    words = ["ablate", "--variants", "linear", "--tips", "distil", "--no-control", "--lr-grid", "1e-3,1e-2"]
    done = compare_here(*words, *WORDS, "--out", str(tmp_path / "out"), "--engine", "ray")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    assert "raylet" not in done.stdout
    records = lines(tmp_path / "out")
    assert {r["status"] for r in records} == {"ok"}
    tips = [r.get("tip") for r in records]
    assert tips[:2] == [None, None], "the search"
    assert sorted(map(str, tips[2:])) == ["baseline", "distil", "teacher"]
    assert tips.index("teacher") < tips.index("distil")
    assert {r["lr_search"]["runs"] for r in records if r.get("tip") == "distil"} == {2}


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_an_address_where_no_ray_answers_is_one_line(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("compare.engines.ray.ANSWERS", 1.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:  # something listens, but never says a word
            server.listen()
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        started = time.perf_counter()
        done = compare_here(*WORDS, "--out", str(tmp_path / "out"), "--engine", address)
    assert time.perf_counter() - started < 60
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: --engine {address}: no Ray cluster answers there within 1 s")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("import", "a node cannot import this version of attention-zoo"),
        ("disk", "on its node: No space left"),
        ("lost", "its Ray worker was lost 4 times, at last: "),
    ],
)
def test_a_task_that_failed_by_itself_is_told(failure: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from compare.engines.ray import RayEngine

    causes = {
        "import": RuntimeError("The remote function failed to import on the worker. No module named 'compare'"),
        "disk": OSError("No space left"),
    }
    cause = causes.get(failure)
    error = ray.exceptions.WorkerCrashedError() if cause is None else ray.exceptions.RayTaskError("task", "", cause)

    def get(_: object) -> Record:
        raise error

    monkeypatch.setattr(ray, "get", get)
    if failure == "import":
        with pytest.raises(UsageError, match=f"^--engine ray://head:1: {told}"):
            RayEngine("ray://head:1").record_of(SPEC, "reference")
    else:
        record = RayEngine("ray").record_of(SPEC, "reference")
        assert record["status"] == "error", "it is tried again with --resume"
        assert record["reason"].startswith(told)


def test_a_cluster_that_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from compare.engines.ray import RayEngine

    class Gone:
        def __init__(self, **_: object) -> None:
            pass

        def options(self, **_: object) -> Gone:
            return self

        def remote(self, *_: object) -> str:
            return "reference"

    def wait(*_: object, **__: object) -> None:
        raise ConnectionError("client is disconnected")

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": NODES[0]}])
    monkeypatch.setattr(ray, "remote", lambda _: Gone())
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr("ray.util.queue.Queue", Gone)
    left = [SPEC]
    with pytest.raises(UsageError, match=r"^--engine ray://head:1: the cluster does not answer any more; finished"):
        list(RayEngine("ray://head:1").results(lambda: left.pop() if left else None, RunOptions(), silent()))


def test_a_port_of_something_else_is_one_line() -> None:
    pytest.importorskip("ray")
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            pytest.raises(UsageError, match=f"^--engine ray://127.0.0.1:{port}: this port serves no clients of Ray: "),
            open_engine(f"ray://127.0.0.1:{port}", Path("out"), None),
        ):
            pass
    finally:
        server.stop(0)


NODES = [{"CPU": 4.0, "memory": 8e9}, {"CPU": 8.0, "GPU": 2.0, "memory": 3e9}, {"CPU": 64.0, "memory": 1e9}]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, {"num_cpus": 1}),
        ({"threads": 6}, {"num_cpus": 6}),
        ({"steps": 0}, {"num_cpus": 4}),
        ({"steps": 0, "threads": 6}, {"num_cpus": 8}),
        ({"memory_limit": 2 * 10**9}, {"num_cpus": 1, "memory": 2 * 10**9}),
        ({"memory_limit": 2 * 10**9, "device": "cuda"}, {"num_cpus": 1, "num_gpus": 1}),
        (
            {"threads": 65},
            "65 CPUs, the threads of a run (OMP_NUM_THREADS sets them), got none of 3",
        ),
        ({"threads": 9, "device": "cuda"}, "and a GPU, got none of 3"),
        ({"memory_limit": 10**10}, "and 10,000,000,000 bytes of memory, got none of 3"),
    ],
)
def test_a_task_asks_for_what_its_run_needs(
    change: dict[str, Any], wanted: dict[str, float] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from compare.engines.ray import RayEngine

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": each} for each in NODES])
    engine, spec = RayEngine("ray"), replace(SPEC, **change)
    if isinstance(wanted, dict):
        assert engine.demands(spec) == wanted
    else:
        with pytest.raises(UsageError) as error:
            engine.demands(spec)
        assert str(error.value).endswith(wanted)
