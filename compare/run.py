"""Run specs one after another, each in a fresh process, and write a record as each ends."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from compare.environ import worker_environment
from compare.progress import Progress
from compare.record import RETRIED, Record, append_record, other_data, read_records
from compare.spec import DataId, RunSpec
from compare.worker import RunOptions, make_task, new_record, record_of_crash

OnEvent = Callable[[Record], None]


def run_all(
    specs: Sequence[RunSpec],
    records: Path,
    progress: Progress,
    unprepared: dict[DataId, str],
    run_options: RunOptions,
    notes: Mapping[str, Record] | None = None,
) -> list[Record]:
    """Run what has no record yet; ``records`` holds the finished runs at any moment.

    Runs with ``unprepared`` data become records of status ``error``, with the reason given. Runs that ended in
    ``error`` or ``timeout`` are tried again; every other status is a finished run. ``notes``: what to add to a record,
    by run_id.

    Returns:
        One record for each spec.

    Raises:
        OSError: a record could not be written; ``filename`` says where.
    """
    finished = {}
    if records.exists():
        known, warnings = read_records(records)
        for warning in warnings:
            progress.warn(warning)
        finished = {r["run_id"]: r for r in known if r["status"] not in RETRIED}
        for what, stale in of_other_data(specs, finished, unprepared).items():
            progress.warn(f"{what}: finished runs of the old data are run again: {len(stale)}")
            finished = {run_id: record for run_id, record in finished.items() if run_id not in stale}
    done = [finished[s.run_id] for s in specs if s.run_id in finished]
    if done:
        progress.say(f"{len(done)} of {len(specs)} runs are already in {records}")
    with progress.comparing(specs, done):
        for spec in specs:
            if spec.run_id in finished:
                continue
            progress.started(spec)
            if spec.data_id in unprepared:
                record = new_record(spec, "error", unprepared[spec.data_id])
            else:
                record = run_one(spec, progress.update, run_options, progress.warn)
            record |= {"command": reproduce(spec), "machine": run_options.machine} | (notes or {}).get(spec.run_id, {})
            append_record(records, record)
            checkpoint = run_options.checkpoint_of(spec)
            if checkpoint is not None and record["status"] not in RETRIED:
                with suppress(OSError):  # the folder holds others, or no checkpoint was made
                    checkpoint.unlink(missing_ok=True)
                    checkpoint.parent.rmdir()
            finished[spec.run_id] = record
            progress.finished(spec, record)
    return [finished[spec.run_id] for spec in specs]


def of_other_data(
    specs: Sequence[RunSpec], finished: Mapping[str, Record], unprepared: Mapping[DataId, str]
) -> dict[str, list[str]]:
    """The run_ids of finished runs whose data is not that of now, by what changed."""
    found: dict[str, list[str]] = {}
    data: dict[DataId, Record] = {}
    for spec in specs:
        of_record = finished.get(spec.run_id, {}).get("data")
        if of_record and spec.data_id not in unprepared:
            if spec.data_id not in data:
                data[spec.data_id] = make_task(spec).facts["data"]
            if changed := other_data(of_record, data[spec.data_id]):
                what = f"{spec.task} · N {spec.seq_len}: the data changed ({changed})"
                found.setdefault(what, []).append(spec.run_id)
    return found


def run_one(
    spec: RunSpec,
    on_event: OnEvent,
    run_options: RunOptions | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Record:
    """Run one spec in a fresh Python and return its record, whatever becomes of it."""
    run_options = run_options or RunOptions()
    started, kills = time.perf_counter(), oom_kills()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(
            worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=worker_environment(spec),
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends the worker
        )
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            end(process)

        alarm = threading.Timer(min(run_options.timeout or math.inf, threading.TIMEOUT_MAX), stop)
        alarm.daemon = True
        alarm.start()
        last: Record = {}
        try:
            with suppress(BrokenPipeError):  # it died at once; its exit says why
                process.stdin.write(f"{spec.to_json()}\n{run_options.to_json()}")
                process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                if "record" in event:
                    return dict(event["record"])
                if "warning" in event:
                    warn(event["warning"])
                else:
                    last = event
                    on_event(event)
            returncode = process.wait()
        finally:
            alarm.cancel()
            end(process)  # which has nothing left to do where its record came, and would take seconds to say so
            process.wait()
        stderr.seek(0)
        where, wall = place_of(last), time.perf_counter() - started
        if late.is_set():
            reason = f"not done after {run_options.timeout:g} s; stopped in {where}"
            return new_record(spec, "timeout", reason) | {"wall_seconds": wall}
        no_memory = kills is None or oom_kills() != kills
        return record_of_crash(spec, returncode, stderr.read(), wall, where=where, no_memory=no_memory)


def worker_command() -> list[str]:
    """Python that looks for modules where this process does, and in the current folder last: a plug-in is found there,
    and a user's tasks.py or random.py hides nothing."""
    start = "import sys; sys.path[:] = dict.fromkeys(sys.argv[1:] + sys.path); from compare.worker import main; main()"
    return [sys.executable, "-P", "-c", start, *dict.fromkeys([*sys.path, os.getcwd()])]


def end(process: subprocess.Popen[str]) -> None:
    """Kill a worker that lives, and what it started."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def oom_kills() -> int | None:
    """Processes that the system ended for want of memory since it started; None where it does not count them."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def place_of(event: Record) -> str:
    """Where a run was at its last event, in words."""
    if not event:
        return "starting"
    return f"{event['phase']}, after step {event['step']}" if event["step"] is not None else str(event["phase"])


def reproduce(spec: RunSpec) -> str:
    """The command that repeats this run alone. Options go by name, and seeds count from 0.

    Runs of a search and probes of memory are repeated as ordinary runs at their learning rate and length.
    """
    command = "python -m compare cost --decode" if spec.decode else "python -m compare"
    words = [f"{command} --no-control", f"--variants {spec.variant}", f"--tasks {spec.task}"]
    words += [f"--set {spec.variant}.{name}={value}" for name, value in spec.options]
    words += [shlex.join(["--set", f"{spec.task}.{name}={value}"]) for name, value in spec.task_options]
    words += [f"--seq-len {spec.seq_len}", f"--seeds {spec.seed + 1}"]
    words += [f"--batch-size {spec.batch_size}"]
    words += [f"--d-model {spec.d_model}", f"--n-heads {spec.n_heads}", f"--n-layers {spec.n_layers}"]
    words += [
        f"--activation {spec.activation}",
        f"--positions {spec.positions}",
        f"--device {spec.device}",
        f"--dtype {spec.dtype}",
    ]
    if not spec.decode:
        words.append(f"--steps {spec.steps}" if spec.steps is not None else f"--budget {spec.budget:g}")
        words += [f"--accumulate {spec.accumulate}", f"--lr {spec.lr:g}", f"--weight-decay {spec.weight_decay:g}"]
        words += [f"--lr-schedule {spec.lr_schedule}", f"--warmup {spec.warmup:g}"]
        words.append(f"--length-schedule {spec.length_schedule}")
        words += [f"--test-len {','.join(map(str, spec.test_lens))}"] if spec.test_lens else []
    words += ["--causal"] * spec.causal + ["--checkpointing"] * spec.checkpointing + ["--reversible"] * spec.reversible
    words += ["--compile"] * spec.compile
    words += [f"--memory-limit {spec.memory_limit}"] if spec.memory_limit else []
    return " ".join(words)
