"""What the disk refuses, as a message; and whether a folder can be written, asked before any work is done."""

from __future__ import annotations

import errno
import secrets
import shutil
from pathlib import Path

from customized_grpo.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
BROKEN = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV}
UNFIT = {
    errno.ENAMETOOLONG,
    errno.EEXIST,  # a folder where a file of ours belongs, or the other way round
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EXDEV,
    errno.EBUSY,
    errno.EMFILE,
}

DISK_ERRORS = FULL | FORBIDDEN | BROKEN | UNFIT
"""Errors that say something of a disk or a path, not of the program."""


def disk_error(error: OSError) -> UserError:
    """Return an error of `DISK_ERRORS` as one message that says what can be done."""
    path = Path(error.filename) if isinstance(error.filename, str) else None
    message = f"{path or 'the disk'}: {error.strerror}"
    if error.errno in FULL and path is not None:
        message += f" ({_free_bytes(path):,} bytes are free there)"
    hint = f"{way_out(error)} Files that are there are whole; call the same command again."
    return UserError(message, hint=hint)


def way_out(error: OSError) -> str:
    """Return what can be done where the disk refuses to be written to, a sentence or two."""
    if error.errno in FULL:
        return "Free some space, or choose another place."
    if error.errno in FORBIDDEN:
        return "Choose another place, or change the permissions or the mount."
    if error.errno in BROKEN:
        return "The disk or the connection to it fails; see to that first."
    return "Choose another place."


def _free_bytes(path: Path) -> int:
    # the nearest that is there: what was to be written may have new folders above it
    for folder in path.absolute().parents:
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made; nothing is left in it.

    Raises:
        UserError: It cannot be written.
    """
    # by trying: permissions say nothing of a mount that is full or read-only
    probe = folder / f".{secrets.token_hex(8)}.probe"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}",
            hint="Choose another place, or change the permissions or the mount.",
        ) from error
