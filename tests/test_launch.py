"""One command in several processes: what a launch is, how its commands work together, and what its runs record."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.parallel import markdown, table
from compare.__main__ import main
from compare.errors import UsageError
from compare.launch import Launch, Seat, choose_parallel, find_launch
from compare.parallel import processes_of, sizes_of, unable
from compare.record import Record, read_records
from compare.report.facts.grouping import Source, group_records
from compare.runs import meeting as meetings
from compare.runs import ranks
from compare.runs.crew import cause
from compare.runs.environ import one_gpu
from compare.runs.meeting import Meeting
from compare.runs.options import RunOptions
from compare.runs.outcome import CALLED_OFF
from compare.spec import DEFAULTS, RunSpec, reproduce
from tests.here import compare_here, run_whole
from tests.learning import small_spec
from tests.together import ROOT, meeting_place

SPEC = replace(small_spec("mqar", 32, steps=6, batch_size=8), d_model=16, n_heads=2, n_layers=1)
TINY = ["--tasks", "mqar", "--seq-len", "32", "--d-model", "16", "--n-heads", "2", "--n-layers", "1", "--no-control"]
TINY += ["--batch-size", "8", "--steps", "6", "--checkpoint-every", "1e-9"]
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
TORCHRUN |= {"MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
KINDS = "data=N, shard=N, pipeline=N, context=N, tensor=N"
PLUG_IN = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
import torch.distributed as dist
from zoo import register
from zoo.contract import Attention, Dims, Traits

@dataclass(frozen=True, kw_only=True)
class Config:
    """flag: a file that says that it has failed already."""
    flag: str = ""

@register("failing", config=Config)
class Failing(Attention):
    """Kills the process of rank 1 in the fourth step of training, once."""
    traits = Traits(family="mine", source="mine", year=2026, time="O(N)", memory="O(N)", causal=False)
    made = 0

    def __init__(self, dims: Dims, config: Config):
        super().__init__(dims)
        self.config, self.calls = config, 0
        Failing.made += 1
        self.trained = Failing.made == 2

    def forward(self, q, k, v, *, key_padding_mask=None):
        self.calls += self.training
        together = dist.is_initialized() and dist.get_rank() == 1
        if self.trained and together and self.calls == 4 and not os.path.exists(self.config.flag):
            Path(self.config.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return v + q.mean() + k.mean()
'''


def spec_of(record: Record) -> RunSpec:
    return RunSpec.from_json(json.dumps(record["spec"]))


def torchrun(*words: str, site: Path) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node 2 -m compare`` with these words."""
    paths = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "compare", *words],
        env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        **{"cwd": ROOT, "capture_output": True, "text": True, "check": False, "timeout": 250},
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], list[Record]]:
    """A comparison of two processes: its folder, what it printed and its records."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "failing.py").write_text(PLUG_IN)
    variants = ["--variants", "failing:Failing,full", "--set", f"failing.flag={folder / 'failed'}"]
    done = torchrun(*TINY, *variants, "--out", str(folder / "out"), site=folder)
    return folder, done, read_records(folder / "out/records.jsonl")[0]


def test_torchrun_writes_one_set_of_records(
    launched: tuple[Path, subprocess.CompletedProcess[str], list[Record]],
) -> None:
    folder, done, records = launched
    assert done.returncode == 0, done.stdout + done.stderr
    _, record = records
    assert (record["variant"], record["status"]) == ("full", "ok"), record["reason"]
    assert record["spec"]["parallel"] == "data=2"
    assert record["train_tokens"] == 6 * 8 * 32
    assert record["test_size"] > 1000
    assert record["communicated_bytes"] == 4 * record["params"] + 4, "gradients, and a count of targets"
    assert record["command"].startswith("torchrun --nproc-per-node 2 -m compare ")
    assert len(record["curve"]) == 6
    assert done.stdout.count("2/2 full") == 2, "only one command speaks: of the start and of the end"
    assert (folder / "out/report.html").exists()
    assert "communicated a step" in (folder / "out/report.md").read_text()


def test_two_processes_record_what_one_does(
    launched: tuple[Path, subprocess.CompletedProcess[str], list[Record]],
) -> None:
    """The same loss of training at each step; FLOPs and tokens are those of the whole batch."""
    _, _, records = launched
    options = RunOptions(machine=records[1]["machine"])
    one = run_whole(replace(spec_of(records[1]), parallel=None), run_options=options)
    assert one["test_loss"] == pytest.approx(records[1]["test_loss"], abs=1e-4)
    assert one["test_score"] == records[1]["test_score"]
    losses = [[point["train_loss"] for point in record["curve"]] for record in (one, records[1])]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert one["flops"] == pytest.approx(records[1]["flops"], rel=1e-6)
    assert one["params"] == records[1]["params"]
    assert one["run_id"] != records[1]["run_id"]
    groups = group_records([Source([one, records[1]], {})])
    assert len(groups) == 2, "a table has records of one number of processes"
    assert {group.conditions for group in groups} == {"parallel=data=2", "parallel=null"}


def test_a_killed_process_ends_the_others_and_one_process_goes_on(
    launched: tuple[Path, subprocess.CompletedProcess[str], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, records = launched
    assert records[0]["status"] == "error"
    assert re.fullmatch(r"rank 1: killed by signal 9 \(SIGKILL\) in .*", records[0]["reason"]), records[0]["reason"]
    assert records[0]["wall_seconds"] < 200
    spec = spec_of(records[0])
    checkpoint = RunOptions(out=str(folder / "out")).checkpoint_of(spec)
    assert checkpoint is not None
    assert checkpoint.exists()
    assert checkpoint == RunOptions(out=str(folder / "out")).checkpoint_of(replace(spec, parallel=None))

    monkeypatch.syspath_prepend(str(folder))
    options, steps = RunOptions(out=str(folder / "out"), machine=records[0]["machine"]), []
    resumed = run_whole(replace(spec, parallel=None), lambda event: steps.append(event.get("step")), options)
    assert (resumed["status"], resumed["train_steps"]) == ("ok", 6), resumed["reason"]
    assert next(step for step in steps if step is not None) >= 1, "it began anew"
    assert resumed["earlier_parallel"] == ["data=2"]
    assert resumed["tokens_per_second"] > 0, "its own costs were measured"
    assert "communicated_bytes" not in resumed


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, 2),
        ({"TORCHELASTIC_RUN_ID": None}, None),
        ({"TORCHELASTIC_RUN_ID": None, "RANK": None, "MASTER_PORT": None}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"RANK": None}, "RANK is missing"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is missing"),
        ({"MASTER_PORT": "high"}, "MASTER_PORT is 'high'"),
    ],
)
def test_only_torchruns_mark_makes_a_launch(changed: dict[str, str | None], found: int | str | None) -> None:
    variables = {name: value for name, value in {**TORCHRUN, **changed}.items() if value is not None}
    if isinstance(found, str):
        with pytest.raises(UsageError, match=found):
            find_launch(variables)
        return
    launch = find_launch(variables)
    assert (launch and launch.size) == found
    if launch is not None:
        assert not launch.hosts
        own_store = find_launch({**variables, "TORCHELASTIC_USE_AGENT_STORE": "False"})
        assert own_store is not None
        assert own_store.hosts


def test_a_launcher_without_its_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "error: TORCHELASTIC_RUN_ID is set, as by torchrun, but RANK is missing: start with torchrun "
        "--nproc-per-node 2 -m compare, or unset TORCHELASTIC_RUN_ID\n"
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--parallel", "data=2"], "--parallel data=2: this command has one process; start it with torchrun "),
        (["--parallel", "heads=2"], f"argument --parallel: expected {KINDS}, each at most once, got 'heads=2'"),
        (["--parallel", "data"], f"argument --parallel: expected {KINDS}, each at most once, got 'data'"),
        (["--parallel", "data=1"], "expected a number of processes of at least 2 after data=, got '1'"),
        (["--parallel", "data=2,shard=2"], "expected shard=N alone, got 'data=2,shard=2'"),
        (["--parallel", "data=2,data=2"], f"expected {KINDS}, each at most once, got 'data=2,data=2'"),
    ],
)
def test_bad_words_are_one_line(words: list[str], error: str, tmp_path: Path) -> None:
    done = compare_here(*TINY, *words, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def launch_of(rank: int = 0, size: int = 2, port: int = 1, *, hosts: bool = False) -> Launch:
    return Launch(
        rank=rank, size=size, local_rank=rank, local_size=size, address="127.0.0.1", port=port, hosts=hosts, restarts=0
    )


def test_runs_are_shared_by_all_processes_of_the_launch() -> None:
    assert choose_parallel(None, None) is None
    assert choose_parallel(None, launch_of(size=4)) == "data=4"
    assert choose_parallel("shard=4", launch_of(size=4)) == "shard=4"
    with pytest.raises(UsageError, match=r"--parallel shard=2: this command has 4; start it with torchrun .* 2 "):
        choose_parallel("shard=2", launch_of(size=4))
    assert sizes_of("shard=4") == {"shard": 4}
    assert [processes_of(parallel) for parallel in (None, "data=2", "shard=8")] == [1, 2, 8]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"parallel": None, "compile": True, "batch_size": 1}, ""),
        ({"batch_size": 3}, "batches of 3: expected a sample for each of 4 processes; raise --batch-size"),
        ({"length_schedule": "from-16th", "batch_size": 8}, ""),
        ({"compile": True}, "--compile"),
        ({"decode": True}, "--decode"),
        ({"quantize": "int8-dynamic"}, "--quantize"),
        ({"tune": "lora", "pretrain": 0.5}, "--tune"),
        ({"teacher": "x", "distill": "hidden"}, "--distill hidden"),
        ({"dtype": "float16"}, ""),
        ({"parallel": "shard=4", "dtype": "float16"}, "--dtype float16"),
        ({"parallel": "shard=4", "reversible": True}, "--reversible"),
        ({"reversible": True}, ""),
    ],
)
def test_what_several_processes_cannot_share_is_refused(changed: dict[str, Any], why: str) -> None:
    spec = replace(SPEC, **{"parallel": "data=4"} | changed)
    found = unable(spec)
    assert found.startswith(f"--parallel {spec.parallel} cannot be combined with {why}") if why else found == ""


def test_one_process_keeps_the_run_id_it_had() -> None:
    old = {name: value for name, value in asdict(SPEC).items() if name != "parallel"}
    assert RunSpec.from_json(json.dumps(old)) == SPEC
    assert replace(SPEC, parallel="data=2").run_id != SPEC.run_id
    identity = {name: value for name, value in old.items() if value != DEFAULTS.get(name, ...)}
    assert SPEC.run_id == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def test_the_command_that_repeats_a_run_launches_it() -> None:
    words = reproduce(replace(SPEC, parallel="shard=2"))
    assert words.startswith("torchrun --nproc-per-node 2 -m compare --no-control --variants full ")
    assert words.endswith(" --parallel shard=2")
    assert reproduce(SPEC).startswith("python -m compare --no-control ")


def test_each_process_of_a_machine_sees_its_own_gpu() -> None:
    assert one_gpu(1, {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert one_gpu(1, {"CUDA_VISIBLE_DEVICES": "4,6"}) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert one_gpu(1, {"CUDA_VISIBLE_DEVICES": "GPU-5a"}) == {"CUDA_VISIBLE_DEVICES": "GPU-5a"}, "the launcher chose"


FAILED = {"status": "error", "reason": "RuntimeError: gloo: Connection closed by peer [127.0.0.1]:34567"}
KILLED = {"status": "error", "reason": "killed by signal 9 (SIGKILL) in training, after step 3: no output"}
NO_MEMORY = {"status": "oom", "reason": "out of memory"}
OK = {"status": "ok", "reason": ""}


@pytest.mark.parametrize(
    ("own", "others", "found"),
    [
        (NO_MEMORY, {1: KILLED}, {}),
        (FAILED, {1: KILLED}, {"status": "error", "reason": f"rank 1: {KILLED['reason']}"}),
        (FAILED, {1: FAILED, 2: NO_MEMORY}, {"status": "oom", "reason": "rank 2: out of memory"}),
        (FAILED, {1: OK, 2: {"status": "error", "reason": CALLED_OFF}}, {}),
        (FAILED, {2: FAILED}, {"reason": "rank 1: its process no longer answers"}),
    ],
)
def test_the_first_cause_is_the_reason(own: Record, others: dict[int, Record], found: Record) -> None:
    size = 2 if len(others) == 1 and 1 in others else 3
    assert cause(own, {0: own, **others}, size) == found


@contextmanager
def two_meetings() -> Iterator[tuple[Meeting, Meeting]]:
    """Rank 0 and rank 1 of a launch."""
    with meeting_place() as port:
        both = Meeting(launch_of(0, port=port)), Meeting(launch_of(1, port=port))
        yield both
        for each in both:
            each.is_over.set()
            each.pulse.join()


class CalledOff:
    """In place of a worker."""

    def __init__(self) -> None:
        self.called = threading.Event()

    def call_off(self) -> None:
        self.called.set()


def test_jobs_and_the_end_reach_the_other_commands() -> None:
    with two_meetings() as (first, second):
        assert first.post("one") == 0
        assert first.post("two") == 1
        assert (second.next(0), second.next(1)) == ("one", "two")
        assert first.seat(1) == Seat(
            rank=0, size=2, address="127.0.0.1", port=first.launch.port, prefix="attention-zoo/0/run/1"
        )
        first.end()
        assert second.next(2) is None


def test_a_mark_inherited_from_another_launch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meetings, "ARRIVAL", 0.3)
    monkeypatch.setattr(ranks, "ARRIVAL", 0.3)
    advice = (
        r"start all with torchrun --nproc-per-node 2 -m compare …, or unset TORCHELASTIC_RUN_ID to run in one process"
    )
    with meeting_place() as port:
        alone = Meeting(launch_of(0, port=port))
        with pytest.raises(
            UsageError, match=f"^TORCHELASTIC_RUN_ID is set, but the command of rank 1 did not start: {advice}$"
        ):
            alone.post("job")
        alone.is_over.set()
        alone.pulse.join()
    with pytest.raises(
        UsageError, match=f"^TORCHELASTIC_RUN_ID is set, but no launcher answers at 127.0.0.1:1: {advice}$"
    ):
        Meeting(launch_of(1, port=1))


@pytest.mark.parametrize("how", ["failed", "ended", "lost"])
def test_a_process_is_called_off_when_it_waits_in_vain(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meetings, "GRACE", 0.05)
    monkeypatch.setattr(meetings, "LOOK", 0.05)
    with two_meetings() as (first, second):
        worker: Any = CalledOff()
        with second.watch(0, worker):
            assert not worker.called.wait(0.3)
            if how == "failed":
                first.report(0, KILLED)
            elif how == "ended":
                first.end()
            else:
                while 0 not in second.heard:
                    time.sleep(0.05)
                monkeypatch.setattr(meetings, "SILENCE", -1.0)
            assert worker.called.wait(10)
        assert first.outcomes(0) == ({0: KILLED} if how == "failed" else {})


def test_a_process_that_ends_by_itself_is_not_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meetings, "LOOK", 0.05)
    with two_meetings() as (first, second):
        worker: Any = CalledOff()
        with second.watch(0, worker):
            first.report(0, NO_MEMORY)
            time.sleep(0.2)
        assert not worker.called.is_set()
        second.report(0, FAILED)
        assert first.outcomes(0) == {0: NO_MEMORY, 1: FAILED}


def test_the_table_of_the_benchmark_says_what_each_process_holds_and_sends() -> None:
    one = {"label": "full", "status": "ok", "spec": {}, "train_memory_bytes": 4 * 2**20, "tokens_per_second": 1000.0}
    two = one | {"spec": {"parallel": "data=2"}, "communicated_bytes": 2048}
    assert markdown(table([one, two])).splitlines()[2:] == [
        "| full | one process | 4\xa0MiB | 1,000 |  |",
        "| full | data=2 | 4\xa0MiB | 1,000 | 2\xa0KiB |",
    ]
