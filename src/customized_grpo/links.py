"""Links in the folder of a run, which may come from somebody else: nothing is written through one.

`files.replacing` puts a file in the place of a link. Here is what files that are written in place need, and
folders.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from customized_grpo.errors import UserError


def open_in_place(path: Path, flags: int) -> int:
    """Open a file that is written where it is, creating it; return its descriptor.

    Args:
        path: The file.
        flags: As for `os.open`, such as `os.O_WRONLY | os.O_APPEND`.

    Raises:
        UserError: There is a symbolic link, or something else that is no plain file.
        OSError: It cannot be opened.
    """
    hint = "Remove it: a file of a run must not lead elsewhere."
    try:
        # without O_NONBLOCK a named pipe would be waited for
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UserError(f"{path} is a symbolic link or a pipe, not a plain file", hint=hint) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a plain file", hint=hint)
    return descriptor


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether a path in a folder leads out of it, by symbolic links or `..`."""
    inside = os.path.realpath(folder)
    # part by part and not letter by letter: `runs/a-2` is not in `runs/a`
    return os.path.commonpath([inside, os.path.realpath(path)]) != inside


def check_folders_stay_inside(folder: Path) -> None:
    """Refuse a run folder in which a folder is a link out of it: files would be written and deleted there.

    The folder itself may be a link, and links that stay inside do no harm.

    Raises:
        UserError: Names the link.
    """
    inside = folder.resolve()
    for place, names, _ in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} is a symbolic link out of {folder}; files of a run are not written elsewhere",
                    hint="Remove the link, or keep the whole run where it leads, with run.dir.",
                )
