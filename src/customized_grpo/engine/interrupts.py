"""SIGTERM and Ctrl-C as a flag that the loop looks at: save first, then leave, all processes together."""

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
SAME_STOP_S = 2.0  # seconds in which further signals are the first one again, as launchers pass it on, too


class Interrupted(Exception):
    """Raised by `StopFlag.check` at a place where nothing is lost.

    Attributes:
        status: Exit status of the process, 128 plus the signal's number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"interrupted, exit status {status}")
        self.status = status


class StopFlag:
    """Context manager that turns the first signal into a flag; a second one ends the process at once.

    Slurm signals every process of a job, and torchrun passes on what it gets: within SAME_STOP_S seconds
    that is still the first one.

    Args:
        engine: Tells the other processes of a signal that came to one of them; None: there are no others.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine
        self.status: int | None = None
        self.since = 0.0

    def __enter__(self) -> StopFlag:
        self._before = {number: signal.signal(number, self._handle) for number in EXIT_STATUS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        status = EXIT_STATUS[signal.Signals(number)]
        if self.status is None:
            self.status, self.since = status, time.monotonic()
        elif time.monotonic() - self.since > SAME_STOP_S:
            os._exit(status)

    def check(self) -> None:
        """Raise Interrupted if a signal has come to any process; all of them must call this."""
        status = self.status or 0
        if self.engine is not None:
            status = int(self.engine.largest(status))
        if status:
            raise Interrupted(status)

    def between(self, batches: int) -> Callable[[], None]:
        """Return a check to call before each of this process's batches, of which others may have fewer."""
        shared = batches if self.engine is None else int(self.engine.smallest(batches))
        calls = 0

        def check() -> None:
            nonlocal calls
            calls += 1
            if calls <= shared:
                self.check()

        return check
