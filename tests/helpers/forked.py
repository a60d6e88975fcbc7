"""`cgrpo` in processes forked from a server, which pays for the imports once for all tests of a worker.

The processes find each other by RANK, WORLD_SIZE and MASTER_*, as under any launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PATIENCE_S = 900
"""Seconds after which a command hangs; a busy machine is ten times slower than a quiet one."""

# What every training imports; nothing here starts a thread, which a fork would lose.
PRELOADED = ["forked", "customized_grpo.cli.main", "customized_grpo.training.trainer"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*PRELOADED, "customized_grpo.toybox.models"])


def cgrpo(processes: int, *arguments: str) -> tuple[int, str]:
    """Run the command in that many processes; return the highest exit status and everything printed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"printed_{rank}.txt" for rank in range(processes)]
        children = []
        for rank, file in enumerate(files):
            environment = {**os.environ, **launcher_variables(rank, processes, port)}
            children.append(SERVER.Process(target=command, args=(arguments, environment, str(file))))
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

    os.environ.clear()
    os.environ.update(environment)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(main(arguments))
