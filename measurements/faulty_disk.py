"""A disk that fails: from a chosen call on, calls that reach files below one folder raise what a disk does.

In this process, so that thousands of faults cost no new interpreter. Calls are those of `os` and `open`,
through which pathlib, shutil and Pillow go, and the one call of safetensors. What C libraries write by
themselves is seen when they open a file, not at each write.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
from safetensors import SafetensorError

FAULTS = ("ENOSPC", "EIO", "EROFS", "KILL")
"""A full disk (all that needs space fails from then on), one failure of the hardware, a mount that turns
read-only (all that changes something fails from then on), and SIGKILL (nothing happens any more)."""

NEEDS_SPACE = ("make", "write")
CHANGES = ("make", "write", "sync", "move", "remove")

_real_open = io.open
_readlink = os.readlink


class Killed(BaseException):
    """The end of the process; what it does while it unwinds does not reach the disk."""


class FaultyDisk:
    """Counts the calls that reach files below a folder, and lets them fail from one of them on.

    Args:
        root: The folder.
        fault: One of `FAULTS`; None: only count.
        at: Number of the first call that fails, from 0.

    Attributes:
        calls: Each call so far as "kind name".
        failed: Whether a call has failed.
    """

    def __init__(self, root: Path, fault: str | None = None, at: int = 0) -> None:
        self.root = str(root.resolve())
        self.fault = fault
        self.at = at
        self.calls: list[str] = []
        self.failed = False

    def reach(self, kind: str, target: Any) -> None:
        """Count a call that reaches a path or descriptor, and raise if it is to fail."""
        path = self._path(target)
        if not path.startswith(self.root):
            return
        number = len(self.calls)
        self.calls.append(f"{kind} {path}")
        if self.fault is None or number < self.at:
            return
        is_hit = {
            "ENOSPC": kind in NEEDS_SPACE,
            "EIO": number == self.at,
            "EROFS": kind in CHANGES,
            "KILL": True,
        }[self.fault]
        if not is_hit:
            return
        self.failed = True
        if self.fault == "KILL":
            raise Killed
        code = getattr(errno, self.fault)
        if kind in ("write", "sync"):  # as the kernel's: they know no name
            raise OSError(code, os.strerror(code))
        raise OSError(code, os.strerror(code), path)

    @property
    def is_dead(self) -> bool:
        """Return whether the process was killed."""
        return self.fault == "KILL" and self.failed

    def _path(self, target: Any) -> str:
        if isinstance(target, int):
            try:
                return _readlink(f"/proc/self/fd/{target}")
            except OSError:
                return ""
        return os.path.abspath(os.fsdecode(target))

    @contextmanager
    def installed(self) -> Iterator[FaultyDisk]:
        """Put this disk in the place of the real one inside the block."""
        with ExitStack() as stack:

            def replace(owner: Any, name: str, kind: str, position: int = 0) -> None:
                stack.enter_context(
                    mock.patch.object(owner, name, self._around(getattr(owner, name), kind, position))
                )

            for name in ("mkdir", "symlink"):
                replace(os, name, "make", 1 if name == "symlink" else 0)
            for name in ("replace", "rename", "link"):
                replace(os, name, "move", 1)
            for name in ("unlink", "remove", "rmdir"):
                replace(os, name, "remove")
            for name in ("fsync", "ftruncate", "chmod"):
                replace(os, name, "sync")
            for name in ("write", "sendfile"):
                replace(os, name, "write")
            stack.enter_context(mock.patch.object(os, "open", self._os_open(os.open)))
            stack.enter_context(mock.patch.object(safetensors.torch, "save_file", self._save_file()))
            for owner in (builtins, io):
                stack.enter_context(mock.patch.object(owner, "open", self._open))
            yield self

    def _around(self, call: Callable[..., Any], kind: str, position: int) -> Callable[..., Any]:
        def reached(*args: Any, **kwargs: Any) -> Any:
            target = args[position]
            folder = kwargs.get("dir_fd")
            self.reach(kind, target if folder is None else os.path.join(self._path(folder), target))
            return call(*args, **kwargs)

        return reached

    def _os_open(self, call: Callable[..., int]) -> Callable[..., int]:
        def reached(path: Any, flags: int, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> int:
            kind = "make" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "read"
            self.reach(kind, path if dir_fd is None else os.path.join(self._path(dir_fd), path))
            return call(path, flags, *args, dir_fd=dir_fd, **kwargs)

        return reached

    def _save_file(self) -> Callable[..., None]:
        call = safetensors.torch.save_file

        def reached(tensors: Any, path: Any, *args: Any) -> None:
            try:
                self.reach("make", path)
            except OSError as error:
                raise SafetensorError(
                    f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                ) from None
            call(tensors, path, *args)

        return reached

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        is_read = not set(mode) & set("wxa+")
        if isinstance(file, int) or not self._path(file).startswith(self.root):
            return _real_open(file, mode, buffering, *args, **kwargs)
        self.reach("read" if is_read else "make", file)
        if is_read:
            return _real_open(file, mode, buffering, *args, **kwargs)
        raw = _Raw(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, *args, **kwargs)


class _Raw(io.FileIO):
    """A file whose writes go through the disk; a killed process leaves half of the last one."""

    def __init__(self, disk: FaultyDisk, file: Any, mode: str) -> None:
        self.disk = disk
        self.path = os.fspath(file)
        super().__init__(self.path, mode)

    def write(self, data: Any) -> int:
        if self.disk.is_dead:  # what is still in a buffer is lost
            return len(data)
        try:
            self.disk.reach("write", self.path)
        except Killed:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


def sample(count: int, at_most: int | None, draw: random.Random) -> list[int]:
    """Return all numbers below `count`, or a sorted sample of them."""
    numbers = range(count)
    return list(numbers) if at_most is None or count <= at_most else sorted(draw.sample(numbers, at_most))
