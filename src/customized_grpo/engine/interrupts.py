"""Signals as a flag that the loop checks, so that all processes save and leave together."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from customized_grpo.engine.engine import Engine

INSISTENT = {signal.SIGTERM, signal.SIGINT}
"""Signals that end the process at once when they come again: somebody will not wait for the save."""

NOTICES = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU}
"""Signals that only say that the end is near, however often they come.

SIGHUP: the terminal or the ssh connection is gone, and torchrun passes it on. The others: warnings that batch
systems send before a time limit.
"""

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
    """Context manager that turns the first signal into a flag; a second SIGTERM or Ctrl-C ends the process.

    Slurm signals every process of a job, and torchrun passes on the signals that it receives: for SAME_STOP_S
    seconds they count as the first one. A notice that is ignored stays ignored: `nohup` does that to SIGHUP.
    Python gives signals to its main thread alone: in another one, of a notebook or a server, none is taken.

    Args:
        engine: Exchanges the flag with the other processes; None: there are no others.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine
        self.status: int | None = None
        self.since = 0.0

    def __enter__(self) -> StopFlag:
        self._handlers_before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        ignored = {number for number in NOTICES if signal.getsignal(number) is signal.SIG_IGN}
        for number in (INSISTENT | NOTICES) - ignored:
            before = signal.signal(number, self._handle)
            self._handlers_before[number] = signal.SIG_DFL if before is None else before  # None: set in C
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        status = 128 + number  # as a shell reports a death by this signal
        if self.status is None:
            self.status = status
            self.since = time.monotonic()
        elif number in INSISTENT and time.monotonic() - self.since > SAME_STOP_S:
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
