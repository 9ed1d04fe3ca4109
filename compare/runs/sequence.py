"""Runs specs one after another, each in a fresh process, and writes a record after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from compare.display import Display
from compare.record import RETRIED, Record, append_record, other_data, read_records
from compare.runs.crew import run_one
from compare.runs.data import make_task
from compare.runs.kept import RECORD
from compare.runs.options import RunOptions
from compare.runs.outcome import Status, new_record
from compare.spec import DataId, RunSpec, reproduce

OnEvent = Callable[[Record], None]


def run_all(
    specs: Sequence[RunSpec],
    records: Path,
    display: Display,
    unprepared: dict[DataId, str],
    run_options: RunOptions,
    notes: Mapping[str, Record] | None = None,
) -> list[Record]:
    """Run the specs that have no record yet; ``records`` holds the finished runs at any moment.

    Runs with ``unprepared`` data get a record with status ``error`` and the reason. Runs with status ``error`` or
    ``timeout`` are tried again; every other status is a finished run. ``notes``: run_id -> fields to add to its record.

    Returns:
        One record for each spec.

    Raises:
        OSError: a record could not be written; ``filename`` names the file.
    """
    finished = {}
    if records.exists():
        known, warnings = read_records(records)
        for warning in warnings:
            display.warn(warning)
        finished = {r["run_id"]: r for r in known if r["status"] not in RETRIED}
        wanted = {name for spec in specs if spec.run_id not in finished for name in (spec.teacher, spec.start)}
        for name in wanted & set(run_options.keep) & set(finished):  # it ended before another run needed its model
            kept = records.parent / str(finished[name].get("model")) / RECORD
            if finished[name]["status"] == "ok" and not kept.is_file():
                del finished[name]
        for what, stale in of_other_data(specs, finished, unprepared).items():
            display.warn(f"{what}: finished runs on the old data are repeated: {len(stale)}")
            finished = {run_id: record for run_id, record in finished.items() if run_id not in stale}
    done = [finished[s.run_id] for s in specs if s.run_id in finished]
    if done:
        display.say(f"{len(done)} of {len(specs)} runs are already in {records}")
    with display.comparing(specs, done):
        for spec in specs:
            if spec.run_id in finished:
                continue
            display.started(spec)
            if spec.data_id in unprepared:
                record = new_record(spec, "error", unprepared[spec.data_id])
            elif failed := failed_teacher(spec, finished):
                status: Status = "error" if failed["status"] in RETRIED else "unsupported"
                reason = f"it needs the model of {failed['label']}, whose run ended with status {failed['status']}"
                record = new_record(spec, status, reason)
            else:
                record = run_one(spec, display.update, run_options, display.warn)
            record |= {"command": reproduce(spec), "machine": run_options.machine} | (notes or {}).get(spec.run_id, {})
            append_record(records, record)
            checkpoint = run_options.checkpoint_of(spec)
            if checkpoint is not None and record["status"] not in RETRIED:
                with suppress(OSError):  # the folder has other checkpoints, or none was made
                    checkpoint.unlink(missing_ok=True)
                    checkpoint.parent.rmdir()
            finished[spec.run_id] = record
            display.finished(spec, record)
    return [finished[spec.run_id] for spec in specs]


def failed_teacher(spec: RunSpec, finished: Mapping[str, Record]) -> Record | None:
    """The record of the run whose model this one needs, where that run failed."""
    needed = [finished[name] for name in (spec.teacher, spec.start) if name is not None and name in finished]
    return next((record for record in needed if record["status"] != "ok"), None)


def of_other_data(
    specs: Sequence[RunSpec], finished: Mapping[str, Record], unprepared: Mapping[DataId, str]
) -> dict[str, list[str]]:
    """What changed -> the run_ids of finished runs whose data differs from today's."""
    stale: dict[str, list[str]] = {}
    data: dict[DataId, Record] = {}
    for spec in specs:
        of_record = finished.get(spec.run_id, {}).get("data")
        if of_record and spec.data_id not in unprepared:
            if spec.data_id not in data:
                data[spec.data_id] = make_task(spec).facts["data"]
            if changed := other_data(of_record, data[spec.data_id]):
                what = f"{spec.task} · N {spec.seq_len}: the data changed ({changed})"
                stale.setdefault(what, []).append(spec.run_id)
    return stale
