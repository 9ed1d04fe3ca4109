"""A process that has imported all that runs need, and forks a fresh process for each.

The imports take several seconds, longer than a short run trains. A fork begins where they end: nothing that an earlier
run computed, allocated or started is in it. Only on Linux, and only for runs on a CPU: CUDA allows no fork.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, TextIO

from compare.runs.environ import worker_environment

PRELOADED = (
    "compare.runs.execute",
    "datasets",
    "torch._dynamo",  # by the first optimizer
    "torch.distributed.tensor",  # by accelerate
)
"""What every run imports before its first step."""
LONGEST_MESSAGE = 1024  # bytes: the name of a module, or a number
IDLE: list[Template] = []
"""Templates that wait for their next run."""


class Template:
    """A template, as its supervisor sees it. It serves one run at a time.

    stderr: of the first run, which thus says why it cannot start; or nowhere.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], stderr: IO[str] | int) -> None:
        self.made_by = command, dict(environment)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the supervisor, which ends the run
            )

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A process that a template forked, with what a supervisor uses of ``subprocess.Popen``."""

    def __init__(self, template: Template, module: str, stderr: IO[str]) -> None:
        self.template = template
        self.pid: int | None = None  # until the template has forked
        self.returncode: int | None = None
        self.lock = threading.Lock()
        out, theirs = os.pipe()
        read, write = os.pipe()
        with suppress(BrokenPipeError):  # it is dead; poll says so
            socket.send_fds(template.socket, [module.encode()], [read, theirs, stderr.fileno()])
        os.close(read)
        os.close(theirs)
        self.stdin: TextIO = os.fdopen(write, "w", encoding="utf-8")
        self.stdout: TextIO = os.fdopen(out, encoding="utf-8")

    def poll(self) -> int | None:
        """The exit code, minus the signal that ended it; None while it runs."""
        with self.lock:
            while self.returncode is None:
                try:
                    said = self.template.socket.recv(LONGEST_MESSAGE, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    said = b""
                if not said:  # the template is dead, and with it its fork
                    self.returncode = self.template.process.wait() or -signal.SIGKILL
                elif self.pid is None:
                    self.pid = int(said)
                else:
                    self.returncode = int(said)
        return self.returncode

    def has_begun(self) -> bool:
        """Wait for the answer of an idle template, which may still import; False where it is dead."""
        select.select([self.template.socket], [], [])
        self.poll()
        return self.pid is not None

    def wait(self) -> int:
        while (code := self.poll()) is None:
            select.select([self.template.socket], [], [])
        return code

    def kill(self) -> None:
        """Kill the process and its children; the template too, where it has not forked yet."""
        if self.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid or self.template.process.pid, signal.SIGKILL)

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()

    def release(self) -> None:
        """After the end: keep the template for another run."""
        self.close()
        if self.template.process.poll() is None:
            IDLE.append(self.template)
        else:
            self.template.close()


def fork(module: str, environment: Mapping[str, str], stderr: IO[str]) -> Forked:
    """A process that runs the ``main`` of a module, forked by an idle template that was made in the same way, or by a
    new one. Other idle ones end. environment: its complete environment."""
    command = python_command(__name__)
    while IDLE:
        template = IDLE.pop()
        if template.made_by == (command, dict(environment)):
            process = Forked(template, module, stderr)
            if process.has_begun():
                return process
            process.close()
        template.close()
    return Forked(Template(command, environment, stderr), module, stderr)


def start_early(threads: int) -> None:
    """Let the template of the next ``fork`` import while this process does something else. Other idle ones end.

    threads: of the next run.
    """
    command, environment = python_command(__name__), worker_environment(threads)
    if not any(template.made_by == (command, environment) for template in IDLE):
        close_all()
        IDLE.append(Template(command, environment, subprocess.DEVNULL))


def python_command(module: str) -> list[str]:
    """A Python with the module path of this process, and the current folder last: it finds plug-ins in that folder, but
    a user's tasks.py or random.py hides no other module."""
    code = f"import sys; sys.path[:] = dict.fromkeys(sys.argv[1:] + sys.path); from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, *dict.fromkeys([*sys.path, os.getcwd()])]


@atexit.register
def close_all() -> None:
    while IDLE:
        IDLE.pop().close()


def main() -> None:
    """Fork a process for each module that is named on the socket at stdin, together with its stdin, stdout and stderr.
    Answer with the number of the process, and at its end with its exit code."""
    from compare.runs.child import die_with_parent

    die_with_parent()
    supervisor = socket.socket(fileno=os.dup(0))
    for name in PRELOADED:
        with suppress(Exception):  # the run says it better
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection in a fork would copy every page
    while True:
        module, streams, _, _ = socket.recv_fds(supervisor, LONGEST_MESSAGE, 3)
        if not module:
            return
        pid = os.fork()
        if pid == 0:
            supervisor.close()
            become(module.decode(), streams)
        for stream in streams:
            os.close(stream)
        supervisor.send(str(pid).encode())
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        _, status = os.waitpid(pid, 0)
        supervisor.send(str(os.waitstatus_to_exitcode(status)).encode())


def become(module: str, streams: list[int]) -> None:
    """Run the ``main`` of a module in this fork, and end."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    code = 1
    try:
        importlib.import_module(module).main()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)  # nothing of the template runs in its forks
