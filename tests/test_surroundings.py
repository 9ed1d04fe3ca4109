"""Where comparisons are run: beside a user's files, below launchers and notebooks, in containers, by other users."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from rich.console import Console

from compare.__main__ import main
from compare.comparison import choose_threads
from compare.display import Display, choose_display
from compare.folder import stamp_folder
from compare.record import read_records
from compare.runs import limits
from compare.runs.environ import worker_environment
from compare.runs.machine import describe_machine
from tasks.cache import load_or_build, load_or_compute
from tests.learning import small_spec
from tests.make_records import many_records, write_folder

ROOT = Path(__file__).parents[1]
SPEC = replace(small_spec("mqar", 32, steps=3, batch_size=8), d_model=16, n_heads=1, n_layers=1)
TINY = ["--tasks", "mqar", "--seq-len", "32", "--d-model", "16", "--n-layers", "1", "--batch-size", "8", "--steps", "2"]
LAUNCHERS = {
    **{"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456"},
    **{"GROUP_RANK": "0", "PMI_SIZE": "4", "PMI_RANK": "1", "MV2_COMM_WORLD_SIZE": "4"},
    **{"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "3"},
    **{"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16"},
    **{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_TORCH_DEVICE": "meta"},
}


def silent() -> Display:
    return Display(Console(file=io.StringIO()))


def test_a_worker_inherits_what_a_process_needs_and_nothing_that_steers_a_run() -> None:
    needed = {"PATH": "/bin", "HOME": "/home/me", "LD_LIBRARY_PATH": "/lib", "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C"}
    needed |= {"https_proxy": "http://proxy", "HF_HOME": "/hf", "HF_HUB_OFFLINE": "1", "TMPDIR": "/scratch"}
    needed |= {"PYTHONPATH": "/mine", "SystemRoot": "C:\\Windows", "ATTENTION_ZOO_CACHE": "/cache"}
    steering = {
        "MKL_NUM_THREADS": "64",
        "OMP_NUM_THREADS": "64",
        "MPLBACKEND": "module://mine",
        "PYTHONWARNINGS": "error",
    }
    steering |= {"NVIDIA_TF32_OVERRIDE": "1", "CUDA_LAUNCH_BLOCKING": "1", "PYTHONIOENCODING": "ascii"}
    made = worker_environment(3, needed | steering | LAUNCHERS | {"TORCHELASTIC_RUN_ID": "x"})
    own = {"OMP_NUM_THREADS": "3", "PYTHONIOENCODING": "utf-8", "PYTHONSAFEPATH": "1"}
    assert made == needed | own


PLUG_IN = '''
import random, sys, torch
from dataclasses import dataclass
from zoo import register
from zoo.contract import Attention, Dims, Traits
print("α: a word of mine")

@dataclass(frozen=True, kw_only=True)
class Config:
    """No options."""

@register("mine", config=Config)
class Mine(Attention):
    """The mean."""
    traits = Traits(family="mine", source="mine", year=2026, time="O(N)", memory="O(N)", causal=False)

    def __init__(self, dims: Dims, config: Config):
        super().__init__(dims)

    def forward(self, q, k, v, *, key_padding_mask=None):
        return v + (q + k).mean()
'''
OURS = "import sys; sys.path[0] = '/opt/bin'; from compare.__main__ import main; main()"  # the console script


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A user's folder: a plug-in, and files with names of ours and of the standard library."""
    for name in ("tasks", "zoo", "random", "profile", "string", "queue"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user')")
    (tmp_path / "mine.py").write_text(PLUG_IN)
    return tmp_path


def test_a_comparison_runs_in_a_users_folder_below_a_notebook_and_in_ascii(beside: Path) -> None:
    (beside / "compare.py").write_text("raise SystemExit('compare.py of the user')")
    (beside / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\n")
    marks = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    words = [*TINY, "--variants", "mine:Mine", "--no-control", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", OURS, *words],
        cwd=beside,
        env=os.environ | LAUNCHERS | marks | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = read_records(beside / "out/records.jsonl")[0]
    assert (record["status"], record["variant"]) == ("ok", "mine:Mine"), record["reason"]
    assert record["train_tokens"] == 2 * 8 * 32
    assert "? mqar ? N 32 ? seed 0: accuracy" in done.stdout
    assert "\x1b[1A" not in done.stdout, "a table was drawn into a log"
    assert (beside / "out/report.html").exists()


def test_modules_of_the_current_folder_come_last(beside: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compare", "list", "mine:Mine"],
        cwd=beside,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine: The mean." in done.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "expected"),
    [
        (Terminal, {"TERM": "xterm"}, "TableDisplay"),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, "TableDisplay"),
        (Terminal, {"TERM": "dumb"}, "Display"),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, "Display"),
        (io.StringIO, {"TERM": "xterm", "TTY_COMPATIBLE": "1"}, "Display"),
    ],
)
def test_a_table_is_drawn_only_where_it_can_be_drawn_again(
    stream: Callable[[], io.StringIO], variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream())
    assert type(choose_display(quiet=False, as_json=False)).__name__ == expected


def system(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


GIB = 2**30
V2 = {
    "proc/self/cgroup": "0::/jobs/mine\n",
    "sys/fs/cgroup/jobs/memory.max": f"{6 * GIB}\n",
    "sys/fs/cgroup/jobs/memory.current": f"{5 * GIB}\n",
    "sys/fs/cgroup/jobs/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
    "sys/fs/cgroup/jobs/mine/memory.current": "7\n",
    "sys/fs/cgroup/jobs/mine/cpu.max": "50000 100000\n",
}
V2_CONTAINER = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": f"{6 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{4 * GIB}\n",
    "sys/fs/cgroup/cpu.max": "50000 100000\n",
}
V1 = {  # the path is the host's, and not to be seen from inside
    "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{6 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{5 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"cache 3\ntotal_inactive_file {GIB}\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
UNLIMITED = {
    "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
}


@pytest.mark.parametrize("files", [V2, V2_CONTAINER, V1], ids=["v2", "v2 container", "v1"])
def test_limits_of_a_control_group_are_what_there_is(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = system(tmp_path, files)
    assert limits.usable_cores(inside) == 0.5
    assert limits.memory_limit(inside) == 6 * GIB
    assert limits.memory_left(inside) == 2 * GIB


@pytest.mark.parametrize("files", [UNLIMITED, {}], ids=["no limit", "no control groups"])
def test_where_nothing_is_limited_the_machine_counts(files: dict[str, str], tmp_path: Path) -> None:
    outside = system(tmp_path, files)
    assert limits.usable_cores(outside) == limits.usable_cores(tmp_path / "nowhere")
    assert limits.memory_limit(outside) is None
    assert limits.memory_left(outside) is None


def test_a_containers_cores_and_memory_are_recorded_and_threads_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("compare.runs.machine.usable_cores", lambda: 1.5)
    monkeypatch.setattr("compare.runs.machine.memory_limit", lambda: GIB // 4)
    monkeypatch.setattr("compare.comparison.usable_cores", lambda: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    stamp = describe_machine(device="cpu", threads=1, gpu=None, command="")
    assert (stamp["cores"], stamp["memory_bytes"]) == (1.5, GIB // 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose_threads(silent()) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    said = io.StringIO()
    assert choose_threads(Display(Console(file=said))) == 64
    assert said.getvalue() == "warning: OMP_NUM_THREADS: 64 threads on 1.5 cores make times noisy; set it to 1\n"


def test_each_start_leaves_its_stamp_and_another_machine_is_told(tmp_path: Path) -> None:
    said = io.StringIO()
    display = Display(Console(file=said, width=400))
    stamps = [{"cpu": cpu, "started": f"2026-01-0{day}"} for day, cpu in enumerate(("Xeon", "Xeon", "EPYC"), 1)]
    for stamp in stamps[:2]:
        stamp_folder(tmp_path, stamp, display)
    assert said.getvalue() == ""
    stamp_folder(tmp_path, stamps[2], display)
    assert said.getvalue().startswith(
        "warning: earlier runs in this folder come from another machine (Xeon): the report separates them"
    )
    assert json.loads((tmp_path / "environment.json").read_text()) == stamps[2] | {"earlier": stamps[:2]}


def rows() -> dict:
    from tasks.cache import Rows

    return {split: Rows(1, [{"label": 1}]) for split in ("train", "validation", "test")}


def test_others_may_read_what_is_kept_and_need_not_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    before = os.umask(0o022)
    try:
        load_or_build("key", rows, lambda _: None)
        assert load_or_compute("key", "facts", lambda: {"a": 1}) == {"a": 1}
    finally:
        os.umask(before)
    found = list(tmp_path.rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in found} == {0o755, 0o644}
    assert not [path for path in found if path.suffix == ".part"]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert load_or_compute("key", "others", lambda: {"b": 2}) == {"b": 2}


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))

    def interrupted(splits: datasets.DatasetDict, folder: str) -> None:
        splits["test"].save_to_disk(f"{folder}/test")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.DatasetDict, "save_to_disk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_or_build("key", rows, lambda _: None)
    assert list(tmp_path.iterdir()) == []
    load_or_build("key", rows, lambda _: None)


def test_a_cache_that_lost_a_file_is_built_again_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path))
    load_or_build("key", rows, lambda _: None)
    next(tmp_path.rglob("test/*.arrow")).unlink()
    with pytest.warns(UserWarning, match="rebuilding the unreadable cache"):
        assert load_or_build("key", rows, lambda _: None)["test"][0] == {"label": 1}


def test_a_cache_out_of_reach_is_one_line_that_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    monkeypatch.delenv("ATTENTION_ZOO_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(
        ValueError, match=r"the cache .*file/\.cache/attention-zoo cannot be used \(.*\): set ATTENTION_ZOO_CACHE"
    ):
        load_or_build("key", rows, lambda _: None)


def test_files_read_are_kept_beside_the_tables_where_the_home_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
import os
os.access = lambda place, mode: str(place) != {str(home)!r}
from tasks.cache import keep_what_is_read
from pathlib import Path
keep_what_is_read(Path({str(tmp_path)!r}))
import datasets
print(datasets.config.HF_DATASETS_CACHE)
"""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=known | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path / 'read'}\n"


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, many_records(lengths=(1024,), seeds=1)[:2])
    (tmp_path / "charts").write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path)])
    assert stop.value.code == 1
    told = f"error: the report cannot be written: {tmp_path}/charts: File exists\n"
    assert capsys.readouterr().err == told


def test_a_chart_that_does_not_fit_names_its_file_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, many_records(lengths=(1024,), seeds=1)[:2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main(["report", str(tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 1
    assert re.fullmatch(
        rf"error: the report cannot be written: {tmp_path}/charts/\S+\.png: File too large\n", capsys.readouterr().err
    )
    assert not list((tmp_path / "charts").glob(".*"))
