"""`cgrpo` in processes forked from a server, which pays for the imports once for all tests of a worker.

The processes find each other by RANK, WORLD_SIZE and MASTER_*, as under any launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE_S = 900
"""Seconds after which a command hangs; a busy machine is ten times slower than a quiet one."""

# What every training imports; nothing here starts a thread, which a fork would lose.
PRELOADED = ["forked", "forked_comparison", "customized_grpo.cli.main", "customized_grpo.training.trainer"]
COMMANDS = ["customized_grpo.comparison.run", "customized_grpo.toybox.models"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*PRELOADED, *COMMANDS])


def cgrpo(processes: int, *arguments: str) -> tuple[int, str]:
    """Run the command in that many processes; return the highest exit status and everything printed."""
    port = free_port()
    environments = [launcher_variables(rank, processes, port) for rank in range(processes)]
    return _run(command, arguments, environments)


def script(path: Path | str, *arguments: object) -> str:
    """Run a script, one of this folder or any other, which must succeed; return what it printed."""
    file = str(Path(__file__).parent / path)
    status, printed = _run(_script, (file, *map(str, arguments)), [{}])
    assert status == 0, printed
    return printed


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
            children.append(SERVER.Process(target=target, args=(arguments, environment, str(file))))
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


def _script(arguments: Sequence[str], environment: dict[str, str], printed: str) -> None:
    settle(environment, printed)
    sys.argv = list(arguments)
    runpy.run_path(arguments[0], run_name="__main__")


def settle(environment: Mapping[str, str], printed: str) -> None:
    """Take over an environment with its working directory, and print into a file."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(environment["PWD"])
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
