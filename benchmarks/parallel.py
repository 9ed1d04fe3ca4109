"""What several processes cost: memory a process, tokens per second and bytes communicated, against one process.

    python -m benchmarks.parallel --out results/parallel
    python -m benchmarks.parallel --processes 2,4 --variants full --seq-len 1024 --out DIR

Each line is a run of ``python -m compare cost``, under torchrun where it has several processes: ``data`` is torch's
DistributedDataParallel, ``shard`` its FSDP2, ``pipeline`` its schedule 1F1B, left out where the processes do not divide
the layers. Every process has one thread, and on a CPU all share one machine: more processes than cores show no speed.
DIR gets the records and the report of `compare`, and the table as ``parallel.json`` and ``parallel.md``; what it has
already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compare.parallel import KINDS, processes_of
from compare.quantities import COMMUNICATED, SPEED, TRAINING_MEMORY, Quantity
from compare.record import Record, read_records, write_atomically

COLUMNS: tuple[Quantity, ...] = (TRAINING_MEMORY, SPEED, COMMUNICATED)


def measure(parallel: str | None, words: Sequence[str], out: Path) -> None:
    """Add the records of one number of processes to a folder.

    Raises:
        SystemExit: the command failed; it said why.
    """
    command = [sys.executable, "-m"]
    if parallel is not None:
        command += ["torch.distributed.run", "--nproc-per-node", str(processes_of(parallel)), "-m"]
    command += ["compare", "cost", "--no-control", "--quiet", "--out", str(out), *words]
    command += ["--resume"] * out.exists()
    command += [] if parallel is None else ["--parallel", parallel]
    if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode:
        sys.exit(f"error: failed: {shlex.join(command)}")


def table(records: Sequence[Record]) -> list[dict[str, object]]:
    """A row for each record: variant, processes, kind, and the three quantities (None where one was not measured)."""
    return [
        {
            "variant": record["label"],
            "processes": processes_of(record["spec"].get("parallel")),
            "parallel": record["spec"].get("parallel") or "one process",
            "status": record["status"],
            **{quantity.field: record.get(quantity.field) for quantity in COLUMNS},
        }
        for record in records
    ]


def markdown(rows: Sequence[dict[str, object]]) -> str:
    titles = ["memory a process", "tokens/s of all", "sent by a process a step"]
    lines = [f"| variant | processes | {' | '.join(titles)} |", "|---|---|--:|--:|--:|"]
    for row in rows:
        cells = [
            quantity.show(value) if isinstance(value := row[quantity.field], int | float) else ""
            for quantity in COLUMNS
        ]
        lines.append(f"| {row['variant']} | {row['parallel']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description=__doc__.split("\n")[0])
    parser.add_argument("--processes", default="2,4", help="numbers of processes beside one (default: %(default)s)")
    parser.add_argument("--variants", default="full,linear", help="names of variants (default: %(default)s)")
    parser.add_argument("--seq-len", default="1024", help="length of the samples (default: %(default)s)")
    parser.add_argument("--batch-size", default="8", help="samples of all processes (default: %(default)s)")
    parser.add_argument("--n-layers", type=int, default=2, help="layers of the encoder (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    words = ["--tasks", "mqar", "--variants", options.variants, "--seq-len", options.seq_len]
    words += ["--n-layers", str(options.n_layers), "--batch-size", options.batch_size, "--device", options.device]
    measure(None, words, options.out)
    for size in map(int, options.processes.split(",")):
        for kind in KINDS:
            if kind != "pipeline" or options.n_layers % size == 0:
                measure(f"{kind}={size}", words, options.out)
    rows = table(read_records(options.out / "records.jsonl")[0])
    write_atomically(options.out / "parallel.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(options.out / "parallel.md", markdown(rows))
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
