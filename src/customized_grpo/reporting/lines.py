"""Sentences on a terminal, which would break lines inside words."""

from __future__ import annotations

import shutil
import sys
import textwrap


def terminal_width() -> int | None:
    """Return the columns of the terminal that standard output is; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(text: str) -> str:
    """Return text whose lines are at most as wide as a terminal, broken between words; unbroken elsewhere.

    Args:
        text: Lines of sentences, and of tables, which fit already.
    """
    width = terminal_width()
    return text if width is None else wrapped(text, width)


def wrapped(text: str, width: int) -> str:
    """Return text in lines of at most `width` columns, broken between words; a longer word stays whole."""
    lines = []
    for line in text.split("\n"):
        broken = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        # `wrap` would also take the blanks of a line that fits
        lines += broken if len(line) > width else [line]
    return "\n".join(lines)
