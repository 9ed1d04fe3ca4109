"""The folder of a comparison: locked against other processes, stamped with the machine of its runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from compare.display import Display
from compare.errors import UsageError
from compare.lock import hold
from compare.record import write_atomically
from compare.report import foreign_files, read_environment
from compare.report.facts.grouping import machine_line


@contextmanager
def claim_folder(folder: Path, command: str, *, resume: bool | None = None) -> Iterator[None]:
    """Create a folder, and lock it against other processes. A new folder that stays empty is removed, with new parents.

    resume: whether to continue the runs in the folder; None: only a report is drawn into it.

    Raises:
        UsageError: the folder cannot be written, another process holds it, or it has files that must not be replaced.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    is_new = bool(made)
    if resume and is_new:
        raise UsageError(f"--resume: folder {folder} does not exist; leave out --resume to start a comparison in it")
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(folder, command))
            except OSError as error:
                raise UsageError(f"--out {folder} cannot be written: {error.strerror}") from error
            if not resume and any((folder / name).exists() for name in ("records.jsonl", "checkpoints")):
                advice = "leave out --out to draw its report" if resume is None else "add --resume to continue them"
                raise UsageError(f"--out {folder} holds results already: {advice}, or name another folder")
            if not is_new:
                check_foreign(folder)
            yield
    finally:
        with suppress(OSError):  # a folder that is not empty
            for path in made:
                path.rmdir()


def check_foreign(folder: Path) -> None:
    """Raise UsageError where a report would replace a file that no report wrote."""
    if foreign := foreign_files(folder):
        raise UsageError(
            f"{folder / foreign[0]} was not written by a comparison, and the report would replace it: "
            "move it, or name another folder"
        )


def check_records(folders: Sequence[Path]) -> None:
    """Raise UsageError unless each folder has records."""
    for folder in folders:
        if not (folder / "records.jsonl").is_file():
            raise UsageError(f"{folder} has no records.jsonl: name a folder that a comparison wrote")


def stamp_folder(folder: Path, machine: dict[str, object], display: Display) -> None:
    """Record the machine of the next runs; the machines of earlier runs stay beside it."""
    path = folder / "environment.json"
    known = read_environment(path)[0] if path.exists() else {}
    earlier = known.pop("earlier", [])
    if known:
        if machine_line(known) != machine_line(machine):
            display.warn(
                f"earlier runs in this folder come from another machine ({machine_line(known)}): the report separates "
                f"them from the runs on this one ({machine_line(machine)})"
            )
        machine = machine | {"earlier": [*(earlier if isinstance(earlier, list) else []), known]}
    write_atomically(path, json.dumps(machine, indent=1) + "\n")


def go_on(folder: Path) -> str:
    """How to continue an interrupted comparison, in words."""
    return f"continue with --out {shlex.quote(str(folder))} --resume"
