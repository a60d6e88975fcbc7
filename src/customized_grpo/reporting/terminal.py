"""Live displays on standard error: they draw with control characters, and nothing else does.

While rich draws live, it takes the place of `sys.stdout` and `sys.stderr`, so that prints appear above the
display. Its stand-in hides the stream that the display may draw on, and passes on whatever is printed.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.text import Text

from customized_grpo.plain_text import printable
from customized_grpo.reporting.lines import wrapped


def terminal_console(*, quiet: bool = False) -> Console:
    """Return a console on standard error, live only if that is a terminal.

    Args:
        quiet: Whether it writes nothing.
    """
    stream: Any = sys.stderr
    if isinstance(stream, FileProxy):
        stream = stream.rich_proxied_file
    # Asked for now: behind rich's stand-in the stream for drawing is not found, and colours appear as text.
    return Console(file=getattr(stream, "rich_proxied_file", stream), quiet=quiet)


def print_sentence(console: Console, text: str) -> None:
    """Print text, which is not read as markup: broken between words on a terminal, in one line elsewhere."""
    shown = printable(text)
    if console.is_terminal:
        shown = wrapped(shown, console.width)
    # soft_wrap, because rich would break lines at 80 columns in a file, and long paths on a terminal
    console.print(Text(shown), soft_wrap=True)


def keep_prints_inert() -> None:
    """Escape what is printed while a live display is open; closing the display takes this away again."""
    if isinstance(sys.stdout, FileProxy):
        sys.stdout = _Inert(sys.stdout)
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = _Inert(sys.stderr)


class _Inert:
    """A stream that escapes control characters."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._stream.write(printable(text, keep="\n\t"))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)
