"""`cgrpo` in processes forked from a server, which pays for the imports once for all tests of a worker.

The processes find each other by RANK, WORLD_SIZE and MASTER_*, as under any launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from processes import PATIENCE_S, child_environment

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["preloaded", "forked", "forked_comparison"])


def process(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Return a process of the server, not yet started, which will call `target` with these arguments."""
    path = os.environ.get("PYTHONPATH")
    # Old versions hand no sys.path to the server, which leaves out in silence what it cannot import.
    os.environ["PYTHONPATH"] = child_environment()["PYTHONPATH"]
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return SERVER.Process(target=target, args=arguments)


def cgrpo(processes: int, *arguments: str) -> tuple[int, str]:
    """Run the command in that many processes; return the highest exit status and everything printed."""
    port = free_port()
    environments = [launcher_variables(rank, processes, port) for rank in range(processes)]
    return _run(command, arguments, environments)


def script(path: Path | str, *arguments: object) -> str:
    """Run a script, one of this folder or any other, which must succeed; return what it printed."""
    file = str(Path(__file__).parent / path)
    status, printed = _run(_python, (file, *map(str, arguments)), [{}])
    assert status == 0, printed
    return printed


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script, or what `-c` or `-m` say, as `processes.run_python` does in a fresh interpreter."""
    return run([sys.executable, *map(str, arguments)], env=child_environment(**environment))


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE_S,
    **_: object,
) -> subprocess.CompletedProcess[str]:
    """Do with a command of Python what `subprocess.run` does; all that it prints is captured as text."""
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder) / "printed.txt", Path(folder) / "errors.txt"
        printed.touch()
        errors.touch()
        environment = {**(os.environ if env is None else env), "PWD": str(cwd or Path.cwd())}
        child = process(_python, list(command[1:]), environment, str(printed), str(errors))
        child.start()
        child.join(timeout)
        hangs = child.is_alive()
        child.kill()
        child.join()
        out, err = printed.read_text(), errors.read_text()
    if hangs:
        raise subprocess.TimeoutExpired(command, timeout, out, err)
    assert child.exitcode is not None
    return subprocess.CompletedProcess(command, child.exitcode, out, err)


class Popen:
    """Does what `measurements/first_gpu.py` asks of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.command = command
        self.options = options
        self.returncode: int | None = None

    def communicate(self, timeout: float) -> tuple[str, str]:
        done = run(self.command, timeout=timeout, **self.options)
        self.returncode = done.returncode
        return done.stdout, done.stderr


SUBPROCESS = SimpleNamespace(
    run=run, Popen=Popen, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
)
"""Stands for the module `subprocess` in a program whose processes are to be forks."""


def _run(
    target: Callable[[Sequence[str], dict[str, str], str], None],
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]],
) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"printed_{rank}.txt" for rank in range(len(environments))]
        children = []
        for own, file in zip(environments, files, strict=True):
            # The server was started in another folder than this process may be in by now.
            environment = {**os.environ, "PWD": str(Path.cwd()), **own}
            children.append(process(target, arguments, environment, str(file)))
        for child in children:
            child.start()
        for child in children:
            child.join(PATIENCE_S)
        hanging = [child for child in children if child.is_alive()]
        for child in hanging:
            child.kill()
            child.join()
        printed = "\n".join(file.read_text() for file in files)
    assert not hanging, f"it hangs:\n{printed}"
    return max(child.exitcode or 0 for child in children), printed


def launcher_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what a launcher sets; a single process is started without one."""
    if processes == 1:
        return {}
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    return {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(arguments: Sequence[str], environment: dict[str, str], printed: str) -> None:
    """Run the command in this process, which leaves with its status."""
    from customized_grpo.cli.main import main

    settle(environment, printed)
    sys.exit(main(arguments))


def _python(
    arguments: Sequence[str], environment: dict[str, str], printed: str, errors: str | None = None
) -> None:
    settle(environment, printed, errors)
    option, *rest = arguments
    if option == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(option).parent))
        runpy.run_path(option, run_name="__main__")


def settle(environment: Mapping[str, str], printed: str, errors: str | None = None) -> None:
    """Take over an environment with its working directory; print into a file, what goes to stderr too."""
    assert "preloaded" in sys.modules, "the server could not import it, and each child pays for its imports"
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(environment["PWD"])
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file if errors is None else os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
