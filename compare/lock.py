"""A lock that lets one comparison at a time write to a folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compare.errors import UsageError
from compare.record import now

if sys.platform == "win32":
    import msvcrt

    def lock(file: int) -> bool:
        """Lock a byte far behind the text, which stays readable. False: another process holds the lock."""
        os.lseek(file, 2**30, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(file, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def lock(file: int) -> bool:
        """Lock the file. False: another process holds the lock. A file system without locks always returns True."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return not isinstance(error, BlockingIOError)
        return True


@contextmanager
def hold(folder: Path, command: str) -> Iterator[None]:
    """Lock a folder for this process; the system frees it when the process ends in any way.

    Raises:
        UsageError: another process holds the folder, or its .lock is not a comparison's.
        OSError: the folder cannot be written.
    """
    path = folder / ".lock"
    file = take(path)
    if file is None:
        raise UsageError(f"--out {folder} is in use by {holder(path)}; wait for it, or name another folder")
    try:
        os.write(file, json.dumps({"pid": os.getpid(), "since": now(), "command": command}).encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def take(path: Path) -> int | None:
    """Open the lock file and lock it; None where another process holds it.

    A link, or a file that no comparison wrote, is never changed.
    """
    while True:
        if path.is_symlink() or not is_lock(path):
            raise UsageError(
                f"{path} is not the lock file of a comparison but has its name: remove it, or name another folder"
            )
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        if not lock(file):
            os.close(file)
            return None
        # The last holder may remove the file between open and lock; then this lock protects nothing: try again.
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            os.truncate(file, 0)
            return file
        os.close(file)


def mark(folder: Path) -> str:
    """The text of the lock of a folder: equal on two machines that see the same locked folder. "" where it has none."""
    try:
        return (folder / ".lock").read_text(encoding="utf-8")
    except OSError:
        return ""


def is_lock(path: Path) -> bool:
    """Whether a comparison holds or held this file: it is empty, names a process, or was just removed."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return not text or text.startswith(b'{"pid": ')


def holder(path: Path) -> str:
    """The process that holds the folder, in words."""
    try:
        process = json.loads(path.read_text(encoding="utf-8"))
        return f"process {process['pid']} since {process['since']}: {process['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
