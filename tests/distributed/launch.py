"""Starts the command in several real processes on this machine, as a user would: by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(processes: int, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start torchrun on a free port; `arguments` are a script's path or "-m" and a module, and its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(processes), *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **(env or {})},
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    """Return the exit status and everything that was printed; kill what does not end."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hangs:\n{out}\n{err}") from None
    return process.returncode, out + err


def cgrpo(processes: int, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the command in that many processes; one is started without torchrun."""
    if processes > 1:
        return finish(torchrun(processes, "-m", "customized_grpo", *arguments, env=env))
    done = subprocess.run(
        [sys.executable, "-m", "customized_grpo", *arguments],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **(env or {})},
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


HERE = Path(__file__).parent
