"""One trainer per run folder, by a lock that dies with its process.

The lock is the kernel's (flock), not the file's existence: after a crash or SIGKILL the next trainer gets it
without cleaning up. The content of the file is only for the message to the second trainer.

Some network mounts have no such locks. There a second file takes their place, which only one process can
create and which its owner removes; one that a dead process of this host has left is removed too.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import psutil

from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.links import check_folders_stay_inside, open_in_place

logger = logging.getLogger(__name__)

START_TOLERANCE_S = 2.0
"""A lock file says the second in which its owner took it; the owner was born before."""

FILE = "lock"
OWNER = "lock.owner"
"""Taken instead of the lock where the file system has none."""
FILES = (FILE, OWNER)

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What flock says on Lustre without its option, on NFS without lockd, and on some FUSE mounts."""


class Held(UserError):
    """Another process has the lock."""


class RunLock:
    """Exclusive lock on a run folder; a context manager, or `acquire` and `release`.

    A process forked from the holder shares the lock and keeps it until it exits as well.

    Args:
        folder: An existing run folder. Only the main process of a distributed run takes the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._owner_file = folder / OWNER
        self._descriptor: int | None = None
        self._is_by_file = False

    @property
    def descriptor(self) -> int:
        """Return the open lock file, for a child process that is to keep the lock until it ends as well."""
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    def acquire(self) -> None:
        """Take the lock at once, without waiting.

        Raises:
            Held: Another process holds it; the message names its pid, host and start.
            UserError: The folder cannot be written, or a link in it leads elsewhere.
        """
        assert self._descriptor is None, "the lock is held already"
        check_folders_stay_inside(self.path.parent)
        try:
            descriptor = open_in_place(self.path, os.O_RDWR)
        except OSError as error:
            raise UserError(
                f"cannot lock run folder {self.path.parent}: {error.strerror}",
                hint="The folder must exist and be writable.",
            ) from error
        try:
            self._lock(descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _owner())
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"cannot lock {self.path}: {error.strerror}") from error
        except BaseException:  # also an interrupt: a lock that nobody knows of would never be given back
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip()
            raise Held(
                f"another process is training in {self.path.parent}: {owner or 'it has just started'}",
                hint="Wait for it, stop it, or choose another run folder with run.dir.",
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._create_owner_file()
            logger.warning(
                "the file system of %s has no locks (%s); %s keeps other trainers away instead",
                self.path.parent,
                error.strerror,
                OWNER,
            )

    def _create_owner_file(self) -> None:
        """Take the place of the lock.

        Raises:
            Held: Another process has it, or may have it.
        """
        if self._owner_file.exists() and _is_dead(self._owner_file):
            self._owner_file.unlink(missing_ok=True)
        try:
            descriptor = os.open(self._owner_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError as error:
            owner = self._owner_file.read_text(errors="replace").strip()
            raise Held(
                f"another process is training in {self.path.parent}: {owner or 'it has just started'}",
                hint=f"If that process has ended (this file system cannot tell), delete {self._owner_file}.",
            ) from error
        self._is_by_file = True
        with open(descriptor, "wb") as file:
            file.write(_owner())

    def release(self) -> None:
        """Give the lock back."""
        assert self._descriptor is not None, "the lock is not held"
        # The file stays: were it unlinked, a second and a third trainer could lock two different files.
        os.close(self._descriptor)
        if self._is_by_file:
            self._owner_file.unlink(missing_ok=True)
            self._is_by_file = False
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


@dataclass(frozen=True)
class Holder:
    """Who has taken the lock of a folder last.

    Attributes:
        pid: Its process.
        host: Name of its machine.
        is_here: Whether that is this machine.
        is_alive: Whether the process still runs; None on another machine, which cannot be asked.
    """

    pid: int
    host: str
    is_here: bool
    is_alive: bool | None


def last_holder(folder: Path) -> Holder | None:
    """Return who has taken the lock of a folder last; None if nobody did, or the file does not say.

    It only reads: taking the lock, even for an instant, could turn a trainer away. So a process that has
    given the lock back and goes on with something else counts as its holder.
    """
    file = folder / FILE
    try:
        owner = read_json(file) if file.is_file() else {}
        started = datetime.fromisoformat(str(owner.get("started")))
    except (UserError, ValueError):  # just being written
        return None
    pid = owner.get("pid")
    host = owner.get("host")
    if not isinstance(pid, int) or not isinstance(host, str):
        return None
    is_here = host == socket.gethostname()
    return Holder(pid, host, is_here, _runs_since(pid, started) if is_here else None)


def _runs_since(pid: int, moment: datetime) -> bool:
    """Return whether a process is alive and was so at a moment: after its end its number goes to others."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.create_time() <= moment.timestamp() + START_TOLERANCE_S
    except (psutil.Error, ValueError):  # ValueError: a pid below 0, from a foreign file
        return False


def _is_dead(owner_file: Path) -> bool:
    """Return whether the owner is a process of this host that has ended."""
    try:
        owner = read_json(owner_file)
    except UserError:  # it has just begun to write, or was killed as it did
        return False
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        # signal 0 reaches nobody: it only asks whether there is such a process
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return False


def _owner() -> bytes:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    return (json.dumps(owner) + "\n").encode()
