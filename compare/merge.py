"""Joins folders of results, of one machine or of several."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from compare.folder import check_records, claim_folder
from compare.record import RETRIED, Identity, Record, identity, read_records, write_atomically
from compare.report import read_environment, write_report
from compare.report.facts.grouping import Source

MODEL = r"models/\w[\w.=-]*"


def merge(folders: Sequence[Path], out: Path, command: str) -> int:
    """Write the records, machines and kept models of all folders into ``out``, and draw its report.

    Each record gets the description of its machine, so that hardware stays apart. Of records of one run on one machine
    the latest counts.

    Returns:
        The exit code: 1 where no folder has a readable record.

    Raises:
        UsageError: a folder without records, or an ``out`` that holds results or cannot be written.
    """
    check_records(folders)
    merged: dict[Identity, tuple[Record, Path]] = {}
    stamps: list[Record] = []
    warnings = []
    for folder in folders:
        records, damaged = read_records(folder / "records.jsonl")
        environment, complaints = read_environment(folder / "environment.json")
        warnings += damaged + complaints
        newest = dict(environment)
        earlier = newest.pop("earlier", [])
        stamps += [stamp for stamp in (*earlier, newest) if stamp not in stamps]
        source = Source(records, environment)
        for record in records:
            own = {key: value for key, value in source.environment_of(record).items() if key != "earlier"}
            placed = record | {"machine": own}
            known = merged.get(identity(placed))
            if known is None or str(known[0].get("started")) <= str(record.get("started")):
                merged[identity(placed)] = placed, folder
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not merged:
        print("error: no folder has a readable record", file=sys.stderr)
        return 1
    stamps.sort(key=lambda stamp: str(stamp.get("started")))
    with claim_folder(out, command, resume=False):
        for record, folder in merged.values():
            copy_model(record, folder, out)
        # Failed runs last: a reader drops one that was tried again later, and these were not.
        records = sorted((record for record, _ in merged.values()), key=lambda record: record["status"] in RETRIED)
        lines = [json.dumps(record, allow_nan=False) for record in records]
        write_atomically(out / "environment.json", json.dumps(stamps[-1] | {"earlier": stamps[:-1]}, indent=1) + "\n")
        write_atomically(out / "records.jsonl", "\n".join(lines) + "\n")
        for sentence in write_report(out).sentences:
            print(sentence)
    print(out / "report.html", flush=True)
    return 0


def copy_model(record: Record, folder: Path, out: Path) -> None:
    """Copy the kept model of a run; where two machines kept one each, the second gets another name."""
    name = str(record.get("model", ""))
    if re.fullmatch(MODEL, name, re.ASCII) is None or not (folder / name).is_dir():  # a record may name any path
        record.pop("model", None)
        return
    names = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
    place = next(free for free in names if not (out / free).exists())
    shutil.copytree(folder / name, out / place)
    record["model"] = place
