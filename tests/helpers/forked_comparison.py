"""`cgrpo compare` in a forked process, whose doctor and trainings are forks of it: imports are paid for once.

Everything is as in processes of their own but the interpreter: a session, the environment of a slot, the log,
and of the open files the claim alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from children import leave_with
from forked import command, process


def start(folder: Path, *arguments: str) -> tuple[BaseProcess, Path]:
    """Start `cgrpo` with these arguments; return its process and the file of what it prints."""
    printed = folder / "printed.txt"
    printed.unlink(missing_ok=True)
    child = process(_compare, arguments, {**os.environ, "PWD": str(Path.cwd())}, str(printed))
    child.start()
    return child, printed


def _compare(arguments: Sequence[str], environment: dict[str, str], printed: str) -> None:
    from customized_grpo.comparison import run, runner

    runner.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=_Fork, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
    )
    run.subprocess = SimpleNamespace(run=_run)  # type: ignore[assignment]
    command(arguments, environment, printed)


def _run(arguments: Sequence[str], *, env: Mapping[str, str], check: bool) -> Any:
    """Do what `subprocess.run` does."""
    assert not check
    fork = _Fork(arguments, env=env)
    fork.wait()
    return fork


class _Fork:
    """Does what the runner asks of `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        stdout: IO[bytes] | None = None,
        stderr: int = subprocess.STDOUT,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
    ) -> None:
        assert list(arguments[:3]) == [sys.executable, "-m", "customized_grpo"]
        assert (stdin, stderr) == (subprocess.DEVNULL, subprocess.STDOUT)
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        if start_new_session:
            os.setsid()
        leave_with(lambda: _become(arguments[3:], env, stdout, pass_fds))

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def _become(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None,
    pass_fds: Sequence[int],
) -> int:
    """Leave the state of the parent behind and run the command; return its status."""
    from commands import status

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2 and descriptor not in pass_fds:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    return status(*arguments)
