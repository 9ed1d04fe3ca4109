"""Runs specs through an engine, and writes a record after each: the only writer of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from compare.display import Display
from compare.engines.base import Engine
from compare.engines.local import Local
from compare.record import RETRIED, Record, append_record, other_data, read_records
from compare.runs.data import make_task
from compare.runs.kept import RECORD
from compare.runs.options import RunOptions
from compare.runs.outcome import Status, new_record
from compare.spec import DataId, RunSpec, reproduce


def run_all(
    specs: Sequence[RunSpec],
    records: Path,
    display: Display,
    unprepared: dict[DataId, str],
    run_options: RunOptions,
    notes: Mapping[str, Record] | None = None,
    engine: Engine | None = None,
) -> list[Record]:
    """Run the specs that have no record yet; ``records`` holds the finished runs at any moment.

    Runs with ``unprepared`` data get a record with status ``error`` and the reason. Runs with status ``error`` or
    ``timeout`` are tried again; every other status is a finished run. A run that needs the model of another waits for
    its record. ``notes``: run_id -> fields to add to its record. engine: None = this machine, one run after another.

    Returns:
        One record for each spec.

    Raises:
        OSError: a record could not be written; ``filename`` names the file.
        UsageError: the engine's machines cannot do the runs.
    """
    finished = finished_runs(specs, records, display, unprepared, run_options)
    done = [finished[s.run_id] for s in specs if s.run_id in finished]
    if done:
        display.say(f"{len(done)} of {len(specs)} runs are already in {records}")
    waiting = {spec.run_id: spec for spec in specs if spec.run_id not in finished}
    unfinished = set(waiting)

    def take() -> RunSpec | None:
        for spec in list(waiting.values()):
            if record := without_run(spec, unprepared, finished):
                del waiting[spec.run_id]
                display.started(spec)
                finish(spec, record)
            elif unfinished.isdisjoint((spec.teacher, spec.start)):
                return waiting.pop(spec.run_id)
        return None

    def finish(spec: RunSpec, record: Record) -> None:
        record = {"machine": run_options.machine} | record | {"command": reproduce(spec)}
        record |= (notes or {}).get(spec.run_id, {})
        append_record(records, record)
        checkpoint = run_options.checkpoint_of(spec)
        if checkpoint is not None and record["status"] not in RETRIED:
            with suppress(OSError):  # the folder has other checkpoints, or none was made
                checkpoint.unlink(missing_ok=True)
                checkpoint.parent.rmdir()
        finished[spec.run_id] = record
        unfinished.discard(spec.run_id)
        display.finished(spec, record)

    with (
        display.comparing(specs, done),
        closing((engine or Local()).results(take, run_options, display)) as results,
    ):
        for spec, record in results:
            finish(spec, record)
    return [finished[spec.run_id] for spec in specs]


def finished_runs(
    specs: Sequence[RunSpec],
    records: Path,
    display: Display,
    unprepared: Mapping[DataId, str],
    run_options: RunOptions,
) -> dict[str, Record]:
    """run_id -> the record of a run that is not repeated; says which are repeated, and why."""
    if not records.exists():
        return {}
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
    return finished


def without_run(spec: RunSpec, unprepared: Mapping[DataId, str], finished: Mapping[str, Record]) -> Record | None:
    """The record of a run that cannot begin: its data or the model that it needs failed; None of any other run."""
    if spec.data_id in unprepared:
        return new_record(spec, "error", unprepared[spec.data_id])
    needed = [finished[name] for name in (spec.teacher, spec.start) if name is not None and name in finished]
    failed = next((record for record in needed if record["status"] != "ok"), None)
    if failed is None:
        return None
    status: Status = "error" if failed["status"] in RETRIED else "unsupported"
    reason = f"it needs the model of {failed['label']}, whose run ended with status {failed['status']}"
    return new_record(spec, status, reason)


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
