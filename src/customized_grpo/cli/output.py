"""Standard output and error as a convenience: whatever happens to them, the work goes on.

A terminal is closed, the reader of a pipe ends, the disk of a log is full, or an encoding lacks a character:
none of that is an error of the work, least of all of a training. So `main` puts a `LenientStream` in place of
both streams, and every print, progress bar, warning and log line passes through it. There foreign text also
loses its power over the terminal, wherever it was printed.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from customized_grpo.disk import FULL
from customized_grpo.plain_text import printable

PATIENCE_S = 3.0
"""Seconds after which silence needs a word: torch and diffusers take longer on a busy or slow machine."""

_HARMLESS = re.compile(r"(?:\n|\x1b\[A)+|\x1b\[0m")
"""Whole writes that stay: how tqdm moves between bars, and how colorama resets colours when Python ends."""


class LenientStream:
    """A text stream whose `write` and `flush` never fail.

    Characters that the encoding lacks and control characters are written as escapes. Text that the stream
    refuses is dropped.

    Args:
        stream: The stream to write to.
        is_verbatim: Whether control characters are written as they are.

    Attributes:
        loss: The first error because of which text was dropped; None: nothing was.
        is_used: Whether anything was written.
    """

    def __init__(self, stream: TextIO, *, is_verbatim: bool = False) -> None:
        self._stream = stream
        self._is_verbatim = is_verbatim
        self.loss: OSError | None = None
        self.is_used = False

    def __getattr__(self, name: str) -> Any:
        # libraries ask a stream for isatty, fileno, encoding and more
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it; return its length."""
        self.is_used = True
        shown = text if self._is_verbatim or _HARMLESS.fullmatch(text) else printable(text, keep="\n\t\r")
        try:
            try:
                self._stream.write(shown)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._note(error)
        # also for what was dropped: with a smaller number callers would try again
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what is buffered, or keep it for later."""
        try:
            self._stream.flush()
        except OSError as error:
            self._note(error)

    def finish(self) -> None:
        """Send what is buffered for the last time, or the interpreter would fail with it at its exit."""
        try:
            self._stream.flush()
        except OSError as error:
            self._note(error)
            self._silence()

    @property
    def rich_proxied_file(self) -> LenientStream:
        """Return the stream for the live display of rich, which looks for one of this name.

        It draws with control characters; whoever gives it foreign text makes that `printable` first.
        """
        return LenientStream(self._stream, is_verbatim=True)

    @property
    def was_full(self) -> bool:
        """Return whether text is missing although somebody may still read the rest."""
        return self.loss is not None and self.loss.errno in FULL

    def _note(self, error: OSError) -> None:
        self.loss = self.loss or error
        if error.errno not in FULL:  # the reader or the terminal is gone, while a disk may get room again
            self._silence()

    def _silence(self) -> None:
        """Point the stream at /dev/null, for libraries in C and children too: they share the descriptor."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # no file of the operating system, or closed
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


@contextmanager
def lenient_output() -> Iterator[LenientStream]:
    """Make `sys.stdout` and `sys.stderr` lenient inside the block; give the stream of `sys.stdout`."""
    _open_missing()
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        # a stream that was closed before the start (`>&-`) is None
        out, err = LenientStream(streams[0] or nowhere), LenientStream(streams[1] or nowhere)
        sys.stdout, sys.stderr = out, err
        try:
            yield out
        finally:
            out.finish()
            err.finish()
            sys.stdout, sys.stderr = streams


@contextmanager
def word_while_loading() -> Iterator[None]:
    """Say on a terminal that libraries are being loaded, if the block has said nothing after some seconds.

    The block is inside `lenient_output`.
    """
    streams = sys.stdout, sys.stderr

    def say() -> None:
        if not any(getattr(stream, "is_used", True) for stream in streams):
            print("loading the libraries ...", file=streams[1], flush=True)

    timer = threading.Timer(PATIENCE_S, say)
    timer.daemon = True
    # several processes on one terminal would all say it
    if sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _open_missing() -> None:
    """Open /dev/null for a standard stream that is closed.

    Otherwise the next file to be opened, such as metrics.jsonl, would get its number, and with it everything
    that a library in C or a child prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
