"""Writing down why a session of a run ended, for people who come back to it and for its pages."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.engine.interrupts import Interrupted
from customized_grpo.errors import UserError
from customized_grpo.reporting.ending import How, write_ending


@contextmanager
def noted_ending(run_dir: Path, *, is_writer: bool) -> Iterator[None]:
    """Write down why the block was left, if it was not left at its end; the error goes on.

    Args:
        run_dir: The run folder.
        is_writer: Whether this process writes into it.
    """
    try:
        yield
    except BaseException as error:
        if is_writer:
            write_ending(run_dir, *_reason(error))
        raise


def _reason(error: BaseException) -> tuple[How, str]:
    if isinstance(error, Interrupted):
        return "interrupted", _signal_name(error.status - 128)
    if isinstance(error, UserError):
        return "stopped", error.message
    # The name alone: the text of a foreign error can repeat a key, and a report is sent around.
    return "failed", f"{type(error).__name__}, see the end of its output"


def _signal_name(number: int) -> str:
    name = signal.Signals(number).name
    return "Ctrl-C (SIGINT)" if number == signal.SIGINT else name
