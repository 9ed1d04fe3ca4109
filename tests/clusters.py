"""What tests of engines share: a small run, one that kills its supervisor, and a fake of submitit."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from compare.display import Display
from compare.record import Record
from compare.spec import RunSpec
from tests.learning import small_spec

linux = pytest.mark.skipif(sys.platform != "linux", reason="cores are held and pinned on Linux")
SPEC = replace(small_spec("digits", 64, steps=4, batch_size=8), d_model=16, n_heads=2, n_layers=1)
SIZES = ["--d-model", "16", "--n-heads", "2", "--n-layers", "1"]
WORDS = ["--tasks", "digits", "--steps", "4", "--batch-size", "8", *SIZES]
DYING = '''
import os, signal
from pathlib import Path
from zoo import register
from zoo.contract import Attention, Dims, Traits
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Config:
    """flag: a file that says that it has happened already. above: how many processes above the supervisor it kills."""
    flag: str = ""
    above: int = 0

@register("dying", config=Config)
class Dying(Attention):
    """In its fourth step of training it kills the process that supervises it, once."""
    traits = Traits(family="mine", source="mine", year=2026, time="O(N)", memory="O(N)", causal=False)
    made = 0

    def __init__(self, dims: Dims, config: Config):
        super().__init__(dims)
        self.config, self.calls = config, 0
        Dying.made += 1
        self.trained = Dying.made == 2
        with open(config.flag + "-made", "a") as file:
            file.write("1")

    def forward(self, q, k, v, *, key_padding_mask=None):
        self.calls += self.training
        if self.trained and self.calls == 4 and not os.path.exists(self.config.flag):
            Path(self.config.flag).touch()
            parent = os.getppid()  # the template
            for _ in range(1 + self.config.above):
                parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(parent, signal.SIGKILL)
        return v + q.mean() + k.mean()
'''


def dying_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """A run that kills its supervisor once, of a class in a folder that only this process knows.

    It leaves the file ``died`` in ``folder``.
    """
    site = folder / "site"
    site.mkdir()
    (site / "dying.py").write_text(DYING)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return replace(SPEC, variant="dying:Dying", options=(("flag", str(folder / "died")),))


def silent() -> Display:
    return Display(Console(file=io.StringIO(), width=300))


def said(display: Display) -> str:
    return display.console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def lines(out: Path) -> list[Record]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def runs_left(patience: float = 30.0) -> list[str]:
    """Processes of runs of these tests, which have a folder of their own, that still live after ``patience`` seconds:
    Ray ends the workers of a client a while after it has gone."""
    until = time.monotonic() + patience
    while (found := runs_alive()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def runs_alive() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"compare.runs.template" in words and os.environ["HF_HOME"].encode() in variables:
            found.append(folder.name)
    return found


class UncompletedJobError(RuntimeError):
    pass


class FailedJobError(RuntimeError):
    pass


class FakeJob:
    """A job as submitit's LocalExecutor makes one: a process that reads a pickle and writes another."""

    def __init__(self, folder: Path, content: tuple[Any, ...]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.in")))
        self.result_pickle = folder / f"{number}.out"
        (folder / f"{number}.in").write_bytes(pickle.dumps(content))
        self.paths = SimpleNamespace(stderr=folder / f"{number}.err")
        code = (
            "import pickle, sys, traceback\nfunction, *given = pickle.load(open(sys.argv[1], 'rb'))\n"
            "try: result = 'success', function(*given)\nexcept Exception: result = 'error', traceback.format_exc()\n"
            "pickle.dump(result, open(sys.argv[2], 'wb'))"
        )
        words = [sys.executable, "-c", code, str(folder / f"{number}.in"), str(self.result_pickle)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=self.paths.stderr.open("w"))

    @property
    def state(self) -> str:
        return "RUNNING" if self.process.poll() is None else "NODE_FAIL" if self.process.returncode else "COMPLETED"

    def done(self, force_check: bool = False) -> bool:
        return self.process.poll() is not None

    def exception(self) -> Exception | None:
        self.process.wait()
        if not self.result_pickle.exists():
            return UncompletedJobError("has not produced any output")
        outcome, result = pickle.loads(self.result_pickle.read_bytes())
        return FailedJobError(f"Job failed during processing with trace:\n{result}") if outcome == "error" else None

    def result(self) -> Any:
        return pickle.loads(self.result_pickle.read_bytes())[1]

    def cancel(self, check: bool = True) -> None:
        self.process.send_signal(signal.SIGINT)


class FakeExecutor:
    """The part of submitit.AutoExecutor that the engine uses; it checks parameters as the real one does."""

    SHARED: ClassVar = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
    SLURM: ClassVar = {"slurm_exclusive", "slurm_partition", "slurm_srun_args"}
    parameters: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, folder: Path, cluster: str | None = None) -> None:
        assert cluster == "slurm"
        self.folder = Path(folder).absolute()

    def update_parameters(self, **given: Any) -> None:
        for name, value in given.items():
            assert name in self.SHARED | self.SLURM, name
            assert value is not False, "it would write --exclusive=False"
            if name in self.SHARED and value is not None:
                assert isinstance(value, str if name == "name" else int), name
        self.parameters.append(given)

    def submit(self, function: Callable[..., Any], *given: Any) -> FakeJob:
        return FakeJob(self.folder, (function, *given))
