"""`cgrpo` in this process, which has paid for its imports already; processes.py runs it in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess

from customized_grpo.cli.main import main


def status(*arguments: str) -> int:
    """Run a command and return its exit status; typer leaves by SystemExit, `main` returns its own."""
    try:
        return main(arguments)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return how it ended and what it printed, as `processes.run_python` does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = status(*arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
