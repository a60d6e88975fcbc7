"""Errors that are meant for the person at the keyboard."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can fix; the command line prints it as one message and exits with status 2.

    Args:
        message: What is wrong, naming the file, key or number.
        hint: How to fix it, as a sentence; None when the message already says so.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint
