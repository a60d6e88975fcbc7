"""Child processes of the tests: their environment, and the command in one or several of them."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).parent
SOURCES = HELPERS.parents[1] / "src"
CGRPO = ("-m", "customized_grpo")
PATIENCE_S = 900
"""Seconds after which a child is said to hang; a busy machine is ten times slower than a quiet one."""


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child, in which the package and these helpers are importable."""
    inherited = os.environ.get("PYTHONPATH")
    folders = [str(HELPERS), str(SOURCES), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **changes}


def run_python(
    *arguments: Any, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and return how it ended and what it printed."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=child_environment(**environment),
        timeout=PATIENCE_S,
    )


def torchrun(processes: int, *arguments: Any, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start torchrun on a free port; `arguments` are a script's path or "-m" and a module, and its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(processes), *map(str, arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(**(env or {})),
    )


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE_S) -> tuple[int, str]:
    """Return the exit status and everything that was printed; kill what does not end."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hangs:\n{out}\n{err}") from None
    return process.returncode, out + err


def on_a_terminal(command: list[str]) -> str:
    """Run a command on a terminal of 80 columns and return everything that it has sent there."""
    terminal, side = pty.openpty()
    with subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, env=child_environment(TERM="xterm", COLUMNS="80")
    ) as process:
        os.close(side)
        sent = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while chunk := os.read(terminal, 65536):
                sent += chunk
    os.close(terminal)
    assert process.returncode == 0, sent
    return sent.decode()
