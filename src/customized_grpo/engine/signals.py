"""SIGTERM and Ctrl-C as a flag that the loop looks at: save first, then leave."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Interrupted(Exception):
    """Raised by `StopFlag.check` at a place where nothing is lost.

    Attributes:
        status: Exit status of the process, 128 plus the signal's number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"interrupted, exit status {status}")
        self.status = status


class StopFlag:
    """Context manager that turns the first signal into a flag; a second one ends the process at once."""

    def __init__(self) -> None:
        self.status: int | None = None

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
        if self.status is not None:
            os._exit(status)
        self.status = status

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.status is not None:
            raise Interrupted(self.status)
