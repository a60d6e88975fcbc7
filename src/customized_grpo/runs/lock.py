"""One trainer per run folder, by a lock that dies with its process.

The lock is the kernel's (flock), not the file's existence: after a crash or SIGKILL the next trainer gets it
without cleaning up. What the file holds is only for the message to the second trainer.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from customized_grpo.errors import UserError

FILE = "lock"


class RunLock:
    """Context manager that holds `folder/lock` exclusively while the body runs.

    A process forked from the holder shares the lock and keeps it until it exits too.

    Args:
        folder: An existing run folder. Only the main process of a distributed run takes the lock.

    Raises (on entering):
        UserError: Another process holds it (the message names its pid, host and start), or the folder cannot
            be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """Return the open lock file, for a child process that shall keep the lock until it ends, too."""
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    def acquire(self) -> None:
        """Take the lock or raise UserError at once; never wait."""
        assert self._descriptor is None, "a RunLock is taken once at a time"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot lock run folder {self.path.parent}: {error.strerror}.",
                hint="The folder must exist and be writable.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _owner())
        except BlockingIOError as error:
            owner = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise UserError(
                f"another process is training in {self.path.parent}: {owner or 'it has just started'}",
                hint="Wait for it, stop it, or choose another run folder with run.dir.",
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"cannot lock {self.path}: {error.strerror}.") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        assert self._descriptor is not None, "the lock is not held"
        # The file stays: were it unlinked, a second and a third trainer could lock two different files.
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> RunLock:
        """Take the lock, see `acquire`."""
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self.release()


def _owner() -> bytes:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    return (json.dumps(owner) + "\n").encode()
