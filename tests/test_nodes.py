"""What a run gets on a node of a cluster: cores of its own, and a record that describes the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compare.engines import node
from compare.engines.cores import own_cores, physical_cores
from compare.engines.node import carry_out, is_alone, order
from compare.lock import hold
from compare.record import Record, identity
from compare.report.facts.grouping import machine_line
from compare.runs.machine import describe_machine
from compare.runs.options import RunOptions
from compare.runs.outcome import new_record
from compare.spec import RunSpec
from tests.clusters import SPEC, linux

two_cores = pytest.mark.skipif(len(physical_cores(range(os.cpu_count() or 1))) < 2, reason="needs two cores")


def affinity_of(threads: int | None, after: threading.Event, found: list[set[int]], release: threading.Event) -> None:
    with own_cores(threads):
        found.append(os.sched_getaffinity(0))
        after.set()
        release.wait(30)


@pytest.mark.alone
@linux
@two_cores
def test_runs_on_one_machine_never_share_a_core() -> None:
    whole, found = os.sched_getaffinity(0), list[set[int]]()
    held, also, release = threading.Event(), threading.Event(), threading.Event()
    threads = [threading.Thread(target=affinity_of, args=(1, event, found, release)) for event in (held, also)]
    threads[0].start()
    assert held.wait(60)
    threads[1].start()
    assert also.wait(60)
    assert len(found) == 2
    assert not found[0] & found[1]
    alone, done = threading.Event(), list[set[int]]()
    waits = threading.Thread(target=affinity_of, args=(None, alone, done, release))
    waits.start()
    assert not alone.wait(1), "a run that is alone waits for the others"
    release.set()
    assert alone.wait(60)
    assert done == [whole]
    for thread in (*threads, waits):
        thread.join()
    assert os.sched_getaffinity(0) == whole


@pytest.mark.alone
@linux
def test_a_killed_process_frees_its_cores() -> None:
    code = "from compare.engines.cores import own_cores\nwith own_cores(None):\n    print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with own_cores(None):
        pass


def test_threads_of_one_core_are_one(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3", "4-5", "4-5"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert physical_cores(range(6), tmp_path) == [{0, 2}, {1, 3}, {4, 5}]
    assert physical_cores({1, 2, 5, 7}, tmp_path) == [{1}, {2}, {5}, {7}]
    assert physical_cores({0, 1}, tmp_path / "elsewhere") == [{0}, {1}]


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        ({}, False),
        ({"search": True}, False),
        ({"steps": None, "budget": 5.0}, True),
        ({"steps": 0}, True),
        ({"steps": 0, "decode": True}, True),
        ({"probe": 64}, True),
        ({"steps": None, "budget": 5.0, "device": "cuda"}, False),
    ],
)
def test_runs_that_depend_on_time_have_their_node_alone(change: dict[str, Any], alone: bool) -> None:
    assert is_alone(replace(SPEC, **change)) is alone


def test_some_cores_of_a_node_are_another_machine() -> None:
    machine = {"cpu": "EPYC", "cores": 2, "threads": 2}
    assert machine_line(machine) == "EPYC, 2 cores · 2 threads"
    assert machine_line(machine | {"of_cores": 64}) == "EPYC, 2 of 64 cores · 2 threads"
    record = new_record(SPEC, "ok", "")
    assert identity(record | {"machine": machine}) != identity(record | {"machine": machine | {"of_cores": 64}})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """The options with which a node would do its runs."""
    seen: list[RunOptions] = []

    def run_one(spec: RunSpec, _on_event: object, options: RunOptions, _warn: object) -> Record:
        seen.append(options)
        return new_record(spec, "ok", "")

    monkeypatch.setattr("compare.engines.node.run_one", run_one)
    return seen


def nothing(_: object) -> None:
    pass


def test_a_node_of_another_version_runs_nothing(stub: list[RunOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    text = order(SPEC, RunOptions())
    monkeypatch.setattr(node, "version_of", lambda name: "2.9.1+cpu" if name == "torch" else "0.1.0")
    refused = carry_out(text, nothing, nothing)
    assert isinstance(refused, str)
    assert "has torch 2.9.1, the comparison" in refused
    assert stub == []


def test_a_node_with_fewer_cores_than_threads_runs_nothing(stub: list[RunOptions]) -> None:
    refused = carry_out(order(replace(SPEC, threads=10_000), RunOptions()), nothing, nothing)
    assert isinstance(refused, str)
    assert "cores, expected 10000, its threads: OMP_NUM_THREADS sets them" in refused
    assert stub == []


def test_builds_of_one_version_are_the_same(stub: list[RunOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "version_of", lambda name: "2.13.0+cpu")
    text = order(SPEC, RunOptions())
    monkeypatch.setattr(node, "version_of", lambda name: "2.13.0+cu130")
    assert isinstance(carry_out(text, nothing, nothing), dict)


def test_a_node_without_the_folder_does_what_it_can_without(stub: list[RunOptions], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = RunOptions(out=str(out), machine={"command": "typed"})
    with hold(out, "test"):
        here, models = order(SPEC, options), order(SPEC, replace(options, save=True))
        student = order(replace(SPEC, teacher="1a2b3c4d5e6f"), options)
        record = carry_out(here, nothing, nothing)
        assert isinstance(record, dict)
        assert record["machine"]["command"] == "typed"
        assert record["machine"]["threads"] == 1
        assert stub[-1].out == str(out)
        assert isinstance(carry_out(models, nothing, nothing), dict)
    with hold(out, "another comparison"):
        assert isinstance(carry_out(here, nothing, nothing), dict)
        assert stub[-1].out is None, "no checkpoints, but a record"
        for text in (models, student):
            refused = carry_out(text, nothing, nothing)
            assert refused == f"{node.node()} does not see --out {out}: expected a folder that all nodes share"


@linux
@two_cores
def test_the_machine_of_a_record_says_which_part_the_run_had(stub: list[RunOptions]) -> None:
    whole = describe_machine(device="cpu", threads=1, gpu=None, command="")["cores"]
    part, alone = (carry_out(order(s, RunOptions()), nothing, nothing) for s in (SPEC, replace(SPEC, steps=0)))
    assert isinstance(part, dict)
    assert isinstance(alone, dict)
    assert (part["machine"]["cores"], part["machine"]["of_cores"]) == (1, whole)
    assert alone["machine"]["cores"] == whole
    assert "of_cores" not in alone["machine"]
