"""One trainer per run folder, by a lock that dies with its process.

The lock is the kernel's (flock), not the file's existence: after a crash or SIGKILL the next trainer gets it
without cleaning up. The content of the file is only for the message to the second trainer.
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
    """Exclusive lock on a run folder; a context manager, or `acquire` and `release`.

    A process forked from the holder shares the lock and keeps it until it exits as well.

    Args:
        folder: An existing run folder. Only the main process of a distributed run takes the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """Return the open lock file, for a child process that is to keep the lock until it ends as well."""
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    def acquire(self) -> None:
        """Take the lock at once, without waiting.

        Raises:
            UserError: Another process holds it (the message names its pid, host and start), or the folder
                cannot be written.
        """
        assert self._descriptor is None, "the lock is held already"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot lock run folder {self.path.parent}: {error.strerror}",
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
            raise UserError(f"cannot lock {self.path}: {error.strerror}") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        assert self._descriptor is not None, "the lock is not held"
        # The file stays: were it unlinked, a second and a third trainer could lock two different files.
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _owner() -> bytes:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    return (json.dumps(owner) + "\n").encode()
