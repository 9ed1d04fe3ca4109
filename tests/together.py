"""Several processes that train together, for tests of what they share: ``python -m tests.together`` is one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from compare.launch import Seat
from compare.runs.communicated import sent_bytes
from compare.runs.data import make_task
from compare.runs.model import Model
from compare.runs.ranks import ALONE, Ranks, join
from compare.runs.train import Trainer
from compare.spec import RunSpec
from tests.here import few_samples

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """One training: from the state in a file, if one is named, and with its state after some steps into another."""

    spec: RunSpec
    begin: str | None = None
    leave: str | None = None
    leave_after: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"spec": self.spec.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Case:
        fields = json.loads(text)
        return cls(**fields | {"spec": RunSpec.from_json(fields["spec"])})


@few_samples(48)
def train(case: Case, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train, test, and tell the curve, the test, the weights and buffers as sums, and what a last step sends."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(case.spec, make_task(case.spec), None, ranks)
    if case.begin is not None:
        trainer.restore(torch.load(case.begin, weights_only=True))

    def on_step(_seconds: float) -> None:
        if case.leave is not None and trainer.progress.step == case.leave_after:
            state = trainer.state()
            if ranks.rank == 0:
                torch.save(state, case.leave)

    trained = trainer.train(lambda *_: None, on_step=on_step)
    test = trainer.evaluate("test")
    weights = ranks.plain(trainer.trained, lambda: Model(case.spec, trainer.task)).state_dict()
    first = next(trainer.task.train_batches(case.spec.batch_size, case.spec.seq_len, case.spec.seed))
    held = trainer.held_bytes()
    return {
        "curve": trained["curve"],
        "test": [test.loss, test.score, test.size],
        "weights": {name: float(x.double().square().sum()) for name, x in weights.items()},
        "buffers": {name: float(x.double().sum()) for name, x in trainer.trained.named_buffers()},
        "held": held,
        "sent": sent_bytes(lambda: trainer.step(trainer.to_device(first), trainer.training_tally())),
    }


def train_alone(cases: Mapping[str, Case]) -> dict[str, dict[str, Any]]:
    """The result of ``train`` for each case, in this process, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: train(case) for name, case in cases.items()}
    finally:
        torch.set_num_threads(threads)


@contextmanager
def meeting_place() -> Iterator[int]:
    """The port of a store, as torchrun opens one."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    yield store.port


def train_together(cases: Sequence[Case], size: int) -> list[list[dict[str, Any]]]:
    """The results of ``train`` for each case, in so many processes: for each process a list."""
    given = "\n".join(case.to_json() for case in cases).encode()
    with meeting_place() as port, ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile()) for _ in range(size)]
        processes = []
        for rank in range(size):
            seat = Seat(rank=rank, size=size, address="127.0.0.1", port=port, prefix="")
            words = [sys.executable, "-m", "tests.together", seat.to_json()]
            stdin = files.enter_context(tempfile.TemporaryFile())
            stdin.write(given)
            stdin.seek(0)
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(words, stdin=stdin, stdout=said[rank], cwd=ROOT, env=environment))
        try:
            assert [process.wait(200) for process in processes] == [0] * size
        finally:
            for process in processes:
                process.kill()
        for file in said:
            file.seek(0)
        return [[json.loads(line) for line in file] for file in said]


def main() -> None:
    seat = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for number, line in enumerate(sys.stdin.read().splitlines()):
        case = Case.from_json(line)
        ranks = join(Seat(**seat | {"prefix": f"case-{number}"}), case.spec)
        print(json.dumps(train(case, ranks)), flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
