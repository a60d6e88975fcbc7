"""SIGTERM and Ctrl-C as a flag that the loop checks, so that all processes save and leave together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from customized_grpo.engine.engine import Engine

EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
SAME_STOP_S = 2.0
"""Seconds within which a further signal counts as the first one again, because launchers pass signals on."""


class Interrupted(Exception):
    """Raised by `StopFlag.check` where nothing is lost.

    Attributes:
        status: Exit status of the process, 128 plus the signal's number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"interrupted, exit status {status}")
        self.status = status


class StopFlag:
    """Context manager that turns the first signal into a flag; a second one ends the process at once.

    Slurm signals every process of a job, and torchrun passes on the signals that it receives: for SAME_STOP_S
    seconds they count as the first one.

    Args:
        engine: Exchanges the flag with the other processes; None: there are no others.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine
        self.status: int | None = None
        self.since = 0.0

    def __enter__(self) -> StopFlag:
        self._handlers_before = {number: signal.signal(number, self._handle) for number in EXIT_STATUS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        status = EXIT_STATUS[signal.Signals(number)]
        if self.status is None:
            self.status = status
            self.since = time.monotonic()
        elif time.monotonic() - self.since > SAME_STOP_S:
            os._exit(status)

    def check(self) -> None:
        """Raise Interrupted if any process has received a signal; all processes must call this."""
        status = self.status or 0
        if self.engine is not None:
            status = int(self.engine.largest(status))
        if status:
            raise Interrupted(status)

    def batch_check(self, n_batches: int) -> Callable[[], None]:
        """Return a `check` to call before each of this process's batches, of which others may have fewer.

        Args:
            n_batches: Number of batches of this process.
        """
        # An exchange that not every process comes to would never end: only the first so many batches check.
        n_checks = n_batches if self.engine is None else int(self.engine.smallest(n_batches))
        n_calls = 0

        def check() -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls <= n_checks:
                self.check()

        return check
