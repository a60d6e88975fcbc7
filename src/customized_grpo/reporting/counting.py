"""Progress of a known number of images: a bar on a terminal, a line at every tenth elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from customized_grpo.reporting.terminal import keep_prints_inert, print_sentence, terminal_console


def counting(what: str, total: int, *, console: Console | None = None) -> Counting:
    """Return a progress display of `total` things, to be closed at the end.

    Args:
        what: What is done with them, "drawing".
        total: How many there are.
        console: Where to write; standard error by default.
    """
    return Counting(what, total, console or terminal_console())


class Counting:
    """See `counting`."""

    def __init__(self, what: str, total: int, console: Console) -> None:
        self._what = what
        self._total = total
        self._console = console
        self._done = 0
        # without markup: rich would read text in brackets as a style, and drop it
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(what, total=total)
        if console.is_terminal:
            self._bar.start()
            keep_prints_inert()

    def add(self, count: int) -> None:
        """Count so many more."""
        # Before and after: a batch may pass several tenths, and says one line all the same.
        tenths = self._done * 10 // self._total
        self._done += count
        if self._console.is_terminal:
            self._bar.advance(self._task, count)
        elif self._done * 10 // self._total > tenths:
            self.note(f"{self._what} {self._done}/{self._total}")

    def note(self, text: str) -> None:
        """Write a line that stays."""
        print_sentence(self._console, text)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
