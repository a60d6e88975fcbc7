"""Errors that are meant for the person at the keyboard, and spelling suggestions for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What torch says of memory in errors of no class of their own."""


class UserError(Exception):
    """A mistake the user can fix; the command line prints it as one message and exits with status 2.

    Args:
        message: What is wrong, naming the file, key or number; no full stop at its end.
        hint: How to fix it, in full sentences; None when the message already says so.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


def origin(error: BaseException) -> str:
    """Return where an error was raised, " (my_rules.py, line 12)"; for failures inside code of the user's."""
    traceback = error.__traceback__
    if traceback is None:
        return ""
    # to the innermost frame: the outer ones are of this package
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    file = Path(traceback.tb_frame.f_code.co_filename).name
    return f" ({file}, line {traceback.tb_lineno})"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no more memory, of Python's or of torch's.

    torch, which is not imported here, has a class for it on GPUs alone, and not for all of their errors.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that is spelt most like `word`, or None when none is close."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return close[0] if close else None
