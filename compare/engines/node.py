"""What happens on a node of a cluster: one run, as `order` describes it, on cores of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from compare.engines.cores import own_cores
from compare.lock import mark
from compare.record import Record
from compare.runs.limits import usable_cores
from compare.runs.machine import describe_machine, version_of
from compare.runs.options import RunOptions
from compare.runs.supervisor import run_one
from compare.spec import RunSpec

SAME = ("attention-zoo", "torch")
"""Packages that have one version on all machines of a comparison."""


def is_alone(spec: RunSpec) -> bool:
    """Whether a run has its node to itself: what it measures, or how long it trains, depends on time or free memory.

    A run that trains for a number of steps ends the same beside others. On a GPU a run has the GPU to itself.
    """
    return spec.device == "cpu" and (spec.budget is not None or spec.kind not in ("train", "search"))


def order(spec: RunSpec, run_options: RunOptions) -> str:
    """What a node needs to do a run, as a text that other versions can read."""
    out = None if run_options.out is None else Path(run_options.out).resolve()
    return json.dumps(
        {
            "spec": spec.to_json(),
            "options": replace(run_options, out=None if out is None else str(out)).to_json(),
            "lock": None if out is None else mark(out),
            "versions": versions(),
            "paths": [path for path in (*sys.path, os.getcwd()) if path],
        }
    )


def carry_out(text: str, on_event: Callable[[Record], None], warn: Callable[[str], None]) -> Record | str:
    """Do the run of an order on this node.

    Returns:
        Its record, which describes this node; or in one line why nothing can run here.
    """
    ordered = json.loads(text)
    here = versions()
    for package, version in ordered["versions"].items():
        if here[package] != version:
            return f"{node()} has {package} {here[package]}, the comparison {version}: install the same on both"
    sys.path += [path for path in ordered["paths"] if path not in sys.path]  # plug-ins of the comparison's folder
    spec, options = RunSpec.from_json(ordered["spec"]), RunOptions.from_json(ordered["options"])
    if options.out is not None and mark(Path(options.out)) != ordered["lock"]:
        if uses_folder(spec, options):
            return f"{node()} does not see --out {options.out}: expected a folder that all nodes share"
        options = replace(options, out=None)
    whole = usable_cores()
    if whole < spec.threads:  # as where Slurm's srun gives a step fewer cores than its job has
        return f"{node()} gives a run {whole} cores, expected {spec.threads}, its threads: OMP_NUM_THREADS sets them"
    with own_cores(None if is_alone(spec) else spec.threads):
        machine = describe_machine(
            device=spec.device,
            threads=spec.threads,
            gpu=gpu_name(os.environ.get("CUDA_VISIBLE_DEVICES")) if spec.device == "cuda" else None,
            command=str(options.machine.get("command", "")),
        )
        if machine["cores"] != whole:
            machine["of_cores"] = whole
        record = run_one(spec, on_event, replace(options, machine=machine), warn)
    return {"machine": machine} | record


def uses_folder(spec: RunSpec, options: RunOptions) -> bool:
    """Whether a run reads or writes models or curves in the folder of the results. Checkpoints it can do without."""
    others = (name for name in (spec.teacher, spec.start) if name is not None)
    return options.keeps(spec) or bool(options.track) or not all(Path(name).is_dir() for name in others)


def versions() -> dict[str, str | None]:
    """Package -> its version here, without what tells builds for CPU and GPU apart."""
    found = {name: version_of(name) for name in SAME}
    return {name: version and version.partition("+")[0] for name, version in found.items()}


def node() -> str:
    return f"node {platform.node()}"


@lru_cache
def gpu_name(_visible: str | None) -> str:
    """The name of the first visible GPU, from a process of its own: this one must hold none of its memory."""
    code = "import torch; print(torch.cuda.get_device_name())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "unknown GPU"
